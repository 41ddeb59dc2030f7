"""`udp` between virtual NATs: who connects, when exactly, and what was sent on the way.

Times are in the virtual clock's seconds from the moment the responder got the offer: a full-TTL probe, the ACK and
the DONE are three legs, so the responder is done after one round trip (and the copies of DONE), the initiator after
one and a half.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest
import trio

from punchd.endpoint import Endpoint, PortSet
from punchd.events import Aimed, Opened
from punchd.technique import Datagram
from punchd.wire import probe
from punchd_techniques.udp import (
    DONE_S,
    LAST_RESORT_ANSWERED_S,
    LAST_RESORT_S,
    LAST_RESORT_UNANSWERED_S,
    Udp,
)
from tests.unit.fake_network import (
    ADF,
    APDF,
    FULL_CONE,
    HOPS,
    NO_FILTER,
    NONCE,
    RANDOM,
    SEQUENTIAL,
    Host,
    Nat,
    NatKind,
    Path,
    Punch,
    pair,
)

KINDS = {
    "full-cone": FULL_CONE,
    "adf": ADF,
    "apdf": APDF,
    "no-filter": NO_FILTER,
    "sequential": SEQUENTIAL,
    "random": RANDOM,
}
FILTERS_BY_PORT = ("apdf", "no-filter", "sequential", "random")
RTT_S = 0.08
SIDE_S = 0.06
COPIES_S = sum(DONE_S)
KEY = bytes(range(100, 116))  # what FakeKit.random gives
WRONG_HINT = PortSet((30000,))
EIGHT_WRONG_HINTS = PortSet(tuple(range(30000, 30008)))


@pytest.fixture(autouse=True)
def clock(autojump_clock: trio.testing.MockClock) -> trio.testing.MockClock:
    return autojump_clock


def assert_one_pair(punch: Punch) -> None:
    """Both sides hold a socket, and each is connected to what the other is seen as."""
    assert punch.a.hole is not None, punch.a.explanation
    assert punch.b.hole is not None, punch.b.explanation
    assert (punch.a.hole.remote, punch.b.hole.remote) == (punch.b.seen_as, punch.a.seen_as)


def after_respond(punch: Punch) -> tuple[float, float]:
    """When the responder and the initiator were done, from the start of the responder's half."""
    assert punch.a.ok_s is not None
    assert punch.b.ok_s is not None
    assert punch.b.begun_s is not None
    return punch.b.ok_s - punch.b.begun_s, punch.a.ok_s - punch.b.begun_s


def assert_done_at(punch: Punch, responder_s: float, initiator_s: float) -> None:
    assert_one_pair(punch)
    assert after_respond(punch) == pytest.approx((responder_s, initiator_s), abs=1e-9)


def first_full_ttl_s(host: Host) -> float:
    return min((sent.at_s for sent in host.sent if sent.ttl is None), default=float("inf"))


def assert_discreet(initiator: Host) -> None:
    """Nothing at full TTL before a card or a datagram of the peer came, or the last resort."""
    excuses = [initiator.heard[0][0]] if initiator.heard else []
    excuses += initiator.arrived[:1]
    assert first_full_ttl_s(initiator) >= min([*excuses, LAST_RESORT_UNANSWERED_S])


async def punched(a: NatKind, b: NatKind, **more: object) -> Punch:
    punch = Punch(*pair(a, b), **more)  # type: ignore[arg-type]
    await punch.run(Udp())
    return punch


# --- who meets whom ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind_b", KINDS)
@pytest.mark.parametrize("kind_a", KINDS)
async def test_two_nats_meet_in_one_and_a_half_round_trips_unless_one_is_random_and_the_other_filters_by_port(
    kind_a: str, kind_b: str
) -> None:
    punch = await punched(KINDS[kind_a], KINDS[kind_b])
    assert_discreet(punch.a)
    if kind_b == "random" and kind_a in FILTERS_BY_PORT or kind_a == "random" and kind_b in FILTERS_BY_PORT:
        assert (punch.a.hole, punch.b.hole) == (None, None)
        return
    # An initiator that cannot know its port must be the first to be heard: after the answer, one round trip later.
    answer_s = SIDE_S + RTT_S / 2 if kind_a == "random" else 0.0
    assert_done_at(punch, answer_s + RTT_S + COPIES_S, answer_s + 1.5 * RTT_S)


async def test_a_random_nat_against_one_that_filters_by_port_says_why() -> None:
    punch = await punched(APDF, RANDOM)
    assert punch.b.explanation == (
        "no datagram of 203.0.113.1 has come; the own NAT picks a random port for each destination, "
        "so the peer cannot know ours"
    )
    assert punch.a.explanation == "no datagram of 198.51.100.9 has come"


