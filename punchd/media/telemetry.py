"""What a receiver can tell of its path: jitter, the trend of the one-way delay, loss.

    jitter   RFC 3550 §6.4.1: J += (|D| - J) / 16, where D compares the spacing of two datagrams here and at the sender
    delay    arrival minus sending, by two clocks that nobody has compared: only its changes mean something.
             `queueing_s` is what it is above its least value of the last ten to twenty seconds (RFC 6817 §2.4.2 keeps
             the least delay in such pieces); `trend` its slope, in seconds a second: above 0 a queue grows
    loss     expected minus received sequence numbers, RFC 3550 A.1 and A.3. A jump of more than `MAX_DROPOUT` counts
             only if the next number follows it, so that one forged datagram does not spoil the estimate

A sender takes one clock sample (QPC) for a batch, so equal samples are looked at once. QPF is ticks a second; 0 means
that there is no clock, another value that the clock is another. Nothing here decides anything: the numbers are a
stranger's.

Source: seed 004 §4, §5; media specification D28.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

MAX_DROPOUT = 3000  # RFC 3550 A.1
MAX_STEP_S = 10.0  # a larger change of the delay is a clock that was set, or a forged value
BASE_PIECE_S = 10.0
TREND_POINTS = 32


@dataclass(frozen=True, slots=True)
class Report:
    """Times in seconds; None where nothing is known."""

    jitter_s: float | None
    queueing_s: float | None
    trend: float | None
    expected: int
    lost: int


class Telemetry:
    def __init__(self) -> None:
        self._highest: int | None = None
        self._suspect = -1
        self._expected = 0
        self._received = 0
        self._qpf = 0
        self._last_qpc = -1
        self._jitter_s = 0.0
        self._base_qpc, self._base_now = 0, 0.0
        self._delay_s = self._least_s = self._least_before_s = 0.0
        self._piece_began = 0.0
        self._points: deque[tuple[float, float]] = deque(maxlen=TREND_POINTS)

    def note_clock(self, qpc: int, qpf: int, now: float) -> None:
        """A datagram's clock sample. Any values of 64 bits."""
        if qpf == 0 or (qpc == self._last_qpc and qpf == self._qpf):
            return
        self._last_qpc = qpc
        delay_s = (now - self._base_now) - (qpc - self._base_qpc) / qpf
        change_s = delay_s - self._delay_s
        if qpf != self._qpf or abs(change_s) > MAX_STEP_S:
            self._qpf = qpf
            self._start_clock(qpc, now)
            self._points.append((now, 0.0))
            return
        self._jitter_s += (abs(change_s) - self._jitter_s) / 16
        self._delay_s = delay_s
        if now - self._piece_began >= BASE_PIECE_S:
            self._least_before_s, self._least_s, self._piece_began = self._least_s, delay_s, now
        self._least_s = min(self._least_s, delay_s)
        self._points.append((now, delay_s))

    def note_sequence(self, sequence: int) -> None:
        """A sequence number was seen for the first time."""
        if self._highest is None:
            self._highest, self._expected, self._received = sequence, 1, 1
            return
        gap = sequence - self._highest
        if 0 < gap <= MAX_DROPOUT:
            self._highest = sequence
            self._expected += gap
        elif sequence == self._suspect:
            self._highest, self._suspect = sequence, -1
            self._expected += 1
        elif not -MAX_DROPOUT <= gap < 0:
            self._suspect = sequence + 1
            return
        self._received += 1

    def report(self) -> Report:
        """What is known now."""
        has_clock = self._qpf > 0
        return Report(
            self._jitter_s if has_clock else None,
            self._delay_s - min(self._least_s, self._least_before_s) if has_clock else None,
            self._trend(),
            self._expected,
            max(0, self._expected - self._received),
        )

    def _start_clock(self, qpc: int, now: float) -> None:
        self._base_qpc, self._base_now = qpc, now
        self._delay_s = self._least_s = self._least_before_s = 0.0
        self._piece_began = now
        self._points.clear()

    def _trend(self) -> float | None:
        """The slope of the line of least squares."""
        count = len(self._points)
        if count < 2:
            return None
        mean_now = sum(now for now, _ in self._points) / count
        mean_delay = sum(delay for _, delay in self._points) / count
        spread = sum((now - mean_now) ** 2 for now, _ in self._points)
        if spread == 0:
            return None
        return sum((now - mean_now) * (delay - mean_delay) for now, delay in self._points) / spread
