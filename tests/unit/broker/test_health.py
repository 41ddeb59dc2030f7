"""The judgement of health, and how often it is told."""

from __future__ import annotations

from itertools import pairwise
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from punchd.broker.health import HealthStatus, Pacer, Sample, Thresholds, combine, judge, sample
from punchd.broker.messages import Health

DEFAULT = Thresholds()


@pytest.mark.parametrize(
    ("figures", "status"),
    [
        ({}, "healthy"),
        ({"rtt": 50}, "healthy"),
        ({"rtt": 50.1}, "warning"),
        ({"rtt": 80}, "warning"),
        ({"rtt": 80.1}, "critical"),
        ({"retransmit": 2.9}, "healthy"),
        ({"retransmit": 3}, "warning"),
        ({"retransmit": 10}, "critical"),
        ({"bitrate": 0}, "critical"),
        ({"bitrate": -0.0}, "critical"),
        ({"bitrate": 1}, "healthy"),
        ({"dropped": 9}, "healthy"),
        ({"has_dropped": True}, "warning"),
        ({"rtt": 1e308, "retransmit": 1e308}, "critical"),
    ],
    ids=str,
)
def test_c_27_one_report_is_judged_by_the_table(figures: dict[str, float], status: str) -> None:
    one = Sample(**{"at_ms": 0, "rtt": 1, "retransmit": 0, "bitrate": 1e6, **figures})  # type: ignore[arg-type]
    assert judge(one, 200, DEFAULT).value == status


def test_c_27_thresholds_can_be_set() -> None:
    strict = Thresholds(warning_rtts=10, critical_rtts=5, warning_retransmit=0.1, critical_retransmit=0.2)
    assert judge(Sample(0, 30, 0, 1), 200, strict) is HealthStatus.WARNING
    assert judge(Sample(0, 41, 0, 1), 200, strict) is HealthStatus.CRITICAL
    assert judge(Sample(0, 1, 0.2, 1), 200, strict) is HealthStatus.CRITICAL


@pytest.mark.parametrize(
    ("counts", "grew"),
    [
        ([5], False),
        ([5, 5], False),
        ([5, 6], True),
        ([5, 6, 6], False),
        ([5, None], False),
        ([5, None, 6], True),
        ([None, 5], False),
        ([5, 2], False),
        ([5, 2, 3], True),
    ],
)
def test_c_27_drops_count_when_they_grew_since_the_same_peers_last_report(
    counts: list[float | None], grew: bool
) -> None:
    kept: Sample | None = None
    for number, dropped in enumerate(counts):
        kept = sample(Health(1, 0, 1, dropped), kept, number)
    assert kept is not None
    assert kept.has_dropped is grew


def test_c_27_of_two_peers_the_worse_figures_and_the_worse_status_count() -> None:
    entry = combine([Sample(0, 10, 4, 9e6), None, Sample(0, 90, 1, 8e6)], 0, 200, DEFAULT)
    assert entry is not None
    assert entry.members() == {"rtt": 90, "retransmit": 4, "bitrate": 8e6, "status": "critical"}


def test_c_27_a_report_is_news_for_30_s() -> None:
    old, new = Sample(0, 90, 0, 1), Sample(1, 1, 0, 2)
    assert (combine([old, new], 29_999, 200, DEFAULT) or new).rtt == 90
    assert (combine([old, new], 30_000, 200, DEFAULT) or old).rtt == 1
    assert combine([old, new], 30_001, 200, DEFAULT) is None
    assert combine([], 0, 200, DEFAULT) is None


def test_c_27_a_report_that_comes_too_early_is_told_at_the_end_of_the_second_and_only_the_newest() -> None:
    pacer: Pacer[str] = Pacer()
    assert pacer.next_timeout() == inf
    assert pacer.offer("a", 10.0) == "a"
    assert pacer.offer("b", 10.2) is None
    assert pacer.offer("c", 10.9) is None
    assert pacer.next_timeout() == 11.0
    assert pacer.handle_timeout(10.99) is None
    assert pacer.handle_timeout(11.0) == "c"
    assert (pacer.next_timeout(), pacer.handle_timeout(12.0)) == (inf, None)
    assert pacer.offer("d", 11.9) is None
    assert pacer.offer("e", 12.0) == "e"
    assert pacer.next_timeout() == inf  # "d" is older


@given(st.lists(st.integers(0, 1500), max_size=30))
def test_c_27_no_two_are_told_within_a_second_and_the_last_one_always_is(gaps: list[int]) -> None:
    pacer: Pacer[int] = Pacer()
    told: list[tuple[float, int | None]] = []
    now = 0.0
    for number, gap in enumerate(gaps):
        now += gap / 1024  # exact in binary
        if (due := pacer.next_timeout()) <= now:
            told.append((due, pacer.handle_timeout(due)))
        if (out := pacer.offer(number, now)) is not None:
            told.append((now, out))
    if (due := pacer.next_timeout()) < inf:
        told.append((due, pacer.handle_timeout(due)))
    numbers = [number for _, number in told if number is not None]
    assert len(numbers) == len(told)
    assert numbers == sorted(set(numbers))
    assert all(after - before >= 1 for (before, _), (after, _) in pairwise(told))
    assert numbers[-1:] == [*range(len(gaps))][-1:]
