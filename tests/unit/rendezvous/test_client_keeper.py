"""When a client pulses, verifies and is lost: tables, and any order of events under virtual time."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from punchd.rendezvous.keeper import TRANSITIONS, Action, Event, Keeper, Phase, Timing

PULSE, VERIFY, RECONNECT, ADVANCE, LOSE = (
    Action.PULSE, Action.VERIFY, Action.RECONNECT, Action.ADVANCE, Action.LOSE,
)  # fmt: skip
REPLIES = [Event.ACCEPTED, Event.MUST_VERIFY, Event.COOKIE, Event.UNKNOWN]


def registered(at: float = 0.0) -> Keeper:
    keeper = Keeper()
    assert keeper.next_timeout == inf
    assert keeper.handle(Event.REGISTERED, at) == [PULSE]
    return keeper


def resting() -> Keeper:
    keeper = registered()
    assert keeper.handle(Event.ACCEPTED, 0.1) == []
    return keeper


def timers(keeper: Keeper, count: int) -> list[tuple[float, list[Action]]]:
    """What the next timers do, each at its time."""
    found = []
    for _ in range(count):
        now = keeper.next_timeout
        found.append((now, keeper.handle(Event.TIMER, now)))
    return found


def test_d_07_pulses_that_are_answered_follow_each_other_after_25_s() -> None:
    keeper = resting()
    for number in (1, 2, 3):
        assert keeper.next_timeout == 25 * number
        assert keeper.handle(Event.TIMER, 25.0 * number) == [PULSE]
        assert keeper.handle(Event.ACCEPTED, 25.0 * number + 0.2) == []


def test_d_07_a_pulse_without_an_answer_is_repeated_after_1_2_and_4_s_then_over_another_way_with_a_verify() -> None:
    keeper = registered()
    assert timers(keeper, 3) == [(1, [PULSE]), (3, [PULSE]), (7, [PULSE])]
    assert timers(keeper, 1) == [(15, [ADVANCE, PULSE, VERIFY])]
    keeper.handle(Event.UNVERIFIED, 20)
    for at in (31, 56, 81, 106):  # never less often than once an interval
        assert timers(keeper, 1) == [(at, [ADVANCE, PULSE, VERIFY])]
        keeper.handle(Event.UNVERIFIED, at + 10)


def test_a_late_answer_ends_the_repetitions_and_the_interval_counts_from_the_last_pulse() -> None:
    keeper = registered()
    timers(keeper, 3)
    keeper.handle(Event.ACCEPTED, 7.5)
    assert (keeper.phase, keeper.next_timeout) == (Phase.RESTING, 32)


@pytest.mark.parametrize("reply", [Event.MUST_VERIFY, Event.UNKNOWN])
def test_v_005_v_006_1050_and_1060_lead_to_a_verify_and_that_to_a_pulse_at_once(reply: Event) -> None:
    keeper = registered()
    assert keeper.handle(reply, 0.1) == [VERIFY]
    assert keeper.handle(Event.VERIFIED, 0.2) == [PULSE]
    assert keeper.handle(Event.ACCEPTED, 0.3) == []
    assert keeper.next_timeout == 25.2


def test_a_server_that_answers_1050_to_everything_gets_one_verify_and_two_pulses_a_timer() -> None:
    keeper = registered()
    done: list[Action] = []
    for at in (0.0, 1.0, 3.0, 7.0):
        done += keeper.handle(Event.TIMER, at) if at else []
        for _ in range(5):
            done += keeper.handle(Event.MUST_VERIFY, at)
            done += keeper.handle(Event.VERIFIED, at) if done[-1] is VERIFY else []
    assert done.count(VERIFY) == 4
    assert done.count(PULSE) == 7  # the first one was sent before


def test_a_verify_under_way_is_not_doubled() -> None:
    keeper = registered()
    assert keeper.handle(Event.MUST_VERIFY, 0.1) == [VERIFY]
    assert timers(keeper, 4)[-1] == (15, [ADVANCE, PULSE])
    keeper.handle(Event.UNVERIFIED, 16)
    assert keeper.handle(Event.MUST_VERIFY, 17) == [VERIFY]


def test_a_cookie_is_sent_back_at_once_and_at_most_twice_a_timer() -> None:
    keeper = registered()
    assert [keeper.handle(Event.COOKIE, 0.1) for _ in range(4)] == [[PULSE], [PULSE], [], []]
    assert keeper.handle(Event.TIMER, keeper.next_timeout) == [PULSE]
    assert keeper.handle(Event.COOKIE, 1.1) == [PULSE]


def test_only_a_refusal_over_http_loses_the_identity_and_registering_begins_anew() -> None:
    for keeper in (registered(), resting()):
        assert keeper.handle(Event.REJECTED, 1) == [LOSE]
        assert (keeper.phase, keeper.next_timeout) == (Phase.LOST, inf)
        assert all(keeper.handle(event, 2) == [] for event in Event if event is not Event.REGISTERED)
        assert keeper.handle(Event.REGISTERED, 3) == [PULSE]


@pytest.mark.parametrize("reply", REPLIES)
def test_replies_while_resting_are_late_or_forged_and_change_nothing(reply: Event) -> None:
    keeper = resting()
    assert keeper.handle(reply, 5) == []
    assert (keeper.phase, keeper.next_timeout) == (Phase.RESTING, 25)


def test_a_new_address_of_the_host_means_a_new_socket_and_a_fresh_start_at_any_time() -> None:
    tired = registered()
    timers(tired, 6)
    for keeper in (tired, resting()):
        assert keeper.handle(Event.MOVED, 100) == [RECONNECT, PULSE]
        assert timers(keeper, 2) == [(101, [PULSE]), (103, [PULSE])]


def test_the_table_says_nothing_of_a_lost_client_but_registering() -> None:
    assert {event for phase, event in TRANSITIONS if phase is Phase.LOST} == {Event.REGISTERED}


@given(
    st.sampled_from([Timing(), Timing(0.2, 0.05), Timing(3.0, 5.0)]),
    st.lists(st.tuples(st.sampled_from(list(Event)), st.floats(0, 40)), max_size=200),
)
def test_in_any_order_of_events_pulses_go_on_verifies_do_not_double_and_only_401_loses(
    timing: Timing, events: list[tuple[Event, float]]
) -> None:
    keeper = Keeper(timing)
    now = 0.0
    verifying = 0
    for event, pause in events:
        now = keeper.next_timeout if event is Event.TIMER and keeper.next_timeout < inf else now + pause
        before = keeper.phase
        if event in (Event.VERIFIED, Event.UNVERIFIED, Event.REJECTED, Event.REGISTERED):
            verifying = 0
        actions = keeper.handle(event, now)
        verifying += actions.count(VERIFY)
        assert verifying <= 1
        assert actions.count(PULSE) <= 1
        assert (LOSE in actions) == (event is Event.REJECTED and before is not Phase.LOST)
        if keeper.phase is Phase.LOST:
            assert keeper.next_timeout == inf
            assert PULSE not in actions
        else:
            assert keeper.next_timeout <= now + timing.interval_s
            if event in (Event.TIMER, Event.MOVED):
                assert keeper.next_timeout > now


@given(st.lists(st.sampled_from([Event.TIMER, *REPLIES, Event.VERIFIED, Event.UNVERIFIED]), max_size=300))
def test_between_two_timers_a_hostile_server_gets_at_most_five_pulses_and_one_verify(events: list[Event]) -> None:
    keeper = registered()
    pulses, verifies = 1, 0
    for event in events:
        if event is Event.VERIFIED and not keeper._is_verifying:
            continue  # nobody asked
        if event is Event.TIMER:
            pulses = verifies = 0
        actions = keeper.handle(event, keeper.next_timeout if event is Event.TIMER else 0.0)
        pulses += actions.count(PULSE)
        verifies += actions.count(VERIFY)
        assert pulses <= 5  # the timer's, two cookies, a verify's, and that of a verify from before the timer
        assert verifies <= 1
