"""The initiator: what it says when, and what it believes."""

from __future__ import annotations

import pytest

from punchd.media.counters import Count
from punchd.media.datagrams import Ack, ConnectionId, Start, Syn, SynAck, encode
from punchd.media.initiator import State
from punchd.media.moves import Action, Ended, Established, Flush, Identified, Send, Why
from punchd.media.options import Options
from punchd.media.settings import Timing
from tests.unit.media.parts import OTHER, PEER, A, B, C, established, initiator, kinds, named, only, sent


def run_out(machine: object, until: float) -> list[tuple[float, Action]]:
    """What the machine does by itself until then."""
    found: list[tuple[float, Action]] = []
    while (when := machine.next_timeout()) is not None and when <= until:  # type: ignore[attr-defined]
        found += [(when, action) for action in machine.handle_timeout(when)]  # type: ignore[attr-defined]
    return found


# --- asking ----------------------------------------------------------------------------------------------------------


def test_msp_c12_it_asks_with_a_syn() -> None:
    machine, _ = initiator(A, options=Options(max_total=1000))
    assert sent(machine.open(0.0)) == [Syn(A, Options(max_total=1000))]
    assert machine.open(1.0) == []


def test_msp_c17_a_syn_is_repeated_with_exponential_backoff_and_given_up() -> None:
    machine, _ = initiator()
    machine.open(100.0)
    heard = run_out(machine, 1000.0)
    assert [when - 100 for when, action in heard if isinstance(action, Send)] == [0.5, 1.5, 3.5, 7.5, 15.5]
    assert heard[-1] == (131.5, Ended(PEER, Why.UNANSWERED))
    assert machine.next_timeout() is None
    assert machine.state is State.ENDED


def test_msp_c18_d_08_a_refusal_ends_the_attempt_and_its_text_is_escaped() -> None:
    machine, _ = initiator()
    machine.open(0.0)
    assert machine.handle(PEER, SynAck(False, b"no\x1b[2J"), 0.1) == [Ended(PEER, Why.REFUSED, "no\\x1b[2J")]
    assert machine.next_timeout() is None
    assert machine.open(0.2) == []


def test_msp_c23_it_is_established_by_a_syn_ack_that_accepts_and_says_ack() -> None:
    machine, counters = initiator()
    machine.open(0.0)
    actions = machine.handle(PEER, SynAck(True, B, Options(rate=8)), 0.1)
    assert actions == [
        Flush(PEER),
        Identified(PEER, B),
        Established(PEER, B, Options(rate=8)),
        Send(PEER, encode(Ack(B))),
    ]
    assert machine.takes_media
    assert named(counters) == {"flushes": 1}


def test_msp_c16_without_a_desired_id_the_assigned_one_counts() -> None:
    machine, _ = initiator(b"")
    machine.open(0.0)
    assert machine.handle(PEER, SynAck(True, B), 0.1)[2] == Established(PEER, B)


def test_msp_c24_a_repeated_syn_ack_gets_the_ack_again_and_flushes_nothing() -> None:
    machine, counters = established()
    assert machine.handle(PEER, SynAck(True, A), 1.0) == [Send(PEER, encode(Ack(A)))]
    assert counters[Count.FLUSHES] == 1


def test_msp_c24_an_ack_is_repeated_until_something_else_is_heard() -> None:
    machine, _ = established()
    acks = [when for when, action in run_out(machine, 14.0) if isinstance(action, Send)]
    assert acks == [0.5, 1.5, 3.5, 7.5]
    machine, _ = established()
    machine.hear_media(0.4)
    assert run_out(machine, 14.0) == []
    machine, _ = established()
    machine.handle(PEER, ConnectionId(A), 0.6)
    assert run_out(machine, 14.0) == []


def test_msp_c24_acks_without_effect_end() -> None:
    machine, _ = established(timing=Timing(idle_s=None, keep_alive_s=1e9))
    assert len([action for _, action in run_out(machine, 1000.0) if isinstance(action, Send)]) == 5


@pytest.mark.parametrize("datagram", [SynAck(True, A), SynAck(False, b""), ConnectionId(A), Syn(A), Ack(A), Start()])
def test_d_24_datagrams_of_other_tuples_change_nothing_and_are_counted(datagram: SynAck) -> None:
    machine, counters = initiator()
    machine.open(0.0)
    assert machine.handle(OTHER, datagram, 0.1) == []
    assert machine.state is State.ASKING
    assert named(counters) == {"unknown_tuple": 1}


