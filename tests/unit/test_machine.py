"""The attempt machine, row by row, and then what the rows say and when."""

from __future__ import annotations

import itertools

import pytest

from punchd.attempt.machine import Machine, Plan, State
from punchd.attempt.moves import (
    Arrived,
    Begin,
    Broke,
    Cancelled,
    Deliver,
    Event,
    Fail,
    Failed,
    Holed,
    Ignored,
    Relay,
    Said,
    ShutDown,
    StartTechnique,
    StopTechnique,
    Succeed,
    Trying,
    Vanished,
)
from punchd.attempt.transitions import TRANSITIONS, Cue
from punchd.errors import Code
from punchd.wire.token import Farewell, Kind
from tests.unit.machine_parts import (
    LOCAL,
    NONCE,
    REMOTE,
    UNKNOWN,
    A,
    B,
    card,
    give,
    in_state,
    initiator,
    only,
    own_card,
    relayed,
    responder,
    snapshot,
    token,
)

# --- the rows ------------------------------------------------------------------------------------------------------


def situations(state: State) -> list[Machine]:
    """Machines in that state that differ in what decides where a row leads."""
    found = [in_state(state, leads=leads, rounds_left=left) for leads in (True, False) for left in (0, 1)]
    if state is State.NEW:
        found.append(responder(UNKNOWN))
    return found


@pytest.mark.parametrize(("state", "cue"), TRANSITIONS, ids=lambda value: value.name)
def test_a_row_leads_to_every_state_that_it_names_and_to_no_other(state: State, cue: Cue) -> None:
    reached = set()
    for technique in (1, UNKNOWN):
        for machine in situations(state):
            if not any(isinstance(action, Ignored) for action in give(machine, cue, technique=technique)):
                reached.add(machine.state)
    assert reached == TRANSITIONS[state, cue][1]


UNLISTED = [key for key in itertools.product(State, Cue) if key not in TRANSITIONS]


@pytest.mark.parametrize(("state", "cue"), UNLISTED, ids=lambda value: value.name)
def test_what_no_row_names_changes_nothing(state: State, cue: Cue) -> None:
    for machine in situations(state):
        before = snapshot(machine)
        actions = give(machine, cue)
        assert actions == only(actions, Ignored)
        assert snapshot(machine) == before


def test_every_method_of_the_table_exists_and_every_state_can_be_reached() -> None:
    assert all(callable(getattr(Machine, method, None)) for method, _ in TRANSITIONS.values())
    assert set().union(*(after for _, after in TRANSITIONS.values())) == set(State)


def test_a_plan_is_for_one_side() -> None:
    with pytest.raises(ValueError, match="offer"):
        Machine(Plan(NONCE, B, 30))
    with pytest.raises(ValueError, match="offer"):
        Machine(Plan(NONCE, B, 30, techniques=(("udp", 3),), first_offer=token(Kind.OFFER)))


# --- an attempt from end to end ------------------------------------------------------------------------------------


def test_an_initiator_offers_hears_and_succeeds() -> None:
    machine = initiator("udp")
    assert machine.handle(Begin(), 0) == [Trying(1, "udp"), StartTechnique(1, "udp", None)]
    assert relayed(machine.handle(Said(card()), 0.1)) == [token(Kind.OFFER)]
    assert machine.handle(Arrived(token(Kind.ANSWER)), 0.2) == [Deliver(card(B))]
    assert machine.handle(Holed(LOCAL, REMOTE), 0.3) == [Succeed(1, "udp", LOCAL, REMOTE)]
    assert machine.next_timeout() is None


def test_a_responder_answers_and_succeeds() -> None:
    machine = responder()
    assert machine.handle(Begin(), 0) == [Trying(1, "udp"), StartTechnique(1, "udp", card(A))]
    assert relayed(machine.handle(Said(card(B)), 0)) == [token(Kind.ANSWER)]
    assert machine.handle(Holed(LOCAL, REMOTE), 0.3) == [Succeed(1, "udp", LOCAL, REMOTE)]


def test_exhausted_names_the_reason_of_each_round_and_the_last_explanation() -> None:
    machine = initiator("tcp-syni", "tcp-nutss", "udp")
    machine.handle(Begin(), 0)
    machine.handle(Broke(Code.NO_PRIVILEGE, "needs CAP_NET_RAW"), 0)
    machine.handle(Said(card(technique=2)), 0)
    machine.handle(Arrived(token(Kind.SKIP, 2, 2)), 0)
    machine.handle(Said(card()), 0)
    machine.explain("no datagram came")
    actions = machine.handle_timeout(6.0)
    assert actions == [
        Failed(3, "udp", Code.TIMEOUT, "no answer token came back; no datagram came"),
        StopTechnique(),
        Relay(3, "udp", token(Kind.ABORT, 3, farewell=Farewell.EXHAUSTED)),
        Fail(
            Code.EXHAUSTED,
            "no technique succeeded: tcp-syni no-privilege, tcp-nutss peer-skip, udp timeout; no datagram came",
        ),
    ]


