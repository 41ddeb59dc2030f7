"""Fragments to logical sends, of one session.

The unit is `add(sequence, offset, total, payload, now)`; whoever copies in another way has its two halves. Nothing that
comes is trusted: `total` is checked before any memory is reserved, and sums are Python's, which do not wrap. The bytes
that came first stay: a fragment within what is there is a duplicate, one that overlaps it partly is an error. The first
fragment's `total` counts.

    what arrived           kept as
    [0, filled)            one number; in order, a fragment costs a comparison, an addition and a copy
    runs beyond that       sorted starts and ends, neighbours merged, at most `max_intervals`

Too many open sends, or too much memory, push out the oldest of this session, never another session's. All have the same
time, so the oldest is the first to time out, and the order of a dict tells which it is. A fragment of a send that timed
out opens it again: a sender may repeat a whole send under its number (D15).

Source: seed 004 §9; media specification C46, C48, D11-D15.
"""

from __future__ import annotations

from bisect import bisect_right

from punchd.media.buffers import Block, Delivery, Memory, block_size
from punchd.media.counters import Count, Counters
from punchd.media.settings import ReceiverSettings


class _Entry:
    """An open logical send."""

    __slots__ = ("block", "ends", "expires_at", "filled", "starts", "total")

    def __init__(self, total: int, block: Block, expires_at: float) -> None:
        self.total = total
        self.block = block
        self.expires_at = expires_at
        self.filled = 0
        self.starts: list[int] = []
        self.ends: list[int] = []


class Reassembly:
    def __init__(self, settings: ReceiverSettings, memory: Memory, counters: Counters) -> None:
        self.reserved = 0
        self._settings = settings
        self._memory = memory
        self._counters = counters
        self._entries: dict[int, _Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, sequence: int) -> bool:
        """Whether fragments of it wait."""
        return sequence in self._entries

    def intervals(self, sequence: int) -> int:
        """How many separate runs of bytes of it are there beyond the first."""
        return len(self._entries[sequence].starts)

    def add(self, sequence: int, offset: int, total: int, payload: memoryview, now: float) -> Delivery | None:
        """A fragment came, of a send that is not complete. The send, if it now is.

        Args:
            sequence, offset, total: unsigned, of any size.
            payload: is copied.
        """
        place = self.claim(sequence, offset, total, len(payload), now)
        if place is None:
            return None
        place[:] = payload
        return self.complete(sequence)

    def claim(self, sequence: int, offset: int, total: int, size: int, now: float) -> Block | None:
        """The first half of `add`: where the fragment's bytes belong, at once. None if it is not taken."""
        end = offset + size
        entry = self._entry(sequence, offset, end, total, now)
        if isinstance(entry, Count):
            self._counters.add(entry)
            return None
        objection = self._note(entry, offset, end)
        if objection is not None:
            self._counters.add(objection)
            return None
        return entry.block[offset:end]

    def complete(self, sequence: int) -> Delivery | None:
        """The second half: the send, if the bytes of all its fragments are where they belong."""
        entry = self._entries[sequence]
        if entry.filled != entry.total:
            return None
        del self._entries[sequence]
        self.reserved -= len(entry.block)
        return Delivery(sequence, entry.block[: entry.total], entry.block, self._memory)

    def is_free(self, sequence: int, start: int, end: int) -> bool:
        """Whether nothing of [start, end) is there and there is room to note it, be it in one piece or in several.

        Fragments that follow each other and fill such a range may be added as one, with the same effect.
        """
        entry = self._entries.get(sequence)
        if entry is None:
            return start == 0 or self._settings.max_intervals > 0
        starts, ends = entry.starts, entry.ends
        if start <= entry.filled:
            return start == entry.filled and (not starts or end <= starts[0])
        place = bisect_right(starts, start)
        if place < len(starts) and starts[place] < end:
            return False
        if place and ends[place - 1] >= start:
            return ends[place - 1] == start
        return len(starts) < self._settings.max_intervals

    def _entry(self, sequence: int, offset: int, end: int, total: int, now: float) -> _Entry | Count:
        """The send of a fragment, opened if need be; or why the fragment cannot be taken, whatever else is there."""
        entry = self._entries.get(sequence)
        if entry is not None and entry.expires_at <= now:
            self.expire(now)
            entry = None
        if entry is None:
            if total > self._settings.max_total:
                return Count.TOTAL_TOO_LARGE
        elif total != entry.total:
            return Count.TOTAL_MISMATCH
        if end > total:
            return Count.BEYOND_END
        if offset == end and total:
            return Count.EMPTY_FRAGMENT
        return entry or self._open(sequence, total, now) or Count.NO_MEMORY

    def _note(self, entry: _Entry, start: int, end: int) -> Count | None:
        """Notes that [start, end) is there; why not, if it is not to be taken."""
        if start == entry.filled and (not entry.starts or end <= entry.starts[0]):
            if entry.starts and end == entry.starts[0]:
                del entry.starts[0]
                end = entry.ends.pop(0)
            entry.filled = end
            return None
        if start <= entry.filled:
            return Count.DUPLICATE_FRAGMENTS if end <= entry.filled else Count.OVERLAP
        starts, ends = entry.starts, entry.ends
        place = bisect_right(starts, start)  # of the first run that begins after `start`
        if place and ends[place - 1] > start:
            return Count.DUPLICATE_FRAGMENTS if end <= ends[place - 1] else Count.OVERLAP
        if place < len(starts) and starts[place] < end:
            return Count.OVERLAP
        joins_left = place > 0 and ends[place - 1] == start
        joins_right = place < len(starts) and starts[place] == end
        if joins_left and joins_right:
            ends[place - 1] = ends.pop(place)
            del starts[place]
        elif joins_left:
            ends[place - 1] = end
        elif joins_right:
            starts[place] = start
        elif len(starts) >= self._settings.max_intervals:
            return Count.TOO_MANY_INTERVALS
        else:
            starts.insert(place, start)
            ends.insert(place, end)
        return None

    def expire(self, now: float) -> None:
        """Discards what has waited too long (seed §9)."""
        while self._entries:
            sequence, entry = next(iter(self._entries.items()))
            if entry.expires_at > now:
                return
            self._drop(sequence)
            self._counters.add(Count.TIMEOUTS)

    def next_timeout(self) -> float | None:
        """When `expire` wants to be called."""
        return next(iter(self._entries.values())).expires_at if self._entries else None

    def clear(self) -> None:
        """Forgets everything."""
        while self._entries:
            self._drop(next(iter(self._entries)))

    def _open(self, sequence: int, total: int, now: float) -> _Entry | None:
        size = block_size(total)
        while len(self._entries) >= self._settings.max_entries or self.reserved + size > self._settings.max_reserved:
            self._evict()
        while (block := self._memory.take(total)) is None:
            if not self._entries:
                return None
            self._evict()
        self.reserved += size
        entry = self._entries[sequence] = _Entry(total, block, now + self._settings.reassembly_timeout_s)
        return entry

    def _evict(self) -> None:
        self._drop(next(iter(self._entries)))
        self._counters.add(Count.EVICTIONS)

    def _drop(self, sequence: int) -> None:
        entry = self._entries.pop(sequence)
        self.reserved -= len(entry.block)
        self._memory.give_back(entry.block)
