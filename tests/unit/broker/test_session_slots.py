"""Slots: peers that come back, ghosts, third ones, and registering twice."""

from __future__ import annotations

import pytest

from punchd.broker.registration import PROBE_MS
from tests.unit.broker.parts import Room


def test_c_24_a_peer_that_comes_back_takes_over_its_slot_and_a_round_begins() -> None:
    room = Room()
    room.pair()
    room.say("one", "ready")
    room.peer("again", "192.0.2.11")
    room.say("again", "register", port=5011)
    (error,) = room.take("one")
    assert (error["code"], room.closed) == ("STREAM_TAKEN", {"one": 1000})
    assert "replaced" in error["message"]
    assert room.take("two")[0]["port"] == 5011
    assert room.kinds("again") == ["peer", "session"]
    assert room.probed == []
    room.say("two", "ready")
    room.say("again", "ready")
    assert room.kinds("again") == ["start"]


def test_c_24_a_peer_that_comes_back_alone_is_not_matched_with_its_ghost() -> None:
    room = Room()
    room.peer("one", "192.0.2.1")
    room.say("one", "register", port=5000)
    room.peer("again", "192.0.2.1")
    room.say("again", "register", port=5000)
    assert room.closed == {"one": 1000}
    assert room.stream_state() == ("WAITING", 1)
    assert room.kinds("again") == ["session"]


@pytest.mark.parametrize(
    ("first", "second"),
    [({"port": 5000}, {"port": 5001}), ({"port": 5000, "role": "sender"}, {"port": 5000, "role": "receiver"})],
    ids=["other port", "other role"],
)
def test_c_24_two_peers_behind_one_address_are_told_apart_by_port_or_role(
    first: dict[str, object], second: dict[str, object]
) -> None:
    room = Room()
    for name, members in (("one", first), ("two", second)):
        room.peer(name, "192.0.2.1")
        room.say(name, "register", **members)
    assert room.stream_state() == ("READY", 2)
    assert room.closed == {}


def test_c_24_a_newcomer_that_could_be_either_replaces_only_one() -> None:
    room = Room()
    for name, role in (("one", "sender"), ("two", "receiver")):
        room.peer(name, "192.0.2.1")
        room.say(name, "register", port=5000, role=role)
    room.peer("new", "192.0.2.1")
    room.say("new", "register", port=5000)
    assert room.closed == {"one": 1000}
    assert room.stream_state() == ("READY", 2)


def claimed() -> Room:
    room = Room()
    room.pair()
    room.peer("new", "192.0.2.99")
    room.say("new", "register", port=5000)
    assert (room.probed, room.take("new")) == (["one", "two"], [])
    return room


def test_c_23_c_24_a_third_peer_is_refused_once_both_holders_have_answered() -> None:
    room = claimed()
    room.answer("two")
    assert room.take("new") == []
    room.answer("one")
    assert room.only("new")["code"] == "STREAM_TAKEN"
    assert (room.closed, room.stream_state()) == ({}, ("READY", 2))
    room.leave("one")
    room.say("new", "register", port=5000)  # it may try again
    assert room.stream_state() == ("READY", 2)


def test_c_24_a_holder_that_is_gone_makes_room_at_once() -> None:
    room = claimed()
    room.answer("two")
    room.leave("one")
    assert room.take("new")[0]["ip"] == "192.0.2.12"
    assert room.take("two")[0]["ip"] == "192.0.2.99"


def test_c_24_a_holder_that_does_not_answer_in_time_loses_its_slot() -> None:
    room = claimed()
    room.answer("two")
    room.wait(PROBE_MS - 1)
    assert room.closed == {}
    room.wait(1)
    assert room.closed == {"one": 1011}
    assert room.only("one")["code"] == "INVALID_MESSAGE"
    assert [frame["type"] for frame in room.take("new")] == ["peer", "session"]


