"""The responder: what it says when, to whom, and how much."""

from __future__ import annotations

import pytest

from punchd.media.counters import Count, Counters
from punchd.media.datagrams import Ack, ConnectionId, Start, Syn, SynAck, encode
from punchd.media.moves import Ended, Established, Flush, Identified, MediaMayFlow, Send, Why
from punchd.media.options import Options
from punchd.media.responder import Responder
from punchd.media.settings import ResponderSettings, Timing
from tests.unit.media.parts import OTHER, PEER, A, B, kinds, named, only, opened, responder, sent, tell
from tests.unit.media.test_initiator import run_out

OPTIMISTIC = ResponderSettings(optimistic=True)
VALIDATED = ResponderSettings(optimistic=True, path_validated=True)


# --- the handshake ---------------------------------------------------------------------------------------------------


def test_msp_c13_msp_c19_a_syn_is_answered_on_its_tuple_with_the_desired_id() -> None:
    machine, _ = responder()
    actions = tell(machine, Syn(A))
    assert actions == [Flush(PEER), Identified(PEER, A), Send(PEER, encode(SynAck(True, A)))]


def test_msp_c16_an_id_is_assigned_where_none_is_desired() -> None:
    machine, _ = responder()
    [first] = sent(tell(machine, Syn(b"")))
    [second] = sent(tell(machine, Syn(b""), peer=OTHER))
    assert isinstance(first, SynAck)
    assert isinstance(second, SynAck)
    assert len(first.text) == len(second.text) == 36
    assert first.text != second.text
    assert sent(tell(machine, Syn(b""))) == [first]


def test_msp_c20_msp_c21_msp_c22_msp_c26_an_ack_completes_and_the_id_goes_before_media() -> None:
    machine, _ = responder()
    tell(machine, Syn(A, Options(max_total=5)))
    assert machine.allowance(PEER) == 0
    actions = tell(machine, Ack(A))
    assert actions == [
        Established(PEER, A, Options(max_total=5)),
        Send(PEER, encode(ConnectionId(A))),
        MediaMayFlow(PEER),
    ]
    assert machine.allowance(PEER) is None


def test_msp_c22_d_07_an_ack_with_another_id_or_without_a_syn_is_dropped_and_counted() -> None:
    machine, counters = responder()
    assert tell(machine, Ack(A)) == []
    assert len(machine.links) == 0
    tell(machine, Syn(A))
    assert tell(machine, Ack(B)) == []
    assert tell(machine, Ack(b"")) == []
    assert tell(machine, Ack(A), peer=OTHER) == []
    assert counters[Count.ACK_MISMATCH] == 4
    assert only(tell(machine, Ack(A)), Established)
    assert tell(machine, Ack(B)) == []
    assert counters[Count.ACK_MISMATCH] == 5


def test_msp_c24_msp_c30_d_06_a_repeated_ack_changes_nothing() -> None:
    machine, counters = opened()
    assert tell(machine, Ack(A), 1.0) == []
    assert counters[Count.FLUSHES] == 1


def test_msp_c24_a_repeated_syn_gets_the_same_answer_and_flushes_nothing() -> None:
    machine, counters = responder()
    tell(machine, Syn(A))
    assert sent(tell(machine, Syn(A), 0.1)) == [SynAck(True, A)]
    tell(machine, Ack(A), 0.2)
    assert sent(tell(machine, Syn(A), 0.3)) == [SynAck(True, A), ConnectionId(A)]
    assert machine.links.open_count == 1
    assert counters[Count.FLUSHES] == 1


def test_msp_c24_msp_c17_a_syn_ack_is_repeated_while_no_ack_comes_and_then_forgotten() -> None:
    machine, counters = responder(ResponderSettings(path_validated=True))
    tell(machine, Syn(A))
    heard = run_out(machine, 100.0)
    assert [when for when, action in heard if isinstance(action, Send)] == [0.5, 1.5, 3.5, 7.5, 15.5]
    assert heard[-1] == (32.0, Ended(PEER, Why.UNANSWERED))
    assert len(machine.links) == len(machine.timers) == 0
    assert counters[Count.HALF_OPEN_EXPIRED] == 1
    machine, _ = responder(ResponderSettings(path_validated=True, timing=Timing(half_open_s=1.0)))
    tell(machine, Syn(A))
    assert run_out(machine, 100.0)[-1] == (1.0, Ended(PEER, Why.UNANSWERED))