@pytest.mark.parametrize("datagram", [Ack(A), Start()])
def test_what_only_a_responder_is_told_is_counted(datagram: Ack) -> None:
    machine, counters = established()
    assert machine.handle(PEER, datagram, 0.1) == []
    assert counters[Count.UNEXPECTED] == 1


@pytest.mark.parametrize("datagram", [SynAck(True, A), SynAck(False, b""), ConnectionId(A), Syn(A)])
def test_before_it_asks_and_after_the_end_nothing_counts(datagram: SynAck) -> None:
    machine, counters = initiator()
    assert machine.handle(PEER, datagram, 0.0) == []
    assert machine.close(0.0) == [Ended(PEER, Why.CLOSED)]
    assert machine.handle(PEER, datagram, 0.0) == []
    assert machine.close(0.0) == []
    assert counters[Count.UNEXPECTED] == 2


def test_d_08_a_late_refusal_ends_no_session() -> None:
    machine, counters = established()
    assert machine.handle(PEER, SynAck(False, b"busy"), 1.0) == []
    assert machine.state is State.ESTABLISHED
    assert counters[Count.UNEXPECTED] == 1


# --- glare -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("theirs", "yields"), [(B, True), (b"", False), (A, False), (b"0" * 36, False)])
def test_d_22_the_lower_desired_id_yields(theirs: bytes, yields: bool) -> None:
    machine, _ = initiator(A, may_yield=True)
    machine.open(0.0)
    actions = machine.handle(PEER, Syn(theirs), 0.1)
    if yields:
        assert actions == [Ended(PEER, Why.GLARE)]
    else:
        assert sent(actions) == [SynAck(False, b"glare")]
        assert machine.state is State.ASKING


def test_d_22_one_of_two_that_ask_each_other_wins() -> None:
    first, _ = initiator(A, may_yield=True)
    second, _ = initiator(B, may_yield=True)
    first.open(0.0)
    second.open(0.0)
    assert first.handle(PEER, Syn(B), 0.1) == [Ended(PEER, Why.GLARE)]
    assert sent(second.handle(PEER, Syn(A), 0.1)) == [SynAck(False, b"glare")]


def test_d_22_who_cannot_answer_does_not_yield_nor_does_a_session() -> None:
    machine, _ = initiator(A)
    machine.open(0.0)
    assert sent(machine.handle(PEER, Syn(B), 0.1)) == [SynAck(False, b"glare")]
    machine, counters = established(A, may_yield=True)
    assert sent(machine.handle(PEER, Syn(B), 0.1)) == [SynAck(False, b"glare")]
    assert machine.state is State.ESTABLISHED
    assert counters[Count.REFUSED] == 1


# --- identity --------------------------------------------------------------------------------------------------------


def test_msp_c27_media_before_the_syn_ack_belong_to_the_connection_id_datagram() -> None:
    machine, _ = initiator()
    machine.open(0.0)
    assert not machine.takes_media
    assert machine.handle(PEER, ConnectionId(B), 0.1) == [Flush(PEER), Identified(PEER, B)]
    assert machine.takes_media
    assert kinds(machine.handle(PEER, SynAck(True, B), 0.2)) == ["Established", "Ack"]


def test_msp_c28_msp_c37_another_id_in_the_syn_ack_flushes_again() -> None:
    machine, _ = initiator()
    machine.open(0.0)
    machine.handle(PEER, ConnectionId(B), 0.1)
    actions = machine.handle(PEER, SynAck(True, C), 0.2)
    assert actions[:3] == [Flush(PEER), Identified(PEER, C), Established(PEER, C)]


def test_msp_c28_a_refusal_after_early_media_flushes_them() -> None:
    machine, _ = initiator()
    machine.open(0.0)
    machine.handle(PEER, ConnectionId(B), 0.1)
    assert machine.handle(PEER, SynAck(False, b""), 0.2) == [Flush(PEER), Ended(PEER, Why.REFUSED)]


def test_msp_c37_msp_c39_msp_c47_another_id_flushes_and_the_same_does_not() -> None:
    machine, _ = established()
    assert machine.handle(PEER, ConnectionId(A), 1.0) == []
    assert machine.handle(PEER, ConnectionId(B), 2.0) == [Flush(PEER), Identified(PEER, B)]
    assert machine.handle(PEER, ConnectionId(B), 3.0) == []
    assert machine.handle(PEER, ConnectionId(A), 4.0) == [Flush(PEER), Identified(PEER, A)]


