"""`udp` between virtual NATs: who connects, when exactly, and what was sent on the way.

Times are in the virtual clock's seconds from the moment the responder got the offer: a full-TTL probe, the ACK and
the DONE are three legs, so the responder is done after one round trip (and the copies of DONE), the initiator after
one and a half.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from punchd.endpoint import PortSet
from punchd.events import Aimed, Opened
from punchd.wire import probe
from punchd_techniques.udp import DONE_S, LAST_RESORT_ANSWERED_S, LAST_RESORT_S, LAST_RESORT_UNANSWERED_S
from tests.unit.fake_network import (
    APDF,
    FULL_CONE,
    HOPS,
    NO_FILTER,
    RANDOM,
    SEQUENTIAL,
    Path,
    Punch,
    pair,
)
from tests.unit.udp_scenarios import (
    COPIES_S,
    EIGHT_WRONG_HINTS,
    HOPELESS,
    KINDS,
    RTT_S,
    SIDE_S,
    WRONG_HINT,
    assert_discreet,
    assert_done_at,
    assert_one_pair,
    first_full_ttl_s,
    punched,
    run,
)

# --- who meets whom ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind_b", KINDS)
@pytest.mark.parametrize("kind_a", KINDS)
def test_two_nats_meet_in_one_and_a_half_round_trips_unless_one_is_random_and_the_other_filters_by_port(
    kind_a: str, kind_b: str
) -> None:
    punch = punched(KINDS[kind_a], KINDS[kind_b])
    assert_discreet(punch.a)
    if (kind_a, kind_b) in HOPELESS:
        assert (punch.a.hole, punch.b.hole) == (None, None)
        return
    # An initiator that cannot know its port must be the first to be heard: after the answer, one round trip later.
    answer_s = SIDE_S + RTT_S / 2 if kind_a == "random" else 0.0
    assert_done_at(punch, answer_s + RTT_S + COPIES_S, answer_s + 1.5 * RTT_S)


def test_a_random_nat_against_one_that_filters_by_port_says_why() -> None:
    punch = punched(APDF, RANDOM)
    assert punch.b.explanation == (
        "no answer at all from 203.0.113.1; the own NAT picks a random port for each destination, "
        "so the peer cannot know ours"
    )
    assert punch.a.explanation == (
        "no answer at all from 198.51.100.9; the peer's ports are guesses: its NAT may have a new one "
        "for each destination"
    )


@pytest.mark.parametrize("rtt_s", [0.002, 0.02, 0.08, 0.3])
def test_the_time_needed_is_counted_in_round_trips(rtt_s: float) -> None:
    punch = punched(APDF, APDF, path=Path(rtt_s=rtt_s))
    assert_done_at(punch, rtt_s + COPIES_S, 1.5 * rtt_s)


@pytest.mark.parametrize("late_s", [0.0, 0.3, 1.0, 3.0])
def test_a_late_responder_finds_every_nat_as_it_was(late_s: float) -> None:
    punch = punched(NO_FILTER, NO_FILTER, path=Path(late_s=late_s))
    assert_done_at(punch, RTT_S + COPIES_S, 1.5 * RTT_S)
    assert (punch.a.nat.unasked, punch.b.nat.unasked) == ([], [])


def test_a_low_ttl_that_reaches_the_peer_spoils_its_mapping_when_it_is_late() -> None:
    punch = punched(NO_FILTER, NO_FILTER, ttl=HOPS, path=Path(late_s=0.3))
    assert (punch.a.hole, punch.b.hole) == (None, None)
    assert punch.b.nat.unasked


def test_an_answer_that_is_never_relayed_costs_nothing_when_the_hint_was_right() -> None:
    punch = punched(APDF, APDF, path=Path(answers_s=None))
    assert_done_at(punch, RTT_S + COPIES_S, 1.5 * RTT_S)
    assert punch.a.heard == []


def test_a_mapping_that_dies_of_icmp_errors_is_opened_again() -> None:
    fragile = replace(APDF, dies_of_icmp=True)
    punch = punched(fragile, fragile, path=Path(late_s=0.03))
    assert_one_pair(punch)


# --- wrong hints and predictions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["apdf", "no-filter", "adf", "full-cone"])
def test_a_wrong_hint_costs_the_way_of_the_answer(kind: str) -> None:
    """The initiator may go to full TTL at once: the responder has opened its NAT for it."""
    punch = punched(KINDS[kind], KINDS[kind], hint=WRONG_HINT)
    assert_done_at(punch, SIDE_S + 1.5 * RTT_S + COPIES_S, SIDE_S + 2 * RTT_S)
    assert [card.opened for _, card in punch.a.told] == [(30000,), (5002, 30000)]
    assert [port for port, _ in punch.b.nat.unasked if port == 5002] == []


def test_a_responder_that_must_not_be_heard_yet_stays_at_low_ttl_until_a_note_says_so() -> None:
    """The initiator's answer path is slow, so only its note can tell the responder; until then nothing leaves."""
    punch = punched(NO_FILTER, NO_FILTER, hint=WRONG_HINT, path=Path(answers_s=0.5))
    assert punch.b.begun_s is not None
    assert first_full_ttl_s(punch.b) == pytest.approx(punch.b.begun_s + 0.5 + RTT_S / 2)
    assert_one_pair(punch)


