"""A stream: who of its pair is registered, and how far the two are.

    phase      what is known
    EMPTY      nobody is registered
    ALONE      one peer is
    READY      both are and were told of each other: a match round; neither says that SRT is connected
    CONNECTED  at least one of them says so
    CLOSED     the session is

The world is told WAITING for EMPTY and ALONE. A stream goes back as its peers leave; a session does not.

A round is both registrations. It begins when the pair becomes complete, and again when one of the two registers anew
with something changed: what they had said of being ready, and of SRT, was about the round before.

Source: broker specification §2.2, B-007, B-058, C-09, C-18, C-20, C-22, C-24, C-25.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from punchd.broker.health import Sample
from punchd.broker.messages import Light, Register, Srt
from punchd.broker.names import PEERS_PER_STREAM
from punchd.broker.server_messages import State
from punchd.endpoint import Endpoint, IPAddress


class Phase(Enum):
    """See above."""

    EMPTY = "empty"
    ALONE = "alone"
    READY = "ready"
    CONNECTED = "connected"
    CLOSED = "closed"


class Cue(Enum):
    """What happens to a stream."""

    JOINED = "a peer registers"
    CHANGED = "a peer of it registers anew"
    LEFT = "a peer of it leaves"
    BOTH_READY = "both are ready"
    CONNECTED = "one of the two says connected"
    UNCONNECTED = "none of the two says connected any more"
    ENDED = "the session closes"


# What is not here is refused, and changes nothing: a third peer, `ready` and `status` without a match.
TRANSITIONS: Mapping[tuple[Phase, Cue], Phase] = {
    (Phase.EMPTY, Cue.JOINED): Phase.ALONE,
    (Phase.ALONE, Cue.JOINED): Phase.READY,  # a round begins
    (Phase.ALONE, Cue.CHANGED): Phase.ALONE,
    (Phase.ALONE, Cue.LEFT): Phase.EMPTY,
    (Phase.READY, Cue.CHANGED): Phase.READY,  # a round begins
    (Phase.READY, Cue.LEFT): Phase.ALONE,
    (Phase.READY, Cue.BOTH_READY): Phase.READY,
    (Phase.READY, Cue.CONNECTED): Phase.CONNECTED,
    (Phase.READY, Cue.UNCONNECTED): Phase.READY,
    (Phase.CONNECTED, Cue.CHANGED): Phase.READY,  # a round begins
    (Phase.CONNECTED, Cue.LEFT): Phase.ALONE,
    (Phase.CONNECTED, Cue.BOTH_READY): Phase.CONNECTED,
    (Phase.CONNECTED, Cue.CONNECTED): Phase.CONNECTED,
    (Phase.CONNECTED, Cue.UNCONNECTED): Phase.READY,
    **{(phase, Cue.ENDED): Phase.CLOSED for phase in Phase if phase is not Phase.CLOSED},
}
_TOLD: Mapping[Phase, State] = {
    Phase.EMPTY: State.WAITING,
    Phase.ALONE: State.WAITING,
    Phase.READY: State.READY,
    Phase.CONNECTED: State.CONNECTED,
    Phase.CLOSED: State.CLOSED,
}


@dataclass(slots=True)
class Slot:
    """One peer of the pair.

    Attributes:
        ip: where its connection comes from.
        endpoint: where the other peer is to send to.
        register: what it said.
        is_ready, srt: what it said in this round.
    """

    connection: str
    ip: IPAddress = field(repr=False)
    endpoint: Endpoint = field(repr=False)
    register: Register = field(repr=False)
    is_ready: bool = False
    srt: Srt | None = None
    health: Sample | None = None

    def is_same_peer(self, other: Slot) -> bool:
        """Whether two registrations are one peer's that came back: two peers cannot share a public address (C-24)."""
        mine, others = self.register, other.register
        if mine.role is not None and others.role is not None and mine.role is not others.role:
            return False
        return self.ip == other.ip and mine.port == others.port

    def says_the_same(self, register: Register) -> bool:
        """Whether a registration has nothing new."""
        return replace(self.register, stream=None) == replace(register, stream=None)


@dataclass(slots=True)
class Stream:
    """The pair, the first to register in this round first, and the light that is set for it."""

    phase: Phase = Phase.EMPTY
    slots: list[Slot] = field(default_factory=list)
    tally: Light = Light.OFF

    @property
    def state(self) -> State:
        """What the world is told."""
        return _TOLD[self.phase]

    @property
    def is_full(self) -> bool:
        return len(self.slots) == PEERS_PER_STREAM

    @property
    def pair(self) -> tuple[Slot, Slot] | None:
        """Both peers, if there are two."""
        return (self.slots[0], self.slots[1]) if self.is_full else None

    @property
    def peers(self) -> list[str]:
        """The connections of both."""
        return [slot.connection for slot in self.slots]

    def allows(self, cue: Cue) -> bool:
        """Whether the table has a row for it."""
        return (self.phase, cue) in TRANSITIONS

    def slot(self, connection: str) -> Slot | None:
        """A connection's slot."""
        return next((slot for slot in self.slots if slot.connection == connection), None)

    def place(self, slot: Slot) -> None:
        """Give a peer a slot, or in place of its own another one. The caller knows that there is room."""
        known = self.slot(slot.connection)
        if known is not None:
            self.slots.remove(known)
        self.slots.append(slot)
        self._go(Cue.JOINED if known is None else Cue.CHANGED)
        for one in self.slots:
            one.is_ready, one.srt = False, None

    def remove(self, connection: str) -> bool:
        """Free a connection's slot, if it has one."""
        slot = self.slot(connection)
        if slot is None:
            return False
        self.slots.remove(slot)
        self._go(Cue.LEFT)
        return True

    def make_ready(self, slot: Slot) -> bool:
        """A peer is ready. Whether that was the second of the two, for the first time in this round."""
        was_ready, slot.is_ready = slot.is_ready, True
        if was_ready or not all(one.is_ready for one in self.slots):
            return False
        self._go(Cue.BOTH_READY)
        return True

    def set_srt(self, slot: Slot, srt: Srt) -> None:
        """What a peer's SRT does."""
        slot.srt = srt
        self._go(Cue.CONNECTED if any(one.srt is Srt.CONNECTED for one in self.slots) else Cue.UNCONNECTED)

    def end(self) -> None:
        """The session closes; addresses are forgotten."""
        self.slots.clear()
        self._go(Cue.ENDED)

    def _go(self, cue: Cue) -> None:
        self.phase = TRANSITIONS[self.phase, cue]
