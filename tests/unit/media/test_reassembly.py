"""Reassembly: what fits together, what does not, and what it may cost."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from punchd.media.buffers import MAX_IDLE, Memory, block_size
from punchd.media.counters import Count, Counters
from punchd.media.reassembly import Reassembly
from punchd.media.settings import ReceiverSettings
from tests.unit.media.parts import DEFAULT, MIB, named

TEXT = bytes(range(100))


class Bench:
    """A reassembly with its counters and memory, and `TEXT` to be sent in pieces."""

    def __init__(self, settings: ReceiverSettings = DEFAULT, limit: int = 512 * MIB) -> None:
        self.counters, self.memory = Counters(), Memory(limit)
        self.core = Reassembly(settings, self.memory, self.counters)

    def piece(self, start: int, end: int, *, sequence: int = 1, total: int = 100, now: float = 0.0) -> bytes | None:
        return self.raw(sequence, start, total, TEXT[start:end], now)

    def raw(self, sequence: int, offset: int, total: int, payload: bytes, now: float = 0.0) -> bytes | None:
        delivery = self.core.add(sequence, offset, total, memoryview(payload), now)
        return delivery.take() if delivery is not None else None


def test_msp_c43_fragments_in_order_become_the_send() -> None:
    bench = Bench()
    assert bench.piece(0, 40) is None
    assert bench.piece(40, 80) is None
    assert bench.piece(80, 100) == TEXT
    assert (len(bench.core), bench.core.reserved, bench.memory.reserved) == (0, 0, 0)


@settings(deadline=None)
@given(st.permutations(range(12)), st.integers(0, 2**32))
def test_msp_c43_fragments_in_any_order_of_any_length_doubled_become_the_send(order: list[int], seed: int) -> None:
    chance = random.Random(seed)
    cuts = [0, *sorted(chance.sample(range(1, 100), 11)), 100]
    bench = Bench()
    results = []
    for place in order:
        results.append(bench.piece(cuts[place], cuts[place + 1]))
        if results[-1] is None:
            assert bench.piece(cuts[place], cuts[place + 1]) is None
    assert results == [None] * 11 + [TEXT]
    assert named(bench.counters) == {"duplicate_fragments": 11}


class Model:
    """The rules of D11 to D13 byte by byte."""

    def __init__(self, total: int) -> None:
        self.bytes: list[int | None] = [None] * total

    def add(self, offset: int, payload: bytes) -> str | None:
        end = offset + len(payload)
        if end > len(self.bytes):
            return "beyond_end"
        if not payload:
            return "empty_fragment"
        there = [byte is not None for byte in self.bytes[offset:end]]
        if all(there):
            return "duplicate_fragments"
        if any(there):
            return "overlap"
        self.bytes[offset:end] = payload
        return None


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 34), st.integers(0, 12), st.integers(0, 255)), max_size=40))
def test_msp_c48_d_11_it_does_what_a_list_of_bytes_would_do(fragments: list[tuple[int, int, int]]) -> None:
    bench, model = Bench(), Model(32)
    for offset, size, value in fragments:
        payload = bytes([value]) * size
        before = named(bench.counters)
        result = bench.raw(7, offset, 32, payload)
        objection = model.add(offset, payload)
        changed = [name for name, number in named(bench.counters).items() if number != before.get(name, 0)]
        assert changed == ([objection] if objection else [])
        if None not in model.bytes:
            assert result == bytes(byte for byte in model.bytes if byte is not None)
            return
        assert result is None
        runs = sum(
            one is not None and (place == 0 or model.bytes[place - 1] is None) for place, one in enumerate(model.bytes)
        )
        if 7 in bench.core:
            assert bench.core.intervals(7) == runs - (model.bytes[0] is not None)


@settings(deadline=None, max_examples=400)
@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(1, 4)), max_size=6),
    st.tuples(st.integers(0, 20), st.integers(1, 8), st.integers(1, 4)),
    st.sampled_from([0, 1, 2, 256]),
)
def test_fragments_that_follow_each_other_where_it_is_free_may_be_added_as_one(
    before: list[tuple[int, int]], run: tuple[int, int, int], max_intervals: int
) -> None:
    one, other = (Bench(replace(DEFAULT, max_intervals=max_intervals)) for _ in "ab")
    for bench in (one, other):
        for offset, size in before:
            bench.piece(offset, offset + size, total=24)
    start, end = run[0], min(run[0] + run[1], 24)
    is_free = one.core.is_free(1, start, end)
    counted = named(one.counters)
    steps = [one.piece(place, min(place + run[2], end), total=24) for place in range(start, end, run[2])]
    is_taken = named(one.counters) == counted
    assert is_free == is_taken or (is_taken and max_intervals < 256)
    if is_free:
        assert other.piece(start, end, total=24) == steps[-1]
        assert named(one.counters) == named(other.counters)
        assert (1 in one.core) == (1 in other.core) == (steps[-1] is None)
        if 1 in one.core:
            assert one.core.intervals(1) == other.core.intervals(1)
            assert [one.piece(place, place + 1, total=24) for place in range(24)] == [
                other.piece(place, place + 1, total=24) for place in range(24)
            ]
            assert named(one.counters) == named(other.counters)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((10, 20), (10, 20), Count.DUPLICATE_FRAGMENTS),
        ((10, 20), (12, 15), Count.DUPLICATE_FRAGMENTS),
        ((0, 20), (0, 20), Count.DUPLICATE_FRAGMENTS),
        ((0, 20), (5, 15), Count.DUPLICATE_FRAGMENTS),
        ((10, 20), (15, 25), Count.OVERLAP),
        ((10, 20), (5, 15), Count.OVERLAP),
        ((10, 20), (5, 25), Count.OVERLAP),
        ((0, 20), (10, 30), Count.OVERLAP),
        ((10, 20), (0, 15), Count.OVERLAP),
    ],
)
def test_msp_c48_d_11_what_came_first_stays(first: tuple[int, int], second: tuple[int, int], expected: Count) -> None:
    bench = Bench()
    bench.piece(*first)
    assert bench.raw(1, second[0], 100, b"\xff" * (second[1] - second[0])) is None
    assert named(bench.counters) == {expected.name.lower(): 1}
    rest = [(start, end) for start, end in ((0, first[0]), (first[1], 100)) if start < end]
    assert [bench.piece(start, end) for start, end in rest][-1] == TEXT


def test_msp_c48_d_12_the_first_total_counts() -> None:
    bench = Bench()
    bench.piece(0, 10)
    assert bench.piece(10, 20, total=99) is None
    assert bench.piece(10, 20, total=1 << 63) is None
    assert named(bench.counters) == {"total_mismatch": 2}
    assert bench.piece(10, 100) == TEXT


@pytest.mark.parametrize(
    ("offset", "total", "payload", "expected"),
    [
        (0, 1 << 63, b"x", Count.TOTAL_TOO_LARGE),
        (0, 2**64 - 1, b"x", Count.TOTAL_TOO_LARGE),
        (0, 64 * MIB + 1, b"x", Count.TOTAL_TOO_LARGE),
        (2**64 - 1, 10, b"x", Count.BEYOND_END),
        (2**64 - 1, 64 * MIB, b"xx", Count.BEYOND_END),
        (10, 10, b"x", Count.BEYOND_END),
        (0, 10, b"x" * 11, Count.BEYOND_END),
        (0, 0, b"x", Count.BEYOND_END),
        (1, 0, b"", Count.BEYOND_END),
        (0, 10, b"", Count.EMPTY_FRAGMENT),
        (10, 10, b"", Count.EMPTY_FRAGMENT),
    ],
)
def test_msp_c48_d_13_impossible_fields_reserve_nothing(
    offset: int, total: int, payload: bytes, expected: Count
) -> None:
    bench = Bench()
    assert bench.raw(1, offset, total, payload) is None
    assert named(bench.counters) == {expected.name.lower(): 1}
    assert (len(bench.core), bench.memory.reserved, bench.memory.idle) == (0, 0, 0)


def test_d_13_an_empty_send_is_complete_at_once_and_the_longest_is_taken() -> None:
    bench = Bench()
    assert bench.raw(1, 0, 0, b"") == b""
    assert bench.raw(2, 0, 64 * MIB, b"x") is None
    assert bench.memory.reserved == 64 * MIB
    assert named(bench.counters) == {}


def test_d_14_the_oldest_of_too_many_entries_is_evicted() -> None:
    bench = Bench()
    for sequence in range(65):
        bench.piece(0, 10, sequence=sequence)
    assert len(bench.core) == 64
    assert 0 not in bench.core
    assert named(bench.counters) == {"evictions": 1}


def test_d_14_the_oldest_of_too_many_bytes_are_evicted() -> None:
    bench = Bench()
    for sequence in range(3):
        bench.raw(sequence, 0, 64 * MIB, b"x")
    assert bench.core.reserved == 192 * MIB
    bench.raw(3, 0, 100, b"x")
    assert [sequence in bench.core for sequence in range(4)] == [False, True, True, True]
    assert bench.core.reserved == bench.memory.reserved == 128 * MIB + 4096


def test_d_14_the_process_has_a_cap_and_no_session_pays_for_another() -> None:
    bench = Bench(limit=3 * 4096)
    other = Reassembly(DEFAULT, bench.memory, Counters())
    other.add(1, 0, 100, memoryview(b"x"), 0.0)
    for sequence in range(3):
        bench.piece(0, 10, sequence=sequence)
    assert [sequence in bench.core for sequence in range(3)] == [False, True, True]
    assert len(other) == 1
    assert bench.raw(9, 0, 3 * 4096, b"x") is None
    assert (len(bench.core), bench.memory.reserved) == (0, 4096)
    assert named(bench.counters) == {"evictions": 3, "no_memory": 1}


def test_d_14_intervals_are_limited_and_the_send_can_still_be_completed() -> None:
    bench = Bench(replace(DEFAULT, max_intervals=3))
    for start in (10, 30, 50):
        bench.piece(start, start + 10)
    assert bench.piece(70, 80) is None
    assert named(bench.counters) == {"too_many_intervals": 1}
    assert bench.piece(20, 30) is None  # joins two
    assert bench.core.intervals(1) == 2
    for start, end in ((70, 80), (0, 10), (40, 50), (60, 70)):
        assert bench.piece(start, end) is None
    assert bench.piece(80, 100) == TEXT


def test_msp_c46_what_stays_incomplete_for_five_seconds_is_discarded_and_counted() -> None:
    bench = Bench()
    assert bench.core.next_timeout() is None
    bench.piece(0, 10, sequence=1, now=10.0)
    bench.piece(0, 10, sequence=2, now=11.0)
    bench.piece(10, 20, sequence=1, now=14.9)
    assert bench.core.next_timeout() == 15.0
    bench.core.expire(14.99)
    assert len(bench.core) == 2
    bench.core.expire(15.0)
    assert (1 in bench.core, 2 in bench.core) == (False, True)
    assert bench.core.next_timeout() == 16.0
    assert named(bench.counters) == {"timeouts": 1}
    assert bench.memory.reserved == bench.core.reserved == 4096


def test_msp_c46_the_timeout_is_a_setting() -> None:
    bench = Bench(replace(DEFAULT, reassembly_timeout_s=0.5))
    bench.piece(0, 10, now=1.0)
    assert bench.core.next_timeout() == 1.5


def test_d_15_a_send_that_timed_out_may_be_sent_again() -> None:
    bench = Bench()
    bench.piece(0, 50)
    bench.core.expire(5.0)
    bench.piece(50, 100, now=5.1)
    assert bench.piece(0, 50, now=5.2) == TEXT
    bench.piece(0, 50, now=10.0)
    assert bench.piece(50, 100, now=15.0) is None  # its time is just over
    assert named(bench.counters) == {"timeouts": 2}


def test_clearing_forgets_everything_and_gives_the_memory_back() -> None:
    bench = Bench()
    for sequence in range(10):
        bench.piece(0, 10, sequence=sequence)
    bench.core.clear()
    assert (len(bench.core), bench.core.reserved, bench.memory.reserved) == (0, 0, 0)


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "size"), [(1, 4096), (4096, 4096), (4097, 8192), (65536, 65536), (64 * MIB, 64 * MIB)]
)
def test_blocks_are_powers_of_two(total: int, size: int) -> None:
    assert block_size(total) == size
    memory = Memory(128 * MIB)
    block = memory.take(total)
    assert block is not None
    assert len(block) == size


def test_blocks_are_used_again_and_few_are_kept() -> None:
    memory = Memory(512 * MIB)
    first = memory.take(5000)
    assert first is not None
    memory.give_back(first)
    assert memory.idle == 8192
    assert memory.take(8000) is first
    assert memory.idle == 0
    blocks = [memory.take(32 * MIB) for _ in range(4)]
    for block in blocks:
        assert block is not None
        memory.give_back(block)
    assert memory.idle == MAX_IDLE
    assert memory.reserved == 8192


def test_a_delivery_holds_its_memory_until_it_is_released_and_only_once() -> None:
    bench = Bench()
    delivery = bench.core.add(1, 0, 4, memoryview(b"text"), 0.0)
    assert delivery is not None
    assert (bench.core.reserved, bench.memory.reserved) == (0, 4096)
    delivery.keep()
    assert bytes(delivery.payload) == b"text"
    delivery.release()
    delivery.release()
    assert (bench.memory.reserved, bench.memory.idle) == (0, 4096)
    with pytest.raises(ValueError, match="released"):
        bytes(delivery.payload)


@pytest.mark.parametrize(
    "values", [{"window_s": 5.1}, {"max_reserved": 63 * MIB}, {"max_total": 150 * MIB}, {"reassembly_timeout_s": 0.1}]
)
def test_settings_that_contradict_each_other_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected at most"):
        replace(DEFAULT, **values)  # type: ignore[arg-type]
