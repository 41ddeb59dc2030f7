"""Two daemons, two applications and a side channel between them: what tests, bench and demo do again and again.

The daemons are real processes in a laboratory's hosts. Both applications live in this process; pathname Unix sockets
do not care about network namespaces. The side channel is a delay, and may lose, keep back or watch tokens.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio
import trio.lowlevel

from punchd.client import AttemptError, Connected, Event, OkProbe, Relay
from punchd.client.options import AttemptOptions, Passable
from punchd.client.trio_client import Daemon
from punchd.wire.token import Kind, decode
from tests.natlab import Host

START_S = 20.0  # a daemon that takes longer on a loaded machine is taken for hung
DATAGRAM_S = 5.0

TrioSocket = trio.socket.SocketType


@dataclass(slots=True)
class RunningDaemon:
    """A punchd process in a host. `path` is its Unix socket."""

    process: subprocess.Popen[bytes]
    path: str

    async def until_ready(self) -> None:
        """Wait until it takes connections.

        Raises:
            RuntimeError: it ended instead.
        """
        with trio.fail_after(START_S):
            while True:
                try:
                    (await trio.open_unix_socket(self.path)).socket.close()
                except OSError:
                    if self.process.poll() is not None:
                        raise RuntimeError(f"punchd ended with {self.process.returncode}") from None
                    await trio.sleep(0.01)
                else:
                    return

    def stop(self) -> int:
        """Ask it to stop, as a service manager would, and wait; its exit code."""
        self.process.terminate()
        try:
            return self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


@contextmanager
def daemons(places: Sequence[tuple[Host, Sequence[str]]]) -> Iterator[list[RunningDaemon]]:
    """A daemon in each host, with these arguments; they are stopped at the end. See `RunningDaemon.until_ready`."""
    running: list[RunningDaemon] = []
    with tempfile.TemporaryDirectory(prefix="punchd-test-") as directory:
        try:
            for number, (host, arguments) in enumerate(places):
                path = str(Path(directory) / f"{number}.socket")
                command = [sys.executable, "-m", "punchd.cli.punchd", "--socket", path, "--mode", "600"]
                quiet = [] if "--log-level" in arguments else ["--log-level", "error"]
                running.append(RunningDaemon(host.popen([*command, *quiet, *arguments]), path))
            yield running
        finally:
            for daemon in running:
                daemon.process.terminate()
            for daemon in running:
                daemon.stop()


def stun_arguments(servers: Sequence[str]) -> list[str]:
    """Command line of a daemon that asks these servers."""
    return [word for server in servers for word in ("--stun", server)]


@dataclass(slots=True)
class Channel:
    """The side channel of two applications.

    Attributes:
        delay_s: one way.
        back: whether the responder's tokens reach the initiator.
        watch: is shown every token and says whether it may pass.
    """

    delay_s: float = 0.0
    back: bool = True
    watch: Callable[[str, bool], bool] = lambda token, from_initiator: True


@dataclass(slots=True)
class End:
    """What one application got. Times are trio's, seconds."""

    connected: Connected[TrioSocket] | None = None
    error: AttemptError | None = None
    at: float = 0.0
    events: list[tuple[float, Event]] = field(default_factory=list)


@dataclass(slots=True)
class Outcome:
    """What came of one attempt.

    Attributes:
        responded_at: when the `respond` line was written.
        given_up: how many sockets of the responder were dead, as an offer after ok said (line protocol, "Races").
        broken: what became of the connection when it was used.
    """

    initiator: End = field(default_factory=End)
    responder: End = field(default_factory=End)
    responded_at: float = 0.0
    given_up: int = 0
    broken: list[str] = field(default_factory=list)

    @property
    def connected(self) -> bool:
        """Both hold a socket, of one pair of ends as far as NATs let one see that."""
        return self.initiator.connected is not None and self.responder.connected is not None

    @property
    def seconds(self) -> float:
        """From the `respond` line to the later verdict."""
        return max(self.initiator.at, self.responder.at) - self.responded_at

    def explain(self) -> str:
        """Both verdicts, in words."""
        verdicts = [f"initiator: {_verdict(self.initiator)}", f"responder: {_verdict(self.responder)}"]
        return "; ".join([*verdicts, *(f"then {what}" for what in self.broken)])

    def close(self) -> None:
        for end in (self.initiator, self.responder):
            if end.connected is not None:
                end.connected.socket.close()


def _verdict(end: End) -> str:
    if end.connected is not None:
        return f"ok {end.connected.technique} {end.connected.local} <-> {end.connected.remote}"
    return f"{end.error.code}: {end.error}" if end.error is not None else "no verdict"


@asynccontextmanager
async def applications(a: str, b: str) -> AsyncIterator[tuple[Daemon, Daemon]]:
    """A connection to each of two daemons."""
    async with Daemon.connect(a) as first, Daemon.connect(b) as second:
        yield first, second


