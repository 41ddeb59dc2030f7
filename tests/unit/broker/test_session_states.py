"""The session's state and its end."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from punchd.broker import snapshot
from punchd.broker.messages import Light, Ready, Tally
from punchd.broker.moves import Answered, Deleted, Event, Failed, Left, Received, Revoked
from punchd.broker.server_messages import State
from punchd.broker.session import ENDINGS, TRANSITIONS, Cue
from tests.unit.broker.parts import CLOSES_MS, CREATED_MS, TTL_MS, Room

OPEN = ("WAITING", "READY", "CONNECTED")


def room_in(state: str) -> Room:
    room = Room()
    if state != "WAITING":
        room.pair()
    if state == "CONNECTED":
        room.say("one", "status", srt="connected")
    if state == "CLOSED":
        room.do(Deleted())
    assert room.state == state
    room.drop_frames()
    return room


def test_b_010_b_011_the_table_knows_four_states_and_not_relaying() -> None:
    assert [state.value for state in State] == [*OPEN, "CLOSED"]
    assert {state for row in TRANSITIONS.items() for state in (row[0][0], row[1])} == set(State)


def test_b_012_a_new_session_waits() -> None:
    assert Room().state == "WAITING"


def test_b_013_the_first_stream_with_both_peers_makes_the_session_ready() -> None:
    room = Room("cam", "close")
    room.peer("one", "192.0.2.1")
    room.say("one", "register", port=5000)
    assert room.state == "WAITING"
    room.peer("two", "192.0.2.2")
    room.say("two", "register", port=5000)
    assert room.state == "READY"
    assert room.stream_state("cam") == ("READY", 2)
    assert room.stream_state("close") == ("WAITING", 0)


def test_b_014_c_28_one_status_of_a_matched_peer_makes_it_connected_and_all_are_told_only_that() -> None:
    room = Room()
    room.admin()
    room.pair()
    room.say("two", "status", srt="connected")
    assert room.state == "CONNECTED"
    for name in ("admin", "one", "two"):
        frame = room.only(name)
        assert (frame["type"], frame["state"]) == ("session", "CONNECTED")
        assert frame["streams"] == {"cam": {"state": "CONNECTED", "peers": 2}}


@pytest.mark.parametrize("state", OPEN)
def test_b_015_c_05_c_47_an_admins_delete_closes_it_with_1000_and_no_error(state: str) -> None:
    room = room_in(state)
    room.admin()
    room.drop_frames()
    everybody = list(room.session.facts.members)
    room.do(Deleted())
    assert (room.state, room.ended) == ("CLOSED", "admin_closed")
    for name in everybody:
        session, closed = room.take(name)
        assert (session["type"], session["state"]) == ("session", "CLOSED")
        assert session["streams"]["cam"]["state"] == "CLOSED"
        assert closed == {"type": "session_closed", "reason": "admin_closed"}
        assert room.closed[name] == 1000


@pytest.mark.parametrize("state", OPEN)
def test_b_016_b_019_b_070_its_time_closes_it_with_1000(state: str) -> None:
    room = room_in(state)
    room.admin()
    room.drop_frames()
    everybody = list(room.session.facts.members)
    room.wait(TTL_MS)
    assert (room.state, room.ended) == ("CLOSED", "ttl_expired")
    for name in everybody:
        assert room.kinds(name) == ["session", "session_closed"]
        assert room.closed[name] == 1000


@pytest.mark.parametrize("state", OPEN)
def test_c_49_c_05_a_fatal_error_closes_it_with_1011(state: str) -> None:
    room = room_in(state)
    room.admin()
    room.drop_frames()
    room.do(Failed())
    assert (room.state, room.ended) == ("CLOSED", "error")
    assert room.only("admin") == {"type": "session_closed", "reason": "error"}
    assert room.closed["admin"] == 1011


@pytest.mark.parametrize(
    "event",
    [
        Received("one", Ready()),
        Received("one", Tally(Light.OFF)),
        Left("one"),
        Answered("one"),
        Revoked("token-one"),
        Deleted(),
        Failed(),
    ],
    ids=lambda event: type(event).__name__,
)
def test_b_017_nothing_leads_out_of_closed_and_nothing_is_said_any_more(event: Event) -> None:
    room = room_in("CLOSED")
    assert room.do(event) == []
    assert room.wait(TTL_MS) == []
    assert (room.state, room.session.next_timeout()) == ("CLOSED", None)


@pytest.mark.parametrize(("event", "code"), [(Deleted(), 1000), (Failed(), 1011)])
def test_b_018_who_comes_when_it_is_closed_is_told_and_turned_away(event: Event, code: int) -> None:
    room = Room()
    room.do(event)
    room.peer("late", "192.0.2.1")
    assert room.only("late")["type"] == "session_closed"
    assert room.closed == {"late": code}
    assert not room.session.is_open(room.now_ms)


def test_b_020_c_33_it_closes_100_ms_before_it_must_have_by_itself() -> None:
    room = Room()
    room.admin()
    assert room.session.next_timeout() == CLOSES_MS
    room.wait(CLOSES_MS - CREATED_MS - 1)
    assert (room.state, room.session.is_open(room.now_ms)) == ("WAITING", True)
    room.wait(1)
    assert (room.state, room.session.is_open(room.now_ms)) == ("CLOSED", False)


@pytest.mark.parametrize("act", [lambda room: room.say("one", "ready"), lambda room: room.do(Deleted())])
def test_b_020_c_33_whoever_comes_from_then_on_finds_it_closed_though_the_timer_is_late(
    act: Callable[[Room], object],
) -> None:
    room = room_in("READY")
    room.now_ms = CLOSES_MS
    assert not room.session.is_open(room.now_ms)
    act(room)
    assert room.ended == "ttl_expired"
    assert room.closed == {"one": 1000, "two": 1000}


def test_a_message_after_the_end_of_its_time_is_answered_with_session_expired() -> None:
    room = room_in("READY")
    room.now_ms = CLOSES_MS
    room.say("one", "register", port=6000)
    error, *rest = room.take("one")
    assert error["code"] == "SESSION_EXPIRED"
    assert [frame["type"] for frame in rest] == ["session", "session_closed"]
    assert room.kinds("two") == ["session", "session_closed"]


def test_who_connects_at_the_end_of_its_time_is_turned_away_with_the_others() -> None:
    room = room_in("READY")
    room.now_ms = CLOSES_MS
    room.admin("late")
    assert room.closed == {"one": 1000, "two": 1000, "late": 1000}
    assert room.only("late") == {"type": "session_closed", "reason": "ttl_expired"}


def test_b_023_what_happens_in_it_does_not_make_it_last_longer() -> None:
    room = Room()
    for _ in range(20):
        room.peer("one", "192.0.2.1")
        room.say("one", "register", port=5000)
        room.leave("one")
        room.wait(60_000)
    assert room.session.next_timeout() == CLOSES_MS


@pytest.mark.parametrize("state", ["READY", "CONNECTED"])
def test_c_19_the_session_never_goes_back_and_its_streams_do(state: str) -> None:
    room = room_in(state)
    room.leave("one")
    assert (room.state, room.stream_state()) == (state, ("WAITING", 1))
    room.leave("two")
    assert (room.state, room.stream_state()) == (state, ("WAITING", 0))
    room.pair(first="three", second="four")
    assert (room.state, room.stream_state()) == (state, ("READY", 2))


def test_b_105_nothing_of_anybody_is_left_when_it_is_closed() -> None:
    room = room_in("CONNECTED")
    room.say("one", "health", rtt=1, retransmit=0, bitrate=1)
    room.do(Deleted())
    room.passphrases.forget()
    left = json.dumps(snapshot.dump(room.session.facts))
    assert "192.0.2" not in left
    assert "token-" not in left
    assert (room.session.facts.members, room.session.pair("cam"), room.session.health_entries(room.now_ms)) == (
        {},
        None,
        {},
    )
    with pytest.raises(KeyError):
        room.passphrases.of("cam")


def test_every_end_has_a_row_in_every_open_state() -> None:
    for cue in (Cue.DELETED, Cue.EXPIRED, Cue.FAILED):
        assert cue in ENDINGS
        assert all(TRANSITIONS[State(state), cue] is State.CLOSED for state in OPEN)


def test_a_connection_beyond_those_that_it_may_have_is_told_and_closed() -> None:
    room = Room()
    for number in range(10):  # 2 for the stream's peers, 8 observers
        assert room.session.has_room()
        room.admin(f"admin-{number}")
    assert not room.session.has_room()
    room.admin("late")
    assert room.only("late")["code"] == "SESSION_FULL"
    assert room.closed == {"late": 1011}
    room.leave("admin-3")
    assert room.session.has_room()


def test_a_revoked_token_takes_its_connections_with_it() -> None:
    room = room_in("READY")
    room.do(Revoked("token-one"))
    assert room.only("one")["code"] == "AUTH_FAILED"
    assert room.closed == {"one": 1000}
    assert room.only("two")["streams"] == {"cam": {"state": "WAITING", "peers": 1}}


def test_a_connection_that_nobody_knows_changes_nothing() -> None:
    room = room_in("READY")
    assert room.do(Received("ghost", Ready())) == []
    assert room.do(Left("ghost")) == []
