"""The limiter against a token bucket that counts in fractions."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from punchd.web.rate import Limiter, source_key


class TokenBucket:
    """The textbook: `burst` tokens at most, `rate` new ones a second, an event takes one."""

    def __init__(self, rate: int, burst: int) -> None:
        self.rate, self.burst = rate, burst
        self.tokens = Fraction(burst)
        self.then = Fraction(0)

    def wait(self, now: Fraction) -> Fraction:
        self.tokens = min(Fraction(self.burst), self.tokens + (now - self.then) * self.rate)
        self.then = now
        if self.tokens >= 1:
            self.tokens -= 1
            return Fraction(0)
        return (1 - self.tokens) / self.rate


def test_a_burst_is_allowed_and_then_the_rate() -> None:
    limiter = Limiter(rate=2, burst=3, size=10)
    assert [limiter.allow("a", 10.0) for _ in range(4)] == [0, 0, 0, 0.5]
    assert limiter.allow("a", 10.25) == 0.25
    assert limiter.allow("a", 10.5) == 0
    assert limiter.allow("a", 10.5) == 0.5
    assert [limiter.allow("a", 60.0) for _ in range(4)] == [
        0,
        0,
        0,
        0.5,
    ]  # no more than a burst, however long the pause


def test_a_refused_event_is_not_counted() -> None:
    limiter = Limiter(rate=1, burst=1, size=10)
    assert limiter.allow("a", 0.0) == 0
    for _ in range(100):
        assert limiter.allow("a", 0.5) == 0.5
    assert limiter.allow("a", 1.0) == 0


def test_keys_do_not_share() -> None:
    limiter = Limiter(rate=1, burst=1, size=10)
    assert [limiter.allow(key, 0.0) for key in ("a", "b", "a")] == [0, 0, 1]


@pytest.mark.parametrize("rate", [3, 7, 0.1, 1e6])
def test_the_last_of_a_burst_does_not_depend_on_a_rounding(rate: float) -> None:
    for now in (0.0, 1.1, 123_456_789.123456):
        limiter = Limiter(rate, burst=1000, size=1)
        assert sum(limiter.allow("a", now) == 0 for _ in range(1001)) == 1000


# Rates that divide a second into whole nanoseconds, so that both sides can be exact; times in 1/1024 s, which a float
# holds, and a Fraction too.
RATES = st.sampled_from([1, 2, 4, 5, 10, 64, 100])
PAUSES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4096)), max_size=200)


@given(RATES, st.integers(1, 20), PAUSES)
def test_it_decides_as_a_token_bucket(rate: int, burst: int, pauses: list[tuple[int, int]]) -> None:
    limiter = Limiter(rate, burst, size=4)
    buckets = [TokenBucket(rate, burst) for _ in range(4)]
    now = Fraction(5)
    for key, pause in pauses:
        now += Fraction(pause, 1024)
        expected = buckets[key].wait(now)
        wait = limiter.allow(key, float(now))
        assert (wait == 0) == (expected == 0) or abs(expected) < Fraction(4, 10**9)
        assert abs(Fraction(wait) - expected) < Fraction(4, 10**9)


@given(RATES, st.integers(1, 5), st.integers(1, 4), st.lists(st.tuples(st.integers(0, 12), st.integers(0, 512))))
def test_a_table_that_is_too_small_allows_nobody_less_in_all_and_never_grows(
    rate: int, burst: int, size: int, pauses: list[tuple[int, int]]
) -> None:
    small, large = Limiter(rate, burst, size), Limiter(rate, burst, 1000)
    allowed_by_small, allowed_by_large = Counter[int](), Counter[int]()
    now = 5.0
    for key, pause in pauses:
        now += pause / 1024
        allowed_by_small[key] += small.allow(key, now) == 0
        allowed_by_large[key] += large.allow(key, now) == 0
        assert allowed_by_small[key] >= allowed_by_large[key]
        assert len(small) <= size


def test_idle_keys_make_room_before_busy_ones() -> None:
    limiter = Limiter(rate=1, burst=10, size=3)
    for _ in range(10):
        limiter.allow("busy", 0.0)  # until 10 s
    limiter.allow("idle", 0.0)  # until 1 s
    limiter.allow("idle too", 0.0)
    assert limiter.allow("new", 5.0) == 0
    assert len(limiter) == 2
    assert [limiter.allow("busy", 5.0) for _ in range(6)] == [0, 0, 0, 0, 0, 1]


def test_where_all_are_busy_the_oldest_is_forgotten() -> None:
    limiter = Limiter(rate=1, burst=1, size=2)
    assert [limiter.allow(key, 0.0) for key in ("a", "b", "c")] == [0, 0, 0]
    assert len(limiter) == 2
    assert limiter.allow("c", 0.5) == 0.5
    assert limiter.allow("b", 0.5) == 0.5
    assert limiter.allow("a", 0.5) == 0


@pytest.mark.parametrize("wrong", [(0, 1, 1), (-1, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_nonsense_is_refused(wrong: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="expected rate > 0"):
        Limiter(*wrong)


def test_a_source_is_an_ipv4_address_or_an_ipv6_64() -> None:
    def key(text: str) -> bytes:
        return source_key(ip_address(text))

    assert key("192.0.2.1") != key("192.0.2.2")
    assert key("2001:db8::1") == key("2001:db8::ffff:0:0:1")
    assert key("2001:db8::1") != key("2001:db8:0:1::1")
    assert key("::ffff:192.0.2.1") == key("192.0.2.1")
