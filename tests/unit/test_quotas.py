"""How much one application and one user may ask for: what is refused is not counted, what is counted is given back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from punchd.config import Limits
from punchd.control.quotas import MAX_BUCKETS, Bucket, Quotas
from punchd.errors import Code, DeniedError

EPSILON_S = 1e-6

# Rate, burst, then (time of a request, seconds that it has to wait).
SCENARIOS = [
    pytest.param(1, 1, [(0, 0), (0, 1), (0, 2), (3, 0)], id="one a second"),
    pytest.param(10, 1, [(0, 0), (0.05, 0.05), (0.2, 0), (0.3, 0)], id="a bit too fast"),
    pytest.param(2, 4, [(5, 0), (5, 0), (5, 0), (5, 0), (5, 0.5), (5, 1), (5, 1.5)], id="a burst, then the rate"),
    pytest.param(2, 2, [(0, 0), (0, 0), (0.5, 0), (0.5, 0.5), (1.5, 0)], id="the rate gives room back"),
    pytest.param(
        2, 3, [(0, 0), (0, 0), (0, 0), (1000, 0), (1000, 0), (1000, 0), (1000, 0.5)], id="never more than full"
    ),
    pytest.param(20, 40, [*[(7.0, 0)] * 40, (7.0, 0.05), (7.0, 0.1)], id="the limits of a connection"),
]


@pytest.mark.parametrize(("rate", "burst", "steps"), SCENARIOS)
def test_a_bucket_lets_a_burst_through_and_then_the_rate(
    rate: float, burst: int, steps: list[tuple[float, float]]
) -> None:
    bucket = Bucket(rate, burst)
    assert [bucket.take(now) for now, _ in steps] == pytest.approx([wait for _, wait in steps])


gaps = st.one_of(st.just(0.0), st.floats(0, 0.2), st.floats(0, 20))


@settings(max_examples=500)
@given(st.floats(0.5, 1000), st.integers(1, 50), st.lists(gaps, min_size=1, max_size=120), st.floats(0, 1e6))
def test_no_window_has_more_requests_than_burst_and_rate_allow(
    rate: float, burst: int, pauses: list[float], start: float
) -> None:
    bucket = Bucket(rate, burst)
    now = start
    carried_out: list[float] = []
    for pause in pauses:
        now += pause
        wait = bucket.take(now)
        assert wait >= 0
        carried_out.append(now + wait)
    assert carried_out == sorted(carried_out)
    for first, begin in enumerate(carried_out):
        for last in range(first, len(carried_out)):
            window_s = carried_out[last] - begin + EPSILON_S
            assert last - first + 1 <= burst + rate * window_s + EPSILON_S


@settings(max_examples=200)
@given(st.floats(0.5, 1000), st.integers(1, 50), st.lists(st.floats(0, 5), max_size=50))
def test_who_keeps_to_the_rate_never_waits(rate: float, burst: int, pauses: list[float]) -> None:
    bucket = Bucket(rate, burst)
    now = 0.0
    for pause in pauses:
        now += 1 / rate + pause
        assert bucket.take(now) <= EPSILON_S


@given(st.floats(0.5, 1000), st.integers(1, 50), st.integers(1, 100))
def test_a_full_bucket_is_like_a_new_one(rate: float, burst: int, requests: int) -> None:
    used, new = Bucket(rate, burst), Bucket(rate, burst)
    for _ in range(requests):
        used.take(0.0)
    now = used.full_at
    assert [used.take(now) for _ in range(60)] == pytest.approx([new.take(now) for _ in range(60)])


def refused(quotas: Quotas, action: str, *arguments: int) -> str:
    with pytest.raises(DeniedError) as caught:
        getattr(quotas, action)(*arguments)
    assert caught.value.code is Code.BUSY
    return str(caught.value)


def test_connections_are_limited_for_a_user_and_in_all_and_refusals_are_not_counted() -> None:
    quotas = Quotas(Limits(connections_per_user=2, connections=3))
    quotas.connect(1000)
    quotas.connect(1000)
    for _ in range(5):
        assert refused(quotas, "connect", 1000) == "2 connections of uid 1000 are open"
    quotas.connect(1001)
    for _ in range(5):
        assert refused(quotas, "connect", 1001) == "3 connections are open"
    assert dict(quotas._connections) == {1000: 2, 1001: 1}
    quotas.disconnect(1000)
    quotas.connect(1001)
    assert refused(quotas, "connect", 1002) == "3 connections are open"


def test_attempts_are_limited_for_a_connection_a_user_and_in_all_and_refusals_are_not_counted() -> None:
    quotas = Quotas(Limits(attempts_per_connection=2, attempts_per_user=3, attempts=4))
    quotas.begin(1000, 0)
    quotas.begin(1000, 1)
    assert refused(quotas, "begin", 1000, 2) == "2 attempts of this connection are running"
    quotas.begin(1000, 0)
    assert refused(quotas, "begin", 1000, 1) == "3 attempts of uid 1000 are running"
    quotas.begin(1001, 0)
    assert refused(quotas, "begin", 1001, 1) == "4 attempts are running"
    assert refused(quotas, "begin", 1002, 0) == "4 attempts are running"
    assert dict(quotas._attempts) == {1000: 3, 1001: 1}
    quotas.end(1000)
    quotas.begin(1002, 0)


def test_nothing_is_left_of_a_user_who_has_gone() -> None:
    quotas = Quotas(Limits())
    for uid in range(50):
        quotas.connect(uid)
        quotas.begin(uid, 0)
    for uid in range(50):
        quotas.end(uid)
        quotas.disconnect(uid)
    assert len(quotas._connections) == 0
    assert len(quotas._attempts) == 0


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=80))
def test_counts_are_those_of_a_plain_list(steps: list[tuple[bool, int]]) -> None:
    limits = Limits(attempts_per_user=3, attempts=6)
    quotas = Quotas(limits)
    running: list[int] = []
    for begins, uid in steps:
        if not begins:
            if uid in running:
                running.remove(uid)
                quotas.end(uid)
            continue
        fits = running.count(uid) < 3 and len(running) < 6
        try:
            quotas.begin(uid, 0)
        except DeniedError:
            assert not fits
        else:
            assert fits
            running.append(uid)


def test_a_user_shares_one_rate_over_all_connections_and_others_do_not_pay_for_it() -> None:
    quotas = Quotas(Limits(user_requests_per_second=10, user_request_burst=3))
    assert [quotas.request(1000, 5.0) for _ in range(5)] == pytest.approx([0, 0, 0, 0.1, 0.2])
    assert quotas.request(1001, 5.0) == 0


def test_what_begins_has_a_rate_of_its_own_for_each_user() -> None:
    quotas = Quotas(Limits(user_attempts_per_second=10, user_attempt_burst=2))
    assert [quotas.beginning(1000, 5.0) for _ in range(4)] == pytest.approx([0, 0, 0.1, 0.2])
    assert quotas.beginning(1001, 5.0) == quotas.request(1000, 5.0) == 0


def test_the_table_of_buckets_is_bounded_however_many_users_there_are() -> None:
    quotas = Quotas(Limits())
    for uid in range(3 * MAX_BUCKETS):
        quotas.request(uid, 1.0)
        assert len(quotas._buckets) <= MAX_BUCKETS


def test_room_is_made_by_forgetting_full_buckets_and_never_a_busy_user_first() -> None:
    quotas = Quotas(Limits(user_requests_per_second=1, user_request_burst=2))
    for _ in range(2):
        quotas.request(7, 0.0)  # full again at 2 s
    for uid in range(100, 100 + MAX_BUCKETS - 1):
        quotas.request(uid, 0.0)  # full again at 1 s
    quotas.request(5000, 0.5)  # none is full: the first that would be goes
    assert quotas.request(7, 0.5) == pytest.approx(0.5)
    assert len(quotas._buckets) == MAX_BUCKETS
    quotas.request(5001, 1.2)
    assert set(quotas._buckets) == {7, 5000, 5001}
