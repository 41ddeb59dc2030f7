"""The client's conversation, without a network: what it says, tells and does when."""

from __future__ import annotations

import itertools
import json
from math import inf
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from punchd.broker import client_machine as machine
from punchd.broker.client_errors import UnreachableError
from punchd.broker.client_events import Error, Malformed, Peer, Reconnected, Reconnecting
from punchd.broker.client_machine import (
    AGAIN_S,
    MOST_AGAIN,
    MOST_MOVES,
    MOVE_PATIENCE_S,
    Action,
    Conversation,
    End,
    HangUp,
    Look,
    Open,
    Phase,
    Ping,
    Send,
    Tell,
)
from punchd.broker.messages import PING, PONG, Ready, Register, Srt, Status
from punchd.errors import DecodeError
from tests.unit.broker.fake_broker import CLOSED, PEER, SESSION

REGISTER = Register(port=5000)
SAID = Send('{"type":"register","port":5000}')
AWAY = UnreachableError("nobody")
PEER_6 = {**PEER, "ip": "2001:db8::7"}


def joined(version: int = 4, ip_version: int | None = None) -> Conversation:
    """Connected and registered at 0."""
    it = Conversation(REGISTER, ip_version)
    assert it.opened(0, version) == [SAID]
    return it


def hear(it: Conversation, now: float, message: Any) -> list[Action]:
    it.heard(now)
    return it.text(now, message if isinstance(message, str) else json.dumps(message))


def told(actions: list[Action]) -> list[Any]:
    return [action.event for action in actions if isinstance(action, Tell)]


# --- keep-alive --------------------------------------------------------------------------------------------------


def test_b_063_what_is_said_puts_off_the_keep_alive() -> None:
    it = joined()
    assert it.next_timeout() == 30
    assert it.say(20, Status(Srt.CONNECTED)) == ([Send('{"type":"status","srt":"connected"}')], True)
    assert it.next_timeout() == 45  # of silence
    it.heard(44)
    assert it.next_timeout() == 50
    assert it.handle_timeout(50, 0) == [Send(PING)]


def test_c_06_an_objection_that_may_be_about_something_else_is_told_too() -> None:
    it = joined()
    hear(it, 29, "punch.pong")
    assert it.handle_timeout(30, 0) == [Send(PING)]
    it.say(31, Ready())
    objection = {"type": "error", "code": "INVALID_MESSAGE", "message": "no"}
    assert told(hear(it, 31, objection)) == [Error("INVALID_MESSAGE", "no")]
    assert it.handle_timeout(61, 0) == [Ping()]  # and pings are frames from now on


def test_c_06_an_objection_after_the_pong_is_about_something_else() -> None:
    it = joined()
    hear(it, 29, "punch.pong")
    it.handle_timeout(30, 0)
    assert hear(it, 30, PONG) == []
    assert told(hear(it, 31, {"type": "error", "code": "INVALID_MESSAGE", "message": "no"}))
    assert it.handle_timeout(60, 0) == [Send(PING)]


# --- families --------------------------------------------------------------------------------------------------------


def test_c_10_who_has_ipv4_moves_to_the_other_peers_ipv6_at_once() -> None:
    it = joined(4)
    assert hear(it, 1, PEER_6) == [Look(6)]
    polite, note, opening = it.looked(6, is_there=True)
    assert (polite, opening) == (HangUp(is_polite=True), Open(6))
    assert told([note]) == [Reconnecting("the other peer has IPv6", 0.0, 0)]
    assert it.opened(2, 6) == [SAID, Tell(Reconnected())]
    assert isinstance(told(hear(it, 3, PEER_6))[0], Peer)


def test_c_10_who_has_ipv6_waits_whether_the_other_one_comes_over() -> None:
    it = joined(6)
    assert hear(it, 1, PEER) == []
    assert it.next_timeout() == 1 + MOVE_PATIENCE_S
    assert isinstance(told(hear(it, 2, PEER_6))[0], Peer)
    assert it.next_timeout() == 30


