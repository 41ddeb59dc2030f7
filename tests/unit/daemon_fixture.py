"""A daemon in this process for tests of its shell: real Unix sockets, techniques that do what a test wants.

No packet leaves the host: the scripted techniques open nothing, routes are made up, STUN is a few lines on loopback.

The techniques, by name (all of them say that they are plug-ins, so that their tokens hold no keys):

    waits    tells its card, then waits for ever        silent   tells nothing and waits
    wins     tells its card and has a socket at once    slow     wins when the test says so
    breaks   gives up at once                           chatty   tells a card again and again
    buggy    raises what no technique should            bound    as `waits`, with a UDP port of the attempt
    lingers  as `bound`; its undoing takes a while      odd      claims a protocol that does not exist
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import trio

from punchd.config import Config
from punchd.control.launch import Launcher
from punchd.control.policy import Policy
from punchd.control.quotas import Quotas
from punchd.control.registry import Registry
from punchd.control.requests import Rules
from punchd.control.server import Server
from punchd.control.state import DaemonState
from punchd.endpoint import Endpoint, IPAddress, PortSet
from punchd.errors import Code, DecodeError, DeniedError, KernelError, PunchError
from punchd.kernel.routes import Route, Routes
from punchd.nat.servers import StunServers
from punchd.technique import Capability, Facts, Hole, Kit
from punchd.wire import stun
from punchd.wire import token as tokens
from punchd.wire.token import Card, Kind, Token

HANG_S = 20.0  # whatever takes longer is taken for hung, on a busy machine, too
LINGER_S = 0.2  # how long the undoing of `lingers` takes
PEER = "203.0.113.7"
LOCAL = Endpoint(IPv4Address("192.0.2.1"), 40001)
CARD = Card(IPv4Address(PEER), PortSet((40000,)), body=b"")

BUG = IPv4Address("203.0.113.99")  # a target that makes a launch fail as only a bug can

Script = Callable[["Scripted", Kit], Awaitable[Hole]]


@dataclass
class Scripted:
    """A technique that does what its script says, on either side."""

    name: str
    number: int
    script: Script
    protocol: str = "tcp"
    needs: Capability = Capability.NONE
    is_reversible: bool = False
    go: trio.Event = field(default_factory=trio.Event)
    far_ends: list[socket.socket] = field(default_factory=list)
    facts: list[Facts] = field(default_factory=list)
    started: int = 0
    running: int = 0

    def plan(self, facts: Facts) -> Facts:
        self.facts.append(facts)
        return facts

    async def initiate(self, plan: Facts, kit: Kit) -> Hole:
        self.started += 1
        self.running += 1
        try:
            return await self.script(self, kit)
        finally:
            self.running -= 1

    async def respond(self, plan: Facts, offer: Card, kit: Kit) -> Hole:
        return await self.initiate(plan, kit)

    def hole(self) -> Hole:
        """One end of a socket pair; the other one is in `far_ends`."""
        near, far = socket.socketpair()
        self.far_ends.append(far)
        return Hole(near.detach(), LOCAL, Endpoint(IPv4Address(PEER), 40000))


async def _waits(technique: Scripted, kit: Kit) -> Hole:
    kit.tell_peer(CARD)
    await trio.sleep_forever()
    raise AssertionError


async def _silent(technique: Scripted, kit: Kit) -> Hole:
    await trio.sleep_forever()
    raise AssertionError


async def _wins(technique: Scripted, kit: Kit) -> Hole:
    kit.tell_peer(CARD)
    return technique.hole()


async def _slow(technique: Scripted, kit: Kit) -> Hole:
    kit.tell_peer(CARD)
    await technique.go.wait()
    return technique.hole()


async def _breaks(technique: Scripted, kit: Kit) -> Hole:
    raise PunchError(Code.REFUSED, "the script says so")


async def _chatty(technique: Scripted, kit: Kit) -> Hole:
    while True:
        kit.tell_peer(CARD)
        await trio.sleep(0.001)


async def _buggy(technique: Scripted, kit: Kit) -> Hole:
    raise ZeroDivisionError("a bug of the technique")


async def _bound(technique: Scripted, kit: Kit) -> Hole:
    async with kit.udp():
        kit.tell_peer(CARD)
        await trio.sleep_forever()
    raise AssertionError


async def _lingers(technique: Scripted, kit: Kit) -> Hole:
    async with kit.udp():
        try:
            kit.tell_peer(CARD)
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(LINGER_S)
    raise AssertionError


SCRIPTS: tuple[tuple[str, Script, str], ...] = (
    ("waits", _waits, "tcp"),
    ("silent", _silent, "tcp"),
    ("wins", _wins, "tcp"),
    ("slow", _slow, "tcp"),
    ("breaks", _breaks, "tcp"),
    ("chatty", _chatty, "tcp"),
    ("buggy", _buggy, "tcp"),
    ("bound", _bound, "udp"),
    ("lingers", _lingers, "udp"),
    ("odd", _wins, "carrier-pigeon"),
)
NUMBERS = {name: 128 + index for index, (name, _, _) in enumerate(SCRIPTS)}


class MadeUpRoutes(Routes):
    """Routes as if this host were 127.0.0.1 in 192.0.2.0/24, with no way to 198.51.100.0/24."""

    def __init__(self) -> None:
        """Asks no kernel."""

    def close(self) -> None:
        return

    def to(self, ip: IPAddress) -> Route:
        if ip == LOCAL.ip:
            raise DeniedError(Code.BAD_ADDRESS, f"{ip} is an address of this host")
        if ip == BUG:
            raise ZeroDivisionError("a bug of ours")
        if ip.version == 6 or ip in IPv4Network("198.51.100.0/24"):
            raise KernelError(f"no route to {ip}: ENETUNREACH Network is unreachable")
        return Route(IPv4Address("127.0.0.1"), 1)


def offer(technique: str, round_number: int = 1, nonce: bytes = b"N" * 8, kind: Kind = Kind.OFFER) -> str:
    """A token of the other side, as text."""
    if kind in (Kind.SKIP, Kind.ABORT):
        farewell = tokens.Farewell.CANCELLED
        return tokens.encode(Token(kind, nonce, round_number, NUMBERS[technique], None, farewell))
    counter = 1 if kind is Kind.NOTE else 0
    return tokens.encode(Token(kind, nonce, round_number, NUMBERS[technique], CARD, None, counter))


def descriptors() -> int:
    """How many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