def test_an_explanation_belongs_to_its_round() -> None:
    machine = in_state(State.OFFERED)
    machine.explain("no datagram came")
    assert only(give(machine, Cue.BROKE), Failed)[0].text == "no route; no datagram came"
    assert only(give(machine, Cue.BROKE), Failed)[0].text == "no route"


def test_the_verdict_repeats_what_broke_the_last_technique() -> None:
    machine = in_state(State.OFFERED, rounds_left=0)
    machine.explain("no datagram came")
    actions = give(machine, Cue.BROKE)
    assert only(actions, Failed)[0].text == "no route; no datagram came"
    assert only(actions, Fail)[0].text.endswith("; no route; no datagram came")


def test_a_responder_whose_peer_gives_up_says_what_it_saw_itself() -> None:
    machine = in_state(State.ARMED, leads=False)
    machine.explain("no datagram came")
    [verdict] = only(machine.handle(Arrived(token(Kind.ABORT, farewell=Farewell.EXHAUSTED)), 1), Fail)
    assert verdict.text == "the other side gave up: it had no technique left; here: no datagram came"


# --- time ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own_ms", "peer_ms", "budget_s"),
    [
        (1, 1, 1.0),
        (40, 43, 1.0),
        (50, 50, 1.1),
        (100, 200, 2.3),
        (458, 458, 5.996),
        (500, 500, 6.0),
        (9999, 9, 6.0),
        (0, 20, 6.0),
        (20, 0, 6.0),
        (0, 0, 6.0),
    ],
)
def test_from_the_answer_on_a_round_gets_six_round_trips_and_a_half_second(
    own_ms: int, peer_ms: int, budget_s: float
) -> None:
    machine = initiator("udp")
    machine.handle(Begin(), 0)
    machine.handle(Said(card(rtt_ms=own_ms)), 1.0)
    machine.handle(Arrived(token(Kind.ANSWER, rtt_ms=peer_ms)), 3.0)
    assert machine.next_timeout() == pytest.approx(3.0 + budget_s)


def test_without_an_answer_a_round_ends_six_seconds_after_its_offer() -> None:
    machine = in_state(State.OFFERED, now=2.0)
    assert machine.next_timeout() == 8.0


def test_a_late_answer_still_gets_its_whole_budget() -> None:
    machine = in_state(State.OFFERED)
    give(machine, Cue.ANSWER, now=5.9)
    assert machine.next_timeout() == pytest.approx(6.9)


def test_a_note_does_not_lengthen_a_round() -> None:
    machine = in_state(State.ANSWERED)
    give(machine, Cue.ANSWER, now=0.9)
    assert machine.next_timeout() == 1.0


def test_preparation_ends_after_two_seconds_or_with_the_rounds_share() -> None:
    assert in_state(State.PREPARING, now=1.0).next_timeout() == 3.0
    hurried = initiator("udp", "tcp-syni", timeout_s=1.0)
    hurried.handle(Begin(), 0)
    assert hurried.next_timeout() == 0.5


def test_each_round_gets_its_share_of_what_is_left() -> None:
    machine = initiator("udp", "tcp-syni", "tcp-nutss", timeout_s=9.0)
    machine.handle(Begin(), 0)
    machine.handle(Said(own_card(machine)), 0.5)
    assert machine.next_timeout() == 3.0  # 9 / 3
    machine.handle(Arrived(token(Kind.SKIP)), 1.0)
    machine.handle(Said(own_card(machine)), 1.0)
    assert machine.next_timeout() == 5.0  # 1 + 8 / 2
    machine.handle(Arrived(token(Kind.ANSWER, 2, 1, rtt_ms=0)), 4.0)
    assert machine.next_timeout() == 5.0
    machine.handle_timeout(5.0)
    machine.handle(Said(own_card(machine)), 5.0)
    assert machine.next_timeout() == 9.0  # the last one gets the rest


def test_a_responder_outlives_the_slowest_initiator_by_two_seconds_from_the_offer_and_from_its_answer() -> None:
    machine = responder()
    machine.handle(Begin(), 10.0)
    assert machine.next_timeout() == 18.0
    machine.handle(Said(card(B)), 12.0)
    assert machine.next_timeout() == 20.0
    assert machine.handle_timeout(20.0) == [
        StopTechnique(),
        Failed(1, "udp", Code.TIMEOUT, "the initiator's round is over"),
    ]
    assert machine.next_timeout() == 110.0


@pytest.mark.parametrize("state", [state for state in State if state not in (State.NEW, State.ENDED)])
def test_time_that_is_not_over_changes_nothing(state: State) -> None:
    machine = in_state(state)
    before = snapshot(machine)
    due_s = machine.next_timeout()
    assert due_s is not None
    assert machine.handle_timeout(due_s - 0.001) == []
    assert snapshot(machine) == before