def test_c_10_who_has_ipv6_moves_when_the_other_one_does_not() -> None:
    it = joined(6)
    hear(it, 1, PEER)
    assert it.handle_timeout(1 + MOVE_PATIENCE_S, 0) == [Look(4)]
    assert Open(4) in it.looked(4, is_there=True)


def test_c_10_without_an_address_of_the_broker_the_peer_is_told_as_it_is() -> None:
    it = joined(4)
    hear(it, 1, PEER_6)
    assert isinstance(told(it.looked(6, is_there=False))[0], Peer)
    assert isinstance(told(hear(it, 2, PEER_6))[0], Peer)  # and is not looked for again


def test_c_10_a_family_that_leads_nowhere_is_left_again() -> None:
    it = joined(4)
    hear(it, 1, PEER_6)
    it.looked(6, is_there=True)
    assert it.failed(2, AWAY, 0, is_final=False) == [Open(None)]
    assert it.opened(3, 4) == [SAID, Tell(Reconnected())]
    assert isinstance(told(hear(it, 4, PEER_6))[0], Peer)


def test_c_10_peers_that_keep_missing_each_other_give_up() -> None:
    it = joined(4)
    version = 4
    for _ in range(MOST_MOVES):
        other = 10 - version
        hear(it, 1, PEER_6 if other == 6 else PEER)
        it.handle_timeout(1 + MOVE_PATIENCE_S, 0)
        it.looked(other, is_there=True)
        it.opened(2, other)
        version = other
    assert isinstance(told(hear(it, 3, PEER_6))[0], Peer)


def test_c_10_after_a_loss_every_family_is_tried_and_may_be_looked_for_again() -> None:
    it = joined(4)
    hear(it, 1, PEER_6)
    it.looked(6, is_there=True)
    it.failed(2, AWAY, 0, is_final=False)
    it.opened(3, 4)
    it.closed(4, 1011, "x", 0)
    assert it.handle_timeout(5, 0) == [Open(None)]
    it.opened(5, 4)
    assert hear(it, 6, PEER_6) == [Look(6)]
    it.looked(6, is_there=True)
    it.opened(7, 6)
    it.closed(8, 1011, "x", 0)
    assert it.handle_timeout(it.next_timeout(), 0) == [Open(6)]
    it.failed(11, AWAY, 0, is_final=False)  # the network is another one now
    assert it.handle_timeout(it.next_timeout(), 0) == [Open(None)]


def test_c_10_a_match_makes_moves_possible_again() -> None:
    it = joined(4)
    version = 4
    for _ in range(2 * MOST_MOVES):
        other = 10 - version
        hear(it, 1, PEER_6 if other == 6 else PEER)
        it.handle_timeout(1 + MOVE_PATIENCE_S, 0)
        assert Open(other) in it.looked(other, is_there=True)
        it.opened(2, other)
        assert told(hear(it, 3, PEER_6 if other == 6 else PEER))
        version = other


def test_c_10_a_family_that_the_application_chose_stays() -> None:
    it = joined(4, ip_version=4)
    assert isinstance(told(hear(it, 1, PEER_6))[0], Peer)


def test_c_10_two_peers_of_different_families_end_up_in_the_same() -> None:
    """Both move by the same rule, told of each other by a broker that is as slow as may be."""
    for delay in (0.0, 1.0, MOVE_PATIENCE_S - 0.5, MOVE_PATIENCE_S + 1):
        versions = {"a": 4, "b": 6}
        sides = {name: joined(version) for name, version in versions.items()}
        now = 1.0
        for _ in range(20):
            if versions["a"] == versions["b"]:
                break
            moves = {}
            for name, other in (("a", "b"), ("b", "a")):
                actions = hear(sides[name], now, PEER_6 if versions[other] == 6 else PEER)
                actions += sides[name].handle_timeout(now + delay, 0)
                moves[name] = [action.ip_version for action in actions if isinstance(action, Look)]
            now += delay
            for name, looks in moves.items():
                for version in looks:
                    sides[name].looked(version, is_there=True)
                    sides[name].opened(now, version)
                    versions[name] = version
        assert versions["a"] == versions["b"], delay