class Application:
    """An application as the daemon sees it: writes lines, reads lines and descriptors. Owns what it received."""

    def __init__(self, stream: trio.socket.SocketType) -> None:
        self.stream = stream
        self.fds: deque[int] = deque()
        self._pending = b""

    def __enter__(self) -> Application:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()
        while self.fds:
            os.close(self.fds.popleft())

    async def send(self, *lines: str) -> None:
        """Write lines, all in one piece."""
        data = "".join(f"{line}\n" for line in lines).encode()
        while data:
            data = data[await self.stream.send(data) :]

    async def receive(self, size: int = 4096) -> bytes:
        """What came, with its descriptors put into the queue; empty at the end of the file."""
        data, control, _, _ = await self.stream.recvmsg(size, socket.CMSG_SPACE(4 * 4), socket.MSG_CMSG_CLOEXEC)
        for level, kind, raw in control:
            assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
            self.fds.extend(memoryview(raw).cast("i"))
        return data

    async def line(self) -> str:
        """The next answer. EOFError: the daemon has closed the connection."""
        with trio.fail_after(HANG_S):
            while b"\n" not in self._pending:
                try:
                    data = await self.receive()
                except ConnectionResetError:
                    data = b""  # the daemon did not read all that was sent to it
                if not data:
                    raise EOFError(self._pending)
                self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        return line.decode("ascii")

    async def until(self, start: str) -> str:
        """The next answer that starts so; others are passed over."""
        while not (line := await self.line()).startswith(start):
            pass
        return line

    async def rest(self) -> list[str]:
        """All answers until the daemon closes the connection."""
        lines = []
        try:
            while True:
                lines.append(await self.line())
        except EOFError:
            return lines

    async def token(self, attempt_id: str) -> Token:
        """The next token to be relayed for that attempt."""
        return tokens.decode((await self.until_relay(attempt_id)).split("|")[5])

    async def until_relay(self, attempt_id: str) -> str:
        while True:
            line = await self.until(f"progress|{attempt_id}|")
            if line.split("|")[4] == "relay":
                return line

    async def nothing_for(self, seconds: float) -> list[str]:
        """What comes within that time, which should be nothing."""
        lines = []
        with trio.move_on_after(seconds):
            while True:
                lines.append(await self.line())
        return lines


