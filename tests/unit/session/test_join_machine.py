"""The join machine: tables of events and what they lead to; under a virtual clock of plain numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from punchd.broker.client_events import Peer
from punchd.broker.messages import Srt
from punchd.endpoint import Endpoint
from punchd.punch.outcomes import Exit
from punchd.session import join_machine
from punchd.session.join_machine import (
    HEALTH_S,
    LEAST_PAUSE_S,
    MOST_FAILURES,
    MOST_PAUSE_S,
    SILENT_S,
    STUCK_S,
    TAKEN_LIMIT_S,
    TAKEN_S,
    JoinMachine,
)
from punchd.session.moves import (
    Action,
    End,
    HoldPort,
    Register,
    RunTool,
    SayHealth,
    SayReady,
    SayStatus,
    ShowStrings,
    StopTool,
    Tell,
)
from punchd.session.statistics import Sample

PORT = 5000
PEER = Peer("cam", Endpoint(ip_address("192.0.2.7"), 6000), PORT, "0123456789", 200, {"punchd": {"run": "ab-0"}})
STRANGER = replace(PEER, meta=None)
CONNECTING, CONNECTED, DISCONNECTED, ERROR = (
    SayStatus(one) for one in (Srt.CONNECTING, Srt.CONNECTED, Srt.DISCONNECTED, Srt.ERROR)
)


def sample(time_ms: int = 1000, size_bytes: int = 1000) -> Sample:
    return Sample(1, time_ms, 20.0, 100, 1, 0, size_bytes, 5)


def bare(actions: list[Action]) -> list[Action]:
    return [action for action in actions if not isinstance(action, Tell)]  # without news


def told(actions: list[Action]) -> list[str]:
    return [action.event for action in actions if isinstance(action, Tell)]


def registered(**options: bool) -> JoinMachine:
    machine = JoinMachine(**options)
    assert machine.begin() == [HoldPort()]
    assert machine.port_held(PORT) == [Register(PORT, 0)]
    return machine


def running(peer: Peer = PEER, **options: bool) -> JoinMachine:
    machine = registered(**options)
    assert bare(machine.peer(peer)) == [SayReady()]
    assert machine.start(0.0) == [RunTool(peer), CONNECTING]
    return machine


def connected(peer: Peer = PEER, **options: bool) -> JoinMachine:
    machine = running(peer, **options)
    assert bare(machine.linked(True, 1.0)) == [CONNECTED]
    return machine


def restarted(machine: JoinMachine, now: float) -> None:
    """The way through a backoff, which is over at `now`, to the next run."""
    assert machine.next_timeout() == now
    assert machine.timeout(now - 0.01) == []
    assert isinstance(machine.timeout(now)[0], Register)
    machine.peer(PEER)
    assert RunTool(PEER) in machine.start(now)


def test_ready_is_said_once_for_each_peer_and_only_with_the_port_held() -> None:
    machine = registered()
    assert bare(machine.peer(PEER)) == [SayReady()]
    assert machine.port_held(PORT) == []  # a keep-alive
    assert bare(machine.peer(PEER)) == [SayReady()]
    machine = JoinMachine()
    machine.begin()
    assert bare(machine.peer(PEER)) == []
    assert machine.port_held(PORT) == [Register(PORT, 0)]


def test_another_public_port_is_registered_and_an_unknown_one_changes_nothing() -> None:
    machine = registered()
    assert machine.port_held(None) == []
    assert machine.port_held(6001) == [Register(6001, 0)]
    machine = JoinMachine()
    machine.begin()
    assert machine.port_held(None) == [Register(None, 0)]


def test_start_without_ready_is_nothing() -> None:
    assert registered().start(0.0) == []


def test_over_another_family_the_port_is_held_and_registered_anew() -> None:
    machine = registered()
    assert machine.begin() == [HoldPort()]
    assert machine.port_held(None) == [Register(None, 0)]
    assert connected().begin() == []  # media go on


def test_a_round_that_changes_nothing_leaves_the_tool_alone() -> None:
    machine = connected()
    assert machine.reconnected() == []
    assert machine.peer(PEER) == [SayReady()]
    assert machine.start(2.0) == [CONNECTED]


@pytest.mark.parametrize(
    ("machine", "peer"),
    [
        (connected, replace(PEER, meta={"punchd": {"run": "ab-1"}})),
        (connected, replace(PEER, endpoint=Endpoint(ip_address("192.0.2.7"), 6001))),
        (lambda: connected(STRANGER), STRANGER),
        (lambda: connected(replace(PEER, meta={"punchd": 1})), replace(PEER, meta={"punchd": 1})),
        (running, PEER),
    ],
    ids=["another-run", "another-endpoint", "no-run", "nonsense", "not-connected"],
)
def test_any_other_round_stops_the_tool_and_starts_it_again(machine: Callable[[], JoinMachine], peer: Peer) -> None:
    found = machine()
    assert bare(found.peer(peer)) == [StopTool()]
    assert bare(found.tool_ended(0, "stopped", 3.0)) == [DISCONNECTED, HoldPort()]
    assert found.start(3.0) == []
    assert found.port_held(PORT) == [SayReady()]
    assert found.start(4.0) == [RunTool(peer), CONNECTING]


def test_a_tool_that_has_connected_and_ends_well_is_the_end_unless_told_to_keep() -> None:
    assert bare(connected().tool_ended(0, "", 9.0)) == [DISCONNECTED, End(Exit.DONE, "")]
    machine = connected(keep=True)
    assert bare(machine.tool_ended(0, "", 9.0)) == [DISCONNECTED, HoldPort()]
    assert machine.port_held(PORT) == []
    restarted(machine, 9.0 + LEAST_PAUSE_S)


def test_a_tool_that_fails_is_started_again_with_a_growing_pause_as_a_new_run() -> None:
    machine = connected()
    assert bare(machine.tool_ended(1, "exit code 1", 10.0)) == [ERROR, HoldPort()]
    machine.port_held(PORT)
    assert machine.timeout(11.0) == [Register(PORT, 1)]
    machine.peer(PEER)
    machine.start(11.0)
    assert bare(machine.tool_ended(1, "exit code 1", 20.0)) == [ERROR, HoldPort()]
    machine.port_held(PORT)
    assert machine.timeout(21.0) == []
    assert machine.timeout(22.0) == [Register(PORT, 2)]


def test_a_tool_that_never_connects_and_ends_by_itself_is_given_up() -> None:
    machine = running()
    now = 0.0
    for pause_s in (1, 2, 4, 8):
        assert HoldPort() in machine.tool_ended(0, "exit code 0", now)
        machine.port_held(PORT)
        now += pause_s
        restarted(machine, now)
    last = machine.tool_ended(0, "exit code 0", now)[-1]
    assert isinstance(last, End)
    assert last.code is Exit.BROKEN
    assert f"{MOST_FAILURES} times" in last.text


def test_failures_count_in_a_row_only() -> None:
    machine = running()
    now = 0.0
    for connects in (False, False, False, False, True, False, False, False, False):
        if connects:
            machine.linked(True, now)
        assert HoldPort() in machine.tool_ended(1, "exit code 1", now)
        machine.port_held(PORT)
        due_s = machine.next_timeout()
        assert due_s is not None
        now = due_s
        restarted(machine, now)


def test_nothing_is_registered_before_a_pause_is_over() -> None:
    machine = connected()
    machine.tool_ended(1, "exit code 1", 10.0)
    assert machine.port_held(6001) == []
    assert machine.timeout(11.0) == [Register(6001, 1)]


def test_pauses_are_bounded() -> None:
    machine = running()
    now = 0.0
    for _ in range(20):  # not by itself: these do not count as failures
        machine.timeout(now + STUCK_S)
        machine.tool_ended(0, "stopped", now + STUCK_S)
        machine.port_held(PORT)
        due_s = machine.next_timeout()
        assert due_s is not None
        assert due_s - now - STUCK_S <= MOST_PAUSE_S
        now = due_s
        restarted(machine, now)


def test_a_tool_that_has_not_connected_for_long_is_started_anew() -> None:
    for machine, since_s in ((running(), 0.0), (connected(), 5.0)):
        machine.linked(False, 5.0)
        assert machine.next_timeout() == since_s + STUCK_S
        actions = machine.timeout(since_s + STUCK_S)
        assert (told(actions), bare(actions)) == (["stuck"], [StopTool()])


def test_by_hand_the_user_says_when_and_nobody_is_impatient() -> None:
    machine = registered(by_hand=True)
    assert bare(machine.peer(PEER)) == [ShowStrings(PEER)]
    assert machine.port_held(PORT) == []
    assert machine.set_up() == [SayReady()]
    assert machine.set_up() == []
    assert machine.start(0.0) == [RunTool(PEER), CONNECTING]
    assert machine.next_timeout() is None


def test_health_is_said_every_five_seconds_and_means_connected() -> None:
    machine = running()
    first = machine.sampled(sample(), 1.0)
    assert first[0] == CONNECTED
    assert isinstance(first[-1], SayHealth)
    assert machine.sampled(sample(2000), 1.0 + HEALTH_S - 0.01) == []
    (said,) = machine.sampled(sample(3000), 1.0 + HEALTH_S)
    assert isinstance(said, SayHealth)
    assert said.health.bitrate == pytest.approx(8000 * 2000 / 2000)


def test_silence_is_a_bitrate_of_nothing() -> None:
    machine = running()
    machine.sampled(sample(), 1.0)
    assert machine.next_timeout() == 1.0 + SILENT_S
    (said,) = machine.timeout(1.0 + SILENT_S)
    assert isinstance(said, SayHealth)
    assert (said.health.bitrate, said.health.rtt) == (0.0, 20.0)
    assert machine.next_timeout() == 1.0 + SILENT_S + HEALTH_S
    machine.linked(False, 20.0)
    assert machine.next_timeout() == 20.0 + STUCK_S


def test_no_status_is_said_to_a_broker_that_has_only_one_of_the_two() -> None:
    machine = connected()
    assert told(machine.populated(1)) == ["left"]
    assert machine.populated(1) == []
    assert bare(machine.linked(False, 2.0)) == []
    assert told(machine.populated(2)) == []  # the match is said by `peer`


@pytest.mark.parametrize(
    ("machine", "reason", "code"),
    [
        (connected, "admin_closed", Exit.DONE),
        (connected, "error", Exit.NO_CONNECTION),
        (running, "ttl_expired", Exit.NO_CONNECTION),
    ],
)
def test_the_end_of_the_session_ends_the_tool_first(
    machine: Callable[[], JoinMachine], reason: str, code: Exit
) -> None:
    found = machine()
    assert bare(found.closed(reason)) == [StopTool()]
    last = found.tool_ended(0, "stopped", 2.0)[-1]
    assert isinstance(last, End)
    assert last.code is code


def test_without_a_tool_the_end_of_the_session_is_the_end() -> None:
    last = registered().closed("admin_closed")[-1]
    assert isinstance(last, End)
    assert last.code is Exit.NO_CONNECTION


def test_media_go_on_when_the_broker_does_not_want_us_back_and_their_end_is_the_end() -> None:
    machine = connected()
    assert told(machine.dismissed(Exit.NOT_ONLINE, "no such session")) == ["alone"]
    last = machine.tool_ended(1, "exit code 1", 9.0)[-1]
    assert isinstance(last, End)
    assert last.code is Exit.BROKEN
    machine = connected()
    machine.dismissed(Exit.NOT_ONLINE, "no such session")
    machine.linked(False, 10.0)
    assert StopTool() in machine.timeout(10.0 + STUCK_S)
    assert isinstance(machine.tool_ended(0, "stopped", 60.0)[-1], End)
    assert registered().dismissed(Exit.REFUSED, "no") == [End(Exit.REFUSED, "no")]


def test_a_slot_that_is_taken_is_asked_for_again_until_no_ghost_can_hold_it() -> None:
    machine = registered()
    now = 0.0
    assert told(machine.refused("STREAM_TAKEN", "", now)) == ["taken"]
    while now < TAKEN_LIMIT_S - TAKEN_S:
        now += TAKEN_S
        (again,) = machine.timeout(now)
        assert isinstance(again, Register)
        assert machine.refused("STREAM_TAKEN", "", now) == []
    assert machine.refused("STREAM_TAKEN", "", TAKEN_LIMIT_S) == [
        End(Exit.REFUSED, "both places of the stream are taken")
    ]


def test_what_the_broker_objects_to_is_told_and_a_wrong_token_is_the_end() -> None:
    assert told(connected().refused("INVALID_MESSAGE", "no", 1.0)) == ["refused"]
    assert bare(registered().refused("AUTH_FAILED", "no", 1.0)) == [End(Exit.REFUSED, "the broker refuses: no")]


EVENTS = st.one_of(
    st.sampled_from(
        ["begin", "reconnected", "start", "ended", "ended badly", "set up", "linked", "unlinked", "sample"]
    ),
    st.sampled_from(["peer", "other peer", "stranger", "held", "moved", "unknown", "taken", "alone", "wait", "pause"]),
)


@given(st.lists(EVENTS, max_size=60), st.booleans(), st.booleans())
def test_the_port_and_the_tool_never_have_each_others_turn(words: list[str], keep: bool, by_hand: bool) -> None:
    """Whatever happens: at most one tool, never with the port held; `ready` only with the port held; an end is last."""
    machine = JoinMachine(keep=keep, by_hand=by_hand)
    now, is_running, is_held, is_asked, is_stopped, has_peer = 0.0, False, False, True, False, False
    machine.begin()
    for word in words:
        now += 30 if word == "pause" else 0.5
        has_peer = has_peer or word in ("peer", "other peer", "stranger")
        match word:
            case "begin":
                actions = machine.begin()
            case "reconnected":
                has_peer = is_running
                actions = machine.reconnected()
            case "start":
                actions = machine.start(now)
            case "ended" | "ended badly" if is_running:
                is_running = is_stopped = False
                actions = machine.tool_ended(int(word == "ended badly"), "", now)
            case "set up":
                actions = machine.set_up()
            case "linked" | "unlinked":
                actions = machine.linked(word == "linked", now)
            case "sample":
                actions = machine.sampled(sample(), now)
            case "peer":
                actions = machine.peer(PEER)
            case "other peer":
                actions = machine.peer(replace(PEER, meta={"punchd": {"run": str(now)}}))
            case "stranger":
                actions = machine.peer(STRANGER)
            case "held" | "moved" | "unknown" if is_asked and not is_running:
                is_held = True
                actions = machine.port_held({"held": PORT, "moved": 6000 + int(now), "unknown": None}[word])
            case "taken":
                actions = machine.refused("STREAM_TAKEN", "", now)
            case "alone":
                actions = machine.dismissed(Exit.NOT_ONLINE, "gone")
            case _:
                actions = machine.timeout(now)
        for action in actions:
            match action:
                case HoldPort():
                    assert not is_running
                    is_asked, is_held = True, False
                case RunTool():
                    assert is_held
                    assert not is_running
                    is_running, is_held, is_asked = True, False, False
                case StopTool():
                    assert is_running
                    assert not is_stopped
                    is_stopped = True
                case SayReady():
                    assert is_held or is_running
                    assert has_peer
                case Register():
                    has_peer = False
                case End():
                    assert not is_running
                    return
                case _:
                    pass
        due_s = machine.next_timeout()
        assert due_s is None or due_s > now - join_machine.STUCK_S
