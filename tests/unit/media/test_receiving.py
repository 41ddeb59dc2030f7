"""Deduplication and order: each logical send once."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from punchd.media.counters import Count
from punchd.media.ordering import RESYNC_AFTER
from punchd.media.receiving import Recent
from tests.unit.media.parts import DEFAULT, MIB, delivered, media, named, receiver

ORDERED = replace(DEFAULT, ordered=True)
LAST = 2**64 - 1


# --- deduplication ---------------------------------------------------------------------------------------------------


def test_msp_c44_a_send_is_delivered_once() -> None:
    machine, counters, _ = receiver()
    assert delivered(machine, media(5, b"one")) == [(5, b"one")]
    assert delivered(machine, media(5, b"one")) == []
    assert delivered(machine, media(5, b"o", 0, 3)) == []
    assert delivered(machine, media(6, b"o", 0, 2)) == []
    assert delivered(machine, media(6, b"n", 1, 2)) == [(6, b"on")]
    assert delivered(machine, media(6, b"n", 1, 2)) == []
    assert named(counters) == {"completed": 2, "duplicates": 3}


def test_msp_c42_fragments_of_several_sends_may_be_mixed() -> None:
    machine, _, _ = receiver()
    for sequence in (1, 2, 3):
        assert delivered(machine, media(sequence, b"a", 0, 2)) == []
    assert [delivered(machine, media(sequence, b"b", 1, 2)) for sequence in (3, 1, 2)] == [
        [(3, b"ab")],
        [(1, b"ab")],
        [(2, b"ab")],
    ]


def test_d_09_media_may_have_the_number_0_that_control_frames_have() -> None:
    machine, _, _ = receiver()
    assert delivered(machine, media(0, b"first")) == [(0, b"first")]
    assert delivered(machine, media(LAST, b"last")) == [(LAST, b"last")]


def test_msp_c45_d_14_between_4096_and_8192_numbers_are_remembered() -> None:
    recent = Recent(8192)
    for sequence in range(100_000):
        recent.add(sequence)
        assert len(recent) <= 8192
    remembered = [sequence for sequence in range(100_000) if sequence in recent]
    assert remembered == list(range(100_000 - len(remembered), 100_000))
    assert 4096 <= len(remembered) <= 8192


def test_d_14_a_forged_highest_number_does_not_make_others_old() -> None:
    machine, _, _ = receiver()
    delivered(machine, media(LAST))
    assert [len(delivered(machine, media(sequence))) for sequence in range(100)] == [1] * 100


def test_msp_c28_msp_c29_msp_c45_msp_c47_after_a_flush_numbers_and_fragments_are_new() -> None:
    machine, _, memory = receiver()
    delivered(machine, media(5))
    delivered(machine, media(6, b"a", 0, 2))
    assert machine.flush() == ()
    assert memory.reserved == 0
    assert delivered(machine, media(5, b"new")) == [(5, b"new")]
    assert delivered(machine, media(6, b"b", 1, 2)) == []
    assert delivered(machine, media(6, b"c", 0, 2)) == [(6, b"cb")]


def test_d_26_what_was_missing_or_incomplete_at_a_flush_stays_counted() -> None:
    machine, _, _ = receiver()
    for sequence in (10, 13):
        delivered(machine, media(sequence))
    delivered(machine, media(14, b"a", 0, 2))
    machine.flush()
    assert machine.lost_earlier == 3
    assert machine.telemetry.report().expected == 0
    for sequence in (900, 902):
        delivered(machine, media(sequence))
    machine.flush()
    assert machine.lost_earlier == 4


def test_d_28_what_is_known_of_the_path_is_told_until_more_is_known() -> None:
    machine, _, _ = receiver()
    for number in range(3):
        delivered(machine, media(number)._replace(qpc=number, qpf=1000), number * 0.002)
    before = machine.path
    assert before.jitter_s is not None
    machine.flush()
    assert machine.path == before
    machine.flush()
    assert machine.path == before
    delivered(machine, media(9)._replace(qpc=1, qpf=1000), 1.0)
    assert machine.path.jitter_s == 0.0


def test_loss_is_of_sends_that_were_taken_each_once() -> None:
    machine, _, _ = receiver()
    for offset in range(3):
        delivered(machine, media(5, b"x", offset, 4))
    delivered(machine, media(6, b"", 0, 4))  # refused: it may be anybody's
    delivered(machine, media(8))
    report = machine.telemetry.report()
    assert (report.expected, report.lost) == (4, 2)
    delivered(machine, media(5, b"x", 3, 4))
    assert machine.telemetry.report() == report


def test_d_12_an_unfragmented_datagram_completes_no_open_send() -> None:
    machine, counters, _ = receiver()
    delivered(machine, media(5, b"a", 0, 2))
    assert delivered(machine, media(5, b"xx")) == []
    assert delivered(machine, media(5, b"b", 1, 2)) == [(5, b"ab")]
    assert named(counters) == {"unfragmented_mismatch": 1, "completed": 1}


def test_d_13_unfragmented_datagrams_have_the_same_limit() -> None:
    machine, counters, _ = receiver(replace(DEFAULT, max_total=10))
    assert delivered(machine, media(1, b"x" * 11)) == []
    assert delivered(machine, media(2, b"x" * 10)) == [(2, b"x" * 10)]
    assert counters[Count.TOTAL_TOO_LARGE] == 1


def test_d_31_a_datagram_of_65507_bytes_is_delivered() -> None:
    machine, _, _ = receiver()
    payload = bytes(65507 - 26)
    assert delivered(machine, media(1, payload)) == [(1, payload)]


def test_msp_c46_time_discards_what_is_incomplete() -> None:
    machine, counters, _ = receiver()
    assert machine.next_timeout() is None
    delivered(machine, media(1, b"a", 0, 2), 1.0)
    assert machine.next_timeout() == 6.0
    assert list(machine.handle_timeout(6.0)) == []
    assert counters[Count.TIMEOUTS] == 1
    assert machine.next_timeout() is None


def test_msp_c46_a_timeout_counts_also_if_nobody_asks_for_the_time_in_between() -> None:
    machine, counters, _ = receiver()
    delivered(machine, media(1, b"a", 0, 2), 0.0)
    assert delivered(machine, media(1, b"b", 1, 2), 7.0) == []
    assert counters[Count.TIMEOUTS] == 1


# --- order -----------------------------------------------------------------------------------------------------------


def numbers(found: list[tuple[int, bytes]]) -> list[int]:
    return [sequence for sequence, _ in found]


def late(machine: object, now: float) -> list[int]:
    return [one.sequence for one in machine.handle_timeout(now)]  # type: ignore[attr-defined]


def test_d_27_sends_are_delivered_as_they_are_complete_unless_order_is_asked_for() -> None:
    machine, _, _ = receiver()
    assert [numbers(delivered(machine, media(sequence))) for sequence in (3, 1, 2)] == [[3], [1], [2]]


def test_d_27_order_waits_for_a_gap_and_then_goes_on() -> None:
    machine, _, _ = receiver(ORDERED)
    assert delivered(machine, media(10), 0.0) == []
    assert machine.next_timeout() == 0.2
    assert late(machine, 0.2) == [10]
    assert numbers(delivered(machine, media(11), 0.3)) == [11]
    assert delivered(machine, media(13), 0.4) == []
    assert delivered(machine, media(14), 0.5) == []
    assert numbers(delivered(machine, media(12), 0.55)) == [12, 13, 14]
    assert machine.next_timeout() is None


def test_d_27_a_gap_is_given_up_when_its_time_is_over() -> None:
    machine, counters, _ = receiver(ORDERED)
    for sequence, now in ((1, 0.0), (3, 0.1), (6, 0.15), (4, 0.16)):
        delivered(machine, media(sequence), now)
    assert late(machine, 0.2) == [1]
    assert late(machine, 0.305) == [3, 4]
    assert delivered(machine, media(2), 0.31) == []
    assert late(machine, 0.35) == [6]
    assert counters[Count.LATE] == 1


def test_d_27_what_is_held_is_a_copy() -> None:
    machine, _, _ = receiver(ORDERED)
    buffer = bytearray(b"before")
    machine.receive(media(1)._replace(payload=memoryview(buffer)), 0.0)
    buffer[:] = b"after."
    assert [one.take() for one in machine.handle_timeout(1.0)] == [b"before"]


def test_d_27_few_sends_and_few_bytes_are_held() -> None:
    machine, _, _ = receiver(replace(ORDERED, max_held=3))
    assert [numbers(delivered(machine, media(sequence))) for sequence in (10, 8, 6, 4, 12)] == [[], [], [], [4], [6]]
    machine, _, _ = receiver(replace(ORDERED, max_held_bytes=10))
    assert [numbers(delivered(machine, media(sequence, b"12345"))) for sequence in (10, 8, 6)] == [[], [], [6]]
    assert machine.ordering is not None
    assert len(machine.ordering) == 2


def test_d_27_a_forged_number_does_not_stop_the_stream() -> None:
    machine, counters, _ = receiver(ORDERED)
    delivered(machine, media(1), 0.0)
    late(machine, 0.2)
    delivered(machine, media(LAST), 0.3)
    assert late(machine, 0.5) == [LAST]
    found = [numbers(delivered(machine, media(sequence), 0.6)) for sequence in range(2, 2 + 2 * RESYNC_AFTER)]
    assert found == [[]] * 2 * RESYNC_AFTER, "a path may give out at once what it held back"
    assert numbers(delivered(machine, media(50), 0.79)) == []
    assert [numbers(delivered(machine, media(sequence), 0.81)) for sequence in (51, 52)] == [[51], [52]]
    assert (counters[Count.LATE], counters[Count.RESYNCHRONISED]) == (2 * RESYNC_AFTER + 1, 1)


def test_d_27_few_late_sends_do_not_begin_the_order_anew_however_long_they_take() -> None:
    machine, counters, _ = receiver(ORDERED)
    delivered(machine, media(LAST), 0.3)
    assert late(machine, 0.5) == [LAST]
    found = [numbers(delivered(machine, media(sequence), float(sequence))) for sequence in range(1, RESYNC_AFTER + 1)]
    assert found == [[]] * (RESYNC_AFTER - 1) + [[RESYNC_AFTER]]
    assert counters[Count.RESYNCHRONISED] == 1


def test_d_27_late_sends_of_one_session_do_not_count_in_the_next() -> None:
    machine, counters, _ = receiver(ORDERED)
    for first in (100, 200):
        delivered(machine, media(first), 0.0)
        assert late(machine, 1.0) == [first]
        for sequence in range(RESYNC_AFTER - 1):
            assert delivered(machine, media(sequence), 1.0 + sequence) == []
        machine.flush()
    assert counters[Count.RESYNCHRONISED] == 0


def test_d_27_late_sends_give_their_memory_back() -> None:
    machine, _, memory = receiver(ORDERED)
    delivered(machine, media(5), 0.0)
    late(machine, 1.0)
    delivered(machine, media(2, b"a", 0, 2), 1.0)
    delivered(machine, media(2, b"b", 1, 2), 1.0)
    assert memory.reserved == 0


def test_d_27_a_flush_delivers_what_was_complete() -> None:
    machine, _, _ = receiver(ORDERED)
    for sequence in (9, 7, 8):
        delivered(machine, media(sequence))
    assert [one.sequence for one in machine.flush()] == [7, 8, 9]
    assert machine.next_timeout() is None
    delivered(machine, media(1), 5.0)
    assert late(machine, 5.2) == [1]


@settings(deadline=None)
@given(st.permutations(range(30)), st.lists(st.integers(0, 29), max_size=5), st.integers(0, 20))
def test_d_27_the_order_never_goes_back_and_nothing_is_lost_in_time(
    order: list[int], lost: list[int], step_ms: int
) -> None:
    machine, counters, _ = receiver(ORDERED)
    found, now = [], 0.0
    for sequence in order:
        now += step_ms / 1000
        found += late(machine, now)
        if sequence not in lost:
            found += numbers(delivered(machine, media(sequence), now))
    found += late(machine, now + 1)
    if not counters[Count.RESYNCHRONISED]:
        assert found == sorted(found)
    assert len(found) == len(set(found)) == 30 - len(set(lost)) - counters[Count.LATE]
    if step_ms * 30 < 200:
        assert counters[Count.LATE] == 0


@pytest.mark.parametrize("limit", [4096, 8 * MIB])
def test_no_more_is_reserved_than_the_process_may(limit: int) -> None:
    machine, _, memory = receiver(limit=limit)
    for sequence in range(50):
        delivered(machine, media(sequence, b"x", 0, MIB))
        assert memory.reserved <= limit
