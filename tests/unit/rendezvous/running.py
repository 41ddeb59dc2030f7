"""A running rendezvous server on loopback, in the test's own event loop, and clients that know only its ports."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import trio

from punchd.rendezvous import pulses, service, stun_server
from punchd.rendezvous.service import Sockets
from punchd.rendezvous.settings import Settings
from tests.unit.rendezvous.parts import GENEROUS, Member

PATIENCE_S = 10.0
GENEROUS_SETTINGS = Settings(limits=replace(GENEROUS))


@dataclass(slots=True)
class Running:
    """Ports on 127.0.0.1, the store behind them, and the event that stops the server."""

    http: int
    udp: int
    metrics: int
    store: Any
    stop: trio.Event

    async def ask(self, method: str, target: str, member: Member | None = None, body: bytes = b"") -> tuple[int, Any]:
        """Status and JSON of the answer, over a connection of its own."""
        status, _, text = await self.ask_bytes(method, target, member, body)
        return status, json.loads(text) if text else None

    async def ask_bytes(
        self, method: str, target: str, member: Member | None = None, body: bytes = b"", port: int | None = None
    ) -> tuple[int, bytes, bytes]:
        """Status, head and body of the answer."""
        lines = [f"{method} {target} HTTP/1.1", "Host: x", "Connection: close", f"Content-Length: {len(body)}"]
        if member is not None:
            lines.append(f"Authorization: Bearer {member.key}")
        request = "\r\n".join([*lines, "", ""]).encode() + body
        with trio.fail_after(PATIENCE_S):
            async with await trio.open_tcp_stream("127.0.0.1", port or self.http) as stream:
                await stream.send_all(request)
                answer = b"".join([part async for part in stream])
        head, _, text = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), head, text

    async def register(self) -> Member:
        _, told = await self.ask("POST", "/register")
        return Member(told["client_id"], told["private_id"])


class Pulser:
    """A UDP socket that sends to the server. Closed with its block."""

    def __init__(self, port: int, address: str = "127.0.0.1", source: str = "") -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._blocking = socket.socket(family, socket.SOCK_DGRAM)
        self._blocking.bind((source, 0))
        self.socket = trio.socket.from_stdlib_socket(self._blocking)
        self.to = (address, port)

    def __enter__(self) -> Pulser:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    @property
    def port(self) -> int:
        return int(self.socket.getsockname()[1])

    async def pulse(self, datagram: bytes) -> int:
        """The code of the reply, which has to come."""
        await self.socket.sendto(datagram, self.to)
        with trio.fail_after(PATIENCE_S):
            return int.from_bytes(await self.socket.recv(100), "big")

    def burst(self, datagram: bytes, count: int) -> None:
        """Send without letting the server run."""
        for _ in range(count):
            self._blocking.sendto(datagram, self.to)

    async def drain(self) -> None:
        """Forget the replies that came, or come in a moment."""
        while not await self.hears_nothing():
            pass

    async def hears_nothing(self) -> bool:
        """Whether no reply comes for a while."""
        with trio.move_on_after(0.05):
            await self.socket.recv(100)
            return False
        return True


async def until(is_so: Callable[[], bool]) -> None:
    """Wait for something that nobody tells."""
    with trio.fail_after(PATIENCE_S):
        while not is_so():  # noqa: ASYNC110 (the server's own business)
            await trio.sleep(0.01)


def loopback(kind: socket.SocketKind, address: str = "127.0.0.1") -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    sock.bind((address, 0))
    if kind == socket.SOCK_STREAM:
        sock.listen()
    else:
        pulses.prepare(sock)
    return sock


@asynccontextmanager
async def running(
    settings: Settings = GENEROUS_SETTINGS, *, udp: socket.socket | None = None
) -> AsyncIterator[Running]:
    """A server. It is stopped at the end, as by a signal."""
    sockets = Sockets(
        http=[loopback(socket.SOCK_STREAM)],
        udp=[udp or loopback(socket.SOCK_DGRAM)],
        metrics=[loopback(socket.SOCK_STREAM)],
        stun=stun_server.Listening(),
    )
    http, pulses_, metrics = (ones[0].getsockname()[1] for ones in (sockets.http, sockets.udp, sockets.metrics))
    store = service.open_store(settings)
    stop = trio.Event()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(service.serve, settings, sockets, store, stop)
            yield Running(http, pulses_, metrics, store, stop)
            stop.set()
    finally:
        sockets.close()
