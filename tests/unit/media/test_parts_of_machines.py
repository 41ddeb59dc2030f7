"""Counters, timers and the limit of flushes."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from punchd.media.counters import VALIDATION_ERRORS, Count, Counters
from punchd.media.flushes import FlushLimit
from punchd.media.timers import Timers


def test_d_32_counters_count_for_the_session_and_for_the_process() -> None:
    process = Counters()
    one, other = Counters(process), Counters(process)
    one.add(Count.OVERLAP)
    other.add(Count.OVERLAP, 2)
    other.add(Count.COMPLETED)
    assert (one[Count.OVERLAP], other[Count.OVERLAP], process[Count.OVERLAP]) == (1, 2, 3)
    assert process.named() == {"overlap": 3, "completed": 1}
    assert process.validation_errors == 3


def test_msp_c41_d_32_every_validation_error_has_a_counter_of_its_own() -> None:
    counters = Counters()
    for number, reason in enumerate(VALIDATION_ERRORS, 1):
        counters.add(reason, number)
    assert sorted(counters.named().values()) == list(range(1, len(VALIDATION_ERRORS) + 1))
    assert Count.TOO_MANY_INTERVALS in VALIDATION_ERRORS
    assert Count.UNKNOWN_TUPLE not in VALIDATION_ERRORS


def test_d_26_four_flushes_at_once_and_then_one_a_second() -> None:
    limit = FlushLimit()
    assert [limit.allows(100.0) for _ in range(6)] == [True] * 4 + [False] * 2
    assert [limit.allows(100.0 + n / 2) for n in range(1, 7)] == [False, True] * 3
    assert [limit.allows(1000.0) for _ in range(5)] == [True] * 4 + [False]
    assert [limit.allows(now) for now in (990.0, 991.0, 992.0)] == [False, True, True]  # time that went back costs none


def test_a_moved_or_cancelled_deadline_does_not_come() -> None:
    timers: Timers[str] = Timers()
    timers.set("a", 1.0)
    timers.set("b", 2.0)
    timers.set("a", 3.0)
    assert timers.next() == 2.0
    assert timers.pop(1.5) is None
    timers.set("b", None)
    assert timers.next() == 3.0
    assert [timers.pop(3.0), timers.pop(3.0), timers.next()] == ["a", None, None]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.none() | st.integers(0, 20))))
def test_timers_are_a_dict_of_deadlines(steps: list[tuple[int, int | None]]) -> None:
    timers: Timers[int] = Timers()
    model: dict[int, int] = {}
    for key, when in steps:
        timers.set(key, when)
        model.pop(key, None)
        if when is not None:
            model[key] = when
        assert timers.next() == min(model.values(), default=None)
    found = []
    while (due := timers.pop(100.0)) is not None:
        found.append(due)
    assert sorted(found) == sorted(model)
    assert [model[key] for key in found] == sorted(model.values())


def test_deadlines_that_move_do_not_pile_up() -> None:
    timers: Timers[int] = Timers()
    for number in range(10_000):
        timers.set(number % 10, float(-number))
        assert len(timers) <= 100
    assert [timers.pop(0.0) for _ in range(11)] == [*range(9, -1, -1), None]
