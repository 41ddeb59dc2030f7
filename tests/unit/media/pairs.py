"""Sockets of loopback in pairs, and sessions over them."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import trio
import trio.testing

from punchd.media.fast import ALL, Fast
from punchd.media.settings import Timing
from punchd.media.stream import Stream
from punchd.media.trio_initiator import Initiator
from punchd.media.trio_responder import Responder

WAYS = {
    "all": ALL,
    "stdlib": Fast(numpy=False),
    "datagram-wise": Fast(gso=False, gro=False),
    "no-mmsg": Fast(mmsg=False),
    "nothing": Fast(gso=False, gro=False, mmsg=False, numpy=False),
}
PATIENCE_S = 30
QUICK = Timing(first_retry_s=0.02, tries=3, keep_alive_s=0.05)

Pair = tuple[socket.socket, socket.socket]


def connected(stack: ExitStack, family: int = socket.AF_INET) -> Pair:
    here, there = (stack.enter_context(socket.socket(family, socket.SOCK_DGRAM)) for _ in "ab")
    for sock in (here, there):
        sock.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
    here.connect(there.getsockname())
    there.connect(here.getsockname())
    return here, there


@asynccontextmanager
async def session(pair: Pair, fast: Fast = ALL, **more: Any) -> AsyncIterator[tuple[Stream, Initiator]]:
    """An established one: the first socket sends, the second receives."""
    sending = {"rate_bps": None} | {name: more.pop(name) for name in ("rate_bps", "datagram_size") if name in more}
    responding = more.pop("responding", None)
    with trio.fail_after(PATIENCE_S):
        async with (
            Responder.open(pair[0], settings=responding, fast=fast, **sending) as responder,
            Initiator.open(pair[1], fast=fast, **more) as initiator,
        ):
            yield await responder.accept(), initiator


async def carried(stream: Stream, initiator: Initiator, payloads: list[bytes]) -> list[bytes]:
    """Sends one after the other, each when the one before has arrived."""
    found = []
    for payload in payloads:
        await stream.send(payload)
        found.append((await initiator.receive()).take())
    return found


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await trio.sleep(0.01)


def drained(sock: socket.socket) -> list[bytes]:
    found = []
    while True:
        try:
            found.append(sock.recv(65_536))
        except BlockingIOError:
            return found


def drained_blocking(sock: socket.socket) -> list[bytes]:
    sock.setblocking(False)
    return drained(sock)
