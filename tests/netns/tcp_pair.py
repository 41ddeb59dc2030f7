"""Two daemons with all TCP techniques behind two NATs, and what a test wants to know of their sockets."""

from __future__ import annotations

import hashlib
import random
import select
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import trio

from punchd.client.trio_client import Daemon
from tests.natlab import KINDS, Host, Laboratory, Link, Site
from tests.netns.daemons import Talk
from tests.pair import Outcome, RunningDaemon, applications, attempt, daemons, stun_arguments

TECHNIQUES = ("tcp-nutss", "tcp-syni", "tcp-repair")
SEQUENCE = ",".join(TECHNIQUES)
LATE_S = 0.15
HANG_S = 20.0
DELAY_S = 0.01
TIME_WAIT, LISTEN = "06", "0A"  # linux/tcp_states.h, as /proc/net/tcp writes them

Ordinary = tuple[Laboratory, list[RunningDaemon]]


@dataclass(frozen=True, slots=True)
class Pair:
    laboratory: Laboratory
    daemons: tuple[RunningDaemon, RunningDaemon]
    a: Daemon
    b: Daemon

    def host(self, name: str) -> Host:
        return self.laboratory.site(name).host

    async def attempt6(self, techniques: str) -> Outcome:
        """Between the two hosts' IPv6 addresses."""
        own = [await end.probe("tcp", local=str(self.host(name).ipv6)) for end, name in ((self.a, "a"), (self.b, "b"))]
        assert all(probed.ip.version == 6 for probed in own)
        return await attempt(self.a, self.b, own=(own[0], own[1]), late_s=LATE_S, techniques=techniques)


@asynccontextmanager
async def pair(
    kind_a: str,
    kind_b: str,
    *arguments: str,
    stun6: bool = False,
    links: Sequence[Link] = (Link(delay_s=DELAY_S),) * 2,
    server_link: Link | None = None,
) -> AsyncIterator[Pair]:
    """A laboratory with two daemons that load all TCP techniques, and a connection to each."""
    sites = [Site("a", KINDS[kind_a], wan=links[0]), Site("b", KINDS[kind_b], wan=links[1])]
    with Laboratory(sites, server_link=server_link or Link()) as laboratory:
        words = [*stun_arguments(laboratory.stun6 if stun6 else laboratory.stun), "--techniques", SEQUENCE, *arguments]
        with daemons([(laboratory.site(name).host, words) for name in "ab"]) as running:
            async with connected_to((laboratory, running)) as both:
                yield both


def ordinary_pair() -> Iterator[Ordinary]:
    """Two ordinary routers, and two daemons for all tests of a module that do not harm them: a fixture's body."""
    wan = Link(delay_s=DELAY_S)
    with Laboratory([Site(name, KINDS["apdf"], wan=wan) for name in "ab"]) as laboratory:
        words = [*stun_arguments(laboratory.stun), "--techniques", SEQUENCE]
        with daemons([(laboratory.site(name).host, words) for name in "ab"]) as running:
            yield laboratory, running


@asynccontextmanager
async def connected_to(ordinary: Ordinary) -> AsyncIterator[Pair]:
    laboratory, running = ordinary
    for daemon in running:
        await daemon.until_ready()
    async with applications(running[0].path, running[1].path) as (a, b):
        yield Pair(laboratory, (running[0], running[1]), a, b)


def sockets(outcome: Outcome) -> tuple[trio.SocketStream, trio.SocketStream]:
    """The initiator's and the responder's, as streams."""
    assert outcome.connected, outcome.explain()
    assert outcome.initiator.connected is not None
    assert outcome.responder.connected is not None
    return trio.SocketStream(outcome.initiator.connected.socket), trio.SocketStream(outcome.responder.connected.socket)


async def read_to_the_end(stream: trio.SocketStream) -> bytes:
    data = bytearray()
    while chunk := await stream.receive_some(65536):
        data += chunk
    return bytes(data)