def test_people_are_told_what_was_opened_and_why_the_ttl_went_up() -> None:
    events: list[object] = []
    punch = Punch(*pair(APDF, APDF), hint=WRONG_HINT)
    punch.on_event = events.append
    run(punch)
    assert [event.ports for event in events if isinstance(event, Opened)] == ["30000", "5001"]
    assert [event.why for event in events if isinstance(event, Aimed)] == [
        "the peer has opened its NAT for our port",
        "the peer was heard",
    ]


@pytest.mark.parametrize("strangers", [0, 1, 7])
def test_a_sequential_nat_is_predicted_with_up_to_seven_strangers_in_between(strangers: int) -> None:
    punch = punched(APDF, replace(SEQUENTIAL, strangers=strangers))
    assert_one_pair(punch)


@pytest.mark.parametrize("filtering", ["eif", "adf", "apdf"])
def test_two_sequential_nats_end_with_the_same_one_of_eight_pairs(filtering: str) -> None:
    kind = replace(SEQUENTIAL, filtering=filtering)
    punch = punched(kind, kind)
    assert_done_at(punch, RTT_S + COPIES_S, 1.5 * RTT_S)


@pytest.mark.parametrize("lost_pairs", range(1, 8))
def test_the_responder_nominates_whichever_pair_answers_first(lost_pairs: int) -> None:
    """The first ACKs are lost; the next pair in line is proven first, and both sides take that one."""
    acks = iter(range(1000))

    def lose_first_acks(sender: str, data: bytes) -> bool:
        return sender == "a" and data[4] == probe.Type.ACK and next(acks) < lost_pairs

    punch = punched(SEQUENTIAL, SEQUENTIAL, path=Path(loses=lose_first_acks))
    assert_one_pair(punch)
    assert punch.b.hole is not None
    assert punch.b.hole.remote.port == 41003 + lost_pairs


def test_a_hint_of_a_sequential_nat_that_is_off_is_put_right_by_the_answer() -> None:
    punch = punched(APDF, SEQUENTIAL, hint=EIGHT_WRONG_HINTS, b_stun_s=0.03)
    assert_one_pair(punch)


# --- last resorts --------------------------------------------------------------------------------------------------


def test_a_responder_that_gets_no_note_goes_to_full_ttl_in_the_end() -> None:
    punch = punched(FULL_CONE, APDF, hint=WRONG_HINT, path=Path(answers_s=None))
    assert_done_at(punch, LAST_RESORT_S + RTT_S + COPIES_S, LAST_RESORT_S + 1.5 * RTT_S)


def test_an_initiator_without_an_answer_goes_to_full_ttl_in_the_end() -> None:
    punch = punched(RANDOM, FULL_CONE, path=Path(answers_s=None))
    waited_s = LAST_RESORT_UNANSWERED_S - SIDE_S
    assert_done_at(punch, waited_s + 1.5 * RTT_S + COPIES_S, waited_s + 2 * RTT_S)
    assert first_full_ttl_s(punch.a) == pytest.approx(LAST_RESORT_UNANSWERED_S)