def test_msp_c30_d_06_a_repeated_syn_ack_after_another_id_does_not_bring_the_old_one_back() -> None:
    machine, _ = established()
    machine.handle(PEER, ConnectionId(B), 1.0)
    assert sent(machine.handle(PEER, SynAck(True, A), 2.0)) == [Ack(A)]
    assert machine.id == B


def test_msp_c29_a_responder_that_begins_anew_is_followed() -> None:
    machine, _ = established()
    assert kinds(machine.handle(PEER, SynAck(True, B), 1.0)) == ["Flush", "Identified", "Ack"]
    assert machine.id == B
    assert [sent([action]) for _, action in run_out(machine, 1.6)] == [[Ack(B)]]


def test_d_03_an_empty_id_flushes_only_if_there_was_one() -> None:
    machine, _ = initiator()
    machine.open(0.0)
    assert machine.handle(PEER, ConnectionId(b""), 0.1) == []
    assert not machine.takes_media
    machine, _ = established()
    assert machine.handle(PEER, ConnectionId(b""), 0.1) == [Flush(PEER), Identified(PEER, b"")]
    assert machine.handle(PEER, ConnectionId(b""), 0.2) == []


def test_d_26_flushes_are_limited() -> None:
    machine, counters = established()
    for number in range(50):
        machine.handle(PEER, ConnectionId(b"id %d" % number), 0.5)
    assert machine.id == b"id 2"  # the fourth flush; the first was that of the handshake
    assert (counters[Count.FLUSHES], counters[Count.FLUSHES_REFUSED]) == (4, 47)
    machine.handle(PEER, ConnectionId(A), 1.6)
    machine.handle(PEER, ConnectionId(B), 1.6)
    assert machine.id == A


def test_d_26_beyond_the_limit_no_syn_ack_is_taken_that_changes_the_id() -> None:
    machine, _ = initiator()
    machine.open(0.0)
    for number in range(4):
        machine.handle(PEER, ConnectionId(b"id %d" % number), 0.1)
    assert machine.handle(PEER, SynAck(True, A), 0.1) == []
    assert machine.state is State.IDENTIFIED
    assert kinds(machine.handle(PEER, SynAck(True, A), 1.2)) == ["Flush", "Identified", "Established", "Ack"]
    for number in range(4):
        machine.handle(PEER, ConnectionId(b"id %d" % number), 1.3)
    assert machine.handle(PEER, SynAck(True, B), 1.3) == []


def test_msp_c39_d_25_it_may_name_the_session_anew_and_says_so_four_times() -> None:
    machine, _ = established()
    machine.hear_media(0.1)
    assert kinds(machine.reidentify(B, 10.0)) == ["Flush", "Identified", "ConnectionId"]
    repeats = run_out(machine, 12.0)
    assert [when for when, _ in repeats] == [10.25, 10.5, 11.0]
    assert sent(action for _, action in repeats) == [ConnectionId(B)] * 3
    assert machine.reidentify(B, 13.0) == []


def test_msp_c39_repeats_end_when_the_id_changes_again() -> None:
    machine, _ = established()
    machine.reidentify(B, 10.0)
    machine.handle(PEER, ConnectionId(C), 10.1)
    assert run_out(machine, 12.0) == []


def test_an_id_that_cannot_be_sent_is_refused() -> None:
    machine, _ = established()
    for bad in (b"", b"x" * 37, b"a\0b"):
        with pytest.raises(ValueError, match="connection id"):
            machine.reidentify(bad, 1.0)


# --- life ------------------------------------------------------------------------------------------------------------


def test_d_29_it_keeps_the_tuple_alive_with_its_connection_id() -> None:
    machine, _ = established(timing=Timing(idle_s=None))
    machine.hear_media(0.1)
    repeats = run_out(machine, 60.0)
    assert [when for when, _ in repeats] == [15.0, 30.0, 45.0, 60.0]
    assert sent(action for _, action in repeats) == [ConnectionId(A)] * 4


def test_d_29_silence_ends_the_session() -> None:
    machine, _ = established()
    machine.hear_media(50.0)
    heard = run_out(machine, 1000.0)
    assert [one for one in heard if not isinstance(one[1], Send)] == [
        (170.0, Flush(PEER)),
        (170.0, Ended(PEER, Why.IDLE)),
    ]


def test_time_that_has_not_come_changes_nothing() -> None:
    machine, _ = initiator()
    assert machine.next_timeout() is None
    assert machine.handle_timeout(1e9) == []
    machine.open(0.0)
    assert machine.handle_timeout(0.499) == []
    machine.hear_media(0.1)
    assert only(machine.handle_timeout(0.5), Send)
