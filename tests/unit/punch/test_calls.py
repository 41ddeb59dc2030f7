"""The two sides of a call against each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from punchd.punch import calls, moves
from punchd.punch.messages import Bye, Call, Code, Message, Ready, Reject, Token
from punchd.punch.moves import Done, GiveUp, Heard, Reason, Send, State
from tests.unit.punch.call_pair import GOOD, PLAIN_CALL, TCP_CALL, Fate, World, token

BOTH = {"connector": [Done()], "listener": [Done()]}

calls_of_both_kinds = st.sampled_from([TCP_CALL, PLAIN_CALL])
fates = st.lists(st.floats(0, 5), max_size=2)
tokens = st.sampled_from([token(word) for word in ("offer1", "offer2", "answer1", "note", "abort")])
messages = st.one_of(
    st.just(TCP_CALL),
    st.just(PLAIN_CALL),
    st.builds(Token, tokens),
    st.just(Ready()),
    st.builds(Reject, st.sampled_from(list(Code)), st.just("forged")),
    st.builds(Bye, st.booleans()),
)
forgeries = st.lists(st.tuples(st.floats(0, 20), st.sampled_from(["connector", "listener"]), messages), max_size=6)


def losing(which: Callable[[str, Message], bool], count: int) -> Callable[[str, Message], Fate]:
    """The first `count` signals that `which` names get lost."""
    left = [count]

    def fate(side: str, message: Message) -> Fate:
        if left[0] and which(side, message):
            left[0] -= 1
            return ()
        return GOOD

    return fate


@pytest.mark.parametrize("call", [TCP_CALL, PLAIN_CALL])
@pytest.mark.parametrize("rounds", [1, 3])
def test_where_all_is_well_both_sides_get_their_connection(call: Call, rounds: int) -> None:
    world = World(call, rounds=rounds).run()
    assert world.ends == BOTH
    assert world.sockets == {"connector", "listener"}
    assert Counter(type(message) for _, message in world.sent)[Call] == 1


outcomes = st.tuples(st.integers(1, 3), st.booleans(), st.booleans())


@given(calls_of_both_kinds, st.data(), outcomes, forgeries)
def test_whatever_becomes_of_signals_each_side_ends_once_and_in_time(
    call: Call, data: st.DataObject, outcome: tuple[int, bool, bool], forged: list[tuple[float, str, Message]]
) -> None:
    rounds, fails, secures = outcome
    world = World(
        call,
        fate=lambda side, message: data.draw(fates),
        rounds=rounds,
        fails=fails,
        secures=secures,
        forged=forged,
    ).run()
    for side in world.sides:
        assert len(world.ends[side]) == 1
        assert world.ended_at[side] <= 45.0 + calls.SETTLE_S + calls.LATE_OFFER_S + 40.0
        assert (side in world.sockets) == (world.ends[side] == [Done()])


@given(calls_of_both_kinds, st.data(), st.integers(1, 3))
def test_signals_that_are_doubled_and_reordered_never_cost_a_call(call: Call, data: st.DataObject, rounds: int) -> None:
    delays = st.lists(st.floats(0.01, 0.4), min_size=1, max_size=3)
    world = World(call, fate=lambda side, message: data.draw(delays), rounds=rounds).run()
    assert world.ends == BOTH


@pytest.mark.parametrize("call", [TCP_CALL, PLAIN_CALL])
@pytest.mark.parametrize(
    "which",
    [
        lambda side, message: isinstance(message, Call),
        lambda side, message: isinstance(message, Token) and side == "listener",
        lambda side, message: isinstance(message, Token) and side == "connector",
        lambda side, message: isinstance(message, Ready) and side == "connector",
        lambda side, message: isinstance(message, Ready) and side == "listener",
    ],
    ids=["call", "first offer", "answer", "ready", "ready of the listener"],
)
def test_any_one_signal_may_get_lost(call: Call, which: Callable[[str, Message], bool]) -> None:
    assert World(call, fate=losing(which, 1)).run().ends == BOTH


def test_a_doubled_call_brings_the_last_token_once_more_until_one_came_back() -> None:
    listener = calls.Listener(TCP_CALL, 0.0, 30.0)
    listener.begin()
    assert listener.handle(Heard(TCP_CALL), 1.0) == []
    for word in ("offer1", "offer2"):
        listener.handle(moves.Relayed(token(word)), 1.0)
    assert listener.handle(Heard(TCP_CALL), 2.0) == [Send(Token(token("offer2")))]
    listener.handle(Heard(Token(token("answer2"))), 2.5)
    assert listener.handle(Heard(TCP_CALL), 3.0) == []


@pytest.mark.parametrize(
    ("timeout_s", "expected"), [(45.0, [0.0, 2.0, 6.0, 14.0, 30.0]), (5.0, [0.0, 2.0, 5.0]), (31.0, [0, 2, 6, 14, 30])]
)
def test_a_call_is_repeated_after_2_6_and_14_seconds_and_given_up_after_30(
    timeout_s: float, expected: list[float]
) -> None:
    connector = calls.Connector(TCP_CALL, 100.0, timeout_s)
    times, actions = [100.0], connector.begin(100.0)
    while connector.state is not State.OVER:
        assert actions == [Send(TCP_CALL)]
        times.append(connector.next_timeout)
        actions = connector.handle_timeout(connector.next_timeout)
    assert [time - 100.0 for time in times] == expected
    assert actions == [Send(Bye()), GiveUp(Reason.NO_ANSWER, f"no answer for {expected[-1]:.0f} s")]


def test_tokens_that_come_before_the_offer_wait_and_are_tried_one_by_one() -> None:
    connector = calls.Connector(TCP_CALL, 0.0, 45.0)
    connector.begin(0.0)
    note, offer, more = (token(word) for word in ("note", "offer1", "note2"))
    assert connector.handle(Heard(Token(note)), 1.0) == [moves.Respond(note)]
    assert connector.handle(Heard(Token(offer)), 1.0) == []
    assert connector.handle(Heard(Token(more)), 1.0) == []
    assert connector.handle(moves.NoOffer(), 1.1) == [moves.Respond(offer)]
    assert connector.handle(moves.Taken(), 1.2) == [moves.Deliver(more)]
    assert connector.handle(Heard(Token(note)), 1.3) == [moves.Deliver(note)]


def settling(call: Call = TCP_CALL) -> calls.Connector:
    connector = calls.Connector(call, 0.0, 45.0)
    connector.begin(0.0)
    connector.handle(Heard(Token(token("offer1"))), 1.0)
    connector.handle(moves.Taken(), 1.0)
    assert connector.handle(moves.Punched(), 2.0) == [moves.Secure()]
    return connector


@pytest.mark.parametrize("is_broken", [False, True])
def test_an_offer_after_success_means_that_the_first_hole_is_dead(is_broken: bool) -> None:
    connector = settling()
    if is_broken:
        assert connector.handle(moves.Unsecured("reset"), 2.5) == [moves.Drop()]
        assert connector.next_timeout == 2.5 + calls.LATE_OFFER_S
    assert connector.handle(Heard(Token(token("offer2"))), 3.0) == [moves.Respond(token("offer2"))]
    assert moves.Drop() in connector.handle(moves.Taken(), 3.1)
    assert connector.handle(moves.Punched(), 4.0) == [moves.Secure()]
    assert connector.handle(moves.Secured(), 5.0) == [Done()]


def test_in_a_plain_call_the_second_hole_is_confirmed_anew() -> None:
    connector = settling(PLAIN_CALL)
    connector.handle(moves.Secured(), 2.1)
    connector.handle(Heard(Token(token("offer2"))), 3.0)
    connector.handle(moves.Taken(), 3.1)
    connector.handle(moves.Punched(), 4.0)
    assert connector.handle(Heard(Ready()), 4.1) == []  # this side is not ready yet
    assert connector.handle(moves.Secured(), 4.2) == [Send(Ready()), Done()]


def test_a_ready_for_the_first_hole_says_nothing_of_the_second() -> None:
    connector = settling(PLAIN_CALL)
    connector.handle(Heard(Ready()), 2.1)
    connector.handle(Heard(Token(token("offer2"))), 3.0)
    connector.handle(moves.Taken(), 3.1)
    connector.handle(moves.Punched(), 4.0)
    assert connector.handle(moves.Secured(), 4.1) == [Send(Ready())]


def test_other_tokens_after_success_are_harmless() -> None:
    connector = settling()
    assert connector.handle(Heard(Token(token("note"))), 3.0) == [moves.Respond(token("note"))]
    assert connector.handle(moves.Failed("stale"), 3.1) == []
    assert connector.handle(moves.Secured(), 3.2) == [Done()]


def test_a_verdict_about_keys_ends_the_call_at_once_and_a_broken_socket_after_a_while() -> None:
    assert settling().handle(moves.Unsecured("wrong key", Code.FAILED), 3.0) == [
        GiveUp(Reason.NO_CONNECTION, "wrong key")
    ]
    refused = settling().handle(moves.Unsecured("no", Code.NOT_ALLOWED), 3.0)
    assert refused == [GiveUp(Reason.REFUSED, "no")]
    connector = settling()
    connector.handle(moves.Unsecured("reset"), 3.0)
    assert connector.handle_timeout(6.0)[-1] == GiveUp(Reason.NO_CONNECTION, "reset")


def test_in_a_tls_call_ready_says_nothing_and_in_a_plain_one_it_ends_the_waiting() -> None:
    assert settling().handle(Heard(Ready()), 2.1) == []
    plain = settling(PLAIN_CALL)
    assert plain.handle(moves.Secured(), 2.1) == [Send(Ready())]
    assert plain.handle(Heard(Ready()), 2.2) == [Done()]
    early = settling(PLAIN_CALL)
    early.handle(Heard(Ready()), 2.1)
    assert early.handle(moves.Secured(), 2.2) == [Send(Ready()), Done()]
    lost = settling(PLAIN_CALL)
    lost.handle(moves.Secured(), 2.1)
    assert lost.next_timeout == 2.1 + calls.READY_S
    assert lost.handle_timeout(lost.next_timeout) == [Done()]


def test_reasons_come_through_to_the_connector() -> None:
    connector = calls.Connector(TCP_CALL, 0.0, 45.0)
    assert connector.handle(Heard(Reject(Code.BUSY, "busy")), 1.0) == [GiveUp(Reason.REFUSED, "busy")]
    listener = calls.Listener(TCP_CALL, 0.0, 45.0)
    given_up = listener.handle(moves.Failed("no hole"), 1.0)
    assert given_up == [Send(Reject(Code.FAILED, "no hole")), GiveUp(Reason.NO_CONNECTION, "no hole")]
    connector = calls.Connector(TCP_CALL, 0.0, 45.0)
    heard = connector.handle(Heard(Reject(Code.FAILED, "no hole")), 1.0)
    assert heard == [GiveUp(Reason.NO_CONNECTION, "the other side: no hole")]


def test_who_cancels_says_goodbye_and_the_other_side_ends() -> None:
    connector, listener = settling(), calls.Listener(TCP_CALL, 0.0, 30.0)
    assert connector.handle(moves.Cancelled(), 3.0) == [Send(Bye()), GiveUp(Reason.CANCELLED, "cancelled")]
    assert connector.handle(moves.Cancelled(), 3.0) == []
    assert listener.handle(Heard(Bye()), 3.0) == [GiveUp(Reason.CANCELLED, "the other side has given up")]
    assert listener.handle(moves.Punched(), 3.1) == [moves.Drop()]  # it came too late, and nobody wants it


def test_a_flood_of_tokens_is_cut_off() -> None:
    connector = settling()
    connector.handle(Heard(Token(token("offer2"))), 3.0)
    connector.handle(moves.Taken(), 3.0)
    taken = sum(bool(connector.handle(Heard(Token(token(f"note{n}"))), 3.0)) for n in range(1000))
    assert taken == calls.MAX_TOKENS - 2
