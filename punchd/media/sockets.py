"""What both trio shells do with a socket that is somebody else's.

The shell works through a second socket object on the caller's descriptor. It neither duplicates nor closes it, nor
changes its mode (all calls have MSG_DONTWAIT).
"""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Protocol

import trio

from punchd.errors import PunchdError
from punchd.media.moves import Why

YIELD_S = 0.001  # at most so long without letting other tasks run; a checkpoint costs 30 us


class HasFileno(Protocol):
    """A UDP socket of trio, of the standard library, or of anybody else."""

    def fileno(self) -> int: ...


class SessionEndedError(PunchdError):
    """The session is over, or there never was one.

    Attributes:
        why: the reason.
        text: the other side's words, escaped; mostly empty.
    """

    def __init__(self, why: Why, text: str = "") -> None:
        super().__init__(f"media session: {_WORDS[why]}{text and f': {text}'}")
        self.why = why
        self.text = text


_WORDS = {
    Why.REFUSED: "the other side refused it",
    Why.UNANSWERED: "the other side does not answer",
    Why.GLARE: "the other side asks for media as well",
    Why.IDLE: "nothing was heard for too long",
    Why.REPLACED: "the other side began another one",
    Why.EVICTED: "there was no room for it",
    Why.CLOSED: "closed",
}


@contextmanager
def borrowed(owner: HasFileno) -> Iterator[socket.socket]:
    """A socket object on the owner's descriptor.

    Raises:
        ValueError: no UDP socket.
        OSError: closed.
    """
    sock = socket.socket(fileno=owner.fileno())
    try:
        if sock.type != socket.SOCK_DGRAM or sock.family not in (socket.AF_INET, socket.AF_INET6):
            raise ValueError(f"expected a UDP socket, got {sock.family.name} {sock.type.name}")
        yield sock
    finally:
        sock.detach()


@asynccontextmanager
async def beside(*tasks: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Tasks in the background of a block; they end with it. What the block raises comes out as it is, in no group."""
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        for task in tasks:
            nursery.start_soon(task)
        try:
            yield
        except Exception as error:  # noqa: BLE001 (raised again, outside the nursery, which would wrap it)
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


class Turns:
    """Lets other tasks run now and then, in loops that would seldom have to wait."""

    def __init__(self) -> None:
        self._yielded_at = time.perf_counter()

    async def checkpoint(self) -> None:
        """A checkpoint; whether others get a turn depends on when they had the last."""
        if time.perf_counter() - self._yielded_at < YIELD_S:
            await trio.lowlevel.checkpoint_if_cancelled()
            return
        await trio.lowlevel.checkpoint()
        self._yielded_at = time.perf_counter()

    def waited(self) -> None:
        """Others had their turn."""
        self._yielded_at = time.perf_counter()


class Alarm:
    """Sleeps until a time that may change meanwhile."""

    def __init__(self) -> None:
        self._moved = trio.Event()
        self._at = float("inf")

    async def wait(self, at: float | None) -> bool:
        """Until then, or until `move` asks for an earlier time; whether the time has come."""
        self._at = float("inf") if at is None else at
        self._moved = trio.Event()
        with trio.CancelScope(deadline=self._at) as scope:
            await self._moved.wait()
        return scope.cancelled_caught

    def move(self, at: float | None) -> None:
        """The next time is `at`; wakes the sleeper if that is earlier than what it waits for."""
        if at is not None and at < self._at:
            self._at = at
            self._moved.set()
