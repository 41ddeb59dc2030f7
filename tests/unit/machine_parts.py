"""What the tests of the attempt machine share: machines in every state, events for every cue, and snapshots."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from typing import TypeVar

from punchd.attempt.machine import Machine, Plan, State
from punchd.attempt.moves import (
    Action,
    Arrived,
    Begin,
    Broke,
    Cancelled,
    Event,
    Holed,
    Relay,
    Said,
    ShutDown,
    Vanished,
)
from punchd.attempt.transitions import Cue
from punchd.endpoint import Endpoint, PortSet
from punchd.errors import Code
from punchd.wire.token import _BODY_SIZES, Card, Farewell, Kind, Token

NONCE = b"attempt1"
FOREIGN = b"attempt2"
A = ip_address("203.0.113.1")  # the initiator's public address
B = ip_address("198.51.100.9")  # the responder's
NUMBERS = {"tcp-syni": 1, "tcp-nutss": 2, "udp": 3, "tcp-repair": 4}
UNKNOWN = 200  # the number of a technique that the responder lacks
LOCAL, REMOTE = Endpoint(A, 5001), Endpoint(B, 5002)
LATER_S = 1000.0  # after any deadline

ActionT = TypeVar("ActionT")


def card(address: object = None, *, rtt_ms: int = 20, technique: int = 3, port: int = 5000) -> Card:
    """What a side tells; by default the initiator's."""
    body = bytes(_BODY_SIZES.get(technique, 0))
    return Card(ip_address(str(address or A)), PortSet((port,)), rtt_ms=rtt_ms, body=body)


def token(
    kind: Kind,
    round_number: int = 1,
    technique: int = 3,
    *,
    nonce: bytes = NONCE,
    counter: int = 0,
    address: object = None,
    rtt_ms: int = 20,
    farewell: Farewell = Farewell.UNSUPPORTED,
) -> Token:
    """By default what its usual sender would send: offers from A, answers from B."""
    if kind in (Kind.SKIP, Kind.ABORT):
        return Token(kind, nonce, round_number, technique, farewell=farewell)
    sender = address or (A if kind is Kind.OFFER else B)
    return Token(
        kind, nonce, round_number, technique, card=card(sender, rtt_ms=rtt_ms, technique=technique), counter=counter
    )


def initiator(*names: str, timeout_s: float = 100.0) -> Machine:
    techniques = tuple((name, NUMBERS[name]) for name in names or ("udp",))
    return Machine(Plan(NONCE, B, timeout_s, techniques=techniques))


def responder(
    technique: int = 3, *, timeout_s: float = 100.0, agreed: frozenset[str] | None = None, round_number: int = 1
) -> Machine:
    known: Mapping[int, str] = {number: name for name, number in NUMBERS.items()}
    offer = token(Kind.OFFER, round_number, technique)
    return Machine(Plan(NONCE, A, timeout_s, known=known, agreed=agreed, first_offer=offer))


def own_card(machine: Machine, rtt_ms: int = 20) -> Card:
    technique = machine._technique_number
    return card(A if machine.is_initiator else B, rtt_ms=rtt_ms, technique=technique)


def in_state(state: State, *, leads: bool = True, rounds_left: int = 1, now: float = 0.0) -> Machine:
    """A machine in that state; `leads` chooses the side where both have the state."""
    names = ("udp", *("tcp-syni",) * rounds_left)
    leads = leads if state in (State.NEW, State.ENDED) else state in (State.PREPARING, State.OFFERED, State.ANSWERED)
    machine = initiator(*names) if leads else responder()
    if state is State.NEW:
        return machine
    machine.handle(Begin(), now)
    match state:
        case State.OFFERED:
            machine.handle(Said(own_card(machine)), now)
        case State.ANSWERED:
            machine.handle(Said(own_card(machine)), now)
            machine.handle(Arrived(token(Kind.ANSWER)), now)
        case State.ARMED:
            machine.handle(Said(own_card(machine)), now)
        case State.WAITING:
            machine.handle(Broke(Code.NETWORK, "no route"), now)
        case State.ENDED:
            machine.handle(Cancelled(), now)
        case _:
            pass
    assert machine.state is state
    return machine


def give(machine: Machine, cue: Cue, *, now: float = 0.0, technique: int = 1) -> list[Action]:
    """Let that happen; offers are for the next round and for `technique`, cards are newer than all before."""
    counter = machine._heard + 1
    kind = Kind.NOTE if counter or not machine.is_initiator else Kind.ANSWER
    sender = B if machine.is_initiator else A
    here = (machine.round, machine._technique_number)
    events: dict[Cue, Event] = {
        Cue.BEGIN: Begin(),
        Cue.OFFER: Arrived(token(Kind.OFFER, machine.round + 1, technique)),
        Cue.ANSWER: Arrived(token(kind, *here, counter=max(counter, int(kind is Kind.NOTE)), address=sender)),
        Cue.SKIP: Arrived(token(Kind.SKIP, *here)),
        Cue.ABORT: Arrived(token(Kind.ABORT, *here, farewell=Farewell.CANCELLED)),
        Cue.SAID: Said(own_card(machine)),
        Cue.HOLED: Holed(LOCAL, REMOTE),
        Cue.BROKE: Broke(Code.NETWORK, "no route"),
        Cue.CANCELLED: Cancelled(),
        Cue.VANISHED: Vanished(),
        Cue.SHUT_DOWN: ShutDown(),
    }
    if cue is Cue.ATTEMPT_OVER:
        return machine.handle_timeout(LATER_S)
    if cue is Cue.ROUND_OVER:
        return machine.handle_timeout(now if machine._round_deadline is None else machine._round_deadline)
    return machine.handle(events[cue], now)


def snapshot(machine: Machine) -> dict[str, object]:
    """Everything a machine knows, for comparison."""
    return {name: list(value) if isinstance(value, list) else value for name, value in vars(machine).items()}


def only(actions: list[Action], kind: type[ActionT]) -> list[ActionT]:
    return [action for action in actions if isinstance(action, kind)]


def relayed(actions: list[Action]) -> list[Token]:
    return [action.token for action in only(actions, Relay)]