def test_when_the_attempts_time_is_over_its_text_names_every_round() -> None:
    machine = initiator("tcp-syni", "udp", timeout_s=5.0)
    machine.handle(Begin(), 0)
    machine.handle(Broke(Code.REFUSED, "RST"), 0)
    machine.handle(Said(card()), 0)
    actions = machine.handle_timeout(5.0)
    assert relayed(actions) == [token(Kind.ABORT, 2, farewell=Farewell.TIMEOUT)]
    assert actions[-1] == Fail(Code.TIMEOUT, "5 s are over: tcp-syni refused, udp timeout")


# --- skips, aborts, cancels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("farewell", "text"),
    [
        (Farewell.NO_PRIVILEGE, "the other side skips it: its daemon lacks the privilege"),
        (Farewell.UNSUPPORTED, "the other side skips it: it cannot do this technique"),
        (Farewell.NOT_AGREED, "the other side skips it: its application does not agree to this technique"),
    ],
)
def test_a_skip_starts_the_next_round_at_once(farewell: Farewell, text: str) -> None:
    machine = in_state(State.OFFERED)
    actions = machine.handle(Arrived(token(Kind.SKIP, farewell=farewell)), 0.1)
    assert actions == [
        StopTechnique(),
        Failed(1, "udp", Code.PEER_SKIP, text),
        Trying(2, "tcp-syni"),
        StartTechnique(2, "tcp-syni", None),
    ]


@pytest.mark.parametrize("state", [State.STARTING, State.ARMED])
@pytest.mark.parametrize(
    ("reason", "farewell"),
    [(Code.NO_PRIVILEGE, Farewell.NO_PRIVILEGE), (Code.NETWORK, Farewell.UNSUPPORTED)],
)
def test_a_responder_whose_technique_breaks_skips_the_round(state: State, reason: Code, farewell: Farewell) -> None:
    machine = in_state(state)
    actions = machine.handle(Broke(reason, "why"), 0)
    assert actions == [
        StopTechnique(),
        Relay(1, "udp", token(Kind.SKIP, farewell=farewell)),
        Failed(1, "udp", reason, "why"),
    ]


@pytest.mark.parametrize(
    ("machine", "farewell", "name", "text"),
    [
        (responder(UNKNOWN), Farewell.UNSUPPORTED, f"technique-{UNKNOWN}", "it cannot do this technique"),
        (
            responder(agreed=frozenset({"tcp-syni"})),
            Farewell.NOT_AGREED,
            "udp",
            "this application does not agree to this technique",
        ),
    ],
    ids=["unknown", "not agreed"],
)
def test_a_responder_skips_what_it_may_not_do(machine: Machine, farewell: Farewell, name: str, text: str) -> None:
    actions = machine.handle(Begin(), 0)
    assert [skip.farewell for skip in relayed(actions)] == [farewell]
    assert only(actions, Failed) == [Failed(1, name, Code.UNSUPPORTED, text)]
    assert machine.state is State.WAITING


@pytest.mark.parametrize("farewell", Farewell)
def test_an_abort_of_the_peer_ends_the_attempt_without_an_answer(farewell: Farewell) -> None:
    machine = in_state(State.OFFERED)
    actions = machine.handle(Arrived(token(Kind.ABORT, 7, 1, farewell=farewell)), 0)
    assert relayed(actions) == []
    verdict = only(actions, Fail)[0]
    assert verdict.code is Code.PEER_ABORT
    assert verdict.text.startswith("the other side gave up: it")


KNOWS_OF_IT = {State.OFFERED, State.ANSWERED, State.STARTING, State.ARMED, State.WAITING}


@pytest.mark.parametrize("state", [state for state in State if state is not State.ENDED])
@pytest.mark.parametrize(
    ("event", "code", "text"),
    [
        (Cancelled(), Code.CANCELLED, "cancelled by the application"),
        (ShutDown(), Code.SHUTDOWN, "punchd is stopping"),
    ],
)
def test_an_end_from_this_side_is_told_to_a_peer_that_may_know_of_the_attempt(
    state: State, event: Event, code: Code, text: str
) -> None:
    machine = in_state(state)
    actions = machine.handle(event, 0)
    aborts = [token(Kind.ABORT, farewell=Farewell.CANCELLED)] if state in KNOWS_OF_IT else []
    assert relayed(actions) == aborts
    assert actions[-1] == Fail(code, text)
    assert actions[0] == StopTechnique()


def test_an_initiator_in_a_later_round_tells_of_its_end_although_this_round_was_never_offered() -> None:
    machine = in_state(State.OFFERED)
    give(machine, Cue.BROKE)
    assert machine.state is State.PREPARING
    assert [abort.kind for abort in relayed(give(machine, Cue.CANCELLED))] == [Kind.ABORT]


@pytest.mark.parametrize("state", [state for state in State if state is not State.ENDED])
def test_nobody_is_left_to_relay_an_abort_when_the_application_is_gone(state: State) -> None:
    actions = in_state(state).handle(Vanished(), 0)
    assert actions == [StopTechnique(), Fail(Code.CANCELLED, "the application is gone")]