@dataclass
class RunningServer:
    """A server on a Unix socket, in this process."""

    path: Path
    state: DaemonState
    techniques: dict[str, Scripted]
    stop: trio.Event
    ended: trio.Event

    async def connect(self) -> Application:
        stream = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        await stream.connect(str(self.path))
        return Application(stream)

    @property
    def running(self) -> int:
        """How many techniques run now."""
        return sum(technique.running for technique in self.techniques.values())

    async def settle(self, condition: Callable[[], bool]) -> None:
        """Until that is so; fails if it never is."""
        with trio.fail_after(HANG_S):
            while not condition():  # noqa: ASYNC110 (the conditions are counts, not events)
                await trio.sleep(0.005)


@asynccontextmanager
async def server(
    directory: Path,
    config: Config | None = None,
    allowed: frozenset[int] | None = None,
    policy: Policy | None = None,
) -> AsyncIterator[RunningServer]:
    """A server for the length of a block; it is stopped as by a signal."""
    config = config or Config()
    techniques = {name: Scripted(name, NUMBERS[name], script, protocol) for name, script, protocol in SCRIPTS}
    loaded: list[Any] = list(techniques.values())
    registry = Registry(loaded, Capability.NONE)
    state = DaemonState(
        config=config,
        registry=registry,
        rules=Rules(registry.names, config.allow_private),
        launcher=Launcher(config, registry, MadeUpRoutes(), StunServers(config.stun)),
        quotas=Quotas(config.limits),
        policy=policy or Policy(),
    )
    path = directory / "punchd.socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.setblocking(False)
        listener.bind(str(path))
        listener.listen(64)
        running = RunningServer(path, state, techniques, trio.Event(), trio.Event())

        async def serve() -> None:
            await Server(state, allowed).run([listener], running.stop)
            running.ended.set()

        try:
            with trio.fail_after(2 * HANG_S):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(serve)
                    yield running
                    running.stop.set()
                    with trio.fail_after(HANG_S):
                        await running.ended.wait()
        finally:
            for technique in techniques.values():
                for far in technique.far_ends:
                    far.close()


@asynccontextmanager
async def stun_server(ip: str = "127.0.0.1", answers: int = 1 << 30) -> AsyncIterator[tuple[str, int]]:
    """A STUN server on loopback that falls silent after so many answers; its (address, port)."""
    with trio.socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_DGRAM) as listener:
        await listener.bind((ip, 0))
        left = answers

        async def serve() -> None:
            nonlocal left
            while True:
                data, source = await listener.recvfrom(2048)
                try:
                    transaction_id = stun.decode_request(data)
                except DecodeError:
                    continue  # an indication
                if left > 0:
                    left -= 1
                    await listener.sendto(stun.encode_success(transaction_id, Endpoint.from_sockaddr(source)), source)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            yield ip, listener.getsockname()[1]
            nursery.cancel_scope.cancel()