async def attempt(
    a: Daemon,
    b: Daemon,
    *,
    own: tuple[OkProbe, OkProbe] | None = None,
    late_s: float = 0.0,
    channel: Channel | None = None,
    timeout_ms: int = 8000,
    techniques: str = "udp",
    ttl: int | None = None,
    on_event: Callable[[str, Event], object] = lambda name, event: None,
    passed: tuple[Passable | None, Passable | None] = (None, None),
) -> Outcome:
    """A initiates towards B, whose application is `late_s` late; both probe first unless `own` was probed before.

    A side that has `passed` a socket in does not use the port that it probed, unless that is a TCP port.
    """
    channel = channel or Channel()
    protocol = "tcp" if techniques.startswith("tcp") else "udp"
    own_a, own_b = own or (await a.probe(protocol), await b.probe(protocol))
    outcome = Outcome()
    to_b, at_b = trio.open_memory_channel[str](64)
    to_a, at_a = trio.open_memory_channel[str](64)
    initiator_ended = trio.Event()

    async def relay(nursery: trio.Nursery, token: str, target: trio.MemorySendChannel[str], delay_s: float) -> None:
        async def carry() -> None:
            await trio.sleep(delay_s)
            await target.send(token)

        if channel.watch(token, target is to_b):
            nursery.start_soon(carry)

    chosen_ttl: AttemptOptions = {} if ttl is None else {"ttl": ttl}

    async def initiate(nursery: trio.Nursery) -> None:
        options: AttemptOptions = {"timeout_ms": timeout_ms, **chosen_ttl, **_port(own_a, passed[0], protocol)}
        async with a.initiate(own_b.ip, own_b.ports, techniques=techniques, **options) as running:

            async def send(token: str) -> None:
                await relay(nursery, token, to_b, channel.delay_s)

            await _finish(
                outcome.initiator, running.connect(send, at_a, on_event=_note(outcome.initiator, "a", on_event))
            )
            await trio.lowlevel.checkpoint()
        initiator_ended.set()

    async def respond(nursery: trio.Nursery) -> None:
        async def send(token: str) -> None:
            if channel.back:
                await relay(nursery, token, to_a, channel.delay_s)

        offer: str | None = await at_b.receive()
        await trio.sleep(late_s)
        outcome.responded_at = trio.current_time()
        again: AttemptOptions = {"timeout_ms": timeout_ms + 1000, **chosen_ttl}
        options: AttemptOptions = {**again, **_port(own_b, passed[1], protocol)}
        while offer is not None:
            end = outcome.responder
            async with b.respond(offer, peer=own_a.ip, **options) as running:
                await _finish(end, running.connect(send, at_b, on_event=_note(end, "b", on_event)))
            offer = await next_offer() if end.connected is not None else None
            if offer is not None and end.connected is not None:
                end.connected.socket.close()
                end.connected, options = None, again
                outcome.given_up += 1

    async def next_offer() -> str | None:
        """An offer after ok; None if the initiator ends without another one."""
        found: str | None = None

        async def listen() -> None:
            nonlocal found
            while found is None:
                token = await at_b.receive()
                if decode(token).kind is Kind.OFFER:
                    found = token
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            await initiator_ended.wait()
            nursery.cancel_scope.cancel()
        return found

    try:
        async with trio.open_nursery() as carriers:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(initiate, carriers)
                nursery.start_soon(respond, carriers)
            carriers.cancel_scope.cancel()
    except BaseException:
        outcome.close()
        raise
    return outcome


def _port(own: OkProbe, passed: Passable | None, protocol: str) -> AttemptOptions:
    if passed is None:
        return {"lport": own.lport}
    return {"sock": passed} if protocol == "udp" else {"sock": passed, "lport": own.lport}


def _note(end: End, name: str, on_event: Callable[[str, Event], object]) -> Callable[[Event], None]:
    def note(event: Event) -> None:
        end.events.append((trio.current_time(), event))
        on_event(name, event)

    return note


async def _finish(end: End, connecting: object) -> None:
    try:
        end.connected = await connecting  # type: ignore[misc]
    except AttemptError as error:
        end.error = error
    end.at = trio.current_time()


async def exchange(outcome: Outcome, count: int = 1, size: int = 100) -> tuple[int, int]:
    """Send `count` datagrams each way; how many arrived, unaltered, at the responder and at the initiator.

    A connection that breaks meanwhile is noted in the outcome.
    """
    if outcome.initiator.connected is None or outcome.responder.connected is None:
        return 0, 0
    ends = outcome.initiator.connected.socket, outcome.responder.connected.socket
    arrived = [0, 0]

    async def send(index: int) -> None:
        for number in range(count):
            await ends[index].send(number.to_bytes(4, "big") + bytes(size - 4))
            if number % 16 == 15:
                await trio.sleep(0.001)  # what a real path does anyway; a burst of 1,000 would test socket buffers

    async def receive(index: int) -> None:
        seen: set[bytes] = set()
        with trio.move_on_after(DATAGRAM_S):
            while arrived[index] < count:
                data = await ends[index].recv(2048)
                if len(data) == size and data not in seen:
                    seen.add(data)
                    arrived[index] += 1

    async def while_it_holds(act: Callable[[int], Awaitable[None]], index: int) -> None:
        try:
            await act(index)
        except OSError as error:
            outcome.broken.append(f"{'responder' if index else 'initiator'}: {error.strerror}")

    async with trio.open_nursery() as nursery:
        for index in (0, 1):
            nursery.start_soon(while_it_holds, receive, 1 - index)
            nursery.start_soon(while_it_holds, send, index)
    return arrived[1], arrived[0]


def relayed(outcome: Outcome) -> int:
    """How many tokens both sides handed out."""
    events = [event for end in (outcome.initiator, outcome.responder) for _, event in end.events]
    return sum(isinstance(event, Relay) for event in events)