async def assert_usable(outcome: Outcome, size: int = 1000, hang_s: float = HANG_S) -> None:
    """Bytes both ways, the first one first; and each side sees the other's half-close as the end of them."""
    await assert_carries(sockets(outcome), size, outcome.explain(), hang_s)
    outcome.close()


async def assert_carries(ends: Sequence[trio.SocketStream], size: int, what: str, hang_s: float = HANG_S) -> float:
    """The same for any two ends of one connection; how long it took, seconds."""
    sent = [random.Random(seed).randbytes(size) for seed in (1, 2)]
    received = [b"", b""]

    async def send(index: int) -> None:
        await ends[index].send_all(sent[index])
        await ends[index].send_eof()

    async def receive(index: int) -> None:
        received[index] = await read_to_the_end(ends[index])

    began_at = trio.current_time()
    with trio.move_on_after(hang_s):
        async with trio.open_nursery() as nursery:
            for index in (0, 1):
                nursery.start_soon(send, index)
                nursery.start_soon(receive, index)
    digests = [[hashlib.sha256(data).hexdigest() for data in ends] for ends in (received, sent[::-1])]
    assert digests[0] == digests[1], f"{[len(data) for data in received]} of {size} bytes; {what}"
    return trio.current_time() - began_at


def tcp_sockets(host: Host) -> list[str]:
    """The TCP sockets of a host that belong to a process: state and local port. TIME_WAIT belongs to none."""
    with host.entered():
        lines = Path("/proc/thread-self/net/tcp").read_text().splitlines()[1:]
    return [f"{line.split()[3]} {line.split()[1]}" for line in lines if line.split()[3] != TIME_WAIT]


def states_of(host: Host, port: int) -> list[str]:
    """The states of a host's connections on a local port, as in /proc/net/tcp; listeners are left out."""
    with host.entered():
        lines = [line.split() for line in Path("/proc/thread-self/net/tcp").read_text().splitlines()[1:]]
    return [words[3] for words in lines if words[1].endswith(f":{port:04X}") and words[3] != LISTEN]


def initiation(b: Talk, technique: str, timeout_ms: int = 8000) -> str:
    """The line that begins an attempt towards what `b` probes for."""
    b.send("probe|p|tcp")
    *_, address, ports, _, lport = b.until("ok|p|probe|tcp|").split("|")
    return f"initiate|x|{technique}|{address}|{ports}|timeout={timeout_ms}#{lport}"


def relay(
    a: Talk, b: Talk, line: str, on_token: Callable[[bool], None] = lambda from_initiator: None
) -> dict[str, str]:
    """Play an attempt between two applications that relay at once; the verdicts by side ("a", "b").

    Args:
        line: of `initiation`.
        on_token: called before a token is relayed, with whose it is.
    """
    line, _, lport = line.partition("#")
    a.send(line)
    ends = {"a": a, "b": b}
    verdicts: dict[str, str] = {}
    responds = f";lport={lport}"
    while len(verdicts) < len(ends):
        readable, _, _ = select.select([end.socket for end in ends.values()], [], [], HANG_S)
        assert readable, f"nothing more comes, verdicts: {verdicts}"
        for name, end in list(ends.items()):
            with suppress(TimeoutError):
                try:
                    while True:
                        words = end.line(0).split("|")
                        if words[0] in ("ok", "error"):
                            verdicts[name] = "|".join(words)
                        elif words[4] == "relay":
                            on_token(name == "a")
                            options = f"timeout=1000{responds}" if name == "a" and responds else ""
                            responds = responds if name == "b" else ""
                            other = b if name == "a" else a
                            with suppress(OSError):
                                other.send(f"respond|x|{words[5]}|{options}" if options else f"respond|x|{words[5]}")
                except EOFError:
                    del ends[name]
                    verdicts.pop(name, None)
    return verdicts
