"""Media of one session, from datagrams to logical sends: each delivered once.

Whoever changes the session of a tuple calls `flush`; so the key (tuple, connection id, sequence number) of seed §9 is
which `Receiver`, since which flush, and the number.

What was seen is kept in two sets, the newer and the older half: when the newer is full, the older is dropped whole.
That remembers the last 4,096 numbers at least and 8,192 at most, and costs a quarter of removing the oldest one by
one. There is no window below a "highest number": one forged datagram with 2^64 - 1 would move it for good.

Source: seed 004 §6.4, §9; media specification C28, C29, C44-C47, D9, D12, D14.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from punchd.media.buffers import Block, Delivery, Memory
from punchd.media.counters import Count, Counters
from punchd.media.datagrams import Media
from punchd.media.ordering import Ordering
from punchd.media.reassembly import Reassembly
from punchd.media.settings import ReceiverSettings
from punchd.media.telemetry import Report, Telemetry


class Run(NamedTuple):
    """Fragments of one send that follow each other. Unsigned, of any size.

    Attributes:
        offset, total: of the first one's fragment block.
        size: of all payloads together, bytes.
        datagrams: how many.
    """

    offset: int
    total: int
    size: int
    datagrams: int


class Recent:
    """Sequence numbers that were seen lately: the last `limit / 2` at least, `limit` at most."""

    __slots__ = ("_half", "_newer", "_older")

    def __init__(self, limit: int) -> None:
        self._half = limit // 2
        self._newer: set[int] = set()
        self._older: set[int] = set()

    def __contains__(self, sequence: int) -> bool:
        return sequence in self._newer or sequence in self._older

    def __len__(self) -> int:
        return len(self._newer) + len(self._older)

    def add(self, sequence: int) -> None:
        """One that is not yet there."""
        if len(self._newer) >= self._half:
            self._older, self._newer = self._newer, set()
        self._newer.add(sequence)

    def clear(self) -> None:
        self._newer, self._older = set(), set()


class Receiver:
    """The media of one tuple.

    Args:
        memory: the process's, shared by all receivers.
    """

    def __init__(self, settings: ReceiverSettings, memory: Memory, counters: Counters) -> None:
        self.recent = Recent(settings.remembered)
        self.reassembly = Reassembly(settings, memory, counters)
        self.ordering = Ordering(settings, counters) if settings.ordered else None
        self.telemetry = Telemetry()
        self.lost_earlier = 0  # logical sends that were missing or incomplete at flushes
        self._path_before: Report | None = None
        self._max_total = settings.max_total
        self._counters = counters

    def receive(self, media: Media, now: float) -> Sequence[Delivery]:
        """A data datagram came. What is to be delivered now; each is to be released."""
        sequence, qpc, qpf, payload, offset, total = media
        self._counters.add(Count.DATAGRAMS)
        if sequence in self.recent:
            self._counters.add(Count.DUPLICATES)
            return ()
        is_open = sequence in self.reassembly
        delivery: Delivery | None
        if total is not None:
            delivery = self.reassembly.add(sequence, offset, total, payload, now)
            is_taken = delivery is not None or sequence in self.reassembly
        elif is_open:
            self._counters.add(Count.UNFRAGMENTED_MISMATCH)
            return ()
        elif len(payload) > self._max_total:
            self._counters.add(Count.TOTAL_TOO_LARGE)
            return ()
        else:
            delivery, is_taken = Delivery(sequence, payload), True
        if is_taken:
            self.telemetry.note_clock(qpc, qpf, now)
            if not is_open:
                self.telemetry.note_sequence(sequence)
        return () if delivery is None else self._deliver(delivery, now)

    def suits(self, sequence: int, run: Run) -> bool:
        """Whether `claim` may be asked: the run has the same effect as its fragments one by one."""
        end = run.offset + run.size
        if run.size <= 0 or end > run.total or sequence in self.recent:
            return False
        return self.reassembly.is_free(sequence, run.offset, end)

    def claim(self, sequence: int, qpc: int, qpf: int, run: Run, now: float) -> Block | None:
        """The first half of `receive` for a run that suits.

        Returns:
            Where its bytes belong, for `finish`; None: its first fragment was refused, and the others are to be
            received one by one.
        """
        is_open = sequence in self.reassembly
        place = self.reassembly.claim(sequence, run.offset, run.total, run.size, now)
        self._counters.add(Count.DATAGRAMS, 1 if place is None else run.datagrams)
        if sequence in self.reassembly:
            self.telemetry.note_clock(qpc, qpf, now)
            if not is_open:
                self.telemetry.note_sequence(sequence)
        return place

    def finish(self, sequence: int, now: float) -> Sequence[Delivery]:
        """The second half, when the bytes are where they belong."""
        delivery = self.reassembly.complete(sequence)
        return () if delivery is None else self._deliver(delivery, now)

    def _deliver(self, delivery: Delivery, now: float) -> Sequence[Delivery]:
        self.recent.add(delivery.sequence)
        self._counters.add(Count.COMPLETED)
        return (delivery,) if self.ordering is None else self.ordering.push(delivery, now)

    @property
    def path(self) -> Report:
        """What is known of the path; right after a flush, what was known before it."""
        report = self.telemetry.report()
        return report if report.jitter_s is not None or self._path_before is None else self._path_before

    def next_timeout(self) -> float | None:
        """When `handle_timeout` wants to be called."""
        timeouts = (self.reassembly.next_timeout(), self.next_gap_timeout())
        return min((timeout for timeout in timeouts if timeout is not None), default=None)

    def next_gap_timeout(self) -> float | None:
        """When what a gap holds up is to be delivered; None if nothing is held up."""
        return self.ordering.next_timeout() if self.ordering is not None else None

    def handle_timeout(self, now: float, heard_until: float | None = None) -> Sequence[Delivery]:
        """Time has passed, and what came before `heard_until` was taken; None: until now."""
        self.reassembly.expire(now)
        if self.ordering is None:
            return ()
        return self.ordering.expire(now if heard_until is None else heard_until)

    def flush(self) -> Sequence[Delivery]:
        """Another session begins on the tuple. What the old one had complete and held back."""
        self.recent.clear()
        report = self.telemetry.report()
        self.lost_earlier += report.lost + len(self.reassembly)
        self._path_before = report if report.jitter_s is not None else self._path_before
        self.reassembly.clear()
        self.telemetry = Telemetry()
        return self.ordering.flush() if self.ordering is not None else ()
