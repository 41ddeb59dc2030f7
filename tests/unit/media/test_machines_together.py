"""Initiator and responder against each other over networks of all kinds."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from punchd.media.counters import Count
from punchd.media.datagrams import Ack, ConnectionId, Syn, SynAck, parse
from punchd.media.moves import Ended, Established, Identified, MediaMayFlow, Why
from punchd.media.settings import ReceiverSettings, ResponderSettings
from tests.unit.media.network import Fate, Network, is_open
from tests.unit.media.parts import PEER, A, B

BOTH = pytest.mark.parametrize(
    "responder",
    [ResponderSettings(), ResponderSettings(optimistic=True, path_validated=True)],
    ids=["waits", "optimistic"],
)


def script(*fates: list[float]) -> Fate:
    """So for the first datagrams, then each after 10 ms."""
    following = itertools.chain(fates, itertools.repeat([0.01]))
    return lambda: next(following)


class Weather:
    """What may happen to a datagram."""

    def __init__(self, seed: int, loss: float, double: float, spread_s: float) -> None:
        self.loss, self.double, self.spread_s = loss, double, spread_s
        self._rng = random.Random(seed)

    def __call__(self) -> list[float]:
        rng = self._rng
        if rng.random() < self.loss:
            return []
        return [0.01 + rng.random() * self.spread_s for _ in range(1 + (rng.random() < self.double))]


@BOTH
def test_msp_c20_msp_c21_msp_c22_msp_c23_three_datagrams_and_media_flow(responder: ResponderSettings) -> None:
    network = Network(script(), responder)
    network.open()
    network.run(0.1)
    assert is_open(network)
    assert network.send(b"hello")
    network.run(0.2)
    assert network.delivered == [b"hello"]
    assert network.told("initiator", Established) == [Established(PEER, A)]
    assert len(network.told("responder", MediaMayFlow)) == 1


@BOTH
@pytest.mark.parametrize("kind", ["lost", "doubled", "delayed"])
@pytest.mark.parametrize("which", range(6))
def test_msp_c24_each_handshake_datagram_may_be_lost_doubled_or_late(
    responder: ResponderSettings, kind: str, which: int
) -> None:
    fates = [[0.01]] * which + [{"lost": [], "doubled": [0.01, 0.3], "delayed": [0.8]}[kind]]
    network = Network(script(*fates), responder)
    network.open()
    network.run(10.0)
    assert is_open(network)
    assert len(network.told("initiator", Established)) == len(network.told("responder", Established)) == 1
    assert network.here[Count.FLUSHES] == len(network.told("initiator", Identified)) == 1
    assert network.send(b"hello")
    network.run(11.0)
    assert network.delivered == [b"hello"]


def test_msp_c27_d_25_media_that_overtake_the_syn_ack_are_taken_under_their_id() -> None:
    # SYN, SYN-ACK (late), connection id, media
    network = Network(script([0.01], [0.4]), ResponderSettings(optimistic=True, path_validated=True))
    network.open()
    network.run(0.02)
    assert network.send(b"early")
    network.run(0.1)
    assert network.delivered == [b"early"]
    network.run(1.0)
    assert is_open(network)
    assert network.here[Count.FLUSHES] == 1  # or the same media could be delivered again
    assert network.delivered == [b"early"]


def test_d_25_media_count_under_the_id_of_the_syn_ack_if_the_connection_id_is_lost() -> None:
    network = Network(script([0.01], [0.01], []), ResponderSettings(optimistic=True, path_validated=True))
    network.open()
    network.run(0.05)
    assert network.send(b"hello")
    network.run(0.1)
    assert network.delivered == [b"hello"]


def test_msp_c27_media_that_overtake_everything_are_dropped_and_counted() -> None:
    network = Network(script([0.01], [0.4], [0.5]), ResponderSettings(optimistic=True, path_validated=True))
    network.open()
    network.run(0.02)
    assert network.send(b"early")
    network.run(0.1)
    assert network.delivered == []
    assert network.here[Count.EARLY_MEDIA] == 1


def test_msp_c17_without_an_answer_the_initiator_ends() -> None:
    network = Network(lambda: [])
    network.open()
    network.run(1000.0)
    assert network.told("initiator", Ended) == [Ended(PEER, Why.UNANSWERED)]
    assert network._next() is None


def test_msp_c18_a_refusal_ends_both() -> None:
    network = Network(script(), ResponderSettings(max_open=0))
    network.open()
    network.run(1000.0)
    assert network.told("initiator", Ended) == [Ended(PEER, Why.REFUSED, "busy")]
    assert len(network.answering.links) == 0


def test_msp_c37_both_sides_name_the_session_anew_at_once_and_agree() -> None:
    network = Network(script())
    network.open()
    network.run(5.0)
    network._act("initiator", network.asking.reidentify(b"theirs", network.now))
    network._act("responder", network.answering.reidentify(PEER, b"ours", network.now))
    network.run(10.0)
    assert is_open(network)


def test_msp_c28_d_23_after_another_id_the_numbers_are_others_and_nothing_is_taken_for_a_duplicate() -> None:
    network = Network(script())
    network.open()
    network.run(1.0)
    for number in range(3):
        network.send(b"%d" % number)
        network.run(network.now + 0.1)
        network._act("responder", network.answering.reidentify(PEER, b"id %d" % number, network.now))
        network.run(network.now + 1.5)
    assert network.delivered == [b"0", b"1", b"2"]
    assert network.here[Count.DUPLICATES] == 0


def play(weather: Weather, seed: int, responder: ResponderSettings) -> None:
    """A session with media and new names over such a network, until everything has ended."""
    rng = random.Random(seed)
    network = Network(weather, responder, ReceiverSettings(ordered=bool(seed % 2)), A if seed % 3 else b"")
    network.open()
    payloads = set()
    for number in range(30):
        network.run(network.now + rng.random())
        payload = rng.randbytes(rng.choice([0, 10, 1174, 5000])) + number.to_bytes(2)
        if network.send(payload):
            payloads.add(payload)
        if rng.random() < 0.1:
            network._act("responder", network.answering.reidentify(PEER, b"id %d" % number, network.now))
        if rng.random() < 0.1:
            network._act("initiator", network.asking.reidentify(b"other %d" % number, network.now))
    network.run(network.now + 1.0)  # the last one is on its way
    assert set(network.delivered) <= payloads
    if not weather.double:
        assert len(network.delivered) == len(set(network.delivered))
    undisturbed = network.there[Count.FLUSHES] == 1 and not network.here[Count.LATE]
    if weather.loss == 0 and weather.spread_s < 0.1 and undisturbed:
        assert set(network.delivered) == payloads
    if weather.loss == 0:
        network.run(network.now + 40)  # two keep-alives
        assert is_open(network)
    network.fate = lambda: []
    network.run(network.now + 1000)
    assert network.told("initiator", Ended)
    assert len(network.answering.links) == len(network.incoming.receiver.reassembly) == network.memory.reserved == 0
    assert network._next() is None


networks = st.builds(
    Weather,
    st.integers(0, 2**32),
    st.sampled_from([0.0, 0.05, 0.3, 0.7, 1.0]),
    st.sampled_from([0.0, 0.2]),
    st.sampled_from([0.0, 0.05, 2.0]),
)


@settings(deadline=None)
@given(networks, st.integers(0, 2**32), st.booleans(), st.booleans())
def test_msp_c24_whatever_the_network_does_both_end_and_leave_nothing(
    network: Weather, seed: int, optimistic: bool, validated: bool
) -> None:
    play(network, seed, ResponderSettings(optimistic=optimistic, path_validated=validated))


def test_msp_c24_with_one_datagram_in_five_lost_nearly_every_handshake_succeeds() -> None:
    succeeded = 0
    for seed in range(100):
        network = Network(Weather(seed, 0.2, 0.1, 0.05))
        network.open()
        network.run(40.0)
        succeeded += is_open(network)
    assert succeeded >= 98


def test_msp_c26_the_connection_id_is_the_first_datagram_after_the_handshake_and_before_media() -> None:
    for responder, expected in (
        (ResponderSettings(), [Syn(B), SynAck(True, B), Ack(B), ConnectionId(B)]),
        (ResponderSettings(optimistic=True), [Syn(B), SynAck(True, B), ConnectionId(B), Ack(B), ConnectionId(B)]),
    ):
        network = Network(script(), responder, desired=B)
        network.open()
        network.run(0.1)
        assert [parse(data) for data in network.wire] == expected