# --- coming back -----------------------------------------------------------------------------------------------------


def test_c_24_a_slot_that_our_own_ghost_holds_is_asked_for_again() -> None:
    taken = {"type": "error", "code": "STREAM_TAKEN", "message": "both slots are held"}
    it = joined()
    assert told(hear(it, 1, taken))
    assert it.next_timeout() == 30  # at first nobody but others can hold it
    it.closed(2, None, "gone", 0)
    it.handle_timeout(3, 0)
    it.opened(3, 4)
    now = 3.0
    for _ in range(MOST_AGAIN):
        hear(it, now, taken)
        assert it.next_timeout() == now + AGAIN_S
        now += AGAIN_S
        it.heard(now)
        assert SAID in it.handle_timeout(now, 0)
    hear(it, now, taken)
    assert it.next_timeout() > now + AGAIN_S
    assert told(hear(it, now, PEER))
    hear(it, now, taken)
    assert it.next_timeout() == now + AGAIN_S
    assert told(hear(it, now, PEER))  # it was somebody else's that went
    assert it.next_timeout() > now + AGAIN_S


def test_c_05_a_connection_that_lasted_makes_the_pause_short_again() -> None:
    it = joined()
    pauses = []
    now = 0.0
    for lasted in (1, 1, 1, machine.STABLE_S, 1):
        now += lasted
        [note] = told(it.closed(now, 1011, "x", 0))
        pauses.append(note.wait_s)
        now = it.next_timeout()
        assert it.handle_timeout(now, 0) == [Open(None)]
        it.opened(now, 4)
    assert pauses == [1, 2, 4, 1, 2]


def test_c_05_those_whom_a_broker_tells_the_same_time_to_come_back_do_not_come_all_at_once() -> None:
    pauses = []
    for chance in (0.0, 0.5, 1.0):
        it = joined()
        it.closed(1, 1011, "x", chance)
        it.handle_timeout(it.next_timeout(), chance)
        [note] = told(it.failed(3, UnreachableError("busy"), chance, is_final=False, wait_s=60))
        pauses.append(note.wait_s)
    assert pauses == [60, 75, 90]


def test_what_is_said_while_there_is_no_connection_is_lost_but_a_registration_is_kept() -> None:
    it = joined()
    it.closed(1, 1011, "x", 0)
    assert it.say(1, Ready()) == ([], False)
    assert it.say(1, Register(port=6000)) == ([], False)
    it.handle_timeout(2, 0)
    assert it.opened(2, 4)[0] == Send('{"type":"register","port":6000}')


@pytest.mark.parametrize("message", [Register(port=80), Ready(""), Register(port=5000, meta="[]")])
def test_what_no_broker_would_take_is_not_said(message: Any) -> None:
    with pytest.raises(DecodeError):
        joined().say(1, message)


def test_after_the_end_nothing_happens_any_more() -> None:
    it = joined()
    assert hear(it, 1, CLOSED)[-1] == End(None)
    assert it.next_timeout() == inf
    assert hear(it, 2, SESSION) + it.closed(2, 1011, "", 0) + it.handle_timeout(99, 0) + it.binary() == []
    assert it.say(2, Ready()) == ([], False)
    assert it.leave() == []


# --- whatever happens ------------------------------------------------------------------------------------------------

FRAMES = [
    PEER, PEER_6, SESSION, CLOSED, {"type": "start", "stream": "wide"}, {"type": "novelty"}, {"type": "error"},
    *({"type": "error", "code": code, "message": "m"} for code in ("INVALID_MESSAGE", "STREAM_TAKEN")),
]  # fmt: skip

