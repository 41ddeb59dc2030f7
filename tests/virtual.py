"""Two daemons and two applications in this process, with everything real from the line to the datagram.

    application A ──lines── daemon A ── NAT A ──── PATH_S ──── NAT B ── daemon B ──lines── application B
         └──────────────────────────── side channel, SIDE_S ─────────────────────────────────┘

Connection, attempt machine, technique, STUN and tokens are the daemon's own. Made up are time (trio's virtual clock),
chance (a list), the routes, and what lies between two UDP sockets. So each run gives the same lines. What is due at one
instant is delivered in the order in which it was sent, and the delays differ, so that the order of lines is not trio's
to choose.
"""

from __future__ import annotations

import heapq
import os
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any
from unittest import mock

import trio

from punchd.config import Config
from punchd.control.connection import Connection
from punchd.control.launch import Launcher
from punchd.control.quotas import Quotas
from punchd.control.registry import Registry
from punchd.control.requests import Rules
from punchd.control.state import DaemonState
from punchd.endpoint import Endpoint, IPAddress
from punchd.errors import DecodeError
from punchd.kernel.routes import Route, Routes
from punchd.nat.servers import StunServers
from punchd.technique import Capability
from punchd.wire import probe, stun
from punchd.wire import token as tokens
from punchd_techniques.udp import Udp
from tests.unit.fake_network import APDF, Nat, NatKind

PATH_S = 0.019  # from host to host
STUN_S = 0.005  # to a STUN server and back
SIDE_S = 0.031  # of the side channel
GAP_S = 0.9  # a longer silence is told to the reader

NONCES = [bytes.fromhex(text) for text in ("7f3a9c02d1e84b55", "1122334455667788")]
KEYS = [bytes(range(16)), bytes(range(16, 32))]
SERVERS = (("192.0.2.1", 3478), ("192.0.2.129", 3478), ("2001:db8:ff::1", 3478), ("2001:db8:ff::2", 3478))


# --- the network -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where a daemon runs: its local address and what its NAT makes of it."""

    local: IPAddress
    public: IPAddress
    kind: NatKind = APDF
    plugins: tuple[Any, ...] = ()


class VirtualSocket:
    """Stands in for `punchd.kernel.udp.UdpSocket`."""

    def __init__(self, world: World, local: Endpoint) -> None:
        self.local = local
        self._world = world
        self._queue: deque[tuple[bytes, Endpoint]] = deque()
        self._arrived = trio.Event()
        world.sockets[local.ip] = self

    def receive(self, data: bytes, source: Endpoint) -> None:
        self._queue.append((data, source))
        self._arrived.set()

    def send(self, data: bytes, to: Endpoint, ttl: int | None = None) -> None:
        self._world.send(self.local, data, to, dies=ttl is not None)

    async def readable(self) -> None:
        await trio.lowlevel.checkpoint()
        while not self._queue:
            self._arrived = trio.Event()
            await self._arrived.wait()

    def peek(self) -> tuple[bytes, Endpoint] | None:
        return self._queue[0] if self._queue else None

    def discard(self) -> None:
        self._queue.popleft()

    def part(self, remote: Endpoint) -> int:
        return os.open(os.devnull, os.O_RDWR)

    def close(self) -> None:
        return


class VirtualRoutes(Routes):
    """One interface with one address, and a way to everywhere."""

    def __init__(self, source: IPAddress) -> None:
        self._source = source

    def to(self, ip: IPAddress) -> Route:
        return Route(self._source, 1)


class World:
    """Two daemons with their applications, and what lies between."""

    def __init__(self, nursery: trio.Nursery, a: Place, b: Place) -> None:
        self.lines: list[str] = []
        self.sockets: dict[IPAddress, VirtualSocket] = {}
        self.loses: Callable[[bytes], bool] = lambda data: False
        self._nats = {a.local: Nat(a.kind, str(a.public), 50100), b.local: Nat(b.kind, str(b.public), 40100)}
        self._nonces, self._keys, self._number = iter(NONCES), iter(KEYS), count()
        self._post: list[tuple[float, int, Callable[[], None]]] = []
        self._posted = trio.Event()
        self._spoken_at = trio.current_time()
        nursery.start_soon(self._deliver)
        self.a = Application(self, nursery, "A", "c1", a)
        self.b = Application(self, nursery, "B", "r9", b)
        self.a.peer, self.b.peer = self.b, self.a
        self.b.options = f"|lport=40000;peer={a.public}"

    def note(self, line: str) -> None:
        silence_s = trio.current_time() - self._spoken_at
        self._spoken_at = trio.current_time()
        if silence_s > GAP_S and self.lines:
            self.lines.append(f"        ({silence_s:.1f} s pass)")
        self.lines.append(line)

    def urandom(self, size: int) -> bytes:
        """In place of chance: a nonce, a key, or the id of a STUN question."""
        match size:
            case tokens.NONCE_SIZE:
                return next(self._nonces)
            case probe.KEY_SIZE:
                return next(self._keys)
            case _:
                return next(self._number).to_bytes(size, "big")

    def later(self, delay_s: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._post, (trio.current_time() + delay_s, next(self._number), act))
        self._posted.set()

    async def _deliver(self) -> None:
        while True:
            self._posted = trio.Event()
            with trio.move_on_at(self._post[0][0] if self._post else float("inf")):
                await self._posted.wait()
            while self._post and self._post[0][0] <= trio.current_time():
                heapq.heappop(self._post)[2]()

    def send(self, local: Endpoint, data: bytes, to: Endpoint, *, dies: bool) -> None:
        source = self._nats[local.ip].out(local.port, to)
        if dies or self.loses(data):
            return
        if (str(to.ip), to.port) in SERVERS:
            try:
                answer = stun.encode_success(stun.decode_request(data), source)
            except DecodeError:
                return  # an indication, which keeps the mapping
            self.later(STUN_S, partial(self.sockets[local.ip].receive, answer, to))
            return
        for inside, nat in self._nats.items():
            if nat.public == to.ip:
                self.later(PATH_S, partial(self._arrive, inside, to.port, data, source))

    def _arrive(self, inside: IPAddress, port: int, data: bytes, source: Endpoint) -> None:
        if self._nats[inside].lets_in(port, source) and inside in self.sockets:
            self.sockets[inside].receive(data, source)


