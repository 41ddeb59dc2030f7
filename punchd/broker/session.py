"""A session of the broker, as a pure machine: who is told what when somebody comes, speaks or goes.

    state      what is known
    WAITING    no stream ever had both peers
    READY      one has, or had
    CONNECTED  a matched peer says, or said, that SRT is connected
    CLOSED     terminal

A session never goes back (C-19); its streams do (`streams.py`). Who gets a slot of a stream, `registration.py` says.
Connections have timers of their own, at the process that holds them (`connections.py`).

After each event all connections are told the session's state if it changed, and after each accepted register in any
case. Within one event a connection hears `peer` and `peer_match`, then `tally`, then `session`.

Pure: `now_ms` is Unix time, of one clock for all processes that run the session in turn.

Source: seed 000 §4, §6; broker specification §2, §3, and the rows and decisions that the tests name.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from punchd.broker import health
from punchd.broker.addressing import stream_of
from punchd.broker.endpoints import families_differ
from punchd.broker.messages import ClientMessage, Direction, Health, Light, Ready, Register, Tally
from punchd.broker.moves import (
    Action,
    Answered,
    Close,
    Connected,
    Deleted,
    Ended,
    Event,
    Failed,
    Left,
    Received,
    Registered,
    Revoked,
    Send,
    error,
    send,
)
from punchd.broker.registration import Registration, drop
from punchd.broker.server_messages import (
    CloseCode,
    ErrorCode,
    ErrorMessage,
    HealthReport,
    Overview,
    Reason,
    SessionClosed,
    Start,
    State,
    TallyLight,
)
from punchd.broker.state import Facts, Member, Plan, Policy
from punchd.broker.streams import Cue as StreamCue
from punchd.broker.streams import Slot, Stream
from punchd.broker.tokens import Role


class Cue(Enum):
    """What changes a session's state."""

    MATCHED = "a stream is matched"
    SRT_CONNECTED = "a matched peer is connected"
    DELETED = "an admin closes it"
    EXPIRED = "its time is over"
    FAILED = "whoever runs it cannot go on"


# What is not here changes nothing.
TRANSITIONS: Mapping[tuple[State, Cue], State] = {
    (State.WAITING, Cue.MATCHED): State.READY,
    (State.READY, Cue.SRT_CONNECTED): State.CONNECTED,
    **{
        (state, cue): State.CLOSED
        for state in (State.WAITING, State.READY, State.CONNECTED)
        for cue in (Cue.DELETED, Cue.EXPIRED, Cue.FAILED)
    },
}
# What connections hear of an end, and with which code they are closed (C-05).
ENDINGS: Mapping[Cue, tuple[Reason, CloseCode]] = {
    Cue.DELETED: (Reason.ADMIN_CLOSED, CloseCode.NORMAL),
    Cue.EXPIRED: (Reason.TTL_EXPIRED, CloseCode.NORMAL),
    Cue.FAILED: (Reason.ERROR, CloseCode.ERROR),
}
REVOKED = (ErrorMessage(ErrorCode.AUTH_FAILED, "the token was revoked"), CloseCode.NORMAL)