STEPS = st.one_of(
    st.tuples(st.just("frame"), st.sampled_from([*map(json.dumps, FRAMES), PONG, "{", ""])),
    st.tuples(st.just("closed"), st.sampled_from([None, 1000, 1001, 1011, 4404, 4999])),
    st.tuples(st.just("opened"), st.sampled_from([4, 6])),
    st.tuples(st.just("failed"), st.booleans()),
    st.tuples(st.just("looked"), st.booleans()),
    st.tuples(st.just("say"), st.sampled_from([REGISTER, Ready(), Status(Srt.ERROR)])),
    st.tuples(st.just("time"), st.floats(0, 100)),
)


def act(it: Conversation, now: float, step: tuple[str, Any], looks: list[int]) -> list[Action]:
    match step:
        case "frame", str(text):
            return hear(it, now, text)
        case "closed", code:
            return it.closed(now, code, "why", 0.5)
        case "opened", int(version):
            return it.opened(now, version) if it.phase is Phase.OPENING else []
        case "failed", bool(is_final):
            return it.failed(now, AWAY, 0.5, is_final=is_final)
        case "looked", bool(is_there):
            return it.looked(looks.pop(), is_there=is_there) if looks else []
        case "say", message:
            return it.say(now, message)[0]
        case _:
            return it.handle_timeout(now, 0.5)


@settings(max_examples=200, deadline=None)
@given(st.lists(STEPS, max_size=60), st.sampled_from([None, 4, 6]))
def test_whatever_happens_it_is_connected_or_about_to_be_or_over_and_says_so(
    steps: list[tuple[str, Any]], ip_version: int | None
) -> None:
    it = Conversation(REGISTER, ip_version)
    now = 0.0
    looks: list[int] = []
    done: list[Action] = []
    for step in [("opened", 4), *steps]:
        if step[0] == "time":
            now += step[1]
        was = it.phase
        actions = act(it, now, step, looks)
        done += actions
        looks += [action.ip_version for action in actions if isinstance(action, Look)]
        if was is Phase.OVER:
            assert it.phase is Phase.OVER
            assert actions == []
        # What is sent needs a connection, what is opened needs none.
        if any(isinstance(action, Send | Ping) for action in actions):
            assert it.phase is Phase.OPEN
        if any(isinstance(action, Open) for action in actions):
            assert it.phase is Phase.OPENING
        if was is Phase.OPENING and it.phase is Phase.OPEN:
            assert actions[0] == SAID
        assert (it.ip_version is None) == (it.phase is not Phase.OPEN)
        # A timer that is due does something, and is then no longer due.
        due = it.next_timeout()
        if due < inf:
            now = max(now, due)
            acted = it.handle_timeout(now, 0.5)
            done += acted
            looks += [action.ip_version for action in acted if isinstance(action, Look)]
            assert acted
            assert it.next_timeout() > now
    assert sum(isinstance(action, End) for action in done) == (it.phase is Phase.OVER)
    kinds = [type(event) for event in told(done) if isinstance(event, Reconnecting | Reconnected)]
    pairs = itertools.pairwise(kinds)
    assert (Reconnected, Reconnected) not in pairs  # each is told after what it mends
    assert kinds[:1] != [Reconnected]


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(max_size=80), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from(["peer", "session", "tally", "192.0.2.1", "wide", "READY", "off"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["type", "stream", "ip", "port", "streams", "state", "meta", "wide", "code"]), inner,
        max_size=6),
    max_leaves=8,
).map(json.dumps)))  # fmt: skip
def test_whatever_text_comes_it_is_a_message_or_told_as_none(text: str) -> None:
    for action in joined().text(1, text):
        assert isinstance(action, Tell | End | Look)
        if isinstance(action, Tell) and isinstance(action.event, Malformed):
            assert action.event.why.isprintable() or "\\" in action.event.why
            assert len(action.event.why) < 400