def test_an_initiator_does_not_wait_for_a_slow_note_until_its_round_is_over() -> None:
    """Its prediction was off and its hints were wrong: the responder cannot reach it, it must reach the responder.

    The note that would allow it takes 1.2 s, and on a short path the round ends one second after the answer.
    """
    slow = Path(rtt_s=0.02, side_s=0.6, answers_s=0.6)
    punch = punched(replace(SEQUENTIAL, strangers=20), FULL_CONE, hint=EIGHT_WRONG_HINTS, path=slow)
    assert_one_pair(punch)
    answer_s = punch.a.heard[0][0]
    assert first_full_ttl_s(punch.a) == pytest.approx(answer_s + LAST_RESORT_ANSWERED_S)
    assert punch.a.ok_s == pytest.approx(answer_s + LAST_RESORT_ANSWERED_S + 2 * slow.rtt_s)
    assert punch.a.ok_s is not None
    assert punch.a.ok_s < answer_s + 1.0


def test_an_initiator_whose_later_ports_the_peer_does_not_expect_stays_at_low_ttl() -> None:
    """A sequential NAT gave the eight hinted ports eight mappings; towards the right port it uses a ninth."""
    punch = punched(SEQUENTIAL, NO_FILTER, hint=EIGHT_WRONG_HINTS)
    assert_one_pair(punch)
    assert punch.a.told[1][1].ports == PortSet(tuple(range(41011, 41019)))
    assert [port for port, _ in punch.b.nat.unasked if port == 5002] == []


# --- losses --------------------------------------------------------------------------------------------------------


def lose_done(sender: str, data: bytes) -> bool:
    return probe.is_probe(data) and data[4] == probe.Type.DONE


@pytest.mark.parametrize("kind", ["apdf", "sequential"])
def test_data_of_the_peers_application_stands_for_a_lost_done_and_stays_for_ours(kind: str) -> None:
    punch = punched(KINDS[kind], KINDS[kind], path=Path(loses=lose_done), b_says=b"hello")
    assert_done_at(punch, RTT_S + COPIES_S, 1.5 * RTT_S + COPIES_S)
    assert punch.a.for_application == [b"hello"]


def test_without_done_and_data_the_initiator_says_what_is_missing() -> None:
    punch = punched(APDF, APDF, path=Path(loses=lose_done))
    assert punch.b.hole is not None
    assert punch.a.hole is None
    assert punch.a.explanation == (
        "a datagram came from 198.51.100.9:5002, but nothing shows that ours reach it: a NAT on the way drops them"
    )


@pytest.mark.parametrize("copy", range(len(DONE_S)))
def test_any_one_copy_of_done_is_enough(copy: int) -> None:
    copies = iter(range(1000))
    punch = punched(APDF, APDF, path=Path(loses=lambda sender, data: lose_done(sender, data) and next(copies) != copy))
    assert_done_at(punch, RTT_S + COPIES_S, 1.5 * RTT_S + sum(DONE_S[: copy + 1]))


@pytest.mark.parametrize(
    ("kind_a", "kind_b"),
    [("apdf", "apdf"), ("sequential", "sequential"), ("random", "full-cone"), ("full-cone", "random"), ("apdf", "adf")],
)
def test_twenty_percent_loss_each_way_is_survived(kind_a: str, kind_b: str) -> None:
    for seed in range(60):
        punch = punched(KINDS[kind_a], KINDS[kind_b], path=Path(loss=0.2, seed=seed), b_says=b"hello")
        assert_one_pair(punch)


def test_a_lost_ack_is_repeated_although_no_card_named_the_port_it_came_from() -> None:
    """The responder learns the initiator's port from its probe alone; it has to probe it until an ACK comes back."""
    acks = iter(range(1000))

    def lose_first_acks(sender: str, data: bytes) -> bool:
        return sender == "a" and data[4] == probe.Type.ACK and next(acks) < 3

    punch = punched(RANDOM, FULL_CONE, path=Path(loses=lose_first_acks))
    assert_one_pair(punch)
