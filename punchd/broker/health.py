"""How well a stream does: from what its two peers report to one entry, and how often that is told.

    one report         warning       critical          L: the session's latency in ms
    rtt                4 · rtt > L   2.5 · rtt > L
    retransmit         ≥ 3 %         ≥ 10 %
    bitrate                          = 0
    dropped            grew since the same peer's last report

SRT's guidance is a latency of four round trips, and never under two and a half; loss above 3 % and 10 % needs ever
larger multiples. Of two peers the worse figure counts, and the worse judgement. A report is news for 30 s.

A connection is told at most once a second. What came meanwhile is told at the end of that second, and only the newest,
since each report replaces the one before it (`Pacer`).

Pure.

Source: broker specification C-27; the thresholds of the reference implementation are not public.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from math import inf
from typing import Any, Generic, TypeVar

from punchd.broker.messages import Health

REPORT_INTERVAL_S = 1.0

_T = TypeVar("_T")


class HealthStatus(StrEnum):
    """The judgement, the best first."""

    HEALTHY = "healthy"
    WARNING = "warning"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True)
class Thresholds:
    """See the table above.

    Attributes:
        warning_rtts, critical_rtts: how many round trips must fit into the latency.
        warning_retransmit, critical_retransmit: percent.
        valid_ms: for how long a report is news.
    """

    warning_rtts: float = 4.0
    critical_rtts: float = 2.5
    warning_retransmit: float = 3.0
    critical_retransmit: float = 10.0
    valid_ms: int = 30_000


@dataclass(frozen=True, slots=True)
class Sample:
    """A peer's newest report, at `at_ms`.

    Attributes:
        dropped: the last count that it gave, in this report or an earlier one.
        has_dropped: that count grew with this report.
    """

    at_ms: int
    rtt: float
    retransmit: float
    bitrate: float
    dropped: float | None = None
    has_dropped: bool = False


@dataclass(frozen=True, slots=True)
class HealthEntry:
    """A stream's line in a `health_report`."""

    rtt: float
    retransmit: float
    bitrate: float
    status: HealthStatus

    def members(self) -> dict[str, Any]:
        """As JSON has it."""
        figures = {"rtt": self.rtt, "retransmit": self.retransmit, "bitrate": self.bitrate}
        return {**figures, "status": self.status.value}


def sample(health: Health, before: Sample | None, now_ms: int) -> Sample:
    """What is kept of a report; `before` is the same peer's last one."""
    last = None if before is None else before.dropped
    dropped = last if health.dropped is None else health.dropped
    has_dropped = health.dropped is not None and last is not None and health.dropped > last
    return Sample(now_ms, health.rtt, health.retransmit, health.bitrate, dropped, has_dropped)


def judge(one: Sample, latency_ms: int, thresholds: Thresholds) -> HealthStatus:
    """The status of one report."""
    if (
        thresholds.critical_rtts * one.rtt > latency_ms
        or one.retransmit >= thresholds.critical_retransmit
        or one.bitrate == 0
    ):
        return HealthStatus.CRITICAL
    if (
        thresholds.warning_rtts * one.rtt > latency_ms
        or one.retransmit >= thresholds.warning_retransmit
        or one.has_dropped
    ):
        return HealthStatus.WARNING
    return HealthStatus.HEALTHY


def combine(
    samples: Iterable[Sample | None], now_ms: int, latency_ms: int, thresholds: Thresholds
) -> HealthEntry | None:
    """A stream's entry from the newest reports of its peers; None if none of them is news."""
    news = [one for one in samples if one is not None and now_ms - one.at_ms < thresholds.valid_ms]
    if not news:
        return None
    order = list(HealthStatus)
    worst = max((judge(one, latency_ms, thresholds) for one in news), key=order.index)
    return HealthEntry(
        max(one.rtt for one in news), max(one.retransmit for one in news), min(one.bitrate for one in news), worst
    )


class Pacer(Generic[_T]):
    """Lets one thing a second through; of those that came too early only the newest, and that one late.

    Belongs to a connection, at the process that holds it. `now` is in seconds of a clock that never goes back.
    """

    __slots__ = ("_free_at", "_held", "_interval_s")

    def __init__(self, interval_s: float = REPORT_INTERVAL_S) -> None:
        self._interval_s = interval_s
        self._free_at = -inf
        self._held: _T | None = None

    def offer(self, one: _T, now: float) -> _T | None:
        """`one` if it may go out now; None if it is held back, in place of what was."""
        if now >= self._free_at:
            self._free_at, self._held = now + self._interval_s, None
            return one
        self._held = one
        return None

    def next_timeout(self) -> float:
        """When `handle_timeout` has something; inf for never."""
        return inf if self._held is None else self._free_at

    def handle_timeout(self, now: float) -> _T | None:
        """What was held back, if its time has come."""
        if self._held is None or now < self._free_at:
            return None
        held, self._held = self._held, None
        self._free_at = now + self._interval_s
        return held