@pytest.mark.parametrize("rtt_s", [0.002, 0.02, 0.08, 0.3])
async def test_the_time_needed_is_counted_in_round_trips(rtt_s: float) -> None:
    punch = await punched(APDF, APDF, path=Path(rtt_s=rtt_s))
    assert_done_at(punch, rtt_s + COPIES_S, 1.5 * rtt_s)


@pytest.mark.parametrize("late_s", [0.0, 0.3, 1.0, 3.0])
async def test_a_late_responder_finds_every_nat_as_it_was(late_s: float) -> None:
    punch = await punched(NO_FILTER, NO_FILTER, path=Path(late_s=late_s))
    assert_done_at(punch, RTT_S + COPIES_S, 1.5 * RTT_S)
    assert (punch.a.nat.unasked, punch.b.nat.unasked) == ([], [])


async def test_a_low_ttl_that_reaches_the_peer_spoils_its_mapping_when_it_is_late() -> None:
    punch = await punched(NO_FILTER, NO_FILTER, ttl=HOPS, path=Path(late_s=0.3))
    assert (punch.a.hole, punch.b.hole) == (None, None)
    assert punch.b.nat.unasked


async def test_an_answer_that_is_never_relayed_costs_nothing_when_the_hint_was_right() -> None:
    punch = await punched(APDF, APDF, path=Path(answers_s=None))
    assert_done_at(punch, RTT_S + COPIES_S, 1.5 * RTT_S)
    assert punch.a.heard == []


async def test_a_mapping_that_dies_of_icmp_errors_is_opened_again() -> None:
    fragile = replace(APDF, dies_of_icmp=True)
    punch = await punched(fragile, fragile, path=Path(late_s=0.03))
    assert_one_pair(punch)


# --- wrong hints and predictions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["apdf", "no-filter", "adf", "full-cone"])
async def test_a_wrong_hint_costs_the_way_of_the_answer(kind: str) -> None:
    """The initiator may go to full TTL at once: the responder has opened its NAT for it."""
    punch = await punched(KINDS[kind], KINDS[kind], hint=WRONG_HINT)
    assert_done_at(punch, SIDE_S + 1.5 * RTT_S + RTT_S / 2 - RTT_S / 2 + COPIES_S, SIDE_S + 2 * RTT_S)
    assert [card.opened for _, card in punch.a.told] == [(30000,), (5002, 30000)]
    assert [port for port, _ in punch.b.nat.unasked if port == 5002] == []


async def test_a_responder_that_must_not_be_heard_yet_stays_at_low_ttl_until_a_note_says_so() -> None:
    """The initiator's answer path is slow, so only its note can tell the responder; until then nothing leaves."""
    punch = await punched(NO_FILTER, NO_FILTER, hint=WRONG_HINT, path=Path(answers_s=0.5))
    assert punch.b.begun_s is not None
    assert first_full_ttl_s(punch.b) == pytest.approx(punch.b.begun_s + 0.5 + RTT_S / 2)
    assert_one_pair(punch)


async def test_the_opened_ports_are_reported_low_ttl_and_reason_are_told_to_people() -> None:
    events: list[object] = []
    punch = Punch(*pair(APDF, APDF), hint=WRONG_HINT)
    punch.on_event = events.append
    await punch.run(Udp())
    assert [event.ports for event in events if isinstance(event, Opened)] == ["30000", "5001"]
    assert [event.why for event in events if isinstance(event, Aimed)] == [
        "the peer has opened its NAT for our port",
        "the peer was heard",
    ]


@pytest.mark.parametrize("strangers", [0, 1, 7])
async def test_a_sequential_nat_is_predicted_with_up_to_seven_strangers_in_between(strangers: int) -> None:
    punch = await punched(APDF, replace(SEQUENTIAL, strangers=strangers))
    assert_one_pair(punch)


@pytest.mark.parametrize("filtering", ["eif", "adf", "apdf"])
async def test_two_sequential_nats_end_with_the_same_one_of_eight_pairs(filtering: str) -> None:
    kind = replace(SEQUENTIAL, filtering=filtering)
    punch = await punched(kind, kind, path=Path(loss=0.0))
    assert_done_at(punch, RTT_S + COPIES_S, 1.5 * RTT_S)


