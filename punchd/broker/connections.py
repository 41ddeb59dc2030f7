"""The timers of one connection: until when it must register, when it is pinged, when it is dead.

Theory of operation. Any frame is a sign of life: a message, a ping, a pong, `punch.ping`. After 30 s without one the
connection is pinged, and again every 30 s; after 90 s it is dead (seed 000 §6.3). A peer has 30 s to register; an
admin need not (C-14), but it dies as a peer does (C-50).

A register that finds its stream full has the holders probed (C-24): a connection that was heard of within 35 s is
alive, any other is pinged and has 2 s for any frame.

    phase         event      then
    UNREGISTERED  REGISTER   LIVE
    UNREGISTERED  LATE       OVER: error INVALID_MESSAGE, close 1011
    any           DEAD       the same
    any           LEAVE      OVER

Belongs to the process that holds the connection, and lives as long as it: nothing of it is shared.

Pure: `now` is in seconds of a clock that never goes back.

Source: seed 000 §6.2, §6.3; broker specification §2.3, B-053, B-054, B-061, B-062, C-05, C-14, C-24, C-50.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from math import inf

from punchd.broker.server_messages import ErrorCode, ErrorMessage
from punchd.broker.tokens import Role

REGISTER_S = 30.0  # seed 000 §6.2
PING_S = 30.0  # B-061
DEAD_S = 90.0  # seed 000 §6.3
SILENT_S = 35.0  # a ping every 30 s, and some for its way: who is heard of less often may be gone, C-24
PONG_S = 2.0  # C-24


class Phase(Enum):
    """How far a connection is."""

    UNREGISTERED = "unregistered"  # a peer that has to register
    LIVE = "live"  # an admin, or a peer that has registered
    OVER = "over"  # closing; nothing more is decided


class Cue(Enum):
    """What changes that."""

    REGISTER = "its register is accepted"
    LATE = "30 s without one"
    DEAD = "90 s of silence or no answer to a probe"
    LEAVE = "it leaves or is closed"


# What is not here changes nothing.
TRANSITIONS: Mapping[tuple[Phase, Cue], Phase] = {
    (Phase.UNREGISTERED, Cue.REGISTER): Phase.LIVE,
    (Phase.UNREGISTERED, Cue.LATE): Phase.OVER,
    (Phase.UNREGISTERED, Cue.DEAD): Phase.OVER,
    (Phase.UNREGISTERED, Cue.LEAVE): Phase.OVER,
    (Phase.LIVE, Cue.DEAD): Phase.OVER,
    (Phase.LIVE, Cue.LEAVE): Phase.OVER,
}


class Step(Enum):
    """What is to be done."""

    PING = "ping"
    ALIVE = "alive"  # tell the session `Answered`
    END = "end"  # send `Keeper.farewell`, close with 1011, tell the session `Left`


class Keeper:
    """The timers of one connection, opened at `now`."""

    __slots__ = ("_heard_at", "_ping_at", "_pong_by", "_register_by", "farewell", "phase")

    def __init__(self, role: Role, now: float) -> None:
        self.phase = Phase.UNREGISTERED if role is Role.PEER else Phase.LIVE
        self.farewell: ErrorMessage | None = None  # once it is to be ended
        self._heard_at = now
        self._ping_at = now + PING_S
        self._register_by = now + REGISTER_S
        self._pong_by = inf  # while it is probed

    def next_timeout(self) -> float:
        """When `handle_timeout` wants to be called; inf for never."""
        if self.phase is Phase.OVER:
            return inf
        register_by = self._register_by if self.phase is Phase.UNREGISTERED else inf
        return min(register_by, self._ping_at, self._heard_at + DEAD_S, self._pong_by)

    def handle_timeout(self, now: float) -> list[Step]:
        """Time has passed."""
        if self.phase is Phase.OVER:
            return []
        if now >= self._heard_at + DEAD_S:
            return self._end(Cue.DEAD, "nothing was heard for 90 s")
        if now >= self._pong_by:
            return self._end(Cue.DEAD, "no answer to a ping")
        if self.phase is Phase.UNREGISTERED and now >= self._register_by:
            return self._end(Cue.LATE, "expected a register within 30 s")
        if now < self._ping_at:
            return []
        self._ping_at = now + PING_S
        return [Step.PING]

    def hear(self, now: float) -> list[Step]:
        """A frame came, of any kind."""
        if self.phase is Phase.OVER:
            return []
        self._heard_at = now
        self._ping_at = now + PING_S
        was_probed, self._pong_by = self._pong_by < inf, inf
        return [Step.ALIVE] if was_probed else []

    def probe(self, now: float) -> list[Step]:
        """Somebody wants its slot: is it alive?"""
        if self.phase is Phase.OVER or self._pong_by < inf:
            return []
        if now - self._heard_at <= SILENT_S:
            return [Step.ALIVE]
        self._pong_by = now + PONG_S
        return [Step.PING]

    def register(self) -> None:
        """Its register was accepted (`moves.Registered`)."""
        self._go(Cue.REGISTER)

    def leave(self) -> None:
        """It left, or is being closed for some other reason."""
        self._go(Cue.LEAVE)

    def _end(self, cue: Cue, text: str) -> list[Step]:
        self._go(cue)
        self.farewell = ErrorMessage(ErrorCode.INVALID_MESSAGE, text)
        return [Step.END]

    def _go(self, cue: Cue) -> None:
        self.phase = TRANSITIONS.get((self.phase, cue), self.phase)
