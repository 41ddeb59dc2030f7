"""Jitter, delay and loss, from clocks and numbers that a stranger sends."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from punchd.media.telemetry import MAX_DROPOUT, Telemetry

GHZ = 10**9
LAST = 2**64 - 1


def clocked(pairs: list[tuple[float, float]], qpf: int = GHZ, start: int = 5_000_000_000_000) -> Telemetry:
    """A telemetry that heard (sent at, arrived at) in seconds."""
    telemetry = Telemetry()
    for sent_s, arrived_s in pairs:
        telemetry.note_clock(start + round(sent_s * qpf), qpf, arrived_s)
    return telemetry


def test_d_28_jitter_is_that_of_rfc_3550() -> None:
    delays = [0.05, 0.06, 0.05, 0.08, 0.05]
    report = clocked([(n * 0.02, n * 0.02 + delay) for n, delay in enumerate(delays)]).report()
    expected = 0.0
    for one, other in itertools.pairwise(delays):
        expected += (abs(other - one) - expected) / 16
    assert report.jitter_s == pytest.approx(expected, abs=1e-9)
    assert report.queueing_s == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("qpf", [1000, 10_000_000, GHZ])
def test_d_28_the_slope_of_the_delay_is_that_of_the_queue(qpf: int) -> None:
    growing = clocked([(n * 0.1, n * 0.1 + 1 + 0.05 * n * 0.1) for n in range(20)], qpf)
    assert growing.report().trend == pytest.approx(0.05 / 1.05, rel=0.02)
    assert growing.report().queueing_s == pytest.approx(0.095, abs=2 / qpf)
    steady = clocked([(n * 0.1, n * 0.1 + 1) for n in range(20)], qpf)
    assert steady.report().trend == pytest.approx(0.0, abs=1e-6)


def test_d_28_the_least_delay_is_forgotten_after_twenty_seconds() -> None:
    pairs = [(0.0, 0.0)] + [(n * 1.0, n + 0.5) for n in range(1, 40)]
    for count in (5, 15, 20):
        assert clocked(pairs[:count]).report().queueing_s == pytest.approx(0.5)
    assert clocked(pairs).report().queueing_s == pytest.approx(0.0)


def test_d_28_fragments_of_one_batch_count_once() -> None:
    telemetry = clocked([(0.0, 0.0), (0.1, 0.1)])
    for n in range(100):
        telemetry.note_clock(5_000_000_000_000 + GHZ // 10, GHZ, 0.1 + n * 0.01)
    assert telemetry.report().jitter_s == pytest.approx(0.0)


def test_d_28_without_a_frequency_there_is_no_clock() -> None:
    telemetry = Telemetry()
    telemetry.note_clock(123, 0, 1.0)
    report = telemetry.report()
    assert (report.jitter_s, report.queueing_s, report.trend) == (None, None, None)


def test_d_28_a_slope_takes_two_moments() -> None:
    assert clocked([(0.0, 1.0)]).report().trend is None
    assert clocked([(0.0, 1.0), (0.1, 1.0)]).report().trend is None


def test_d_28_another_frequency_and_a_leap_begin_anew() -> None:
    telemetry = clocked([(0.0, 0.0), (1.0, 1.0)])
    telemetry.note_clock(LAST, GHZ, 1.1)
    telemetry.note_clock(LAST, 1000, 1.2)
    telemetry.note_clock(0, 1000, 1.3)
    assert telemetry.report().jitter_s == pytest.approx(0.0)
    assert telemetry.report().queueing_s == 0.0
    leap = [(n * 0.1, n * 0.15) for n in range(10)] + [(n * 0.1 + 1, n * 0.1 + 100) for n in range(10)]
    assert clocked(leap).report().trend == pytest.approx(0.0, abs=1e-6)


def test_d_28_the_slope_is_that_of_the_last_32_samples() -> None:
    pairs = [(n * 0.1, n * 0.11) for n in range(50)] + [(n * 0.1, 5.5 + n * 0.1) for n in range(50, 82)]
    assert clocked(pairs).report().trend == pytest.approx(0.0, abs=1e-6)
    assert (clocked(pairs[:-1]).report().trend or 0.0) > 1e-3


def losses(*sequences: int) -> tuple[int, int]:
    telemetry = Telemetry()
    for sequence in sequences:
        telemetry.note_sequence(sequence)
    report = telemetry.report()
    return report.expected, report.lost


def test_loss_is_what_is_missing_between_the_lowest_and_the_highest_number() -> None:
    assert losses() == (0, 0)
    assert losses(5) == (1, 0)
    assert losses(5, 6, 9) == (5, 2)
    assert losses(5, 9, 8, 7, 6) == (5, 0)
    assert losses(9, 8) == (1, 0)
    assert losses(LAST - 1, LAST) == (2, 0)


def test_a_forged_number_does_not_spoil_the_estimate_and_a_new_range_is_followed() -> None:
    assert losses(5, LAST, 6, 7) == (3, 0)
    assert losses(5, 6, 10**9, 10**9 + 1, 10**9 + 2) == (4, 0)
    assert losses(0, MAX_DROPOUT) == (MAX_DROPOUT + 1, MAX_DROPOUT - 1)


u64 = st.integers(0, LAST) | st.sampled_from([0, 1, 2**63, LAST])


@settings(deadline=None)
@given(st.lists(st.tuples(u64, u64, u64, st.floats(0, 100))))
def test_no_numbers_of_64_bits_break_it(samples: list[tuple[int, int, int, float]]) -> None:
    telemetry = Telemetry()
    now = 0.0
    for sequence, qpc, qpf, step in samples:
        now += step
        telemetry.note_clock(qpc, qpf, now)
        telemetry.note_sequence(sequence)
    report = telemetry.report()
    assert 0 <= report.lost <= report.expected
    assert all(value is None or math.isfinite(value) for value in (report.jitter_s, report.queueing_s, report.trend))
