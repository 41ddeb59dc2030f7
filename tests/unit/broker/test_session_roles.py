"""Who may say what, when, and about which stream; lights and health."""

from __future__ import annotations

from typing import Any

import pytest

from punchd.broker.state import Policy
from tests.unit.broker.parts import Room

MESSAGES: dict[str, dict[str, Any]] = {
    "register": {"port": 5000},
    "ready": {},
    "status": {"srt": "connected"},
    "health": {"rtt": 1, "retransmit": 0, "bitrate": 1},
    "tally": {"state": "program"},
}


@pytest.mark.parametrize("kind", MESSAGES)
def test_b_100_a_peer_that_names_another_stream_than_its_tokens_changes_nothing(kind: str) -> None:
    room = Room("cam", "close")
    room.pair("cam")
    before = room.session.overview()
    for stream in ("close", "nowhere"):
        room.say("one", kind, stream=stream, **MESSAGES[kind])
        assert room.only("one")["code"] == "AUTH_FAILED"
    assert room.session.overview() == before
    assert room.take("two") == []


def test_b_101_c_26_a_peer_sets_no_light_and_sees_no_other_streams_health() -> None:
    room = Room("cam", "close")
    room.pair("cam", "cam-1", "cam-2")
    room.pair("close", "close-1", "close-2")
    room.say("cam-1", "tally", state="program")
    assert room.only("cam-1")["code"] == "AUTH_FAILED"
    room.say("cam-1", "health", **MESSAGES["health"])
    assert list(room.only("cam-2")["streams"]) == ["cam"]
    room.say("close-1", "health", **MESSAGES["health"])
    assert list(room.only("close-2")["streams"]) == ["close"]
    assert room.kinds("cam-1") == ["health_report"]
    assert "peer_match" not in "".join(room.sent.values())


def test_c_13_a_peer_means_its_tokens_stream_and_an_admin_the_only_one() -> None:
    room = Room()
    room.admin()
    room.peer("one", "192.0.2.1")
    for name in ("admin", "one"):
        room.say(name, "register", port=5000)
    assert room.stream_state() == ("READY", 2)


@pytest.mark.parametrize("kind", MESSAGES)
def test_c_13_an_admin_of_several_streams_has_to_name_one_that_there_is(kind: str) -> None:
    room = Room("cam", "close")
    room.admin()
    room.pair("cam")  # that one of them is full makes no difference
    room.say("admin", kind, **MESSAGES[kind])
    error = room.only("admin")
    assert (error["code"], "stream needed" in error["message"]) == ("INVALID_MESSAGE", True)
    room.say("admin", kind, stream="nowhere", **MESSAGES[kind])
    assert room.only("admin")["code"] == "INVALID_MESSAGE"


def test_c_14_an_admin_that_registers_gets_both_roles_messages() -> None:
    room = Room("cam", "close")
    room.admin()
    room.peer("one", "192.0.2.1")
    room.say("one", "register", port=5000)
    room.drop_frames()
    room.say("admin", "register", port=6000, stream="cam")
    assert room.kinds("admin") == ["peer", "peer_match", "session"]
    room.say("one", "ready")
    room.say("admin", "ready")  # of the stream on which it registered
    assert room.kinds("admin") == ["start"]
    room.drop_frames()
    room.say("one", "health", **MESSAGES["health"])
    assert room.kinds("admin") == ["health_report"]
    room.say("admin", "tally", state="preview")
    assert room.kinds("admin") == ["tally"]


def test_c_14_an_admin_may_be_kept_from_registering() -> None:
    room = Room(policy=Policy(admin_may_register=False))
    room.admin()
    room.drop_frames()
    room.say("admin", "register", port=6000)
    assert room.only("admin")["code"] == "AUTH_FAILED"
    room.say("admin", "tally", state="program")
    assert room.kinds("admin") == ["tally"]


def test_c_18_streams_have_states_of_their_own() -> None:
    room = Room()
    seen = [room.stream_state()]
    room.pair()
    seen.append(room.stream_state())
    room.say("one", "status", srt="connected")
    seen.append(room.stream_state())
    assert seen == [("WAITING", 0), ("READY", 2), ("CONNECTED", 2)]


@pytest.mark.parametrize("registered", [False, True])
@pytest.mark.parametrize(("kind", "srt"), [("ready", None), *(("status", srt) for srt in ("connecting", "connected"))])
def test_c_20_ready_and_status_before_the_match_are_refused(registered: bool, kind: str, srt: str | None) -> None:
    room = Room()
    room.peer("one", "192.0.2.1")
    if registered:
        room.say("one", "register", port=5000)
    room.drop_frames()
    room.say("one", kind, **({} if srt is None else {"srt": srt}))
    assert room.only("one")["code"] == "INVALID_MESSAGE"
    assert room.state == "WAITING"


