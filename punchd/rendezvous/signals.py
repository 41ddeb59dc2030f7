"""Signals: short texts that wait for a client until it fetches them.

A look-up tells the caller where its peer is; the peer learns nothing of the caller. A signal is how it does, and how
two programs exchange punchd's tokens. A signal is delivered at most once; those of one sender keep their order; one
that nobody fetched in time is dropped, since what it was about is over.

The texts of all clients together are bounded, with what each costs besides its bytes.

Pure: `now` is in seconds of a clock that never goes back.

Source: rendezvous specification D-22, §5.2.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

OVERHEAD_BYTES = 400  # of a signal that waits: objects and a share of its queue, measured


class Posted(Enum):
    """What became of a signal."""

    SENT = "sent"
    UNKNOWN = "unknown"  # no such client
    FULL = "full"  # the client has too many that it did not fetch
    EXHAUSTED = "exhausted"  # the server has


@dataclass(frozen=True, slots=True)
class Signal:
    """A text from a client (by its id), posted at `posted` seconds."""

    sender: bytes
    data: str
    posted: float

    @property
    def cost_bytes(self) -> int:
        """What it counts against the bound of all."""
        return len(self.data.encode()) + OVERHEAD_BYTES


class Signals:
    """The queues.

    Args:
        queue: signals that one client may have waiting.
        memory_bytes: what all of them may cost.
        age_s: how long one waits.
    """

    def __init__(self, queue: int, memory_bytes: int, age_s: float) -> None:
        self._queue = queue
        self._memory_bytes = memory_bytes
        self._age_s = age_s
        self._queues: OrderedDict[bytes, deque[Signal]] = OrderedDict()  # none is empty; about the oldest first
        self._cost_bytes = 0

    def __len__(self) -> int:
        """Queues that hold something."""
        return len(self._queues)

    @property
    def cost_bytes(self) -> int:
        """What all waiting signals cost."""
        return self._cost_bytes

    def post(self, target: bytes, signal: Signal) -> Posted:
        """Queue a signal for a client; its time of posting is now."""
        self._drop_old(target, signal.posted)
        queue = self._queues.get(target)
        if queue is not None and len(queue) >= self._queue:
            return Posted.FULL
        if self._cost_bytes + signal.cost_bytes > self._memory_bytes:
            return Posted.EXHAUSTED
        self._queues.setdefault(target, deque()).append(signal)
        self._cost_bytes += signal.cost_bytes
        return Posted.SENT

    def take(self, target: bytes, now: float) -> list[Signal]:
        """All that wait for a client, the oldest first; they wait no longer."""
        self._drop_old(target, now)
        return self.forget(target)

    def put_back(self, target: bytes, signals: Iterable[Signal]) -> None:
        """Signals that were taken and did not get out: they wait again, before any that came since.

        They count against the bounds, but are not refused because of them.
        """
        returned = list(signals)
        if returned:
            self._queues.setdefault(target, deque()).extendleft(reversed(returned))
            self._cost_bytes += sum(signal.cost_bytes for signal in returned)

    def forget(self, target: bytes) -> list[Signal]:
        """Drop the queue of a client; what was in it."""
        dropped = list(self._queues.pop(target, ()))
        self._cost_bytes -= sum(signal.cost_bytes for signal in dropped)
        return dropped

    def sweep(self, now: float) -> None:
        """Drop what is too old. Stops at the first queue whose oldest signal is not."""
        while self._queues:
            target = next(iter(self._queues))
            if not self._drop_old(target, now):
                return
            if target in self._queues:
                self._queues.move_to_end(target)

    def _drop_old(self, target: bytes, now: float) -> bool:
        queue = self._queues.get(target)
        if queue is None or now - queue[0].posted < self._age_s:
            return False
        while queue and now - queue[0].posted >= self._age_s:
            self._cost_bytes -= queue.popleft().cost_bytes
        if not queue:
            del self._queues[target]
        return True