def test_c_24_a_claim_waits_no_longer_because_it_is_repeated_and_the_newest_register_counts() -> None:
    room = claimed()
    room.answer("two")
    room.wait(PROBE_MS // 2)
    room.say("new", "register", port=6000)
    assert room.probed == ["one", "two"]
    room.wait(PROBE_MS - PROBE_MS // 2)
    assert room.take("two")[0]["port"] == 6000


def test_c_24_a_claim_is_forgotten_when_its_claimant_leaves() -> None:
    room = claimed()
    room.leave("new")
    assert room.wait(2 * PROBE_MS) == []
    assert room.stream_state() == ("READY", 2)


def test_c_24_the_first_claim_is_served_first_and_the_next_one_is_refused_then() -> None:
    room = claimed()
    room.peer("last", "192.0.2.98")
    room.say("last", "register", port=5000)
    room.answer("two")
    room.leave("one")
    assert room.kinds("new") == ["peer", "session"]
    assert [frame.get("code") for frame in room.take("last")] == ["STREAM_TAKEN", None]


def test_c_24_a_claimant_has_no_slot_yet() -> None:
    room = claimed()
    for kind in ("ready", "status"):
        room.say("new", kind, **({"srt": "connected"} if kind == "status" else {}))
        assert room.only("new")["code"] == "INVALID_MESSAGE"


@pytest.mark.parametrize(
    "change", [{"port": 5001}, {"role": "sender"}, {"meta": {"x": 1}}, {"meta": {"punch": {"publicPort": 9}}}], ids=str
)
def test_c_25_a_second_register_with_something_new_begins_a_round(change: dict[str, object]) -> None:
    room = Room()
    room.pair()
    room.say("two", "ready")
    room.say("one", "status", srt="connected")
    room.drop_frames()
    room.say("one", "register", **{"port": 5011, **change})
    assert room.kinds("one") == room.kinds("two") == ["peer", "session"]
    assert room.stream_state() == ("READY", 2)
    room.say("one", "ready")
    assert room.take("one") == []  # what the other said before was about another round
    assert room.session.pair("cam") is not None


def test_c_09_c_25_who_registers_anew_is_the_second_of_the_round() -> None:
    room = Room()
    room.admin()
    room.pair()
    room.say("one", "register", port=6000)
    match = room.take("admin")[0]
    assert (match["peer_a"]["port"], match["peer_b"]["port"], match["localPort"]) == (5012, 6000, 5012)


def test_c_25_a_second_register_with_nothing_new_only_brings_the_session() -> None:
    room = Room()
    room.pair()
    room.say("two", "ready")
    room.say("one", "register", port=5011, stream="cam")
    assert room.kinds("one") == room.kinds("two") == ["session"]
    room.say("one", "ready")
    assert room.kinds("one") == ["start"]


def test_c_25_a_second_register_on_another_stream_is_refused() -> None:
    room = Room("cam", "close")
    room.admin()
    room.say("admin", "register", port=5000, stream="cam")
    room.drop_frames()
    room.say("admin", "register", port=5000, stream="close")
    assert room.only("admin")["code"] == "INVALID_MESSAGE"
    assert room.stream_state("cam") == ("WAITING", 1)
    assert room.stream_state("close") == ("WAITING", 0)


def test_a_peer_that_takes_the_address_of_the_other_one_replaces_it() -> None:
    room = Room()
    room.peer("one", "192.0.2.1")
    room.say("one", "register", port=5000)
    room.peer("two", "192.0.2.1")
    room.say("two", "register", port=5001)
    room.say("two", "register", port=5000)
    assert room.closed == {"one": 1000}
    assert room.stream_state() == ("WAITING", 1)


def test_c_23_an_admin_that_names_no_stream_hears_that_all_are_full() -> None:
    for streams in (("cam",), ("cam", "close")):
        room = Room(*streams)
        room.admin()
        for stream in streams:
            room.pair(stream, f"{stream}-1", f"{stream}-2")
        room.say("admin", "register", port=5000)
        for name in room.probed:
            room.answer(name)
        assert room.only("admin")["code"] == "SESSION_FULL"


def test_c_24_a_claim_is_forgotten_when_its_claimant_gets_a_slot_elsewhere() -> None:
    room = Room("cam", "close")
    room.admin()
    room.pair("cam")
    room.say("admin", "register", port=5000, stream="cam")
    room.say("admin", "register", port=5000, stream="close")
    assert room.stream_state("close") == ("WAITING", 1)
    room.drop_frames()
    room.answer("one")
    room.answer("two")
    assert room.wait(2 * PROBE_MS) == []
    assert room.frames == {}


def test_c_25_what_was_said_of_srt_is_about_the_round_before() -> None:
    room = Room()
    room.pair()
    room.say("one", "status", srt="connected")
    room.say("two", "register", port=6000)
    room.say("two", "status", srt="connecting")
    assert room.stream_state() == ("READY", 2)
