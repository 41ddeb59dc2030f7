"""`udp` against datagrams that are not its peer's, with few packets, cancelled, and while STUN is still asked."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest
import trio
from trio.testing import MockClock

from punchd.endpoint import Endpoint
from punchd.technique import Datagram
from punchd.wire import probe
from punchd_techniques.udp import DONE_S, Udp
from tests.unit.fake_network import (
    APDF,
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
from tests.unit.udp_scenarios import (
    COPIES_S,
    RTT_S,
    SIDE_S,
    assert_done_at,
    assert_one_pair,
    first_full_ttl_s,
    punched,
)

KEY = bytes(range(100, 116))  # what FakeKit.random gives

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
def test_an_initiator_ignores_what_is_not_its_peers(which: str, at_s: float) -> None:
    data, source = HOSTILE[which]
    if which in ("garbage", "nothing at all", "a probe cut off", "a probe with a tail") and at_s > 0.1:
        source = STRANGER  # from the heard peer itself it would be the application's
    calm = punched(APDF, APDF, path=Path(late_s=0.02))
    punch = punched(APDF, APDF, path=Path(late_s=0.02), uninvited=[(at_s, "a", Datagram(data, source))])
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
def test_a_responder_takes_only_its_peers_ack_as_proof(data: bytes) -> None:
    punch = punched(APDF, APDF, uninvited=[(SIDE_S + 0.01, "b", Datagram(data, PEER_OF_B))])
    assert_done_at(punch, RTT_S + COPIES_S, 1.5 * RTT_S)


def test_done_of_an_initiator_is_no_proof_for_a_responder() -> None:
    done = datagram(probe.Type.DONE, probe.Role.INITIATOR)
    punch = punched(APDF, APDF, uninvited=[(SIDE_S + 0.01, "b", Datagram(done, PEER_OF_B))])
    assert_done_at(punch, RTT_S + COPIES_S, 1.5 * RTT_S)


# --- limits --------------------------------------------------------------------------------------------------------


def most_to_one_port(host: Host) -> int:
    ports = [sent.port for sent in host.sent]
    return max(ports.count(port) for port in set(ports))


@pytest.mark.parametrize("packets_per_port", [8, 16, 64])
@pytest.mark.parametrize("packets", [8, 100, 512])
def test_a_round_that_never_ends_keeps_to_its_packets(packets_per_port: int, packets: int) -> None:
    punch = punched(SEQUENTIAL, RANDOM, packets_per_port=packets_per_port, packets=packets, patience_s=60.0)
    for host in (punch.a, punch.b):
        assert most_to_one_port(host) <= packets_per_port - len(DONE_S)
        assert len(host.sent) <= packets - len(DONE_S)
    assert most_to_one_port(punch.a) == min(packets_per_port - len(DONE_S), packets - len(DONE_S))


def test_done_is_sent_even_when_every_probe_is_spent() -> None:
    """A responder that took its socket without saying so would leave the initiator behind."""
    punch = punched(APDF, APDF, packets=8, packets_per_port=8, path=Path(rtt_s=0.2, late_s=-0.03))
    assert_one_pair(punch)
    assert [sent.what.name for sent in punch.b.sent] == ["PROBE"] * 4 + ["DONE"] * 4


def test_a_socket_taken_in_the_moment_of_a_cancellation_is_not_lost() -> None:
    """Between taking the socket and returning it nothing may be cancelled, or nobody would close it."""
    scope = trio.CancelScope()
    punch = Punch(*pair(APDF, APDF), on_hand_over=scope.cancel)

    async def main() -> None:
        with scope:
            await punch.run(Udp())

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert punch.b.hole is not None


# --- STUN within the round -----------------------------------------------------------------------------------------


def test_an_initiator_offers_when_stun_has_answered_and_not_before() -> None:
    punch = punched(APDF, APDF, a_stun_s=0.03)
    assert [at_s for at_s, _ in punch.a.told] == [pytest.approx(punch.began_s + 0.03)]
    assert_done_at(punch, RTT_S + COPIES_S, 1.5 * RTT_S)


def test_a_responder_acts_before_stun_has_answered_and_adds_a_note() -> None:
    punch = punched(APDF, APDF, b_stun_s=0.03)
    assert_done_at(punch, RTT_S + COPIES_S, 1.5 * RTT_S)
    assert punch.b.begun_s is not None
    answer_s, answer = punch.b.told[0]
    assert answer_s == punch.b.begun_s
    assert answer.address.is_unspecified


def test_a_responder_behind_a_sequential_nat_goes_on_when_stun_has_told_its_ports() -> None:
    punch = punched(APDF, SEQUENTIAL, b_stun_s=0.03)
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
