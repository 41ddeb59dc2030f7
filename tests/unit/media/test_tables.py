"""Both machines, row by row of their tables."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from punchd.media import initiator as initiator_module
from punchd.media import responder as responder_module
from punchd.media.datagrams import Ack, ConnectionId, Control, Start, Syn, SynAck
from punchd.media.initiator import Initiator
from punchd.media.links import State as LinkState
from punchd.media.responder import Responder
from punchd.media.settings import ResponderSettings, Timing
from tests.unit.media.parts import PEER, A, B, C, established, initiator, opened, responder, tell

Asking, AskingCue = initiator_module.State, initiator_module.Cue
AnsweringCue = responder_module.Cue


# --- the initiator ---------------------------------------------------------------------------------------------------


def asking_in(state: initiator_module.State, **more: object) -> Initiator:
    if state is Asking.ESTABLISHED:
        return established(A, **more)[0]
    machine, _ = initiator(A, **more)
    if state is not Asking.IDLE:
        machine.open(0.0)
    if state is Asking.IDENTIFIED:
        machine.handle(PEER, ConnectionId(B), 0.0)
    if state is Asking.ENDED:
        machine.close(0.0)
    return machine


def give_asking(machine: Initiator, cue: initiator_module.Cue) -> None:
    datagrams: dict[initiator_module.Cue, Control] = {
        AskingCue.ACCEPTED: SynAck(True, C),
        AskingCue.REFUSED: SynAck(False, b""),
        AskingCue.SYN: Syn(B),
        AskingCue.CONNECTION_ID: ConnectionId(C),
    }
    wishes: dict[initiator_module.Cue, Callable[[], object]] = {
        AskingCue.OPEN: lambda: machine.open(0.0),
        AskingCue.CLOSE: lambda: machine.close(0.0),
        AskingCue.REIDENTIFY: lambda: machine.reidentify(C, 0.0),
    }
    if cue in datagrams:
        machine.handle(PEER, datagrams[cue], 0.0)
    elif cue in wishes:
        wishes[cue]()
    else:
        machine._step(cue, None, 0.0)


@pytest.mark.parametrize(("state", "cue"), initiator_module.TRANSITIONS, ids=lambda value: value.name)
def test_a_row_of_the_initiator_leads_to_every_state_that_it_names(
    state: initiator_module.State, cue: initiator_module.Cue
) -> None:
    reached = set()
    for more in ({}, {"may_yield": True}, {"timing": Timing(tries=1)}):
        machine = asking_in(state, **more)
        give_asking(machine, cue)
        reached.add(machine.state)
    if state in (Asking.IDENTIFIED, Asking.ASKING):  # what happens beyond the limit of flushes
        machine = asking_in(state)
        machine._flushes._tokens = 0.0
        give_asking(machine, cue)
        reached.add(machine.state)
    assert reached == initiator_module.TRANSITIONS[state, cue][1]


@pytest.mark.parametrize(
    ("state", "cue"),
    [key for key in itertools.product(Asking, AskingCue) if key not in initiator_module.TRANSITIONS],
    ids=lambda value: value.name,
)
def test_what_no_row_of_the_initiator_names_changes_nothing(
    state: initiator_module.State, cue: initiator_module.Cue
) -> None:
    machine = asking_in(state)
    before = (machine.state, machine.id, machine.assigned, dict(machine._timers))
    give_asking(machine, cue)
    assert (machine.state, machine.id, machine.assigned, dict(machine._timers)) == before


# --- the responder ---------------------------------------------------------------------------------------------------


def answering_in(state: LinkState, settings: ResponderSettings | None = None) -> Responder:
    if state is LinkState.OPEN:
        return opened(settings)[0]
    machine, _ = responder(settings)
    if state is LinkState.HALF_OPEN:
        tell(machine, Syn(A))
    return machine


def link_state(machine: Responder) -> LinkState:
    link = machine.links.get(PEER)
    return LinkState.ABSENT if link is None else link.state


def give_answering(machine: Responder, cue: responder_module.Cue, *, other: bool, now: float) -> None:
    id_ = B if other else A
    datagrams: dict[responder_module.Cue, Control] = {
        AnsweringCue.SYN: Syn(id_),
        AnsweringCue.ACK: Ack(id_),
        AnsweringCue.CONNECTION_ID: ConnectionId(id_),
        AnsweringCue.START: Start(),
    }
    if cue in datagrams:
        tell(machine, datagrams[cue], now)
    elif cue is AnsweringCue.REIDENTIFY:
        machine.reidentify(PEER, id_, now)
    elif cue is AnsweringCue.CLOSE:
        machine.close(PEER, now)
    else:
        machine._step(PEER, cue, None, now)


@pytest.mark.parametrize(("state", "cue"), responder_module.TRANSITIONS, ids=lambda value: value.name)
def test_a_row_of_the_responder_leads_to_every_state_that_it_names(state: LinkState, cue: responder_module.Cue) -> None:
    reached = set()
    for settings, other, now in itertools.product((None, ResponderSettings(max_open=0)), (False, True), (0.0, 1e6)):
        machine = answering_in(state, None if state is LinkState.OPEN else settings)
        if state is LinkState.HALF_OPEN and settings is not None:
            machine = answering_in(state)
            machine.settings = settings
        give_answering(machine, cue, other=other, now=now)
        reached.add(link_state(machine))
    assert reached == responder_module.TRANSITIONS[state, cue][1]


@pytest.mark.parametrize(
    ("state", "cue"),
    [key for key in itertools.product(LinkState, AnsweringCue) if key not in responder_module.TRANSITIONS],
    ids=lambda value: value.name,
)
def test_what_no_row_of_the_responder_names_changes_nothing(state: LinkState, cue: responder_module.Cue) -> None:
    machine = answering_in(state)
    deadline = machine.next_timeout()
    give_answering(machine, cue, other=True, now=0.0)
    assert link_state(machine) is state
    assert machine.next_timeout() == deadline


def test_every_state_but_the_first_can_be_reached_and_every_one_but_the_last_left() -> None:
    asked = initiator_module.TRANSITIONS
    assert {after for _, states in asked.values() for after in states} == set(Asking) - {Asking.IDLE}
    assert {state for state, _ in asked} == set(Asking) - {Asking.ENDED}
    answered = responder_module.TRANSITIONS
    assert {state for state, _ in answered} == {after for _, states in answered.values() for after in states}
