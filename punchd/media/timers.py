"""One deadline for each key, and which comes next; setting one costs O(log n).

Deadlines that were moved or cancelled stay in the heap until it is twice as long as needed, so a flood of new tuples
that push each other out cannot make it grow.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Hashable
from typing import Generic, TypeVar

_SLACK = 64

_KeyT = TypeVar("_KeyT", bound=Hashable)


class Timers(Generic[_KeyT]):
    def __init__(self) -> None:
        self._due: dict[_KeyT, tuple[float, int]] = {}
        self._heap: list[tuple[float, int, _KeyT]] = []
        self._numbers = itertools.count()  # two keys need not compare

    def __len__(self) -> int:
        """How much is kept, stale entries included."""
        return len(self._heap)

    def set(self, key: _KeyT, when: float | None) -> None:
        """Sets or moves the key's deadline; None cancels it."""
        if when is None:
            self._due.pop(key, None)
            return
        entry = (when, next(self._numbers))
        self._due[key] = entry
        heapq.heappush(self._heap, (*entry, key))
        if len(self._heap) > 2 * len(self._due) + _SLACK:
            self._heap = [(*entry, key) for key, entry in self._due.items()]
            heapq.heapify(self._heap)

    def next(self) -> float | None:
        """The earliest deadline."""
        while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][:2]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def pop(self, now: float) -> _KeyT | None:
        """A key whose deadline has come, which it then no longer has."""
        when = self.next()
        if when is None or when > now:
            return None
        _, _, key = heapq.heappop(self._heap)
        del self._due[key]
        return key