def test_c_20_what_both_say_of_srt_makes_the_streams_state() -> None:
    room = Room()
    room.pair()
    steps = [
        ("one", "connecting", "READY"),
        ("one", "connected", "CONNECTED"),
        ("two", "connected", "CONNECTED"),
        ("one", "error", "CONNECTED"),
        ("two", "disconnected", "READY"),
        ("two", "connected", "CONNECTED"),
        ("two", "connecting", "READY"),
    ]
    for name, srt, after in steps:
        room.say(name, "status", srt=srt)
        assert room.stream_state() == (after, 2)
    assert room.state == "CONNECTED"


def test_c_21_the_reserved_state_is_nowhere_said() -> None:
    room = Room()
    room.admin()
    room.pair()
    room.say("one", "status", srt="connected")
    assert "RELAYING" not in "".join(room.sent.values())


def test_c_26_a_light_goes_to_the_streams_peers_and_all_admins() -> None:
    room = Room("cam", "close")
    room.admin("admin")
    room.admin("other")
    room.pair("cam", "cam-1", "cam-2")
    room.pair("close", "close-1", "close-2")
    room.peer("idle", "192.0.2.77")
    room.say("admin", "tally", stream="cam", state="program")
    for name in ("admin", "other", "cam-1", "cam-2"):
        assert room.only(name) == {"type": "tally", "stream": "cam", "state": "program"}
    assert [room.take(name) for name in ("close-1", "close-2", "idle")] == [[], [], []]


def test_c_26_a_light_is_kept_for_peers_that_register_later_unless_it_is_off() -> None:
    room = Room()
    room.admin()
    room.say("admin", "tally", state="program")
    room.peer("one", "192.0.2.1")
    room.say("one", "register", port=5000)
    assert room.kinds("one") == ["tally", "session"]
    room.say("one", "register", port=5001)
    assert room.kinds("one") == ["session"]  # it knows
    room.say("admin", "tally", state="off")
    room.peer("two", "192.0.2.2")
    room.say("two", "register", port=5000)
    assert room.kinds("two") == ["peer", "session"]


def test_c_26_receivers_may_be_allowed_to_set_their_light() -> None:
    room = Room(policy=Policy(receivers_may_tally=True))
    for name, role in (("one", "sender"), ("two", "receiver")):
        room.peer(name, "192.0.2.1")
        room.say(name, "tally", state="program")
        assert room.only(name)["code"] == "AUTH_FAILED"  # not registered
        room.say(name, "register", port=5000, role=role)
    room.drop_frames()
    room.say("one", "tally", state="program")
    assert room.only("one")["code"] == "AUTH_FAILED"
    room.say("two", "tally", state="program")
    assert room.kinds("one") == room.kinds("two") == ["tally"]


def test_c_27_health_is_told_to_admins_of_all_streams_and_to_peers_of_their_own() -> None:
    room = Room("cam", "close")
    room.admin()
    room.pair("cam", "cam-1", "cam-2")
    room.pair("close", "close-1", "close-2")
    room.say("cam-1", "health", rtt=10, retransmit=0.5, bitrate=8e6)
    room.say("cam-2", "health", rtt=30, retransmit=0.1, bitrate=9e6)
    entry = {"rtt": 30, "retransmit": 0.5, "bitrate": 8e6, "status": "healthy"}
    assert [frame["streams"] for frame in room.take("cam-1")][-1] == {"cam": entry}
    room.wait(20_000)
    room.drop_frames()
    room.say("close-1", "health", rtt=90, retransmit=0, bitrate=1)
    report = room.only("admin")["streams"]
    assert (report["cam"], report["close"]["status"]) == (entry, "critical")
    assert room.take("cam-1") == []
    room.wait(10_000)
    room.say("close-1", "health", rtt=1, retransmit=0, bitrate=1)
    assert list(room.only("admin")["streams"]) == ["close"]  # the other news is 30 s old


def test_health_takes_a_register_and_no_match() -> None:
    room = Room()
    room.peer("one", "192.0.2.1")
    room.say("one", "health", **MESSAGES["health"])
    assert room.only("one")["code"] == "INVALID_MESSAGE"
    room.say("one", "register", port=5000)
    room.drop_frames()
    room.say("one", "health", **MESSAGES["health"])
    assert room.kinds("one") == ["health_report"]