def test_msp_c18_a_syn_may_be_refused_without_state() -> None:
    machine, counters = responder(admit=lambda peer, syn: b"not you" if peer == OTHER else None)
    assert sent(tell(machine, Syn(A), peer=OTHER)) == [SynAck(False, b"not you")]
    assert len(machine.links) == 0
    assert tell(machine, Ack(A), peer=OTHER) == []
    assert named(counters) == {"ack_mismatch": 1, "refused": 1}


def test_d_18_a_syn_of_another_version_is_refused_in_this_one() -> None:
    machine, _ = opened()
    for peer in (PEER, OTHER):
        actions = tell(machine, Syn(b"", version=2), peer=peer)
        assert sent(actions) == [SynAck(False, b"version")]
        [send] = only(actions, Send)
        assert send.data[26] == 1
    assert machine.links.open_count == 1
    tell(machine, Syn(b""), peer=OTHER)  # what is read of another version looks like a repetition of this one
    assert sent(tell(machine, Syn(b"", version=2), peer=OTHER)) == [SynAck(False, b"version")]


def test_msp_c11_msp_c25_d_01_d_05_start_and_an_optimistic_start_are_off_unless_they_are_asked_for() -> None:
    settings = ResponderSettings()
    assert (settings.legacy_start, settings.optimistic, settings.path_validated) == (False, False, False)


def test_sessions_are_limited_and_more_are_refused() -> None:
    machine, _ = opened(ResponderSettings(max_open=1))
    assert sent(tell(machine, Syn(B), peer=OTHER)) == [SynAck(False, b"busy")]
    assert sent(tell(machine, Syn(A))) == [SynAck(True, A), ConnectionId(A)]
    assert sent(tell(machine, Syn(B))) == [SynAck(True, B)]  # in place of the first
    machine, _ = responder(ResponderSettings(max_open=1))
    tell(machine, Syn(A))
    tell(machine, Syn(B), peer=OTHER)
    tell(machine, Ack(A))
    actions = tell(machine, Ack(B), peer=OTHER)
    assert sent(actions) == [SynAck(False, b"busy")]
    assert actions[-1] == Ended(OTHER, Why.EVICTED)
    assert len(machine.links) == 1


def test_msp_c38_ids_open_no_doors_and_two_tuples_may_have_the_same() -> None:
    machine, _ = opened()
    assert tell(machine, ConnectionId(A), peer=OTHER) == []
    assert machine.allowance(OTHER) == 0
    tell(machine, Syn(A), peer=OTHER)
    assert machine.allowance(OTHER) == 0
    tell(machine, ConnectionId(A), peer=OTHER)
    assert machine.allowance(OTHER) == 0
    assert only(tell(machine, Ack(A), peer=OTHER), Established)


def test_what_only_an_initiator_is_told_is_counted() -> None:
    machine, counters = opened()
    assert tell(machine, SynAck(True, A)) == []
    assert counters[Count.UNEXPECTED] == 1


# --- before the tuple is validated -----------------------------------------------------------------------------------


def test_msp_c25_msp_c26_d_05_an_optimistic_start_sends_the_id_first_and_three_times_what_came_at_most() -> None:
    machine, _ = responder(OPTIMISTIC)
    actions = tell(machine, Syn(A))
    assert kinds(actions) == ["Flush", "Identified", "SynAck", "ConnectionId", "MediaMayFlow"]
    assert machine.allowance(PEER) == 3 * 67 - 67 - 39
    machine.count_sent(PEER, 90, 0.1)
    assert machine.allowance(PEER) == 5
    machine.count_sent(PEER, 90, 0.1)
    assert machine.allowance(PEER) == 0
    assert kinds(tell(machine, Ack(A), 0.2)) == ["Established", "ConnectionId"]
    assert machine.allowance(PEER) is None


def test_d_05_repeated_syns_are_worth_at_most_64_kib() -> None:
    machine, counters = responder(OPTIMISTIC)
    sent_bytes = 0
    for number in range(3000):
        sent_bytes += sum(len(action.data) for action in only(tell(machine, Syn(A), number / 1000), Send))
        share = machine.allowance(PEER) or 0
        machine.count_sent(PEER, share, number / 1000)
        sent_bytes += share
        assert sent_bytes <= min(3 * 67 * (number + 1), 65536)
    assert sent_bytes > 65000
    assert counters[Count.WITHHELD] > 0


def test_d_05_other_ids_of_an_unvalidated_tuple_do_not_begin_the_share_anew() -> None:
    machine, _ = responder(OPTIMISTIC)
    sent_bytes = 0
    for number in range(400):
        actions = tell(machine, Syn(b"%d" % number), float(number))
        share = machine.allowance(PEER) or 0
        machine.count_sent(PEER, share, float(number))
        sent_bytes += share + sum(len(action.data) for action in only(actions, Send))
        assert sent_bytes <= min(3 * 67 * (number + 1), 65536)
    assert sent_bytes > 65000


