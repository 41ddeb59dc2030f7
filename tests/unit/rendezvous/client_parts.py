"""Servers that come and go on the same two ports of loopback, and a UDP path to them that misbehaves."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import trio

from punchd.rendezvous import pulses, service, stun_server
from punchd.rendezvous.client import Rendezvous, Timing
from punchd.rendezvous.service import Sockets
from punchd.rendezvous.settings import Settings
from tests.unit.rendezvous.running import GENEROUS_SETTINGS

PATIENCE_S = 30.0
QUICK = Timing(interval_s=0.2, repeat_s=0.05)
LAZY = Timing(interval_s=1000.0, repeat_s=1000.0)  # one pulse, and what its replies lead to


class Place:
    """Two ports. `start` a server there, `stop` it, as often as you like."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._scope = trio.CancelScope()
        self._gone = trio.Event()
        with _bound(socket.SOCK_STREAM, 0) as tcp, _bound(socket.SOCK_DGRAM, 0) as udp:
            self.http, self.udp = tcp.getsockname()[1], udp.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.http}"
        self.store: Any = None

    async def start(self, settings: Settings = GENEROUS_SETTINGS, *, store: Any = None, tls: Any = None) -> None:
        """`store`: of an earlier server, which then forgets nobody; `tls`: an SSLContext."""
        self.store = store or service.open_store(settings)
        self._scope, self._gone = trio.CancelScope(), trio.Event()
        await self._nursery.start(self._serve, settings, tls)

    async def stop(self) -> None:
        """As if it were killed."""
        self._scope.cancel()
        await self._gone.wait()

    async def _serve(self, settings: Settings, tls: Any, task_status: trio.TaskStatus[None]) -> None:
        sockets = Sockets(
            http=[_bound(socket.SOCK_STREAM, self.http)],
            udp=[_bound(socket.SOCK_DGRAM, self.udp)],
            stun=stun_server.Listening(),
        )
        pulses.prepare(sockets.udp[0])
        certificate: Any = None if tls is None else SimpleNamespace(context=lambda: tls)
        with self._scope:
            try:
                task_status.started()
                await service.serve(settings, sockets, self.store, trio.Event(), certificate=certificate)
            finally:
                sockets.close()
        self._gone.set()

    def client(self, udp: int | None = None, timing: Timing = QUICK, **more: Any) -> Any:
        """An unopened client; `udp`: of a relay."""
        return Rendezvous.open(self.url, udp=("127.0.0.1", udp or self.udp), timing=timing, **more)


@asynccontextmanager
async def place(settings: Settings | None = GENEROUS_SETTINGS) -> AsyncIterator[Place]:
    """Two ports, with a server (`settings`: None for none yet). A test that hangs fails."""
    with trio.fail_after(PATIENCE_S * 2):
        async with trio.open_nursery() as nursery:
            found = Place(nursery)
            if settings is not None:
                await found.start(settings)
            yield found
            nursery.cancel_scope.cancel()


class Relay:
    """Carries pulses to a server and replies back, unless it is told otherwise.

    Attributes:
        lose_pulses, lose_replies: how many of the next ones disappear.
        forged: sent to the client before each pulse is carried on.
        pulses: what the client sent.
    """

    def __init__(self, server_port: int) -> None:
        self._server = ("127.0.0.1", server_port)
        self._inner = trio.socket.from_stdlib_socket(_bound(socket.SOCK_DGRAM, 0))
        self._outer = trio.socket.from_stdlib_socket(_bound(socket.SOCK_DGRAM, 0))
        self._client: Any = None
        self.port = int(self._inner.getsockname()[1])
        self.lose_pulses = self.lose_replies = 0
        self.forged: list[bytes] = []
        self.pulses: list[bytes] = []

    @property
    def outer_port(self) -> int:
        return int(self._outer.getsockname()[1])

    def rebind(self) -> None:
        """As a NAT that has forgotten the mapping."""
        self._outer.close()
        self._outer = trio.socket.from_stdlib_socket(_bound(socket.SOCK_DGRAM, 0))

    async def run_out(self) -> None:
        while True:
            datagram, self._client = await self._inner.recvfrom(2048)
            self.pulses.append(datagram)
            for reply in self.forged:
                await self._inner.sendto(reply, self._client)
            self.lose_pulses -= 1
            if self.lose_pulses < 0:
                await self._outer.sendto(datagram, self._server)

    async def run_back(self) -> None:
        while True:
            try:
                datagram = await self._outer.recv(2048)
            except (trio.ClosedResourceError, ConnectionRefusedError):
                await trio.lowlevel.checkpoint()
                continue
            self.lose_replies -= 1
            if self.lose_replies < 0:
                await self._inner.sendto(datagram, self._client)

    def close(self) -> None:
        self._inner.close()
        self._outer.close()


@asynccontextmanager
async def relay(server_port: int) -> AsyncIterator[Relay]:
    found = Relay(server_port)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(found.run_out)
            nursery.start_soon(found.run_back)
            yield found
            nursery.cancel_scope.cancel()
    finally:
        found.close()


@asynccontextmanager
async def tcp_server(serve: Callable[[trio.SocketStream], Any]) -> AsyncIterator[int]:
    """Something that is no rendezvous server; its port."""
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def read_request(stream: trio.SocketStream) -> bytes:
    """A request without a body; empty at the end."""
    read = b""
    while b"\r\n\r\n" not in read:
        part = await stream.receive_some()
        if not part:
            return b""
        read += part
    return read


def server_tls(chain: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    return context


def _bound(kind: socket.SocketKind, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(kind == socket.SOCK_STREAM))
    sock.bind(("127.0.0.1", port))
    if kind == socket.SOCK_STREAM:
        sock.listen()
    return sock
