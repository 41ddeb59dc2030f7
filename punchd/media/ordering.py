"""Delivery in the order of sequence numbers, for applications that ask for it.

A gap holds what comes after it for `window_s` at most, and holds no more than `max_held` sends of `max_held_bytes`;
then the gap counts as lost. Which number a session begins with is unknown, so the first send waits as after a gap. What
comes when its turn is over is dropped.

Anybody who can forge a datagram could send the number 2^64 - 1 and make everything else late. So when, for `window_s`,
`RESYNC_AFTER` sends and more have come too late and none in time, the order begins anew with the next. A path that
held some back for long, and gives them out at once, does not have that effect.

Source: seed 004 §9 (the rules are lost); media specification D14, D27.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from punchd.media.buffers import Delivery
from punchd.media.counters import Count, Counters
from punchd.media.settings import ReceiverSettings

RESYNC_AFTER = 16


class Ordering:
    def __init__(self, settings: ReceiverSettings, counters: Counters) -> None:
        self._settings = settings
        self._counters = counters
        self._expected: int | None = None
        self._held: dict[int, tuple[float, Delivery]] = {}  # by number: until when; oldest first
        self._order: list[int] = []  # a heap of the numbers
        self._held_bytes = 0
        self._late = 0  # since one was in time
        self._late_since = 0.0

    def __len__(self) -> int:
        return len(self._held)

    def push(self, delivery: Delivery, now: float) -> Sequence[Delivery]:
        """A send is complete, for the first time. What is to be delivered now, in order."""
        if self._expected is not None and delivery.sequence < self._expected:
            self._late += 1
            if self._late == 1:
                self._late_since = now
            if self._late < RESYNC_AFTER or now - self._late_since < self._settings.window_s:
                self._counters.add(Count.LATE)
                delivery.release()
                return ()
            self._counters.add(Count.RESYNCHRONISED)
            released = self.flush()
            self._expected, self._late = delivery.sequence + 1, 0
            return [*released, delivery]
        if delivery.sequence == self._expected and not self._held:
            self._expected, self._late = delivery.sequence + 1, 0
            return (delivery,)
        if delivery.sequence in self._held:  # deduplication has forgotten it: so many others came since
            self._counters.add(Count.DUPLICATES)
            delivery.release()
            return ()
        delivery.keep()
        self._held[delivery.sequence] = (now + self._settings.window_s, delivery)
        heapq.heappush(self._order, delivery.sequence)
        self._held_bytes += len(delivery.payload)
        released = self._release_ready()
        while len(self._held) > self._settings.max_held or self._held_bytes > self._settings.max_held_bytes:
            released += [self._release_first(), *self._release_ready()]
        return released

    def expire(self, now: float) -> list[Delivery]:
        """What has waited long enough, and all that comes before it."""
        released: list[Delivery] = []
        while self._held and next(iter(self._held.values()))[0] <= now:
            released += [self._release_first(), *self._release_ready()]
        return released

    def next_timeout(self) -> float | None:
        """When `expire` wants to be called."""
        return next(iter(self._held.values()))[0] if self._held else None

    def flush(self) -> list[Delivery]:
        """Everything, in order; then a new order begins."""
        released = []
        while self._held:
            released.append(self._release_first())
        self._expected, self._late = None, 0
        return released

    def _release_ready(self) -> list[Delivery]:
        released = []
        while self._order and self._order[0] == self._expected:
            released.append(self._release_first())
            self._late = 0
        return released

    def _release_first(self) -> Delivery:
        sequence = heapq.heappop(self._order)
        _, delivery = self._held.pop(sequence)
        self._held_bytes -= len(delivery.payload)
        self._expected = sequence + 1
        return delivery
