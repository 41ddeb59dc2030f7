"""A client's conversation with a broker, over as many connections as it takes: what is told, said and done when.

Pure: events and the time (seconds of any one clock) go in, actions come out, chance comes in as a number.

    phase      until
    WAITING    the pause before the next try is over
    OPENING    the connection is open, or cannot be had
    OPEN       it is closed, or nothing was heard for DEAD_S
    OVER       for good

Keep-alive. When we have said nothing for KEEP_ALIVE_S we say the bare text `punch.ping`. A broker that objects with
INVALID_MESSAGE does not know it; from then on it gets WebSocket pings (C-06). After PROBE_S of the broker's silence it
is pinged, after DEAD_S it is dead.

Coming back. 1000 means that we are not wanted any more; every other code, known or not, and no close frame at all mean
to come back (C-05, B-072). The pause doubles from FIRST_PAUSE_S to MOST_PAUSE_S, less up to a half by chance, or is
what the broker asked for, and up to a half more; a connection that lasted for STABLE_S starts it anew. What we
registered is registered again. The slot may still be held by our own former connection if our address has changed; the
broker finds that out, so STREAM_TAKEN is then asked again.

Families (C-10). The broker shows the other peer the address that our connection comes from, and SRT cannot cross from
IPv4 to IPv6. If the other peer is seen over the family that we do not use, we look for an address of the broker there
and reopen. Both peers think the same, and would swap their families for ever; so who has IPv4 moves at once, and who
has IPv6 waits for MOVE_PATIENCE_S whether the other one comes over, and longer after each move that was in vain. The
`Peer` is held back meanwhile; if there is no way it is told as it is.

Source: seed 000 §6, §8.2; broker specification B-046 to B-072 (C), C-05, C-06, C-10, C-21.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from math import inf

from punchd.broker.client_decode import decode
from punchd.broker.client_encode import encode
from punchd.broker.client_errors import BrokerError, EndedError
from punchd.broker.client_events import (
    Error,
    Event,
    Malformed,
    Peer,
    Reconnected,
    Reconnecting,
    SessionClosed,
)
from punchd.broker.messages import PING, PONG, ClientMessage, Register
from punchd.errors import DecodeError

KEEP_ALIVE_S = 30.0  # B-063
PROBE_S = 45.0
DEAD_S = 60.0  # well before a broker would think the same of us (90 s, seed 000 §6.3)
FIRST_PAUSE_S, MOST_PAUSE_S = 1.0, 30.0  # C-05
STABLE_S = 30.0
MOVE_PATIENCE_S = 3.0
MOST_MOVES = 4  # between families without a `Peer` of the right one
AGAIN_S = 10.0  # between registrations that are met with STREAM_TAKEN after a reconnection
MOST_AGAIN = 12  # of them: a broker lets go of a dead connection after 90 s at the latest

NORMAL = 1000


@dataclass(frozen=True, slots=True)
class Open:
    """Open a connection, over one family or (None) any; then say `opened` or `failed`."""

    ip_version: int | None


@dataclass(frozen=True, slots=True)
class Look:
    """Find out whether the broker has an address of a family; then say `looked`."""

    ip_version: int


@dataclass(frozen=True, slots=True)
class Send:
    """Send a text frame."""

    text: str


@dataclass(frozen=True, slots=True)
class Ping:
    """Send a ping frame."""


@dataclass(frozen=True, slots=True)
class HangUp:
    """Close the connection with 1000, or without a word; nothing that still comes over it counts."""

    is_polite: bool


@dataclass(frozen=True, slots=True)
class Tell:
    """For the application."""

    event: Event


@dataclass(frozen=True, slots=True)
class End:
    """It is over; None: as it should be."""

    error: BrokerError | None


Action = Open | Look | Send | Ping | HangUp | Tell | End


class Phase(Enum):
    """See the table above."""

    WAITING = auto()
    OPENING = auto()
    OPEN = auto()
    OVER = auto()


class Conversation:
    """See above. `ip_version` binds it to a family."""

    def __init__(self, register: Register | None, ip_version: int | None) -> None:
        self.phase = Phase.OPENING
        self.ip_version: int | None = None  # of the connection
        self._register = register
        self._is_bound = ip_version is not None
        self._wanted = ip_version
        self._was_open = False
        self._is_back = False  # this connection is not the first
        self._tries = 0
        self._resume_at = inf
        self._opened_at = self._heard_at = self._said_at = -inf
        self._probed = False
        self._speaks_ping = True
        self._is_ping_unanswered = False  # a bare one, and nothing was said since
        self._said_since_ping = False
        self._objection = ""  # the last error of this connection
        self._held: Peer | None = None
        self._move_at = inf
        self._is_moving_from: tuple[int | None] | None = None  # what was wanted before
        self._moves = 0
        self._without: set[int] = set()  # families that lead nowhere
        self._again_at = inf
        self._agains = 0

    # --- the connection ----------------------------------------------------------------------------------------------

    def opened(self, now: float, ip_version: int) -> list[Action]:
        """The connection that was asked for is there."""
        if self.phase is not Phase.OPENING:
            return [HangUp(is_polite=True)]
        self.phase, self.ip_version = Phase.OPEN, ip_version
        self._opened_at = self._heard_at = self._said_at = now
        self._probed = self._is_ping_unanswered = False
        self._objection = ""
        self._is_moving_from = None
        done: list[Action] = []
        if self._register is not None:
            done.append(Send(encode(self._register)))
        if self._was_open:
            done.append(Tell(Reconnected()))
        self._is_back, self._was_open = self._was_open, True
        return done

    def failed(
        self, now: float, error: BrokerError, chance: float, *, is_final: bool, wait_s: float = 0.0
    ) -> list[Action]:
        """It cannot be had; `is_final`: nor later; `wait_s`: not before."""
        if self.phase is not Phase.OPENING:
            return []
        if self._is_moving_from is not None and self._wanted is not None:
            self._without.add(self._wanted)
            [self._wanted] = self._is_moving_from
            self._is_moving_from = None
            return [Open(self._wanted)]
        if is_final:
            return self._end(error)
        if not self._is_bound:
            self._wanted = None  # what led there may be no more
        return self._pause(now, str(error), chance, wait_s)

    def closed(self, now: float, code: int | None, why: str, chance: float) -> list[Action]:
        """The connection is over, by a close frame with `code` or without one; `why` for people."""
        if self.phase is not Phase.OPEN:
            return []
        if code == NORMAL:
            objection = f": {self._objection}" if self._objection else ""
            return self._end(EndedError(f"the broker closed the connection for good{objection}"))
        return self._lose(now, f"{why}: {self._objection}" if self._objection else why, chance)

    def heard(self, now: float) -> None:
        """A frame of any kind has come."""
        self._heard_at, self._probed = now, False

    def leave(self) -> list[Action]:
        """The application goes."""
        was, self.phase = self.phase, Phase.OVER
        return [HangUp(is_polite=True)] if was is Phase.OPEN else []

    def _lose(self, now: float, why: str, chance: float) -> list[Action]:
        if now - self._opened_at >= STABLE_S:
            self._tries = 0
        return self._pause(now, why, chance, 0.0)

    def _pause(self, now: float, why: str, chance: float, wait_s: float) -> list[Action]:
        most = min(MOST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(self._tries, 10))
        pause_s = max(most * (1 - chance / 2), wait_s * (1 + chance / 2))
        self._forget_round()
        self._without.clear()
        self.phase, self.ip_version = Phase.WAITING, None
        self._resume_at = now + pause_s
        told = Reconnecting(why, pause_s, self._tries)
        self._tries += 1
        return [Tell(told)]

    def _end(self, error: BrokerError | None) -> list[Action]:
        was, self.phase, self.ip_version = self.phase, Phase.OVER, None
        return [End(error)] if was is not Phase.OVER else []

    # --- time --------------------------------------------------------------------------------------------------------

    def next_timeout(self) -> float:
        """When `handle_timeout` is due; infinite: not by itself."""
        match self.phase:
            case Phase.WAITING:
                return self._resume_at
            case Phase.OPEN:
                silence = self._heard_at + (DEAD_S if self._probed else PROBE_S)
                return min(self._said_at + KEEP_ALIVE_S, silence, self._move_at, self._again_at)
            case _:
                return inf

    def handle_timeout(self, now: float, chance: float) -> list[Action]:
        """Do what is due."""
        if self.phase is Phase.WAITING and now >= self._resume_at:
            self.phase = Phase.OPENING
            return [Open(self._wanted)]
        if self.phase is not Phase.OPEN:
            return []
        if now >= self._heard_at + DEAD_S:
            return [HangUp(is_polite=False), *self._lose(now, f"the broker was silent for {DEAD_S:g} s", chance)]
        done: list[Action] = []
        if now >= self._heard_at + PROBE_S and not self._probed:
            self._probed = True
            done.append(Ping())
        if now >= self._said_at + KEEP_ALIVE_S:
            self._said_at = now
            done.append(self._keep_alive())
        if now >= self._again_at and self._register is not None:
            self._again_at = inf
            done += self._send(now, encode(self._register))
        if now >= self._move_at and self._held is not None:
            self._move_at = inf
            done.append(Look(self._held.endpoint.ip.version))
        return done

    def _keep_alive(self) -> Action:
        if not self._speaks_ping:
            return Ping()
        self._is_ping_unanswered, self._said_since_ping = True, False
        return Send(PING)

    # --- what is said ------------------------------------------------------------------------------------------------

    def say(self, now: float, message: ClientMessage) -> tuple[list[Action], bool]:
        """Say something, and whether there was a connection for it. A registration is kept for the next one.

        Raises:
            DecodeError: no broker would take it.
        """
        text = encode(message)
        if isinstance(message, Register):
            self._register = message
            self._again_at, self._agains = inf, 0
        if self.phase is not Phase.OPEN:
            return [], False
        return self._send(now, text), True

    def _send(self, now: float, text: str) -> list[Action]:
        self._said_at = now
        self._said_since_ping = True
        return [Send(text)]

    # --- what is heard -----------------------------------------------------------------------------------------------

    def text(self, now: float, frame: str) -> list[Action]:
        """A text frame has come."""
        if self.phase is not Phase.OPEN:
            return []
        if frame == PONG:
            self._is_ping_unanswered = False
        try:
            event = decode(frame)
        except DecodeError as error:
            return [Tell(Malformed(str(error)))]
        match event:
            case None:
                return []
            case Peer():
                return self._matched(now, event)
            case Error():
                return self._objected(now, event)
            case SessionClosed():
                return [Tell(event), *self._end(None)]
            case _:
                return [Tell(event)]

    def binary(self) -> list[Action]:
        """A binary frame has come; the protocol has none."""
        return [Tell(Malformed("expected text, got a binary frame"))] if self.phase is Phase.OPEN else []

    def _objected(self, now: float, error: Error) -> list[Action]:
        if error.code == "INVALID_MESSAGE" and self._is_ping_unanswered:
            self._is_ping_unanswered = self._speaks_ping = False
            if not self._said_since_ping:
                return [Ping()]
        self._objection = error.message
        if error.code == "STREAM_TAKEN" and self._is_back and self._register is not None and self._agains < MOST_AGAIN:
            self._agains += 1
            self._again_at = now + AGAIN_S
        return [Tell(error)]

    # --- families ----------------------------------------------------------------------------------------------------

    def _matched(self, now: float, peer: Peer) -> list[Action]:
        version = peer.endpoint.ip.version
        self._again_at, self._agains = inf, 0
        self._held, self._move_at = None, inf
        if version == self.ip_version:
            self._moves = 0
            return [Tell(peer)]
        if self._is_bound or version in self._without or self._moves >= MOST_MOVES:
            return [Tell(peer)]
        self._held = peer
        if version == 6:
            return [Look(6)]
        self._move_at = now + MOVE_PATIENCE_S * 2**self._moves
        return []

    def looked(self, ip_version: int, *, is_there: bool) -> list[Action]:
        """Whether the broker has an address of a family."""
        held = self._held
        if self.phase is not Phase.OPEN or held is None or held.endpoint.ip.version != ip_version:
            return []
        if not is_there:
            self._without.add(ip_version)
            self._held = None
            return [Tell(held)]
        self._moves += 1
        self._forget_round()
        self._is_moving_from, self._wanted = (self._wanted,), ip_version
        self.phase, self.ip_version = Phase.OPENING, None
        told = Reconnecting(f"the other peer has IPv{ip_version}", 0.0, 0)
        return [HangUp(is_polite=True), Tell(told), Open(ip_version)]

    def _forget_round(self) -> None:
        self._held, self._move_at = None, inf
        self._again_at, self._agains = inf, 0
