"""Two peers meet: who is told what, in which order, and who is not."""

from __future__ import annotations

from itertools import product

import pytest

from punchd.broker.endpoints import Reported
from punchd.broker.passphrases import Scope
from punchd.broker.state import Policy
from tests.unit.broker.parts import Room


def two_streams() -> Room:
    """An admin, a pair on each of two streams, and one more peer on the first."""
    room = Room("cam", "close")
    room.admin()
    room.pair("cam", "cam-1", "cam-2")  # 192.0.2.11, .12
    room.pair("close", "close-1", "close-2")  # 192.0.2.21, .22
    return room


def test_b_007_b_066_a_third_peer_is_never_told_where_the_others_are() -> None:
    room = Room()
    room.pair()
    room.peer("three", "192.0.2.99")
    room.say("three", "register", port=5000)
    room.answer("one")
    room.answer("two")
    assert room.only("three")["code"] == "STREAM_TAKEN"
    assert "three" not in room.closed
    assert "192.0.2.1" not in room.sent["three"]


@pytest.mark.parametrize(("first", "second"), list(product([None, "sender", "receiver"], repeat=2)))
def test_b_008_roles_are_only_advice(first: str | None, second: str | None) -> None:
    room = Room()
    for name, ip, role in (("one", "192.0.2.1", first), ("two", "192.0.2.2", second)):
        room.peer(name, ip)
        room.say(name, "register", port=5000, **({} if role is None else {"role": role}))
    assert room.stream_state() == ("READY", 2)


def test_b_055_c_08_c_11_the_second_register_tells_each_where_the_other_is() -> None:
    room = Room(latency_ms=340)
    room.peer("one", "192.0.2.1")
    room.say("one", "register", port=5001)
    assert room.kinds("one") == ["session"]
    room.peer("two", "2001:db8::2")
    room.say("two", "register", port=5002)
    (one, _), (two, _) = room.take("one"), room.take("two")
    assert one == {
        "type": "peer",
        "stream": "cam",
        "ip": "2001:db8::2",
        "port": 5002,
        "localPort": 5001,
        "latency": 340,
        "passphrase": room.passphrases.of("cam"),
    }
    assert (two["ip"], two["port"], two["localPort"]) == ("192.0.2.1", 5001, 5002)
    assert (two["passphrase"], two["latency"]) == (one["passphrase"], one["latency"])


def test_b_056_c_09_admins_get_both_endpoints_and_peers_never_do() -> None:
    room = Room()
    room.admin()
    room.drop_frames()
    room.peer("one", "192.0.2.1")
    room.say("one", "register", port=5001)
    assert room.kinds("admin") == ["session"]
    room.peer("two", "192.0.2.2")
    room.say("two", "register", port=5002)
    match, session = room.take("admin")
    assert match == {
        "type": "peer_match",
        "stream": "cam",
        "peer_a": {"ip": "192.0.2.1", "port": 5001},
        "peer_b": {"ip": "192.0.2.2", "port": 5002},
        "localPort": 5001,
        "passphrase": room.passphrases.of("cam"),
        "latency": 200,
    }
    assert session["type"] == "session"
    assert room.kinds("one") == ["session", "peer", "session"]
    assert room.kinds("two") == ["peer", "session"]


def test_b_057_c_17_each_register_is_followed_by_the_session_for_everybody() -> None:
    room = Room("cam", "close")
    names = [room.admin(), room.peer("idle", "192.0.2.7", "close"), room.peer("one", "192.0.2.1")]
    room.drop_frames()
    room.say("one", "register", port=5001)
    for name in names:
        assert room.only(name) == {
            "type": "session",
            "state": "WAITING",
            "streams": {"cam": {"state": "WAITING", "peers": 1}, "close": {"state": "WAITING", "peers": 0}},
            "connected": 1,
            "total": 4,
        }


@pytest.mark.parametrize("order", [(1, 2), (2, 1), (1, 1, 2), (2, 1, 1)])
def test_b_058_c_22_start_goes_once_to_both_when_both_are_ready(order: tuple[int, ...]) -> None:
    room = two_streams()
    room.say(f"cam-{order[0]}", "ready")
    assert room.frames == {}
    for number in (*order[1:], *order):
        room.say(f"cam-{number}", "ready")
    start = [{"type": "start", "stream": "cam"}]
    assert room.frames == {"cam-1": start, "cam-2": start}


def test_c_22_a_new_round_starts_anew_also_when_it_was_connected() -> None:
    room = Room()
    room.pair()
    for name in ("one", "two"):
        room.say(name, "ready")
    room.say("one", "status", srt="connected")
    room.say("one", "register", port=6000)
    assert (room.state, room.stream_state()) == ("CONNECTED", ("READY", 2))
    room.say("one", "status", srt="connected")
    room.drop_frames()
    room.say("one", "ready")
    assert room.take("one") == []
    room.say("two", "ready")
    assert room.kinds("one") == room.kinds("two") == ["start"]


