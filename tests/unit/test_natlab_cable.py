"""The cable's core under a virtual clock: exact times, no sleeping."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.natlab import Link
from tests.natlab.cable import MOST_WAITING, Lane, is_neighbour_discovery

ARP = bytes(12) + b"\x08\x06" + bytes(28)
SOLICITATION = bytes(12) + b"\x86\xdd" + bytes(6) + b"\x3a" + bytes(33) + bytes([135]) + bytes(23)
ECHO6 = bytes(12) + b"\x86\xdd" + bytes(6) + b"\x3a" + bytes(33) + bytes([128]) + bytes(23)


def frame(number: int) -> bytes:
    return bytes(12) + b"\x08\x00" + number.to_bytes(4, "big")


def deliveries(lane: Lane, sent: list[tuple[float, bytes]]) -> list[tuple[float, bytes]]:
    """When each frame leaves, if the process wakes exactly at every deadline."""
    out: list[tuple[float, bytes]] = []
    for at, data in sent:
        while (deadline := lane.next_deadline()) is not None and deadline <= at:
            out += [(deadline, one) for one in lane.due(deadline)]
        lane.accept(data, at)
    while (deadline := lane.next_deadline()) is not None:
        out += [(deadline, one) for one in lane.due(deadline)]
    return out


def test_a_delay_moves_every_frame_by_exactly_that_much() -> None:
    sent = [(100.0 + number, frame(number)) for number in range(3)]
    assert deliveries(Lane(Link(delay_s=0.5), "x"), sent) == [(at + 0.5, data) for at, data in sent]


def test_nothing_leaves_before_its_time() -> None:
    lane = Lane(Link(delay_s=0.5), "x")
    lane.accept(frame(1), 100.0)
    assert list(lane.due(100.49)) == []
    assert list(lane.due(100.5)) == [frame(1)]
    assert lane.next_deadline() is None


@given(seed=st.integers(), count=st.integers(1, 60), gap_s=st.floats(0.0, 0.01))
def test_jitter_keeps_order_and_its_bounds(seed: int, count: int, gap_s: float) -> None:
    link = Link(delay_s=0.05, jitter_s=0.02, seed=seed)
    sent = [(1.0 + number * gap_s, frame(number)) for number in range(count)]
    out = deliveries(Lane(link, "x"), sent)
    assert [data for _, data in out] == [data for _, data in sent]
    for (left, _), (came, _) in zip(sent, out, strict=True):
        assert 0.03 - 1e-9 <= came - left <= 0.07 + 1e-9


def test_jitter_does_vary() -> None:
    sent = [(float(number), frame(number)) for number in range(50)]
    out = deliveries(Lane(Link(delay_s=0.05, jitter_s=0.02), "x"), sent)
    delays = [came - left for (left, _), (came, _) in zip(sent, out, strict=True)]
    assert max(delays) - min(delays) > 0.02


def test_loss_is_what_was_asked_for_and_repeats_with_the_seed() -> None:
    sent = [(float(number), frame(number)) for number in range(2000)]
    link = Link(loss=0.1, seed=7)
    first, second = deliveries(Lane(link, "x"), sent), deliveries(Lane(link, "x"), sent)
    assert first == second
    assert 1740 <= len(first) <= 1860  # 1800 +- 4.5 standard deviations
    assert deliveries(Lane(link, "y"), sent) != first
    assert deliveries(Lane(Link(loss=0.1, seed=8), "x"), sent) != first


def test_an_overtaking_frame_does_not_wait() -> None:
    sent = [(0.0001 * number, frame(number)) for number in range(1000)]
    out = deliveries(Lane(Link(delay_s=1.0, reorder=0.1), "x"), sent)
    at_once = [data for at, data in out if at < 1.0]
    assert 60 <= len(at_once) <= 140
    assert len(out) == len(sent)


def test_neighbour_discovery_is_neither_lost_nor_delayed() -> None:
    assert is_neighbour_discovery(ARP)
    assert is_neighbour_discovery(SOLICITATION)
    assert not is_neighbour_discovery(ECHO6)
    lane = Lane(Link(delay_s=1.0, loss=1.0), "x")
    for data in (ARP, SOLICITATION, ECHO6, frame(1), b""):
        lane.accept(data, 5.0)
    assert list(lane.due(5.0)) == [ARP, SOLICITATION]
    assert lane.next_deadline() is None


def test_a_full_lane_loses_what_comes_next() -> None:
    lane = Lane(Link(delay_s=1.0), "x")
    for number in range(MOST_WAITING + 10):
        lane.accept(frame(number), 0.0)
    assert len(list(lane.due(1.0))) == MOST_WAITING