@pytest.mark.parametrize("lost_pairs", range(1, 8))
async def test_the_responder_nominates_whichever_pair_answers_first(lost_pairs: int) -> None:
    """The first ACKs are lost; the next pair in line is proven first, and both sides take that one."""
    acks = iter(range(1000))

    def lose_first_acks(sender: str, data: bytes) -> bool:
        return sender == "a" and data[4] == probe.Type.ACK and next(acks) < lost_pairs

    punch = await punched(SEQUENTIAL, SEQUENTIAL, path=Path(loses=lose_first_acks))
    assert_one_pair(punch)
    assert punch.b.hole is not None
    assert punch.b.hole.remote.port == 41003 + lost_pairs


async def test_a_hint_of_a_sequential_nat_that_is_off_is_put_right_by_the_answer() -> None:
    punch = await punched(APDF, SEQUENTIAL, hint=EIGHT_WRONG_HINTS, b_stun_s=0.03)
    assert_one_pair(punch)


# --- last resorts --------------------------------------------------------------------------------------------------


async def test_a_responder_that_gets_no_note_goes_to_full_ttl_in_the_end() -> None:
    punch = await punched(FULL_CONE, APDF, hint=WRONG_HINT, path=Path(answers_s=None))
    assert_done_at(punch, LAST_RESORT_S + RTT_S + COPIES_S, LAST_RESORT_S + 1.5 * RTT_S)


async def test_an_initiator_without_an_answer_goes_to_full_ttl_in_the_end() -> None:
    punch = await punched(RANDOM, FULL_CONE, path=Path(answers_s=None))
    waited_s = LAST_RESORT_UNANSWERED_S - SIDE_S
    assert_done_at(punch, waited_s + 1.5 * RTT_S + COPIES_S, waited_s + 2 * RTT_S)
    assert first_full_ttl_s(punch.a) == pytest.approx(LAST_RESORT_UNANSWERED_S)


async def test_an_initiator_does_not_wait_for_a_slow_note_until_its_round_is_over() -> None:
    """Its prediction was off and its hints were wrong: the responder cannot reach it, it must reach the responder.

    The note that would allow it takes 1.2 s, and on a short path the round ends one second after the answer.
    """
    slow = Path(rtt_s=0.02, side_s=0.6, answers_s=0.6)
    punch = await punched(replace(SEQUENTIAL, strangers=20), FULL_CONE, hint=EIGHT_WRONG_HINTS, path=slow)
    assert_one_pair(punch)
    answer_s = punch.a.heard[0][0]
    assert first_full_ttl_s(punch.a) == pytest.approx(answer_s + LAST_RESORT_ANSWERED_S)
    assert punch.a.ok_s == pytest.approx(answer_s + LAST_RESORT_ANSWERED_S + 2 * slow.rtt_s)
    assert punch.a.ok_s < answer_s + 1.0


async def test_an_initiator_whose_later_ports_the_peer_does_not_expect_stays_at_low_ttl() -> None:
    """A sequential NAT gave the eight hinted ports eight mappings; towards the right port it uses a ninth."""
    punch = await punched(SEQUENTIAL, NO_FILTER, hint=EIGHT_WRONG_HINTS)
    assert_one_pair(punch)
    assert punch.a.told[1][1].ports == PortSet(tuple(range(41011, 41019)))
    assert [port for port, _ in punch.b.nat.unasked if port == 5002] == []


# --- losses --------------------------------------------------------------------------------------------------------


def lose_done(sender: str, data: bytes) -> bool:
    return probe.is_probe(data) and data[4] == probe.Type.DONE


@pytest.mark.parametrize("kind", ["apdf", "sequential"])
async def test_data_of_the_peers_application_stands_for_a_lost_done_and_stays_for_ours(kind: str) -> None:
    punch = await punched(KINDS[kind], KINDS[kind], path=Path(loses=lose_done), b_says=b"hello")
    assert_done_at(punch, RTT_S + COPIES_S, 1.5 * RTT_S + COPIES_S)
    assert punch.a.for_application == [b"hello"]


async def test_without_done_and_data_the_initiator_says_what_is_missing() -> None:
    punch = await punched(APDF, APDF, path=Path(loses=lose_done))
    assert punch.b.hole is not None
    assert punch.a.hole is None
    assert punch.a.explanation == ("datagrams of 198.51.100.9:5002 arrive here, but nothing shows that ours reach it")


@pytest.mark.parametrize("copy", range(len(DONE_S)))
async def test_any_one_copy_of_done_is_enough(copy: int) -> None:
    copies = iter(range(1000))
    punch = await punched(
        APDF, APDF, path=Path(loses=lambda sender, data: lose_done(sender, data) and next(copies) != copy)
    )
    assert_done_at(punch, RTT_S + COPIES_S, 1.5 * RTT_S + sum(DONE_S[: copy + 1]))


