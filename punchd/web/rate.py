"""How often somebody may: the generic cell rate algorithm, one number a key, no clock.

A key's number is the moment at which its bucket will be full again (the "theoretical arrival time"). Each allowed
event moves it by 1/rate; an event is refused if it would be more than `burst` events ahead of now. It decides as a
token bucket of `burst` tokens that gains `rate` of them a second, and needs no timer and no second number.

Whose moment is past is as good as unknown, so such keys are dropped first when the table is full. If there is none
among the oldest, the oldest is forgotten: then somebody may do more in all than was said, and nobody less.

Times are kept in whole nanoseconds, because the last of a burst must not depend on a rounding.

Source: ITU-T I.371 Annex A; the table's policy is ours.
"""

from __future__ import annotations

from collections.abc import Hashable

from punchd.endpoint import IPAddress

_NS = 1_000_000_000
_LOOK = 8  # how many of the oldest keys are looked at for each that comes anew


class Limiter:
    """Allows each key `rate` events a second, and `burst` at once after a pause.

    Args:
        rate: events per second and key, > 0.
        burst: events at once, ≥ 1.
        size: keys that are remembered, ≥ 1.
    """

    __slots__ = ("_full_at_ns", "_size", "_step_ns", "_tolerance_ns")

    def __init__(self, rate: float, burst: int, size: int) -> None:
        if not 0 < rate <= _NS or burst < 1 or size < 1:
            raise ValueError(f"expected rate > 0, burst and size of 1 or more, got {rate}, {burst} and {size}")
        self._step_ns = round(_NS / rate)
        self._tolerance_ns = (burst - 1) * self._step_ns
        self._size = size
        self._full_at_ns: dict[Hashable, int] = {}

    def __len__(self) -> int:
        return len(self._full_at_ns)

    def allow(self, key: Hashable, now: float) -> float:
        """Count an event of `key` at `now` (seconds of a monotonic clock).

        Returns:
            0 if it is allowed; else in how many seconds one will be, and this one was not counted.
        """
        now_ns = int(now * _NS)
        known = self._full_at_ns.get(key)
        full_at_ns = now_ns if known is None or known < now_ns else known
        early_ns = full_at_ns - self._tolerance_ns - now_ns
        if early_ns > 0:
            return early_ns / _NS
        if known is not None:
            del self._full_at_ns[key]  # to the end: the order is that of the last event
        elif len(self._full_at_ns) >= self._size:
            self._make_room(now_ns)
        self._full_at_ns[key] = full_at_ns + self._step_ns
        return 0.0

    def _make_room(self, now_ns: int) -> None:
        oldest = [key for key, _ in zip(self._full_at_ns, range(_LOOK), strict=False)]
        idle = [key for key in oldest if self._full_at_ns[key] <= now_ns]
        for key in idle or oldest[:1]:
            del self._full_at_ns[key]


def source_key(ip: IPAddress) -> bytes:
    """Who is counted as one: an IPv4 address, or the /64 of an IPv6 address, which one customer has for itself."""
    if ip.version == 6:
        return ip.packed[:8] if ip.ipv4_mapped is None else ip.ipv4_mapped.packed
    return ip.packed
