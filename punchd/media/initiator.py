"""The side that asks for a stream and receives it, as a pure machine; one tuple, one attempt.

    state        what is known
    IDLE         nothing was sent
    ASKING       SYNs are sent, nothing has come
    IDENTIFIED   as ASKING, but a connection-id datagram overtook the SYN-ACK: media count, under that id
    ESTABLISHED  accepted. Until the tuple is heard otherwise the ACK may be lost, so it is repeated like a SYN
    ENDED        exactly one `Ended` was given

Identity. `assigned` is what the last SYN-ACK said and what an ACK repeats; `id` is whose session media belong to.
They differ after a connection-id datagram. A change of `id` flushes, within the limit of `flushes.py`; beyond it the
datagram that asks for the change is dropped. The responder has the last word on the id, or two sides that change it
at once might never agree: what it sends counts, also where it is an earlier id.

Glare. If the other side's SYN comes over the same tuple, the lower desired id yields: this side then ends with
`Why.GLARE`, and the shell may hand the SYN to a responder. Otherwise the SYN is refused.

Never raises for anything that the network brings. Time is an argument, in seconds.

Source: seed 004 §6, §7; media specification C17-C30, C37-C39, D6-D8, D18, D22-D26, D29.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto

from punchd.media.counters import Count, Counters
from punchd.media.datagrams import Ack, ConnectionId, Control, Syn, SynAck, encode, show
from punchd.media.flushes import FlushLimit
from punchd.media.moves import Action, Ended, Established, Flush, Identified, PacketTuple, Send, Why
from punchd.media.options import NO_OPTIONS, Options
from punchd.media.settings import Timing


class State(Enum):
    IDLE = auto()
    ASKING = auto()
    IDENTIFIED = auto()
    ESTABLISHED = auto()
    ENDED = auto()


class Cue(Enum):
    OPEN = auto()
    ACCEPTED = auto()
    REFUSED = auto()
    SYN = auto()
    CONNECTION_ID = auto()
    RETRY = auto()
    REPEAT = auto()
    KEEP_ALIVE = auto()
    IDLE = auto()
    REIDENTIFY = auto()
    CLOSE = auto()


# (state, cue) -> (method, states it may lead to). Whatever is not listed changes nothing.
TRANSITIONS: Mapping[tuple[State, Cue], tuple[str, frozenset[State]]] = {
    key: (method, frozenset(after))
    for key, method, after in (
        ((State.IDLE, Cue.OPEN), "_open", {State.ASKING}),
        ((State.IDLE, Cue.CLOSE), "_close", {State.ENDED}),
        ((State.ASKING, Cue.CONNECTION_ID), "_hear_early_id", {State.ASKING, State.IDENTIFIED}),
        ((State.IDENTIFIED, Cue.CONNECTION_ID), "_hear_id", {State.IDENTIFIED}),
        *(
            ((state, cue), method, after)
            for state in (State.ASKING, State.IDENTIFIED)
            for cue, method, after in (
                (Cue.ACCEPTED, "_establish", {state, State.ESTABLISHED}),
                (Cue.REFUSED, "_be_refused", {State.ENDED}),
                (Cue.SYN, "_meet", {state, State.ENDED}),
                (Cue.RETRY, "_retry_syn", {state, State.ENDED}),
                (Cue.CLOSE, "_close", {State.ENDED}),
            )
        ),
        ((State.ESTABLISHED, Cue.ACCEPTED), "_hear_accepted_again", {State.ESTABLISHED}),
        ((State.ESTABLISHED, Cue.SYN), "_refuse", {State.ESTABLISHED}),
        ((State.ESTABLISHED, Cue.CONNECTION_ID), "_hear_id", {State.ESTABLISHED}),
        ((State.ESTABLISHED, Cue.RETRY), "_retry_ack", {State.ESTABLISHED}),
        ((State.ESTABLISHED, Cue.REPEAT), "_repeat_id", {State.ESTABLISHED}),
        ((State.ESTABLISHED, Cue.KEEP_ALIVE), "_keep_alive", {State.ESTABLISHED}),
        ((State.ESTABLISHED, Cue.IDLE), "_time_out", {State.ENDED}),
        ((State.ESTABLISHED, Cue.REIDENTIFY), "_reidentify", {State.ESTABLISHED}),
        ((State.ESTABLISHED, Cue.CLOSE), "_close", {State.ENDED}),
    )
}


class Initiator:
    """One attempt to receive over one tuple.

    Args:
        peer: the tuple.
        desired: the id to ask for, at most 36 bytes (`datagrams.canonical_id`); empty: the responder chooses.
        options: what this side can take; they also make room for the other side's in the SYN-ACK.
        may_yield: whether a responder stands by for the case of glare.
    """

    def __init__(
        self,
        peer: PacketTuple,
        desired: bytes,
        counters: Counters,
        *,
        options: Options = NO_OPTIONS,
        timing: Timing | None = None,
        may_yield: bool = False,
    ) -> None:
        self.peer = peer
        self.desired = desired
        self.state = State.IDLE
        self.id = b""
        self.assigned = b""
        self._timing = timing or Timing()
        self._counters = counters
        self._may_yield = may_yield
        self._syn = encode(Syn(desired, options))
        self._flushes = FlushLimit()
        self._tries = 0
        self._timers: dict[Cue, float] = {}
        self._repeats: list[float] = []

    @property
    def takes_media(self) -> bool:
        """Whether media of the tuple have a session (C27)."""
        return self.state in (State.IDENTIFIED, State.ESTABLISHED)

    def next_timeout(self) -> float | None:
        """When `handle_timeout` wants to be called."""
        return min(self._timers.values(), default=None)

    # --- what happens ------------------------------------------------------------------------------------------------

    def open(self, now: float) -> list[Action]:
        """Ask. Once."""
        return self._step(Cue.OPEN, None, now)

    def close(self, now: float) -> list[Action]:
        """Give up. The wire has no word for it."""
        return self._step(Cue.CLOSE, None, now)

    def reidentify(self, new: bytes, now: float) -> list[Action]:
        """Name the session anew (C39); nothing happens before it is established.

        Raises:
            ValueError: not an id of 1 to 36 bytes without NUL.
        """
        if not new:
            raise ValueError("connection id: expected at least 1 byte, got none")
        encode(ConnectionId(new))
        return self._step(Cue.REIDENTIFY, new, now)

    def hear_media(self, now: float) -> None:
        """Media came; once for a batch is enough."""
        if self.takes_media:
            self._hear(now)

    def handle(self, peer: PacketTuple, datagram: Control, now: float) -> list[Action]:
        """A datagram came that is not media."""
        if peer != self.peer:
            self._counters.add(Count.UNKNOWN_TUPLE)
            return []
        match datagram:
            case SynAck():
                return self._step(Cue.ACCEPTED if datagram.accept else Cue.REFUSED, datagram, now)
            case Syn():
                return self._step(Cue.SYN, datagram, now)
            case ConnectionId():
                return self._step(Cue.CONNECTION_ID, datagram.id, now)
            case _:
                self._counters.add(Count.UNEXPECTED)
                return []

    def handle_timeout(self, now: float) -> list[Action]:
        """Time has passed."""
        actions: list[Action] = []
        for cue in (Cue.IDLE, Cue.RETRY, Cue.REPEAT, Cue.KEEP_ALIVE):
            if self._timers.get(cue, now + 1) <= now:
                del self._timers[cue]
                actions += self._step(cue, None, now)
        return actions

    def _step(self, cue: Cue, what: object, now: float) -> list[Action]:
        entry = TRANSITIONS.get((self.state, cue))
        if entry is None:
            if cue in (Cue.ACCEPTED, Cue.REFUSED, Cue.SYN, Cue.CONNECTION_ID):
                self._counters.add(Count.UNEXPECTED)
            return []
        method, after = entry
        actions: list[Action] = getattr(self, method)(what, now)
        if self.state not in after:
            raise AssertionError(f"{method} led to {self.state}, the table allows {after}")
        return actions

    # --- asking ------------------------------------------------------------------------------------------------------

    def _open(self, _: None, now: float) -> list[Action]:
        self.state = State.ASKING
        return self._retry_syn(None, now)

    def _retry_syn(self, _: None, now: float) -> list[Action]:
        if self._tries == self._timing.tries:
            return self._end(Why.UNANSWERED)
        self._await_answer(now)
        return [Send(self.peer, self._syn)]

    def _await_answer(self, now: float) -> None:
        self._tries += 1
        self._timers[Cue.RETRY] = now + self._timing.retry_s(self._tries)

    def _be_refused(self, syn_ack: SynAck, now: float) -> list[Action]:
        return self._end(Why.REFUSED, show(syn_ack.text))

    def _meet(self, syn: Syn, now: float) -> list[Action]:
        if self._may_yield and self.desired < syn.desired:
            return self._end(Why.GLARE)
        return self._refuse(syn, now)

    def _refuse(self, _: Syn, now: float) -> list[Action]:
        self._counters.add(Count.REFUSED)
        return [Send(self.peer, encode(SynAck(False, b"glare")))]

    def _establish(self, syn_ack: SynAck, now: float) -> list[Action]:
        changed = self._take_id(syn_ack.text, now)
        if changed is None:
            return []
        self.state = State.ESTABLISHED
        return [*changed, Established(self.peer, self.id, syn_ack.options), *self._acknowledge(syn_ack.text, now)]

    def _hear_accepted_again(self, syn_ack: SynAck, now: float) -> list[Action]:
        """The ACK was lost, or the responder has forgotten and begins anew."""
        if syn_ack.text == self.assigned:
            return [self._ack()]
        changed = self._take_id(syn_ack.text, now)
        return [] if changed is None else [*changed, *self._acknowledge(syn_ack.text, now)]

    def _acknowledge(self, assigned: bytes, now: float) -> list[Action]:
        self.assigned = assigned
        self._tries = 0
        self._hear(now)
        return self._retry_ack(None, now)

    def _retry_ack(self, _: None, now: float) -> list[Action]:
        if self._tries == self._timing.tries:
            return []
        self._await_answer(now)
        self._timers[Cue.KEEP_ALIVE] = now + self._timing.keep_alive_s
        return [self._ack()]

    def _ack(self) -> Send:
        return Send(self.peer, encode(Ack(self.assigned)))

    # --- identity ----------------------------------------------------------------------------------------------------

    def _take_id(self, new: bytes, now: float) -> list[Action] | None:
        """The actions of a change; None if there were too many."""
        if new == self.id:
            return []
        if not self._flushes.allows(now):
            self._counters.add(Count.FLUSHES_REFUSED)
            return None
        self._counters.add(Count.FLUSHES)
        self.id = new
        self._repeats = []
        self._timers.pop(Cue.REPEAT, None)
        return [Flush(self.peer), Identified(self.peer, new)]

    def _hear_early_id(self, new: bytes, now: float) -> list[Action]:
        changed = self._take_id(new, now)
        if changed:
            self.state = State.IDENTIFIED
        return changed or []

    def _hear_id(self, new: bytes, now: float) -> list[Action]:
        self._hear(now)
        return self._take_id(new, now) or []

    def _reidentify(self, new: bytes, now: float) -> list[Action]:
        changed = self._take_id(new, now)
        if not changed:
            return []
        self._repeats = [now + after_s for after_s in self._timing.repeats_s]
        return [*changed, *self._repeat_id(None, now)]

    def _repeat_id(self, _: None, now: float) -> list[Action]:
        if self._repeats:
            self._timers[Cue.REPEAT] = self._repeats.pop(0)
        return self._keep_alive(None, now)

    # --- life --------------------------------------------------------------------------------------------------------

    def _hear(self, now: float) -> None:
        """Whatever but a SYN-ACK shows that the responder has the ACK, or does not wait for it."""
        if self.state is not State.ESTABLISHED:
            return
        self._timers.pop(Cue.RETRY, None)
        if self._timing.idle_s is not None:
            self._timers[Cue.IDLE] = now + self._timing.idle_s

    def _keep_alive(self, _: None, now: float) -> list[Action]:
        self._timers[Cue.KEEP_ALIVE] = now + self._timing.keep_alive_s
        return [Send(self.peer, encode(ConnectionId(self.id)))]

    def _time_out(self, _: None, now: float) -> list[Action]:
        return self._end(Why.IDLE)

    def _close(self, _: None, now: float) -> list[Action]:
        return self._end(Why.CLOSED)

    def _end(self, why: Why, text: str = "") -> list[Action]:
        self.state = State.ENDED
        self._timers.clear()
        flush: list[Action] = [Flush(self.peer)] if self.id else []
        return [*flush, Ended(self.peer, why, text)]
