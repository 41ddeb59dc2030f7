"""One task for the timers of all connections and sessions: a heap of what is due next.

A timer that moves to a later time costs nothing: its old entry fires, finds nothing due, and is put in anew. So a
connection that is heard of often has an entry for every 30 s of its life, not for every frame.
"""

from __future__ import annotations

import heapq
from itertools import count
from math import inf
from typing import Protocol

import trio

_SPARE = 64  # entries of forgotten timers that are not worth the clearing


class Timer(Protocol):
    """Something with timeouts."""

    def next_timeout(self) -> float:
        """When `handle_timeout` wants to be called, on trio's clock; inf for never."""
        ...

    def handle_timeout(self, now: float) -> None:
        """Its time has come, or nearly."""
        ...


class Agenda:
    """Calls timers when they are due. `look` at them whenever they may be due earlier than before."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int]] = []
        self._due: dict[Timer, tuple[float, int]] = {}  # its entry in the heap
        self._timers: dict[int, Timer] = {}  # by the entry's number, so that the heap keeps no timer alive
        self._numbers = count()
        self._sleep = trio.CancelScope()

    def __len__(self) -> int:
        return len(self._due)

    def look(self, timer: Timer) -> None:
        """Its next timeout may have changed."""
        when = timer.next_timeout()
        known = self._due.get(timer)
        if when >= (inf if known is None else known[0]):
            return
        self.forget(timer)
        entry = (when, next(self._numbers))
        self._due[timer], self._timers[entry[1]] = entry, timer
        heapq.heappush(self._heap, entry)
        self._sleep.deadline = min(self._sleep.deadline, when)

    def forget(self, timer: Timer) -> None:
        """It has no timeouts any more."""
        entry = self._due.pop(timer, None)
        if entry is None:
            return
        del self._timers[entry[1]]
        if len(self._heap) > 2 * len(self._due) + _SPARE:
            self._heap = sorted(self._due.values())  # a sorted list is a heap

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            deadline = self._heap[0][0] if self._heap else inf
            with trio.CancelScope(deadline=deadline) as self._sleep:
                await trio.sleep_forever()
            now = trio.current_time()
            while self._heap and self._heap[0][0] <= now:
                timer = self._timers.get(heapq.heappop(self._heap)[1])
                if timer is None:
                    continue
                self.forget(timer)
                if timer.next_timeout() <= now:
                    timer.handle_timeout(now)
                self.look(timer)
                await trio.lowlevel.checkpoint()  # a thousand sessions may end in one moment
