"""Both ends from raw datagrams on: what is dropped, what is counted."""

from __future__ import annotations

import pytest

from punchd.media.buffers import Memory
from punchd.media.counters import Count, Counters
from punchd.media.datagrams import Ack, ConnectionId, Syn, SynAck, encode
from punchd.media.ends import Incoming, Outgoing
from punchd.media.initiator import Initiator
from punchd.media.moves import Established, Flush
from punchd.media.receiving import Receiver
from punchd.media.settings import ReceiverSettings, ResponderSettings
from tests.unit.media.parts import (
    DEFAULT,
    MIB,
    OTHER,
    PEER,
    A,
    B,
    data,
    fragment,
    kinds,
    named,
    only,
    opened,
    responder,
)


def incoming(settings: ReceiverSettings = DEFAULT) -> tuple[Incoming, Counters]:
    """At 0 s, with a session A."""
    counters = Counters()
    asking = Initiator(PEER, A, counters)
    end = Incoming(asking, Receiver(settings, Memory(512 * MIB), counters), counters)
    asking.open(0.0)
    end.take(PEER, encode(SynAck(True, A)), 0.0)
    return end, counters


def payloads(end: Incoming, datagram: bytes, now: float = 0.0, peer: object = PEER) -> list[bytes]:
    return [one.take() for one in end.take(peer, datagram, now)[1]]


@pytest.mark.parametrize(
    ("datagram", "reason"),
    [
        (b"", "short"),
        (b"\0", "short"),
        (b"START", "unknown_flag"),
        (b"\x00\x10", "connection_id_short"),
        (b"\x00\x10" + b"x" * 37, "connection_id_unterminated"),
        (data(1)[:25], "header_short"),
        (fragment(1, 0, 2, b"")[:41], "fragment_short"),
        (encode(Ack(A))[:66], "control_short"),
        (encode(Ack(A))[:30] + b"x" * 37, "control_id_unterminated"),
        (encode(Ack(A))[:26] + b"\x02" + bytes(40), "version"),
        (encode(SynAck(False, b""))[:27] + b"\x01" + bytes(39), "assigned_id_empty"),
        (fragment(1, 0, 1 << 63, b"x"), "total_too_large"),
        (fragment(1, 5, 5, b"x"), "beyond_end"),
        (fragment(1, 0, 5, b""), "empty_fragment"),
    ],
)
def test_msp_c05_msp_c32_msp_c41_msp_c48_d_20_d_32_each_error_is_counted_once_under_its_name(
    datagram: bytes, reason: str
) -> None:
    end, counters = incoming()
    before = named(counters)
    assert end.take(PEER, datagram, 1.0) == ([], ())
    assert named(counters) == before | {reason: 1}
    assert counters.validation_errors == 1


def test_msp_c40_msp_c41_the_responder_counts_them_as_well() -> None:
    machine, counters = opened()
    end = Outgoing(machine, counters)
    assert end.take(PEER, b"\xff\xff", 0.0) == []
    assert end.take(PEER, b"START", 0.0) == []
    assert counters[Count.UNKNOWN_FLAG] == 2


def test_msp_c15_options_that_are_ignored_are_counted() -> None:
    machine, counters = responder()
    end = Outgoing(machine, counters)
    actions = end.take(PEER, encode(Syn(A)) + b"\x01\x02\x02\x00ab", 0.0)
    assert kinds(actions) == ["Flush", "Identified", "SynAck"]
    assert counters[Count.OPTIONS_IGNORED] == 1


def test_msp_c10_msp_c11_start_is_taken_where_it_is_configured() -> None:
    for is_legacy in (True, False):
        machine, counters = responder(ResponderSettings(legacy_start=is_legacy))
        actions = Outgoing(machine, counters).take(PEER, b"START", 0.0)
        assert len(only(actions, Established)) == is_legacy
        assert kinds(Outgoing(machine, counters).take(OTHER, encode(Syn(A)), 0.0)) == ["Flush", "Identified", "SynAck"]


def test_msp_c27_msp_c36_media_belong_to_the_tuples_session() -> None:
    end, counters = incoming()
    assert payloads(end, data(1, b"ours")) == [b"ours"]
    assert payloads(end, data(2, b"theirs"), peer=OTHER) == []
    assert counters[Count.UNKNOWN_TUPLE] == 1


def test_msp_c27_media_without_a_session_are_dropped() -> None:
    end, counters = incoming()
    end.initiator.close(1.0)
    assert payloads(end, data(1), 1.0) == []
    assert counters[Count.EARLY_MEDIA] == 1


def test_msp_c24_media_show_that_the_ack_arrived() -> None:
    end, _ = incoming()
    assert end.next_timeout() == 0.5
    payloads(end, data(1), 0.1)
    assert end.next_timeout() == 15.0
    assert end.handle_timeout(0.5) == ([], [])


def test_msp_c28_msp_c47_a_new_id_flushes_and_the_same_does_not() -> None:
    end, _ = incoming()
    payloads(end, data(1))
    payloads(end, fragment(2, 0, 2, b"a"))
    assert end.take(PEER, encode(ConnectionId(A)), 0.1) == ([], [])
    assert payloads(end, data(1), 0.1) == []
    actions, _ = end.take(PEER, encode(ConnectionId(B)), 0.2)
    assert not only(actions, Flush)
    assert payloads(end, data(1, b"again"), 0.3) == [b"again"]
    assert payloads(end, fragment(2, 1, 2, b"b"), 0.3) == []


def test_d_26_a_flush_that_is_refused_forgets_nothing() -> None:
    end, _ = incoming()
    for number in range(5):
        end.take(PEER, encode(ConnectionId(b"%d" % number)), 0.1)
    payloads(end, data(1), 0.1)
    end.take(PEER, encode(ConnectionId(B)), 0.1)
    assert payloads(end, data(1), 0.1) == []


def test_d_27_what_was_held_in_order_is_delivered_at_a_flush_and_at_the_end() -> None:
    end, _ = incoming(ReceiverSettings(ordered=True))
    for sequence in (3, 2):
        assert payloads(end, data(sequence, b"%d" % sequence)) == []
    _, deliveries = end.take(PEER, encode(ConnectionId(B)), 0.1)
    assert [one.take() for one in deliveries] == [b"2", b"3"]
    payloads(end, data(7, b"7"), 0.2)
    assert end.receiver.next_gap_timeout() == pytest.approx(0.4)
    _, deliveries = end.handle_timeout(1000.0)
    assert [one.take() for one in deliveries] == [b"7"]
    assert (end.next_timeout(), end.receiver.next_gap_timeout()) == (None, None)


def test_d_27_a_gap_is_no_loss_before_all_that_came_meanwhile_was_taken() -> None:
    end, _ = incoming(ReceiverSettings(ordered=True))
    assert payloads(end, data(3, b"3"), 0.1) == []
    assert end.handle_timeout(5.0, 0.1)[1] == []
    assert payloads(end, data(2, b"2"), 5.0) == []
    _, deliveries = end.handle_timeout(5.0, 5.0)
    assert [one.take() for one in deliveries] == [b"2", b"3"]


def test_d_22_media_go_one_way_over_a_tuple() -> None:
    machine, counters = opened()
    assert Outgoing(machine, counters).take(PEER, data(1), 0.0) == []
    assert counters[Count.UNEXPECTED] == 1
