"""Signals wait in order, within bounds, for a while, and are given out once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from punchd.rendezvous.signals import OVERHEAD_BYTES, Posted, Signal, Signals

A, B, TARGET, OTHER = (bytes([number]) * 16 for number in range(4))


def texts(signals: list[Signal]) -> list[str]:
    return [signal.data for signal in signals]


def test_signals_are_given_out_in_order_and_once() -> None:
    signals = Signals(32, 1 << 20, 180)
    for number in range(10):
        signals.post(TARGET, Signal((A, B)[number % 2], str(number), number))
    assert texts(signals.take(TARGET, 10)) == list("0123456789")
    assert signals.take(TARGET, 10) == []
    assert signals.take(OTHER, 10) == []


def test_a_full_queue_takes_no_more_and_its_owner_only_suffers() -> None:
    signals = Signals(32, 1 << 20, 180)
    results = [signals.post(TARGET, Signal(A, str(number), 0)) for number in range(33)]
    assert results == [Posted.SENT] * 32 + [Posted.FULL]
    assert signals.post(OTHER, Signal(A, "x", 0)) is Posted.SENT
    assert len(signals.take(TARGET, 0)) == 32
    assert signals.post(TARGET, Signal(A, "x", 0)) is Posted.SENT


def test_what_all_signals_cost_is_bounded_by_bytes_not_characters() -> None:
    signals = Signals(1000, 10 * (OVERHEAD_BYTES + 6), 180)
    results = [signals.post(bytes([number]), Signal(A, "äöü", 0)) for number in range(11)]
    assert results == [Posted.SENT] * 10 + [Posted.EXHAUSTED]
    signals.forget(bytes([3]))
    assert signals.post(TARGET, Signal(A, "äöü", 0)) is Posted.SENT


def test_what_is_too_old_is_not_given_out() -> None:
    signals = Signals(32, 1 << 20, 180)
    for at in (0, 100, 179):
        signals.post(TARGET, Signal(A, str(at), at))
    assert texts(signals.take(TARGET, 180)) == ["100", "179"]


def test_an_old_signal_does_not_keep_the_queue_full() -> None:
    signals = Signals(1, 1 << 20, 180)
    assert signals.post(TARGET, Signal(A, "old", 0)) is Posted.SENT
    assert signals.post(TARGET, Signal(A, "new", 179)) is Posted.FULL
    assert signals.post(TARGET, Signal(A, "new", 180)) is Posted.SENT


def test_what_comes_back_stands_before_what_came_since() -> None:
    signals = Signals(32, 1 << 20, 180)
    for text in "abc":
        signals.post(TARGET, Signal(A, text, 0))
    taken = signals.take(TARGET, 1)
    signals.post(TARGET, Signal(A, "d", 1))
    signals.put_back(TARGET, taken[1:])
    assert texts(signals.take(TARGET, 1)) == ["b", "c", "d"]
    assert signals.cost_bytes == 0


def test_sweeping_drops_the_old_and_spares_the_young() -> None:
    signals = Signals(32, 1 << 20, 180)
    for number in range(100):
        signals.post(bytes([number]), Signal(A, "x", float(number)))
        signals.post(bytes([number]), Signal(A, "y", number + 100.0))
    signals.sweep(230)
    assert len(signals) == 100
    assert signals.cost_bytes == 149 * (OVERHEAD_BYTES + 1)
    signals.sweep(1000)
    signals.sweep(1000)
    assert (len(signals), signals.cost_bytes) == (0, 0)


@given(st.lists(st.tuples(st.sampled_from(["post", "take", "return", "forget", "sweep"]), st.integers(0, 2))))
def test_the_cost_is_always_that_of_what_waits_and_no_queue_is_empty(steps: list[tuple[str, int]]) -> None:
    signals, now = Signals(3, 10 * OVERHEAD_BYTES, 50), 0.0
    taken: dict[bytes, list[Signal]] = {}
    for act, number in steps:
        now += 7
        target = bytes([number])
        match act:
            case "post":
                signals.post(target, Signal(A, "t" * number, now))
            case "take":
                taken[target] = signals.take(target, now)
                assert all(now - signal.posted < 50 for signal in taken[target])
            case "return":
                signals.put_back(target, taken.pop(target, []))
            case "forget":
                signals.forget(target)
            case _:
                signals.sweep(now)
        waiting = [signal for queue in signals._queues.values() for signal in queue]
        assert signals.cost_bytes == sum(signal.cost_bytes for signal in waiting)
        assert all(signals._queues.values())
