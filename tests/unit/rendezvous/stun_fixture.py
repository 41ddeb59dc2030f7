"""A STUN server on loopback, in this process, and what asks it."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address

import trio
import trio.lowlevel

from punchd.endpoint import Endpoint
from punchd.errors import KernelError
from punchd.rendezvous.stun_server import Counters, Limits, Listening, listen, serve
from punchd.wire import stun

HANG_S = 20.0
ONE, TWO = ip_address("127.0.0.1"), ip_address("127.0.0.2")
TRIES = 20


@dataclass(frozen=True, slots=True)
class Running:
    """A server that serves. Setting `stop` ends it; `ended` is set then."""

    listening: Listening
    counters: Counters
    stop: trio.Event
    ended: trio.Event

    @property
    def endpoint(self) -> Endpoint:
        return self.listening.places[0].endpoint

    @property
    def endpoints(self) -> list[Endpoint]:
        return [place.endpoint for place in self.listening.places]


@asynccontextmanager
async def serving(
    endpoints: Sequence[Endpoint] = (Endpoint(ONE, 0),), limits: Limits | None = None, hang_s: float = HANG_S
) -> AsyncIterator[Running]:
    running = Running(listen(endpoints), Counters(), trio.Event(), trio.Event())

    async def run() -> None:
        await serve(running.listening, running.stop, limits=limits, counters=running.counters)
        running.ended.set()

    with trio.fail_after(hang_s):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            yield running
            running.stop.set()


def free_grid() -> list[Endpoint]:
    """Two loopback addresses with a port that is free on both, as is the next one."""
    for _ in range(TRIES):
        with socket.socket(type=socket.SOCK_DGRAM) as probe:
            probe.bind((str(ONE), 0))
            port = probe.getsockname()[1]
        try:
            listen([Endpoint(ONE, port), Endpoint(TWO, port)]).close()
        except KernelError:
            continue
        return [Endpoint(ONE, port), Endpoint(TWO, port)]
    raise AssertionError(f"no free pair of ports in {TRIES} tries")


@asynccontextmanager
async def asking(local: str = "127.0.0.1") -> AsyncIterator[trio.socket.SocketType]:
    """A UDP socket of a client."""
    family = socket.AF_INET6 if ":" in local else socket.AF_INET
    with trio.socket.socket(family, socket.SOCK_DGRAM) as client:
        await client.bind((local, 0))
        yield client


def request() -> bytes:
    return stun.encode_request(os.urandom(stun.TRANSACTION_ID_SIZE))


async def answer_within(client: trio.socket.SocketType, seconds: float = 5.0) -> tuple[bytes, Endpoint] | None:
    """The next datagram and where it came from; None if there is none for so long."""
    with trio.move_on_after(seconds):
        data, source = await client.recvfrom(4096)
        return data, Endpoint.from_sockaddr(source)
    return None


async def until(server: Running, count: int) -> None:
    """Wait until that many datagrams were dealt with, in whatever way."""
    counters = server.counters
    while counters.answered + counters.ignored + counters.limited + counters.lost < count:
        await trio.lowlevel.checkpoint()
