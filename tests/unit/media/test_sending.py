"""Sequence numbers, plans of fragments, batches, pacing."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from punchd.media.datagrams import Media, parse
from punchd.media.sending import QPF, LogicalSend, Pacer, SequenceExhaustedError, Sequences, plan
from tests.unit.media.parts import delivered, receiver


def datagrams_of(payload: bytes, size: int = 1200, sequence: int = 7) -> list[list[Media]]:
    """All batches, parsed; batch n has the clock n."""
    send = LogicalSend(sequence, payload, plan(len(payload), size))
    batches: list[list[Media]] = []
    while batch := send.batch(len(batches)):
        parsed = [parse(datagram) for datagram in batch]
        assert all(len(datagram) <= size for datagram in batch)
        assert len({len(datagram) for datagram in batch[:-1]}) <= 1
        assert sum(map(len, batch)) <= 65507
        batches.append([one for one in parsed if isinstance(one, Media)])
    return batches


def test_msp_c09_d_23_numbers_begin_at_a_random_place_below_2_to_the_48() -> None:
    sequences = Sequences(b"\x06\x05\x04\x03\x02\x01")
    assert [sequences.next() for _ in range(3)] == [0x010203040506, 0x010203040507, 0x010203040508]
    assert Sequences(b"\xff" * 6).next() == 2**48 - 1
    with pytest.raises(ValueError, match="6 bytes"):
        Sequences(b"12345")


def test_d_16_after_the_last_number_there_is_none_until_the_session_changes() -> None:
    sequences = Sequences(bytes(6))
    sequences._next = 2**64 - 1
    assert sequences.next() == 2**64 - 1
    for _ in range(2):
        with pytest.raises(SequenceExhaustedError, match="new connection id"):
            sequences.next()
    sequences.renew(b"\1" * 6)
    assert sequences.next() < 2**48


@settings(deadline=None)
@given(st.integers(0, 2**48 - 1), st.integers(-(2**33), 2**33), st.integers(0, 2**20))
def test_d_23_the_next_sessions_numbers_are_far_from_the_last_ones(old: int, away: int, used: int) -> None:
    sequences = Sequences(old.to_bytes(6, "little"))
    sequences._next += used
    sequences.renew(((old + away) % 2**48).to_bytes(6, "little"))
    first = sequences.next()
    assert 0 <= first < 2**48
    assert first + 2**32 <= old or first >= old + used + 2**32


@pytest.mark.parametrize(
    ("total", "expected"),
    [
        (0, (1, False)),
        (1, (1, False)),
        (1174, (1, False)),
        (1175, (2, True)),
        (2316, (2, True)),
        (2317, (3, True)),
        (1 << 20, (906, True)),
    ],
)
def test_d_31_a_send_that_fits_has_no_fragment_block(total: int, expected: tuple[int, bool]) -> None:
    cut = plan(total)
    assert (cut.datagrams, cut.is_fragmented) == expected


def test_d_31_no_datagram_is_longer_than_the_path_takes() -> None:
    for size in (43, 100, 1200, 1472, 65507):
        for total in (0, 1, size - 43, size - 26, size - 25, size, 5 * size):
            datagrams_of(bytes(total), size)
    for size in (42, 65508):
        with pytest.raises(ValueError, match="datagram_size"):
            plan(1, size)


def test_msp_c42_msp_c43_one_number_for_all_fragments_of_a_send() -> None:
    [batch] = datagrams_of(bytes(5000))
    assert {one.sequence for one in batch} == {7}
    assert {one.total for one in batch} == {5000}
    assert [one.offset for one in batch] == [0, 1158, 2316, 3474, 4632]


def test_d_28_a_batch_has_one_clock_sample_and_the_frequency_never_changes() -> None:
    batches = datagrams_of(bytes(200_000))
    assert [len(batch) for batch in batches] == [54, 54, 54, 11]
    assert [{(one.qpc, one.qpf) for one in batch} for batch in batches] == [{(n, QPF)} for n in range(4)]
    assert QPF == 10**9


def test_d_28_a_batch_has_128_datagrams_at_most() -> None:
    assert [len(batch) for batch in datagrams_of(bytes(100 * 200), 142)] == [128, 72]


@settings(deadline=None)
@given(st.binary(max_size=3000), st.integers(43, 400))
def test_what_is_sent_is_received(payload: bytes, size: int) -> None:
    machine, _, _ = receiver()
    found = [one for batch in datagrams_of(payload, size) for datagram in batch for one in delivered(machine, datagram)]
    assert found == [(7, payload)]


def test_d_13_a_send_longer_than_the_other_side_takes_is_refused() -> None:
    assert plan(1000, max_total=1000).total == 1000
    with pytest.raises(ValueError, match="at most 999 bytes"):
        plan(1000, max_total=999)


def test_a_payload_has_the_plans_length() -> None:
    with pytest.raises(ValueError, match="expected the plan's 5 bytes"):
        LogicalSend(1, b"1234", plan(5))


def test_d_30_sends_keep_to_their_rate() -> None:
    pacer = Pacer(8000, burst=500)  # 1,000 bytes a second
    now = sent = 0.0
    for _ in range(200):
        now += pacer.delay_s(now)
        pacer.spend(100, now)
        sent += 100
        assert sent <= 500 + 100 + now * 1000 + 1e-6
    assert now == pytest.approx((20_000 - 500 - 100) / 1000)
    now += 60
    assert pacer.delay_s(now) == 0.0
    for _ in range(6):
        assert pacer.delay_s(now) == 0.0
        pacer.spend(100, now)
    assert pacer.delay_s(now) == pytest.approx(0.1)


def test_d_30_a_rate_is_positive() -> None:
    with pytest.raises(ValueError, match="more than 0"):
        Pacer(0)