class Session:
    """One session. Feed it events and the time; do what it says, in order.

    Nothing that a client may send makes it raise.

    Args:
        plan: what it was made with.
        policy: what the operator wants.
        facts: how it goes on after `snapshot.load`; None for a new one.
    """

    def __init__(self, plan: Plan, policy: Policy | None = None, facts: Facts | None = None) -> None:
        self.plan = plan
        self.facts = facts or Facts(streams={name: Stream() for name in plan.streams})
        self._policy = policy or Policy()
        self._registration = Registration(plan, self._policy, self.facts)

    # --- what may be known -------------------------------------------------------------------------------------------

    def is_open(self, now_ms: int) -> bool:
        """Whether anybody may still do something in it."""
        return self.facts.state is not State.CLOSED and now_ms < self.plan.closes_ms

    def has_room(self) -> bool:
        """Whether another connection is taken."""
        return len(self.facts.members) < self._policy.capacity(self.plan)

    def overview(self) -> Overview:
        """What everybody in the session may know."""
        streams = {name: (stream.state, len(stream.slots)) for name, stream in self.facts.streams.items()}
        return Overview(self.facts.state, streams)

    def health_entries(self, now_ms: int) -> dict[str, health.HealthEntry]:
        """Of each stream of which there is news."""
        entries = {
            name: health.combine(
                (slot.health for slot in stream.slots), now_ms, self.plan.latency_ms, self._policy.thresholds
            )
            for name, stream in self.facts.streams.items()
        }
        return {name: entry for name, entry in entries.items() if entry is not None}

    def pair(self, stream: str) -> tuple[Slot, Slot] | None:
        """The two peers of a stream that is matched, the first to register first. For admins only."""
        return self.facts.streams[stream].pair

    def differing_families(self) -> list[str]:
        """Streams whose peers cannot reach each other: one has IPv4, the other IPv6 (C-10)."""
        pairs = {name: stream.pair for name, stream in self.facts.streams.items()}
        return [name for name, pair in pairs.items() if pair and families_differ(pair[0].endpoint, pair[1].endpoint)]

    def next_timeout(self) -> int | None:
        """When `handle_timeout` wants to be called, in Unix milliseconds; None when the session is closed."""
        if self.facts.state is State.CLOSED:
            return None
        return min([self.plan.closes_ms, *(claim.until_ms for claim in self.facts.claims.values())])

    # --- what happens ------------------------------------------------------------------------------------------------

    def handle_timeout(self, now_ms: int) -> list[Action]:
        """Time has passed."""
        if self.facts.state is State.CLOSED:
            return []
        if now_ms >= self.plan.closes_ms:
            return self._end(Cue.EXPIRED)
        before = self.overview()
        return self._announce(before, self._registration.settle(now_ms))

    def handle(self, event: Event, now_ms: int) -> list[Action]:
        """Something happened."""
        if self.facts.state is State.CLOSED:
            return self._turn_away(event)
        if now_ms >= self.plan.closes_ms:
            blamed, ending = self._blame(event), self._end(Cue.EXPIRED)
            return [*blamed, *self._turn_away(event), *ending]
        before = self.overview()
        match event:
            case Connected():
                actions = self._connect(event, now_ms)
            case Received(connection, message):
                member = self.facts.members.get(connection)
                actions = [] if member is None else self._hear(member, message, now_ms)
            case Left(connection):
                self.facts.forget(connection)
                actions = []
            case Answered(connection):
                actions = []
                for claim in self.facts.claims.values():
                    claim.awaiting.discard(connection)
            case Revoked(token):
                revoked = [member.connection for member in self.facts.members.values() if member.token == token]
                actions = [action for connection in revoked for action in drop(self.facts, connection, *REVOKED)]
            case Deleted():
                return self._end(Cue.DELETED)
            case Failed():
                return self._end(Cue.FAILED)
        return self._announce(before, [*actions, *self._registration.settle(now_ms)])

    def _announce(self, before: Overview, actions: list[Action]) -> list[Action]:
        self._follow()
        after = self.overview()
        if after == before and not any(isinstance(action, Registered) for action in actions):
            return actions
        return [*actions, *send(self.facts.members, after)]

    # --- coming and going --------------------------------------------------------------------------------------------

    def _connect(self, event: Connected, now_ms: int) -> list[Action]:
        connection = event.connection
        if not self.has_room():
            full = ErrorMessage(ErrorCode.SESSION_FULL, "the session has as many connections as it may have")
            return [Send((connection,), full), Close(connection, CloseCode.ERROR)]
        self.facts.members[connection] = Member(connection, event.role, event.stream, event.ip, event.token)
        if event.role is Role.PEER:
            return []
        entries = self.health_entries(now_ms)
        told = [
            *(self._registration.match(name) for name in self.facts.streams),
            *(TallyLight(name, one.tally) for name, one in self.facts.streams.items() if one.tally is not Light.OFF),
            HealthReport(entries) if entries else None,
            self.overview(),
        ]
        return [action for message in told for action in send([connection], message)]

    def _turn_away(self, event: Event) -> list[Action]:
        """Whoever comes when it is over."""
        if not isinstance(event, Connected) or self.facts.reason is None:
            return []
        code = next(code for reason, code in ENDINGS.values() if reason is self.facts.reason)
        return [Send((event.connection,), SessionClosed(self.facts.reason)), Close(event.connection, code)]

    def _blame(self, event: Event) -> list[Action]:
        if isinstance(event, Received) and event.connection in self.facts.members:
            return error(event.connection, ErrorCode.SESSION_EXPIRED, "the session's time is over")
        return []

    def _end(self, cue: Cue) -> list[Action]:
        reason, code = ENDINGS[cue]
        everybody = tuple(self.facts.members)
        self._go(cue)
        self.facts.reason = reason
        self.facts.members.clear()
        self.facts.claims.clear()
        for stream in self.facts.streams.values():
            stream.end()
        actions = send(everybody, self.overview() if code is CloseCode.NORMAL else None)
        actions += send(everybody, SessionClosed(reason))
        return [*actions, *(Close(connection, code) for connection in everybody), Ended(reason)]

    # --- what is said ------------------------------------------------------------------------------------------------

    def _hear(self, member: Member, message: ClientMessage, now_ms: int) -> list[Action]:
        name = stream_of(member, message, self.facts, self._policy)
        if isinstance(name, ErrorMessage):
            return send([member.connection], name)
        if isinstance(message, Register):
            return self._registration.register(member, name, message, now_ms)
        stream = self.facts.streams[name]
        slot = stream.slot(member.connection)
        if isinstance(message, Tally):
            return self._tally(member, name, message.state)
        if slot is None:
            return error(member.connection, ErrorCode.INVALID_MESSAGE, "expected a register first")
        if isinstance(message, Health):
            slot.health = health.sample(message, slot.health, now_ms)
            entries = self.health_entries(now_ms)
            peers = [connection for connection in stream.peers if connection not in self.facts.admins]
            actions = send(self.facts.admins, HealthReport(entries))
            return [*actions, *send(peers, HealthReport({name: entries[name]}))]
        if not stream.allows(StreamCue.BOTH_READY):
            return error(member.connection, ErrorCode.INVALID_MESSAGE, "the stream has no other peer yet")
        if isinstance(message, Ready):
            return send(stream.peers, Start(name)) if stream.make_ready(slot) else []
        stream.set_srt(slot, message.srt)
        return []

    def _tally(self, member: Member, name: str, light: Light) -> list[Action]:
        stream = self.facts.streams[name]
        slot = stream.slot(member.connection)
        is_receiver = slot is not None and slot.register.role is Direction.RECEIVER
        if member.role is not Role.ADMIN and not (self._policy.receivers_may_tally and is_receiver):
            return error(member.connection, ErrorCode.AUTH_FAILED, "this takes an admin token")
        stream.tally = light
        return send(dict.fromkeys([*stream.peers, *self.facts.admins]), TallyLight(name, light))

    # --- small things ------------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        """What the streams say of the session's state."""
        if any(stream.is_full for stream in self.facts.streams.values()):
            self._go(Cue.MATCHED)
        if any(stream.state is State.CONNECTED for stream in self.facts.streams.values()):
            self._go(Cue.SRT_CONNECTED)

    def _go(self, cue: Cue) -> None:
        self.facts.state = TRANSITIONS.get((self.facts.state, cue), self.facts.state)
