"""How often a source may do something: at most so many times within any minute, by the times at which it did.

An exact log in place of a bucket, since the protocol promises it: ten sessions a minute, and after `Retry-After` one
more. What was refused does not count. Keys that did nothing for a period are forgotten; when the table is full, the
one that did nothing for longest is.

`Rates` is what the API asks; a store that several servers share may bring its own.

Pure: `now` is in seconds of a clock that never goes back.

Source: broker specification §9, B-033 to B-036, B-108, B-116.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from enum import Enum
from typing import Protocol

from punchd.broker.settings import Limits

MINUTE_S = 60.0


class Deed(Enum):
    """What is counted by source."""

    CREATE = "create"
    UPGRADE = "upgrade"
    REQUEST = "request"
    PAGE = "page"
    FAIL = "failed authentication"


class Window:
    """At most `most` events a key within any `period_s`; remembers `size` keys."""

    __slots__ = ("_most", "_period_s", "_size", "_times")

    def __init__(self, most: int, period_s: float, size: int) -> None:
        self._most = most
        self._period_s = period_s
        self._size = size
        self._times: dict[Hashable, deque[float]] = {}

    def __len__(self) -> int:
        return len(self._times)

    def allow(self, key: Hashable, now: float) -> float:
        """Count an event; 0 if it is allowed, else in how many seconds one will be."""
        self._forget(now)
        times = self._times.pop(key, None) or deque()
        while times and times[0] + self._period_s <= now:  # not `now - …`: what is left is to be more than nothing
            times.popleft()
        self._times[key] = times  # to the end: the order is that of the last event
        if len(times) >= self._most:
            return times[0] + self._period_s - now
        times.append(now)
        return 0.0

    def _forget(self, now: float) -> None:
        while self._times:
            oldest = next(iter(self._times))
            if len(self._times) < self._size and now < self._times[oldest][-1] + self._period_s:
                return
            del self._times[oldest]


def most_a_minute(limits: Limits) -> dict[Deed, int]:
    """What a source may do."""
    return {
        Deed.CREATE: limits.creations_per_minute,
        Deed.UPGRADE: limits.upgrades_per_minute,
        Deed.REQUEST: limits.requests_per_minute,
        Deed.PAGE: limits.pages_per_minute,
        Deed.FAIL: limits.failed_authentications_per_minute,
    }


class Rates(Protocol):
    """Who counts deeds by source."""

    async def allow(self, deed: Deed, source: bytes, now: float) -> float:
        """Count a deed of a source; 0 if it is allowed, else in how many seconds one will be."""
        ...


class LocalRates:
    """Counts in this process."""

    def __init__(self, limits: Limits) -> None:
        numbers = most_a_minute(limits).items()
        self._windows = {deed: Window(most, MINUTE_S, limits.sources) for deed, most in numbers}

    async def allow(self, deed: Deed, source: bytes, now: float) -> float:
        """See `Rates`. Without a checkpoint."""
        return self._windows[deed].allow(source, now)