def test_b_064_what_one_event_says_comes_as_peer_then_tally_then_session() -> None:
    room = Room()
    room.admin()
    room.say("admin", "tally", state="program")
    room.peer("one", "192.0.2.1")
    room.say("one", "register", port=5001)
    assert room.kinds("one") == ["tally", "session"]
    room.peer("two", "192.0.2.2")
    room.drop_frames()
    room.say("two", "register", port=5002)
    assert room.kinds("two") == ["peer", "tally", "session"]
    assert room.kinds("admin") == ["peer_match", "session"]
    assert room.kinds("one") == ["peer", "session"]


def test_b_107_an_address_reaches_only_the_other_peer_and_admins() -> None:
    room = two_streams()
    room.say("cam-1", "register", port=7000)
    room.say("cam-1", "status", srt="connected")
    room.say("close-1", "health", rtt=1, retransmit=0, bitrate=1)
    room.say("close-1", "register", port=7001, stream="cam")
    room.leave("close-2")
    seen = {name: {last for last in (11, 12, 21, 22) if f"192.0.2.{last}" in text} for name, text in room.sent.items()}
    assert seen == {
        "admin": {11, 12, 21, 22},
        "cam-1": {12},
        "cam-2": {11},
        "close-1": {22},
        "close-2": {21},
    }


def test_c_12_meta_goes_to_the_other_peer_as_it_came_and_to_nobody_else() -> None:
    room = Room()
    room.admin()
    room.peer("one", "192.0.2.1")
    room.say("one", "register", port=5001, meta={"tool": "ä", "deep": [1, {"x": None}]})
    room.peer("two", "192.0.2.2")
    room.say("two", "register", port=5002)
    assert "meta" not in room.take("one")[1]
    assert room.take("two")[0]["meta"] == {"tool": "ä", "deep": [1, {"x": None}]}
    assert "tool" not in room.sent["admin"] + room.sent["one"]


def test_c_07_c_12_what_was_for_the_broker_is_not_passed_on() -> None:
    room = Room(policy=Policy(reported=Reported.PORT))
    room.peer("one", "192.0.2.1")
    room.say("one", "register", port=5001, meta={"punch": {"publicPort": 40001, "publicIp": "203.0.113.9"}, "x": 1})
    room.peer("two", "192.0.2.2")
    room.say("two", "register", port=5002, meta={"punch": {}})
    assert "meta" not in room.take("one")[1]
    peer = room.take("two")[0]
    assert (peer["ip"], peer["port"], peer["meta"]) == ("192.0.2.1", 40001, {"x": 1})


def test_c_10_peers_of_two_families_are_matched_and_the_admin_may_know() -> None:
    room = two_streams()
    assert room.session.differing_families() == []
    room.leave("cam-2")
    room.peer("six", "2001:db8::6")
    room.say("six", "register", port=5000)
    assert room.session.differing_families() == ["cam"]


def test_c_41_the_passphrase_is_the_sessions_or_a_streams_own() -> None:
    for scope, count in ((Scope.SESSION, 1), (Scope.STREAM, 2)):
        room = Room("cam", "close", scope=scope)
        room.admin()
        room.pair("cam", "cam-1", "cam-2")
        room.pair("close", "close-1", "close-2")
        phrases = {room.passphrases.of("cam"), room.passphrases.of("close")}
        assert len(phrases) == count
        assert all(phrase in room.sent["admin"] for phrase in phrases)
        if scope is Scope.STREAM:
            assert room.passphrases.of("close") not in room.sent["cam-1"]


def test_c_42_an_admin_is_told_the_session_at_once_and_a_peer_with_its_register() -> None:
    room = Room()
    room.admin()
    assert room.kinds("admin") == ["session"]
    room.peer("one", "192.0.2.1")
    assert (room.take("one"), room.take("admin")) == ([], [])
    room.say("one", "register", port=5001)
    assert room.kinds("one") == ["session"]


def test_c_43_an_admin_that_comes_late_is_told_what_it_missed() -> None:
    room = two_streams()
    room.say("admin", "tally", stream="close", state="preview")
    room.say("admin", "tally", stream="cam", state="off")
    room.say("cam-1", "health", rtt=10, retransmit=0, bitrate=1000)
    room.admin("late")
    frames = room.take("late")
    assert [frame["type"] for frame in frames] == ["peer_match", "peer_match", "tally", "health_report", "session"]
    assert [frame.get("stream") for frame in frames[:3]] == ["cam", "close", "close"]
    assert list(frames[3]["streams"]) == ["cam"]