def test_d_05_a_tuple_stays_validated_when_it_begins_another_session() -> None:
    machine, _ = opened(OPTIMISTIC)
    assert kinds(tell(machine, Syn(B), 1.0))[-1] == "MediaMayFlow"
    assert machine.allowance(PEER) is None


def test_d_05_repeated_syn_ack_stay_within_three_times_the_syn() -> None:
    machine, counters = responder()
    tell(machine, Syn(A))
    heard = run_out(machine, 100.0)
    assert len([action for _, action in heard if isinstance(action, Send)]) == 2
    assert counters[Count.WITHHELD] == 3


def test_d_05_a_syn_ack_is_never_longer_than_its_syn() -> None:
    machine, _ = responder(ResponderSettings(options=Options(1, 2, 3), max_open=0))
    [refused] = only(tell(machine, Syn(A)), Send)
    assert len(refused.data) == 67
    machine, _ = responder(ResponderSettings(options=Options(1, 2, 3)))
    for syn in (Syn(A), Syn(A, Options(1)), Syn(A, Options(1, 2, 3))):
        [answer] = only(tell(machine, syn), Send)
        assert len(answer.data) == len(encode(syn))


def test_d_05_a_path_that_was_validated_below_has_no_cap() -> None:
    machine, _ = responder(VALIDATED)
    tell(machine, Syn(A))
    assert machine.allowance(PEER) is None


# --- identity --------------------------------------------------------------------------------------------------------


def test_d_25_the_id_is_repeated_three_times_in_the_first_second() -> None:
    machine, counters = opened()
    repeats = run_out(machine, 2.0)
    assert [when for when, _ in repeats] == [0.25, 0.5, 1.0]
    assert sent(action for _, action in repeats) == [ConnectionId(A)] * 3
    assert counters[Count.FLUSHES] == 1


def test_d_25_the_id_follows_every_repeated_syn_ack_where_media_may_follow() -> None:
    machine, _ = responder(VALIDATED)
    tell(machine, Syn(A))
    assert kinds(tell(machine, Syn(A), 0.1)) == ["SynAck", "ConnectionId"]
    assert kinds(action for _, action in run_out(machine, 1.2)) == ["SynAck", "ConnectionId"]


def test_msp_c28_msp_c29_a_syn_with_another_id_is_another_session() -> None:
    machine, _ = opened()
    actions = tell(machine, Syn(B), 1.0)
    assert actions[0] == Ended(PEER, Why.REPLACED)
    assert kinds(actions[1:]) == ["Flush", "Identified", "SynAck"]
    assert machine.allowance(PEER) == 0
    assert tell(machine, Ack(A), 1.1) == []
    assert kinds(tell(machine, Ack(B), 1.2)) == ["Established", "ConnectionId", "MediaMayFlow"]


def test_msp_c37_msp_c39_a_new_id_of_the_other_side_is_taken_and_confirmed() -> None:
    machine, _ = opened()
    actions = tell(machine, ConnectionId(B), 2.0)
    assert actions == [Flush(PEER), Identified(PEER, B), Send(PEER, encode(ConnectionId(B)))]
    assert tell(machine, ConnectionId(B), 3.0) == []
    machine, _ = opened()
    tell(machine, ConnectionId(B), 0.1)
    assert run_out(machine, 2.0) == []  # the repetitions of the old one have ended


def test_msp_c39_the_id_that_was_just_replaced_is_answered_with_the_current_one() -> None:
    machine, _ = opened()
    assert kinds(machine.reidentify(PEER, B, 2.0)) == ["Flush", "Identified", "ConnectionId"]
    assert sent(tell(machine, ConnectionId(A), 2.1)) == [ConnectionId(B)]
    assert [when for when, _ in run_out(machine, 4.0)] == [2.25, 2.5, 3.0]
    assert machine.reidentify(PEER, B, 5.0) == []


def test_d_24_connection_ids_of_unknown_and_half_open_tuples_change_nothing() -> None:
    machine, counters = responder()
    assert tell(machine, ConnectionId(A)) == []
    assert len(machine.links) == 0
    tell(machine, Syn(A))
    assert tell(machine, ConnectionId(B)) == []
    assert only(tell(machine, Ack(A)), Established) == [Established(PEER, A)]
    assert (counters[Count.UNKNOWN_TUPLE], counters[Count.UNEXPECTED]) == (1, 1)