# --- the applications ------------------------------------------------------------------------------------------------


class Application:
    """Says what a dialogue wants, and does the one thing that every application must: it relays tokens."""

    def __init__(self, world: World, nursery: trio.Nursery, name: str, attempt_id: str, place: Place) -> None:
        self.name = name
        self.attempt_id = attempt_id
        self.options = ""  # of the first `respond` of an attempt
        self.listens = True  # to the side channel
        self.peer: Application
        self._world = world
        self._runs = False
        self._unread: deque[str] = deque()
        self._came = trio.Event()
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        config = Config(stun=SERVERS)
        registry = Registry([Udp(), *place.plugins], Capability.NONE)
        state = DaemonState(
            config=config,
            registry=registry,
            rules=Rules(registry.names),
            launcher=Launcher(config, registry, VirtualRoutes(place.local), StunServers(SERVERS)),
            quotas=Quotas(config.limits),
        )
        nursery.start_soon(Connection(trio.socket.from_stdlib_socket(theirs), 1000, state).run)
        nursery.start_soon(self._read, trio.socket.from_stdlib_socket(self._line))

    def say(self, line: str) -> None:
        self._world.note(f"{self.name}> {line}")
        self._line.sendall(line.encode() + b"\n")

    async def ask(self, line: str, answer: str) -> None:
        """Say it, and wait for an answer that starts so."""
        self.say(line)
        await self.hear(answer)

    async def hear(self, start: str) -> None:
        """Until a line came that starts so; earlier ones that nobody waited for are passed over."""
        while True:
            while self._unread:
                if self._unread.popleft().startswith(start):
                    return
            self._came = trio.Event()
            await self._came.wait()

    def take(self, token: str) -> None:
        """The side channel has brought a token."""
        if not self.listens:
            return
        kind = tokens.decode(token).kind.name.lower()
        self._world.note(f"        {self.peer.name} ──{kind}──▶ {self.name}")
        self.say(f"respond|{self.attempt_id}|{token}{'' if self._runs else self.options}")
        self._runs = True

    async def _read(self, stream: trio.socket.SocketType) -> None:
        with stream:
            pending, descriptors = b"", deque[int]()
            while True:
                data, control, _, _ = await stream.recvmsg(4096, socket.CMSG_SPACE(4 * 4), socket.MSG_CMSG_CLOEXEC)
                for *_, raw in control:
                    descriptors.extend(memoryview(raw).cast("i"))
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    self._heed(line.decode("ascii"), descriptors)
                if not data:
                    return

    def _heed(self, line: str, descriptors: deque[int]) -> None:
        match line.split("|"):
            case ["progress", _, _, _, "relay", token]:
                self._runs = True
                self._world.later(SIDE_S, partial(self.peer.take, token))
            case ["ok", self.attempt_id, *_]:
                os.close(descriptors.popleft())
                self._runs = False
                line += "  [fd]"
            case ["error", self.attempt_id, code, *_] if code not in ("bad-message", "duplicate-id", "unknown-id"):
                self._runs = False
        self._world.note(f"{self.name}< {line}")
        self._unread.append(line)
        self._came.set()


@asynccontextmanager
async def world(a: Place, b: Place) -> AsyncIterator[World]:
    """Both sides for the length of a block, which must not take more than two minutes of virtual time."""
    async with trio.open_nursery() as nursery:
        made = World(nursery, a, b)
        with (
            mock.patch("punchd.control.launch.UdpSocket", partial(VirtualSocket, made)),
            mock.patch("os.urandom", made.urandom),
            trio.fail_after(120),
        ):
            yield made
        nursery.cancel_scope.cancel()