@pytest.mark.parametrize(
    ("kind_a", "kind_b"),
    [("apdf", "apdf"), ("sequential", "sequential"), ("random", "full-cone"), ("full-cone", "random"), ("apdf", "adf")],
)
async def test_twenty_percent_loss_each_way_is_survived(kind_a: str, kind_b: str) -> None:
    for seed in range(60):
        punch = await punched(KINDS[kind_a], KINDS[kind_b], path=Path(loss=0.2, seed=seed), b_says=b"hello")
        assert_one_pair(punch)


async def test_a_lost_ack_is_repeated_although_no_card_named_the_port_it_came_from() -> None:
    """The responder learns the initiator's port from its probe alone; it has to probe it until an ACK comes back."""
    acks = iter(range(1000))

    def lose_first_acks(sender: str, data: bytes) -> bool:
        return sender == "a" and data[4] == probe.Type.ACK and next(acks) < 3

    punch = await punched(RANDOM, FULL_CONE, path=Path(loses=lose_first_acks))
    assert_one_pair(punch)


# --- strangers -----------------------------------------------------------------------------------------------------

PEER_OF_A = Endpoint(ip_address("198.51.100.9"), 5002)
PEER_OF_B = Endpoint(ip_address("203.0.113.1"), 5001)
STRANGER = Endpoint(ip_address("192.0.2.66"), 5002)


def datagram(what: probe.Type, role: probe.Role, *, nonce: bytes = NONCE, key: bytes = KEY) -> bytes:
    return probe.encode(probe.Probe(what, role, nonce), key)


HOSTILE = {
    "a wrong MAC": (datagram(probe.Type.DONE, probe.Role.RESPONDER, key=bytes(16)), PEER_OF_A),
    "our own datagram sent back": (datagram(probe.Type.PROBE, probe.Role.INITIATOR), PEER_OF_A),
    "our own role with DONE": (datagram(probe.Type.DONE, probe.Role.INITIATOR), PEER_OF_A),
    "another attempt's nonce": (datagram(probe.Type.DONE, probe.Role.RESPONDER, nonce=bytes(8)), PEER_OF_A),
    "another IP address": (datagram(probe.Type.DONE, probe.Role.RESPONDER), STRANGER),
    "garbage": (b"garbage", PEER_OF_A),
    "nothing at all": (b"", PEER_OF_A),
    "a probe cut off": (datagram(probe.Type.DONE, probe.Role.RESPONDER)[:-1], PEER_OF_A),
    "a probe with a tail": (datagram(probe.Type.DONE, probe.Role.RESPONDER) + b"!", PEER_OF_A),
    "data of a stranger": (b"hello", STRANGER),
}


@pytest.mark.parametrize("which", HOSTILE)
@pytest.mark.parametrize("at_s", [0.01, 0.13])  # before and after the peer was heard
async def test_an_initiator_ignores_what_is_not_its_peers(which: str, at_s: float) -> None:
    data, source = HOSTILE[which]
    if which in ("garbage", "nothing at all", "a probe with a tail") and at_s > 0.1:
        source = STRANGER  # from the heard peer itself it would be the application's
    calm = await punched(APDF, APDF, path=Path(late_s=0.02))
    punch = await punched(APDF, APDF, path=Path(late_s=0.02), uninvited=[(at_s, "a", Datagram(data, source))])
    assert_done_at(punch, RTT_S + COPIES_S, 1.5 * RTT_S)
    assert [replace(sent, at_s=0) for sent in punch.a.sent] == [replace(sent, at_s=0) for sent in calm.a.sent]
    assert punch.a.for_application == []


@pytest.mark.parametrize(
    "data",
    [
        datagram(probe.Type.ACK, probe.Role.RESPONDER),
        datagram(probe.Type.ACK, probe.Role.INITIATOR, key=bytes(16)),
        datagram(probe.Type.ACK, probe.Role.INITIATOR, nonce=bytes(8)),
        b"hello",
    ],
    ids=["reflected", "wrong MAC", "wrong nonce", "data"],
)
async def test_a_responder_takes_only_its_peers_ack_as_proof(data: bytes) -> None:
    punch = await punched(APDF, APDF, uninvited=[(SIDE_S + 0.01, "b", Datagram(data, PEER_OF_B))])
    assert_done_at(punch, RTT_S + COPIES_S, 1.5 * RTT_S)