def test_d_26_flushes_are_limited_by_tuple() -> None:
    machine, counters = opened()
    tell(machine, Syn(A), peer=OTHER)
    for number in range(20):
        tell(machine, Syn(b"s%d" % number), 0.5)
        tell(machine, ConnectionId(b"c%d" % number), 0.5)
        machine.reidentify(PEER, b"r%d" % number, 0.5)
    assert counters[Count.FLUSHES] == 6
    assert counters[Count.FLUSHES_REFUSED] > 0
    assert kinds(tell(machine, Syn(B), 0.5, OTHER)) == ["Flush", "Identified", "SynAck"]


def test_d_26_a_session_is_named_anew_only_so_often() -> None:
    machine, counters = opened()
    taken = [bool(tell(machine, ConnectionId(b"c%d" % number), 0.5)) for number in range(10)]
    assert taken == [True] * 4 + [False] * 6
    assert machine.reidentify(PEER, B, 0.5) == []
    assert counters[Count.FLUSHES_REFUSED] == 7
    assert machine.reidentify(PEER, B, 1.6) != []


def test_an_id_that_cannot_be_sent_is_refused() -> None:
    machine, _ = opened()
    for bad in (b"", b"x" * 37, b"a\0b"):
        with pytest.raises(ValueError, match="connection id"):
            machine.reidentify(PEER, bad, 1.0)
    assert machine.reidentify(OTHER, B, 1.0) == []


def test_entropy_is_of_16_bytes() -> None:
    with pytest.raises(ValueError, match="entropy"):
        Responder(ResponderSettings(), Counters(), b"short")


# --- START -----------------------------------------------------------------------------------------------------------


def test_d_01_msp_c47_start_begins_a_stream_flushes_and_is_not_answered() -> None:
    machine, counters = responder(ResponderSettings(legacy_start=True))
    assert tell(machine, Start()) == [Flush(PEER), Established(PEER, b""), MediaMayFlow(PEER)]
    assert machine.allowance(PEER) is None
    assert tell(machine, Start(), 1.0) == [Flush(PEER)]
    assert [action for _, action in run_out(machine, 60.0)] == []
    assert counters[Count.FLUSHES] == 2
    assert run_out(machine, 200.0) == [(121.0, Ended(PEER, Why.IDLE))]
    tell(machine, Start(), 300.0)
    tell(machine, SynAck(True, A), 400.0)  # means nothing here, but somebody is there
    assert run_out(machine, 600.0) == [(520.0, Ended(PEER, Why.IDLE))]


def test_d_01_start_is_limited_and_means_nothing_to_a_half_open_tuple() -> None:
    machine, counters = opened(ResponderSettings(max_open=1))
    assert tell(machine, Start(), peer=OTHER) == []
    assert counters[Count.REFUSED] == 1
    assert [len(tell(machine, Start(), 0.0)) for _ in range(6)] == [1, 1, 1, 1, 0, 0]
    machine, counters = responder()
    tell(machine, Syn(A))
    assert tell(machine, Start()) == []
    assert counters[Count.UNEXPECTED] == 1


def test_d_01_a_tuple_that_said_start_may_shake_hands_later() -> None:
    machine, _ = responder()
    tell(machine, Start())
    assert kinds(tell(machine, Syn(A), 1.0)) == ["Ended", "Flush", "Identified", "SynAck"]
    assert only(tell(machine, Ack(A), 1.1), Established) == [Established(PEER, A)]


# --- life ------------------------------------------------------------------------------------------------------------


def test_d_29_a_silent_stream_is_kept_alive_and_media_count_as_speech() -> None:
    machine, _ = opened(ResponderSettings(timing=Timing(idle_s=None)))
    run_out(machine, 2.0)
    machine.count_sent(PEER, 1000, 10.0)
    assert [when for when, _ in run_out(machine, 60.0)] == [25.0, 40.0, 55.0]


def test_d_29_silence_of_the_other_side_ends_the_session() -> None:
    machine, _ = opened()
    tell(machine, ConnectionId(A), 50.0)
    heard = run_out(machine, 1000.0)
    assert heard[-1] == (170.0, Ended(PEER, Why.IDLE))
    assert len(machine.links) == 0


def test_closing_forgets_the_tuple() -> None:
    for machine, _ in (opened(), responder()):
        tell(machine, Syn(A), 0.1)
        assert machine.close(PEER, 1.0) == [Ended(PEER, Why.CLOSED)]
        assert machine.close(PEER, 1.0) == []
        assert machine.next_timeout() is None
        assert machine.allowance(PEER) == 0
        machine.count_sent(PEER, 1, 1.0)
