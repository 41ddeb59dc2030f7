"""The attempt machine's table: in which state what may happen, which method answers it, and where that may lead.

Transitions are data, so that a test can walk all of them and docs/attempt-machine.md is drawn from what runs.

States, and what is known in each:

    NEW         nothing has been sent
    PREPARING   initiator: the technique learns its own ports and opens its NAT; the peer knows nothing of the round
    OFFERED     initiator: the offer was handed out; whether the responder ever saw it is unknown
    ANSWERED    initiator: the responder is armed; the round trips of both sides are known, so the budget is, too
    STARTING    responder: the technique runs, it has told nothing yet
    ARMED       responder: the answer was handed out
    WAITING     responder: its round is over, the initiator decides what comes
    ENDED       exactly one verdict was given; nothing more is said

Source: line protocol §3, §4, §10.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto


class State(Enum):
    NEW = auto()
    PREPARING = auto()
    OFFERED = auto()
    ANSWERED = auto()
    STARTING = auto()
    ARMED = auto()
    WAITING = auto()
    ENDED = auto()


class Cue(Enum):
    """What happened, as far as the table cares: events, with tokens by kind, and time."""

    BEGIN = auto()
    OFFER = auto()
    ANSWER = auto()  # an answer, or a note that overtook it
    SKIP = auto()
    ABORT = auto()
    SAID = auto()
    HOLED = auto()
    BROKE = auto()
    ROUND_OVER = auto()
    ATTEMPT_OVER = auto()
    CANCELLED = auto()
    VANISHED = auto()
    SHUT_DOWN = auto()


# (state, cue) -> (method, states it may lead to). Whatever is not listed changes nothing.
_LEADING = {State.PREPARING, State.ENDED}
TRANSITIONS: Mapping[tuple[State, Cue], tuple[str, frozenset[State]]] = {
    key: (method, frozenset(after))
    for key, method, after in (
        ((State.NEW, Cue.BEGIN), "_begin", {State.PREPARING, State.STARTING, State.WAITING}),
        ((State.NEW, Cue.OFFER), "_prefer", {State.NEW}),
        # the initiator leads
        ((State.PREPARING, Cue.SAID), "_offer", {State.OFFERED}),
        ((State.PREPARING, Cue.BROKE), "_give_round_up", _LEADING),
        ((State.PREPARING, Cue.ROUND_OVER), "_run_out_unprepared", _LEADING),
        ((State.OFFERED, Cue.SAID), "_note", {State.OFFERED}),
        ((State.OFFERED, Cue.ANSWER), "_hear_answer", {State.ANSWERED}),
        ((State.OFFERED, Cue.SKIP), "_be_skipped", _LEADING),
        ((State.OFFERED, Cue.HOLED), "_succeed", {State.ENDED}),
        ((State.OFFERED, Cue.BROKE), "_give_round_up", _LEADING),
        ((State.OFFERED, Cue.ROUND_OVER), "_run_out", _LEADING),
        ((State.ANSWERED, Cue.SAID), "_note", {State.ANSWERED}),
        ((State.ANSWERED, Cue.ANSWER), "_hear_note", {State.ANSWERED}),
        ((State.ANSWERED, Cue.SKIP), "_be_skipped", _LEADING),
        ((State.ANSWERED, Cue.HOLED), "_succeed", {State.ENDED}),
        ((State.ANSWERED, Cue.BROKE), "_give_round_up", _LEADING),
        ((State.ANSWERED, Cue.ROUND_OVER), "_run_out", _LEADING),
        # the responder follows
        ((State.STARTING, Cue.SAID), "_answer", {State.ARMED}),
        ((State.STARTING, Cue.OFFER), "_be_superseded", {State.STARTING, State.WAITING}),
        ((State.STARTING, Cue.ANSWER), "_hear_note", {State.STARTING}),
        ((State.STARTING, Cue.HOLED), "_succeed", {State.ENDED}),
        ((State.STARTING, Cue.BROKE), "_skip", {State.WAITING}),
        ((State.STARTING, Cue.ROUND_OVER), "_pause", {State.WAITING}),
        ((State.ARMED, Cue.SAID), "_note", {State.ARMED}),
        ((State.ARMED, Cue.OFFER), "_be_superseded", {State.STARTING, State.WAITING}),
        ((State.ARMED, Cue.ANSWER), "_hear_note", {State.ARMED}),
        ((State.ARMED, Cue.HOLED), "_succeed", {State.ENDED}),
        ((State.ARMED, Cue.BROKE), "_skip", {State.WAITING}),
        ((State.ARMED, Cue.ROUND_OVER), "_pause", {State.WAITING}),
        ((State.WAITING, Cue.OFFER), "_follow", {State.STARTING, State.WAITING}),
        # ends that are the same everywhere
        *(
            ((state, cue), method, {State.ENDED})
            for state in State
            for cue, method in (
                (Cue.ABORT, "_be_aborted"),
                (Cue.ATTEMPT_OVER, "_time_out"),
                (Cue.CANCELLED, "_be_cancelled"),
                (Cue.VANISHED, "_vanish"),
                (Cue.SHUT_DOWN, "_shut_down"),
            )
            # an attempt's time starts when it begins
            if state is not State.ENDED and (state, cue) != (State.NEW, Cue.ATTEMPT_OVER)
        ),
    )
}
