"""The side that is asked for streams and sends them, as a pure machine: all tuples of one socket.

For each tuple (`links.py`):

    state      what is known
    ABSENT     nothing; only a SYN (or START, if configured) makes it known
    HALF_OPEN  a SYN-ACK was sent. Whoever sent the SYN may have forged its source
    OPEN       an ACK with the assigned id came from there. Media may flow

A tuple that is not validated gets at most three times the bytes that came from it, SYN-ACKs included, and no SYN-ACK is
longer than its SYN. Media wait for the ACK unless `optimistic`. The id goes out before media: with the ACK, or right
after the SYN-ACK if media may follow that; then three times more within a second, since nobody acknowledges it.

Identity. The other side may name the session anew; this side answers with the new id, so that a lost datagram does
not leave two names. The id that was just replaced is taken for a datagram that was under way, and answered with the
current. A SYN with the desired id of the current session is a repetition. With another it begins another session.

Never raises for anything that the network brings. Time is an argument, in seconds.

Source: seed 004 §6, §7; media specification C16-C30, C37-C39, D1, D5-D8, D18, D22-D26, D29.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from enum import Enum, auto

from punchd.media.counters import Count, Counters
from punchd.media.datagrams import (
    VERSION,
    Ack,
    ConnectionId,
    Control,
    Start,
    Syn,
    SynAck,
    canonical_id,
    encode,
)
from punchd.media.links import Link, Links, State
from punchd.media.moves import Action, Ended, Established, Flush, Identified, MediaMayFlow, PacketTuple, Send, Why
from punchd.media.options import NO_OPTIONS
from punchd.media.settings import ResponderSettings
from punchd.media.timers import Timers

Admission = Callable[[PacketTuple, Syn], bytes | None]


class Cue(Enum):
    SYN = auto()
    ACK = auto()
    CONNECTION_ID = auto()
    START = auto()
    TIME = auto()
    REIDENTIFY = auto()
    CLOSE = auto()


# (state, cue) -> (method, states it may lead to). Whatever is not listed changes nothing.
TRANSITIONS: Mapping[tuple[State, Cue], tuple[str, frozenset[State]]] = {
    key: (method, frozenset(after))
    for key, method, after in (
        ((State.ABSENT, Cue.SYN), "_greet", {State.ABSENT, State.HALF_OPEN}),
        ((State.ABSENT, Cue.ACK), "_mistrust", {State.ABSENT}),
        ((State.ABSENT, Cue.START), "_start", {State.ABSENT, State.OPEN}),
        ((State.HALF_OPEN, Cue.SYN), "_greet", {State.HALF_OPEN}),
        ((State.HALF_OPEN, Cue.ACK), "_complete", {State.ABSENT, State.HALF_OPEN, State.OPEN}),
        ((State.HALF_OPEN, Cue.TIME), "_wait", {State.ABSENT, State.HALF_OPEN}),
        ((State.HALF_OPEN, Cue.CLOSE), "_close", {State.ABSENT}),
        ((State.OPEN, Cue.SYN), "_greet", {State.HALF_OPEN, State.OPEN}),
        ((State.OPEN, Cue.ACK), "_hear_ack_again", {State.OPEN}),
        ((State.OPEN, Cue.CONNECTION_ID), "_hear_id", {State.OPEN}),
        ((State.OPEN, Cue.START), "_start_again", {State.OPEN}),
        ((State.OPEN, Cue.TIME), "_live", {State.ABSENT, State.OPEN}),
        ((State.OPEN, Cue.REIDENTIFY), "_reidentify", {State.OPEN}),
        ((State.OPEN, Cue.CLOSE), "_close", {State.ABSENT}),
    )
}


def _admit_all(peer: PacketTuple, syn: Syn) -> bytes | None:
    return None


class Responder:
    """The sending side of one socket.

    Args:
        entropy: 16 bytes or more; the ids that it assigns come of it.
        admit: whether a SYN that begins a session is taken: None, or why not, in at most 36 bytes.
    """

    def __init__(
        self,
        settings: ResponderSettings,
        counters: Counters,
        entropy: bytes,
        admit: Admission = _admit_all,
    ) -> None:
        if len(entropy) < 16:
            raise ValueError(f"entropy: expected at least 16 bytes, got {len(entropy)}")
        self.links = Links(settings.max_half_open)
        self.timers: Timers[PacketTuple] = Timers()
        self.settings = settings
        self._timing = settings.timing
        self._counters = counters
        self._entropy = entropy
        self._ids_made = 0
        self._admit = admit

    # --- what happens ------------------------------------------------------------------------------------------------

    def handle(self, peer: PacketTuple, datagram: Control, size: int, now: float) -> list[Action]:
        """A datagram of `size` bytes came that is not media."""
        link = self.links.get(peer)
        if link is not None:
            link.received += size
            link.heard_at = now
        match datagram:
            case Syn():
                return self._step(peer, Cue.SYN, (datagram, size), now)
            case Ack():
                return self._step(peer, Cue.ACK, datagram, now)
            case ConnectionId():
                return self._step(peer, Cue.CONNECTION_ID, datagram.id, now)
            case Start():
                return self._step(peer, Cue.START, None, now)
            case SynAck():
                self._counters.add(Count.UNEXPECTED)
                return []

    def reidentify(self, peer: PacketTuple, new: bytes, now: float) -> list[Action]:
        """Name the session of an open tuple anew, as has to be done before its sequence numbers run out (D16).

        Raises:
            ValueError: not an id of 1 to 36 bytes without NUL.
        """
        if not new:
            raise ValueError("connection id: expected at least 1 byte, got none")
        encode(ConnectionId(new))
        return self._step(peer, Cue.REIDENTIFY, new, now)

    def close(self, peer: PacketTuple, now: float) -> list[Action]:
        """Send no more there. The wire has no word for it."""
        return self._step(peer, Cue.CLOSE, None, now)

    def allowance(self, peer: PacketTuple) -> int | None:
        """How many bytes of media may go to a tuple now: 0 before media may flow, None: no limit."""
        link = self.links.get(peer)
        if link is None or (link.state is State.HALF_OPEN and not self.settings.optimistic):
            return 0
        return link.allowance

    def count_sent(self, peer: PacketTuple, size: int, now: float) -> None:
        """Media of so many bytes were sent; once for a batch is enough."""
        link = self.links.get(peer)
        if link is not None:
            link.sent += size
            link.sent_at = now

    def next_timeout(self) -> float | None:
        """When `handle_timeout` wants to be called."""
        return self.timers.next()

    def handle_timeout(self, now: float) -> list[Action]:
        """Time has passed."""
        actions: list[Action] = []
        while (peer := self.timers.pop(now)) is not None:
            actions += self._step(peer, Cue.TIME, None, now)
        return actions

    def _step(self, peer: PacketTuple, cue: Cue, what: object, now: float) -> list[Action]:
        link = self.links.get(peer) or Link(peer, State.ABSENT)
        entry = TRANSITIONS.get((link.state, cue))
        if entry is None:
            if cue in (Cue.CONNECTION_ID, Cue.START):
                self._counters.add(Count.UNKNOWN_TUPLE if link.state is State.ABSENT else Count.UNEXPECTED)
            return []
        method, after = entry
        actions: list[Action] = getattr(self, method)(link, what, now)
        link = self.links.get(peer) or Link(peer, State.ABSENT)
        if link.state not in after:
            raise AssertionError(f"{method} led to {link.state}, the table allows {after}")
        self.timers.set(peer, self._deadline(link))
        return actions

    def _deadline(self, link: Link) -> float | None:
        if link.state is State.ABSENT:
            return None
        if link.state is State.HALF_OPEN:
            return min(link.retry_at, link.expires_at)
        deadlines = [*link.repeats[:1]]
        if link.knows_ids:
            deadlines.append(link.sent_at + self._timing.keep_alive_s)
        if self._timing.idle_s is not None:
            deadlines.append(link.heard_at + self._timing.idle_s)
        return min(deadlines, default=None)

    # --- the handshake -----------------------------------------------------------------------------------------------

    def _greet(self, link: Link, what: tuple[Syn, int], now: float) -> list[Action]:
        syn, size = what
        if syn.version == VERSION and link.assigned and syn.desired == link.desired:
            link.syn_size = size
            return self._say_syn_ack(link, now)
        refusal = b"version" if syn.version != VERSION else self._admit(link.peer, syn)
        if refusal is None and link.state is not State.OPEN and self.links.open_count >= self.settings.max_open:
            refusal = b"busy"
        if refusal is not None:
            self._counters.add(Count.REFUSED)
            return [Send(link.peer, encode(SynAck(False, refusal), size))]
        return self._begin(link, syn, size, now)

    def _begin(self, old: Link, syn: Syn, size: int, now: float) -> list[Action]:
        actions: list[Action] = []
        if old.state is not State.ABSENT and not self._may_flush(old, now):
            return []
        if old.state is State.OPEN:
            actions.append(Ended(old.peer, Why.REPLACED))
        id_ = syn.desired or self._new_id()
        link = Link(
            old.peer, State.HALF_OPEN, id_, None, id_, syn.desired, syn.options, size,
            validated=old.validated or self.settings.path_validated,
            received=old.received or size, sent=old.sent, heard_at=now, sent_at=now,
            expires_at=now + self._timing.half_open_s, flushes=old.flushes,
        )  # fmt: skip
        evicted = self.links.put(link)
        if evicted is not None:
            self._counters.add(Count.HALF_OPEN_EVICTED)
            self.timers.set(evicted.peer, None)
            actions.append(Ended(evicted.peer, Why.EVICTED))
        self._counters.add(Count.FLUSHES)
        actions += [Flush(link.peer), Identified(link.peer, id_), *self._say_syn_ack(link, now)]
        return [*actions, MediaMayFlow(link.peer)] if self.settings.optimistic else actions

    def _say_syn_ack(self, link: Link, now: float) -> list[Action]:
        """The SYN-ACK, and the id if media may follow."""
        link.tries += 1
        link.retry_at = now + self._timing.retry_s(link.tries) if link.tries < self._timing.tries else link.expires_at
        actions = self._say(link, encode(SynAck(True, link.assigned, self.settings.options), link.syn_size), now)
        if self.settings.optimistic or link.state is State.OPEN:
            actions += self._say_id(link, now)
        return actions

    def _complete(self, link: Link, ack: Ack, now: float) -> list[Action]:
        if ack.confirmed != link.assigned:
            return self._mistrust(link, ack, now)
        if self.links.open_count >= self.settings.max_open:
            self._counters.add(Count.REFUSED)
            self.links.forget(link.peer)
            return [Send(link.peer, encode(SynAck(False, b"busy"))), Ended(link.peer, Why.EVICTED)]
        link.state, link.validated = State.OPEN, True
        self.links.put(link)
        actions = [Established(link.peer, link.id, link.options), *self._announce(link, now)]
        return actions if self.settings.optimistic else [*actions, MediaMayFlow(link.peer)]

    def _mistrust(self, link: Link, ack: Ack, now: float) -> list[Action]:
        self._counters.add(Count.ACK_MISMATCH)
        return []

    def _hear_ack_again(self, link: Link, ack: Ack, now: float) -> list[Action]:
        return [] if ack.confirmed == link.assigned else self._mistrust(link, ack, now)

    def _wait(self, link: Link, _: None, now: float) -> list[Action]:
        if now >= link.expires_at:
            self._counters.add(Count.HALF_OPEN_EXPIRED)
            self.links.forget(link.peer)
            return [Ended(link.peer, Why.UNANSWERED)]
        return self._say_syn_ack(link, now)

    # --- the predecessor's START -------------------------------------------------------------------------------------

    def _start(self, link: Link, _: None, now: float) -> list[Action]:
        """Never answered but with media: it can be forged, and who sends it knows no other datagram."""
        if self.links.open_count >= self.settings.max_open:
            self._counters.add(Count.REFUSED)
            return []
        link.state, link.validated, link.heard_at = State.OPEN, True, now
        self.links.put(link)
        self._counters.add(Count.FLUSHES)
        return [Flush(link.peer), Established(link.peer, b"", NO_OPTIONS), MediaMayFlow(link.peer)]

    def _start_again(self, link: Link, _: None, now: float) -> list[Action]:
        if not self._may_flush(link, now):
            return []
        self._counters.add(Count.FLUSHES)
        return [Flush(link.peer)]

    # --- identity ----------------------------------------------------------------------------------------------------

    def _new_id(self) -> bytes:
        self._ids_made += 1
        return canonical_id(hashlib.sha256(self._entropy + self._ids_made.to_bytes(8)).digest()[:16])

    def _hear_id(self, link: Link, new: bytes, now: float) -> list[Action]:
        if new == link.id:
            return []
        if new == link.previous:
            return self._say_id(link, now)
        return self._take_id(link, new, now, lambda: self._say_id(link, now))

    def _reidentify(self, link: Link, new: bytes, now: float) -> list[Action]:
        return [] if new == link.id else self._take_id(link, new, now, lambda: self._announce(link, now))

    def _take_id(self, link: Link, new: bytes, now: float, tell: Callable[[], list[Action]]) -> list[Action]:
        if not self._may_flush(link, now):
            return []
        self._counters.add(Count.FLUSHES)
        link.id, link.previous, link.repeats = new, link.id, []
        return [Flush(link.peer), Identified(link.peer, new), *tell()]

    def _may_flush(self, link: Link, now: float) -> bool:
        if link.flushes.allows(now):
            return True
        self._counters.add(Count.FLUSHES_REFUSED)
        return False

    def _announce(self, link: Link, now: float) -> list[Action]:
        link.repeats = [now + after_s for after_s in self._timing.repeats_s]
        return self._say_id(link, now)

    def _say_id(self, link: Link, now: float) -> list[Action]:
        return self._say(link, encode(ConnectionId(link.id)), now)

    # --- life --------------------------------------------------------------------------------------------------------

    def _say(self, link: Link, data: bytes, now: float) -> list[Action]:
        """The datagram, unless the tuple is not validated and has had its share."""
        allowance = link.allowance
        if allowance is not None and len(data) > allowance:
            self._counters.add(Count.WITHHELD)
            return []
        link.sent += len(data)
        link.sent_at = now
        return [Send(link.peer, data)]

    def _live(self, link: Link, _: None, now: float) -> list[Action]:
        if self._timing.idle_s is not None and now >= link.heard_at + self._timing.idle_s:
            self.links.forget(link.peer)
            return [Ended(link.peer, Why.IDLE)]
        is_repeat = bool(link.repeats) and link.repeats[0] <= now
        if is_repeat:
            link.repeats.pop(0)
        is_silent = link.knows_ids and now >= link.sent_at + self._timing.keep_alive_s
        return self._say_id(link, now) if is_repeat or is_silent else []

    def _close(self, link: Link, _: None, now: float) -> list[Action]:
        self.links.forget(link.peer)
        return [Ended(link.peer, Why.CLOSED)]