async def test_done_of_an_initiator_is_no_proof_for_a_responder() -> None:
    done = datagram(probe.Type.DONE, probe.Role.INITIATOR)
    punch = await punched(APDF, APDF, uninvited=[(SIDE_S + 0.01, "b", Datagram(done, PEER_OF_B))])
    assert_done_at(punch, RTT_S + COPIES_S, 1.5 * RTT_S)


# --- limits --------------------------------------------------------------------------------------------------------


def most_to_one_port(host: Host) -> int:
    ports = [sent.port for sent in host.sent]
    return max(ports.count(port) for port in set(ports))


@pytest.mark.parametrize("packets_per_port", [8, 16, 64])
@pytest.mark.parametrize("packets", [8, 100, 512])
async def test_a_round_that_never_ends_keeps_to_its_packets(packets_per_port: int, packets: int) -> None:
    punch = await punched(SEQUENTIAL, RANDOM, packets_per_port=packets_per_port, packets=packets, patience_s=60.0)
    for host in (punch.a, punch.b):
        assert most_to_one_port(host) <= packets_per_port - len(DONE_S)
        assert len(host.sent) <= packets - len(DONE_S)
    assert most_to_one_port(punch.a) == min(packets_per_port - len(DONE_S), packets - len(DONE_S))


async def test_done_is_sent_even_when_every_probe_is_spent() -> None:
    """A responder that took its socket without saying so would leave the initiator behind."""
    acks = iter(range(1000))

    def lose_first_acks(sender: str, data: bytes) -> bool:
        return sender == "a" and data[4] == probe.Type.ACK and next(acks) < 3

    punch = await punched(APDF, APDF, packets=8, packets_per_port=8, path=Path(late_s=-0.03, loses=lose_first_acks))
    assert_one_pair(punch)
    assert len(punch.b.sent) == 8


async def test_a_socket_taken_in_the_moment_of_a_cancellation_is_not_lost() -> None:
    """Between taking the socket and returning it nothing may be cancelled, or nobody would close it."""
    with trio.CancelScope() as scope:
        punch = Punch(*pair(APDF, APDF), on_hand_over=scope.cancel)
        await punch.run(Udp())
    assert punch.b.hole is not None


# --- STUN within the round -----------------------------------------------------------------------------------------


async def test_an_initiator_offers_when_stun_has_answered_and_not_before() -> None:
    punch = await punched(APDF, APDF, a_stun_s=0.03)
    assert [at_s for at_s, _ in punch.a.told] == [pytest.approx(punch.began_s + 0.03)]
    assert_done_at(punch, RTT_S + COPIES_S, 1.5 * RTT_S)


async def test_a_responder_acts_before_stun_has_answered_and_adds_a_note() -> None:
    punch = await punched(APDF, APDF, b_stun_s=0.03)
    assert_done_at(punch, RTT_S + COPIES_S, 1.5 * RTT_S)
    assert punch.b.begun_s is not None
    answer_s, answer = punch.b.told[0]
    assert answer_s == punch.b.begun_s
    assert answer.address.is_unspecified


async def test_a_responder_behind_a_sequential_nat_goes_on_when_stun_has_told_its_ports() -> None:
    punch = await punched(APDF, SEQUENTIAL, b_stun_s=0.03)
    assert punch.b.begun_s is not None
    assert first_full_ttl_s(punch.b) == pytest.approx(punch.b.begun_s + 0.03 + 0.05)
    assert_one_pair(punch)
    assert [card.address.is_unspecified for _, card in punch.b.told] == [True, False]


# --- the model itself ----------------------------------------------------------------------------------------------


def test_a_nat_that_keeps_strays_gives_a_late_mapping_another_port() -> None:
    nat = Nat(NO_FILTER, "198.51.100.9", 43000)
    assert not nat.lets_in(5002, PEER_OF_B)
    assert nat.out(5002, PEER_OF_B).port != 5002
    assert nat.out(5002, STRANGER).port == 5002


@pytest.mark.parametrize(("filtering", "passes"), [("eif", (1, 1, 1)), ("adf", (1, 1, 0)), ("apdf", (1, 0, 0))])
def test_filters_differ_in_what_they_compare(filtering: str, passes: tuple[int, int, int]) -> None:
    nat = Nat(NatKind(filtering=filtering), "198.51.100.9", 43000)
    nat.out(5002, PEER_OF_B)
    sources = (PEER_OF_B, replace(PEER_OF_B, port=1), STRANGER)
    assert tuple(int(nat.lets_in(5002, source)) for source in sources) == passes
