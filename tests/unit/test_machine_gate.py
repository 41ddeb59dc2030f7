"""What the attempt machine refuses to hear, and the notes of one round."""

from __future__ import annotations

import itertools
from ipaddress import ip_address

import pytest

from punchd.attempt.machine import State
from punchd.attempt.moves import (
    Arrived,
    Begin,
    Deliver,
    Failed,
    Ignored,
    StartTechnique,
    StopTechnique,
    Trying,
)
from punchd.attempt.transitions import TRANSITIONS, Cue
from punchd.errors import Code
from punchd.wire.token import MAX_COUNTER, Kind, encode
from tests.unit.machine_parts import (
    FOREIGN,
    A,
    B,
    card,
    give,
    in_state,
    initiator,
    only,
    relayed,
    responder,
    snapshot,
    token,
)

UNSPECIFIED = "0.0.0.0"  # noqa: S104 (an address that is not known, nothing is bound to it)

# --- the gate ------------------------------------------------------------------------------------------------------

LEADING, FOLLOWING = State.ANSWERED, State.ARMED


@pytest.mark.parametrize(
    ("state", "what", "why"),
    [
        (LEADING, token(Kind.ANSWER, nonce=FOREIGN), Code.BAD_TOKEN),
        (LEADING, token(Kind.ABORT, nonce=FOREIGN), Code.BAD_TOKEN),
        (LEADING, token(Kind.OFFER, 2), Code.BAD_TOKEN),
        (FOLLOWING, token(Kind.ANSWER), Code.BAD_TOKEN),
        (FOLLOWING, token(Kind.SKIP), Code.BAD_TOKEN),
        (LEADING, token(Kind.NOTE, technique=1, counter=9), Code.BAD_TOKEN),
        (LEADING, token(Kind.NOTE, counter=9, address="198.51.100.10"), Code.TOKEN_MISMATCH),
        (LEADING, token(Kind.NOTE, counter=9, address="2001:db8::1"), Code.TOKEN_MISMATCH),
        (LEADING, token(Kind.NOTE, counter=9, address="::"), Code.TOKEN_MISMATCH),
        (FOLLOWING, token(Kind.OFFER, 2, address=B), Code.TOKEN_MISMATCH),
        (FOLLOWING, token(Kind.OFFER, 2, address=UNSPECIFIED), Code.TOKEN_MISMATCH),
        (FOLLOWING, token(Kind.NOTE, counter=9, address=UNSPECIFIED), Code.TOKEN_MISMATCH),
        (FOLLOWING, token(Kind.OFFER, 1), Code.STALE),
        (LEADING, token(Kind.ANSWER), Code.STALE),
        (LEADING, token(Kind.ANSWER, 2), Code.STALE),
        (LEADING, token(Kind.SKIP, 2), Code.STALE),
        (State.PREPARING, token(Kind.ANSWER), Code.STALE),
        (State.WAITING, token(Kind.NOTE, counter=1, address=A), Code.STALE),
    ],
)
def test_a_token_that_does_not_fit_is_ignored_and_changes_nothing(state: State, what: object, why: Code) -> None:
    machine = in_state(state)
    before = snapshot(machine)
    assert machine.handle(Arrived(what), 0) == [Ignored(1, "udp", why)]  # type: ignore[arg-type]
    assert snapshot(machine) == before


def test_a_responder_that_is_still_asking_may_leave_its_address_out() -> None:
    machine = in_state(State.OFFERED)
    unknown = token(Kind.ANSWER, address=UNSPECIFIED)
    assert machine.handle(Arrived(unknown), 0) == [Deliver(card(ip_address(UNSPECIFIED)))]


def test_an_ignored_token_before_the_beginning_names_the_first_technique() -> None:
    assert initiator("udp").handle(Arrived(token(Kind.ANSWER)), 0) == [Ignored(1, "udp", Code.STALE)]
    assert responder(2).handle(Arrived(token(Kind.OFFER, 1, 2)), 0) == [Ignored(1, "tcp-nutss", Code.STALE)]


def test_a_higher_offer_that_comes_before_the_beginning_is_the_one_that_is_followed() -> None:
    machine = responder(3)
    assert machine.handle(Arrived(token(Kind.OFFER, 2, 1)), 0) == []
    assert only(machine.handle(Begin(), 0), Trying) == [Trying(2, "tcp-syni")]


def test_an_offer_with_a_higher_round_supersedes() -> None:
    machine = in_state(State.ARMED)
    assert machine.handle(Arrived(token(Kind.OFFER, 5, 1)), 0) == [
        StopTechnique(),
        Failed(1, "udp", Code.SUPERSEDED, "the initiator went on to round 5"),
        Trying(5, "tcp-syni"),
        StartTechnique(5, "tcp-syni", card(A, technique=1)),
    ]


def test_nothing_is_said_after_the_verdict() -> None:
    for state, cue in itertools.product([State.ENDED], Cue):
        assert give(in_state(state), cue) == []


# --- notes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [State.OFFERED, State.ARMED])
def test_notes_are_counted_to_the_limit_and_then_left_out(state: State) -> None:
    machine = in_state(state)
    counters = [note.counter for _ in range(300) for note in relayed(give(machine, Cue.SAID))]
    assert counters == list(range(1, MAX_COUNTER + 1))


def test_each_round_counts_its_notes_anew() -> None:
    machine = in_state(State.ARMED)
    give(machine, Cue.SAID)
    give(machine, Cue.ANSWER)
    give(machine, Cue.OFFER, technique=3)
    assert [answer.kind for answer in relayed(give(machine, Cue.SAID))] == [Kind.ANSWER]
    assert [note.counter for note in relayed(give(machine, Cue.SAID))] == [1]
    note = token(Kind.NOTE, 2, counter=1, address=A)
    assert machine.handle(Arrived(note), 0) == [Deliver(card(A))]


def test_a_note_that_overtakes_the_answer_stands_for_it() -> None:
    machine = in_state(State.OFFERED)
    assert machine.handle(Arrived(token(Kind.NOTE, counter=2)), 1.0) == [Deliver(card(B))]
    assert machine.state is State.ANSWERED
    assert machine.next_timeout() == 2.0
    for late in (token(Kind.ANSWER), token(Kind.NOTE, counter=1), token(Kind.NOTE, counter=2)):
        assert machine.handle(Arrived(late), 1.0) == [Ignored(1, "udp", Code.STALE)]
    assert machine.handle(Arrived(token(Kind.NOTE, counter=3)), 1.0) == [Deliver(card(B))]


def test_whatever_a_machine_relays_can_be_written_as_a_token() -> None:
    count = 0
    for state, cue in TRANSITIONS:
        for machine in (in_state(state, leads=True), in_state(state, leads=False)):
            for said in relayed(give(machine, cue)):
                assert encode(said)
                count += 1
    assert count > 20
