"""The rounds of one attempt, as a pure machine: who starts which technique when, and who believes what.

Two daemons run one attempt. The initiator leads: each technique is a *round*; it starts the technique, which sooner
or later has something to tell the peer, and that goes out as the round's offer. The responder follows: an offer starts
the technique's other half, whose first words are the answer. A round ends when the technique holds a socket that is
proven in both directions, when it breaks, when the peer skips it, or when its budget is spent; the initiator then goes
to the next, and the responder waits for the next offer.

The states, what is known in each, and all transitions stand in `punchd.attempt.transitions`.

Time. A round's budget adapts to the path: six times the sum of both sides' STUN round trips plus half a second, within
1 to 6 seconds, from the answer on; six seconds from the offer while there is no answer (side channels may be slow,
and may relay nothing back at all: that costs time, not correctness); never more than its share of what the attempt has
left. An initiator that still tries must find the responder armed. The responder does not know whether, when or with
which budget its words came through, so it assumes the slowest initiator: the full six seconds, from the offer on and
once more from its answer on, and two seconds for the way that the answer takes. On a side channel slower than that,
an initiator without round trip times may outlive it; that costs the end of a round, not correctness.

The two generals. No protocol lets both sides know that both know. A technique ends on the initiator's side only with
the responder's word that it has finished, so the one case left is a responder that holds a socket while the initiator's
round ran out; the initiator's next offer then tells the responder's application that its socket is dead (race rule 1).

Everything stale, foreign or doubled is refused at one gate (`_objection`) before the table is asked.

Source: line protocol §3, §4, §10, §13.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from punchd.attempt.moves import (
    Action,
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
from punchd.attempt.transitions import TRANSITIONS, Cue, State
from punchd.endpoint import IPAddress
from punchd.errors import Code
from punchd.wire.token import MAX_COUNTER, Card, Farewell, Kind, Token

__all__ = ["Machine", "Plan", "State"]

PREPARATION_S = 2.0  # from the start of a round to its offer: STUN and opening the NAT
UNANSWERED_S = 6.0  # from the offer on, while no answer has come
BUDGET_ROUND_TRIPS = 6
BUDGET_BASE_S = 0.5
BUDGET_MIN_S = 1.0
BUDGET_MAX_S = 6.0
RESPONDER_GRACE_S = 2.0  # a responder's round outlives the initiator's by this

_CUES: Mapping[type, Cue] = {
    Begin: Cue.BEGIN,
    Said: Cue.SAID,
    Holed: Cue.HOLED,
    Broke: Cue.BROKE,
    Cancelled: Cue.CANCELLED,
    Vanished: Cue.VANISHED,
    ShutDown: Cue.SHUT_DOWN,
}
_TOKEN_CUES: Mapping[Kind, Cue] = {
    Kind.OFFER: Cue.OFFER,
    Kind.ANSWER: Cue.ANSWER,
    Kind.NOTE: Cue.ANSWER,
    Kind.SKIP: Cue.SKIP,
    Kind.ABORT: Cue.ABORT,
}

_SKIP_REASONS: Mapping[Code, Farewell] = {Code.NO_PRIVILEGE: Farewell.NO_PRIVILEGE}
_FAREWELL_WORDS: Mapping[Farewell, str] = {
    Farewell.CANCELLED: "it was cancelled there",
    Farewell.TIMEOUT: "its time was over",
    Farewell.EXHAUSTED: "it had no technique left",
    Farewell.NO_PRIVILEGE: "its daemon lacks the privilege",
    Farewell.UNSUPPORTED: "it cannot do this technique",
    Farewell.NOT_AGREED: "its application does not agree to this technique",
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What an attempt is to do.

    Attributes:
        nonce: the attempt's, 8 bytes.
        peer: the other side's public address; tokens that name another one are refused.
        timeout_s: for the whole attempt.
        techniques: initiator: the rounds, each a name and its token number.
        reversed_rounds: initiator: numbers of the rounds, from 1 on, in which the technique's two sides are swapped.
        known: responder: token number → name of the techniques that this daemon can run.
        agreed: responder: the names that the application agrees to; None = all.
        first_offer: responder: the token that started the attempt. None makes this side the initiator.
    """

    nonce: bytes
    peer: IPAddress
    timeout_s: float
    techniques: tuple[tuple[str, int], ...] = ()
    reversed_rounds: frozenset[int] = frozenset()
    known: Mapping[int, str] = field(default_factory=dict)
    agreed: frozenset[str] | None = None
    first_offer: Token | None = None


class Machine:
    """One side of one attempt. Feed it events and the time; do what it says, in order.

    `handle` and `handle_timeout` never raise for anything that the peer or the application may send.
    """

    def __init__(self, plan: Plan) -> None:
        if (plan.first_offer is None) == (not plan.techniques):
            raise ValueError("an attempt has techniques to offer, or an offer to follow")
        self.plan = plan
        self.state = State.NEW
        self._first_offer = plan.first_offer
        if plan.first_offer is None:
            self.round, (self.technique, self._technique_number) = 0, plan.techniques[0]
        else:
            self.round, self._technique_number = plan.first_offer.round, plan.first_offer.technique
            self.technique = self._name_of(self._technique_number)
        self._attempt_deadline = 0.0
        self._round_deadline: float | None = None
        self._round_limit = 0.0  # the round's share of the attempt's time
        self._own_rtt_s = 0.0
        self._said = 0  # counter of the last card told in this round
        self._heard = -1  # counter of the last card heard in this round
        self._peer_knows = False  # it may have heard of this attempt, or has made it
        self._failures: list[str] = []
        self._explanation = ""

    @property
    def is_initiator(self) -> bool:
        return self.plan.first_offer is None

    def next_timeout(self) -> float | None:
        """When `handle_timeout` wants to be called; None when the attempt has ended or not begun."""
        if self.state in (State.NEW, State.ENDED):
            return None
        if self._round_deadline is None:
            return self._attempt_deadline
        return min(self._attempt_deadline, self._round_deadline)

    def handle_timeout(self, now: float) -> list[Action]:
        """Time has passed."""
        if self.state in (State.NEW, State.ENDED):
            return []
        if now >= self._attempt_deadline:
            return self._step(Cue.ATTEMPT_OVER, None, now)
        if self._round_deadline is not None and now >= self._round_deadline:
            return self._step(Cue.ROUND_OVER, None, now)
        return []

    def handle(self, event: Event, now: float) -> list[Action]:
        """Something happened."""
        if isinstance(event, Arrived):
            if self.state is State.ENDED:
                return []
            if (objection := self._objection(event.token)) is not None:
                return [Ignored(max(self.round, 1), self.technique, objection)]
            return self._step(_TOKEN_CUES[event.token.kind], event.token, now)
        return self._step(_CUES[type(event)], event, now)

    def explain(self, text: str) -> None:
        """What the running technique would say if it had to give up now; it becomes part of a failure's text."""
        self._explanation = text

    def _step(self, cue: Cue, what: object, now: float) -> list[Action]:
        entry = TRANSITIONS.get((self.state, cue))
        if entry is None:
            return []
        method, after = entry
        if isinstance(what, Broke):  # the verdict repeats what broke the last technique
            self._explanation = "; ".join(text for text in (what.text, self._explanation) if text)
        actions: list[Action] = getattr(self, method)(what, now)
        if self.state not in after:
            raise AssertionError(f"{method} led to {self.state}, the table allows {after}")
        return actions

    # --- the gate --------------------------------------------------------------------------------------------------

    def _objection(self, token: Token) -> Code | None:
        """Why a token must not reach the table; None when it may."""
        if token.nonce != self.plan.nonce:
            return Code.BAD_TOKEN
        if token.kind is Kind.ABORT:
            return None
        from_initiator = token.kind is Kind.OFFER
        if (from_initiator and self.is_initiator) or (token.kind in (Kind.ANSWER, Kind.SKIP) and not self.is_initiator):
            return Code.BAD_TOKEN
        if token.card is not None and not self._fits(token.card):
            return Code.TOKEN_MISMATCH
        if from_initiator:
            return Code.STALE if token.round <= self.round else None
        if token.round != self.round or self.state in (State.NEW, State.WAITING, State.PREPARING):
            return Code.STALE
        if token.technique != self._technique_number:
            return Code.BAD_TOKEN
        if token.card is not None and token.counter <= self._heard:
            return Code.STALE
        return None

    def _fits(self, card: Card) -> bool:
        """The card names the attempt's peer, or (a responder that has not yet asked) no address of that family."""
        if card.address.version != self.plan.peer.version:
            return False
        return card.address == self.plan.peer or (self.is_initiator and card.address.is_unspecified)

    # --- both sides ------------------------------------------------------------------------------------------------

    def _begin(self, _: Begin, now: float) -> list[Action]:
        self._attempt_deadline = now + self.plan.timeout_s
        if self._first_offer is None:
            return self._start_round(now)
        return self._follow(self._first_offer, now)

    def _token(self, kind: Kind, *, card: Card | None = None, farewell: Farewell | None = None) -> Relay:
        counter = self._said if kind is Kind.NOTE else 0
        token = Token(kind, self.plan.nonce, self.round, self._technique_number, card, farewell, counter)
        self._peer_knows = True
        return Relay(self.round, self.technique, token)

    def _note(self, said: Said, now: float) -> list[Action]:
        if self._said == MAX_COUNTER:
            return []
        self._said += 1
        return [self._token(Kind.NOTE, card=said.card)]

    def _hear_note(self, token: Token, now: float) -> list[Action]:
        self._heard = token.counter
        return [Deliver(token.card)] if token.card is not None else []

    def _succeed(self, holed: Holed, now: float) -> list[Action]:
        self.state = State.ENDED
        return [Succeed(self.round, self.technique, holed.local, holed.remote)]

    def _end(self, code: Code, text: str, farewell: Farewell | None) -> list[Action]:
        self.state = State.ENDED
        goodbye: list[Action] = []
        if farewell is not None and self._peer_knows:
            goodbye.append(self._token(Kind.ABORT, farewell=farewell))
        return [StopTechnique(), *goodbye, Fail(code, text)]

    def _be_aborted(self, token: Token, now: float) -> list[Action]:
        why = _FAREWELL_WORDS[token.farewell] if token.farewell is not None else "no reason given"
        here = f"; here: {self._explanation}" if self._explanation else ""
        return self._end(Code.PEER_ABORT, f"the other side gave up: {why}{here}", None)

    def _time_out(self, _: None, now: float) -> list[Action]:
        running = self.state is not State.WAITING
        failed = [self._fail_round(Code.TIMEOUT, "the attempt's time is over")] if running else []
        return [*failed, *self._time_is_over()]

    def _be_cancelled(self, _: Cancelled, now: float) -> list[Action]:
        return self._end(Code.CANCELLED, "cancelled by the application", Farewell.CANCELLED)

    def _vanish(self, _: Vanished, now: float) -> list[Action]:
        return self._end(Code.CANCELLED, "the application is gone", None)

    def _shut_down(self, _: ShutDown, now: float) -> list[Action]:
        return self._end(Code.SHUTDOWN, "punchd is stopping", Farewell.CANCELLED)

    def _fail_round(self, reason: Code, text: str) -> Failed:
        self._failures.append(f"{self.technique} {reason}")
        self._round_deadline = None
        return Failed(self.round, self.technique, reason, "; ".join(part for part in (text, self._explanation) if part))

    def _so_far(self) -> str:
        """The reasons of all rounds, and the last technique's explanation."""
        return "; ".join(text for text in (", ".join(self._failures), self._explanation) if text)

    def _name_of(self, technique_number: int) -> str:
        return self.plan.known.get(technique_number, f"technique-{technique_number}")

    def _open_round(self, number: int, technique: str, technique_number: int) -> None:
        self.round = number
        self.technique = technique
        self._technique_number = technique_number
        self._said = 0
        self._heard = -1
        self._explanation = ""

    def _budget_s(self, peer_rtt_ms: int) -> float:
        if not self._own_rtt_s or not peer_rtt_ms:
            return BUDGET_MAX_S
        path_s = self._own_rtt_s + peer_rtt_ms / 1000
        return min(max(BUDGET_ROUND_TRIPS * path_s + BUDGET_BASE_S, BUDGET_MIN_S), BUDGET_MAX_S)

    # --- the initiator leads ---------------------------------------------------------------------------------------

    def _start_round(self, now: float) -> list[Action]:
        name, number = self.plan.techniques[self.round]
        share_s = (self._attempt_deadline - now) / (len(self.plan.techniques) - self.round)
        self._open_round(self.round + 1, name, number)
        self._round_limit = now + share_s
        self._round_deadline = now + min(PREPARATION_S, share_s)
        self.state = State.PREPARING
        is_reversed = self.round in self.plan.reversed_rounds
        return [Trying(self.round, name), StartTechnique(self.round, name, None, is_reversed)]

    def _offer(self, said: Said, now: float) -> list[Action]:
        self._own_rtt_s = said.card.rtt_ms / 1000
        self._round_deadline = min(now + UNANSWERED_S, self._round_limit)
        self.state = State.OFFERED
        return [self._token(Kind.OFFER, card=said.card)]

    def _hear_answer(self, token: Token, now: float) -> list[Action]:
        actions = self._hear_note(token, now)
        peer_rtt_ms = token.card.rtt_ms if token.card is not None else 0
        self._round_deadline = min(now + self._budget_s(peer_rtt_ms), self._round_limit)
        self.state = State.ANSWERED
        return actions

    def _be_skipped(self, token: Token, now: float) -> list[Action]:
        why = _FAREWELL_WORDS[token.farewell] if token.farewell is not None else "no reason given"
        return self._go_on(Code.PEER_SKIP, f"the other side skips it: {why}", now)

    def _give_round_up(self, broke: Broke, now: float) -> list[Action]:
        return self._go_on(broke.reason, "", now)

    def _run_out_unprepared(self, _: None, now: float) -> list[Action]:
        return self._go_on(Code.TIMEOUT, "its preparation took too long", now)

    def _run_out(self, _: None, now: float) -> list[Action]:
        text = "the responder was armed" if self.state is State.ANSWERED else "no answer token came back"
        return self._go_on(Code.TIMEOUT, text, now)

    def _go_on(self, reason: Code, text: str, now: float) -> list[Action]:
        """The round is over; start the next, or end."""
        failed = self._fail_round(reason, text)
        if self.round < len(self.plan.techniques) and now < self._attempt_deadline:
            return [StopTechnique(), failed, *self._start_round(now)]
        if now >= self._attempt_deadline:
            return [failed, *self._time_is_over()]
        return [failed, *self._end(Code.EXHAUSTED, f"no technique succeeded: {self._so_far()}", Farewell.EXHAUSTED)]

    def _time_is_over(self) -> list[Action]:
        return self._end(Code.TIMEOUT, f"{self.plan.timeout_s:g} s are over: {self._so_far()}", Farewell.TIMEOUT)

    # --- the responder follows -------------------------------------------------------------------------------------

    def _prefer(self, token: Token, now: float) -> list[Action]:
        """A higher round came before this side could begin with the first."""
        self._first_offer = token
        self._open_round(token.round, self._name_of(token.technique), token.technique)
        return []

    def _follow(self, token: Token, now: float) -> list[Action]:
        self._peer_knows = True
        self._open_round(token.round, self._name_of(token.technique), token.technique)
        if token.technique not in self.plan.known:
            return self._decline(Farewell.UNSUPPORTED)
        if self.plan.agreed is not None and self.technique not in self.plan.agreed:
            return self._decline(Farewell.NOT_AGREED)
        self._round_deadline = now + UNANSWERED_S + RESPONDER_GRACE_S
        self.state = State.STARTING
        is_reversed = token.card is not None and token.card.reversed_roles
        return [Trying(self.round, self.technique), StartTechnique(self.round, self.technique, token.card, is_reversed)]

    def _decline(self, farewell: Farewell) -> list[Action]:
        failed = self._fail_round(Code.UNSUPPORTED, _FAREWELL_WORDS[farewell].replace("its", "this", 1))
        self.state = State.WAITING
        return [self._token(Kind.SKIP, farewell=farewell), failed]

    def _be_superseded(self, token: Token, now: float) -> list[Action]:
        failed = self._fail_round(Code.SUPERSEDED, f"the initiator went on to round {token.round}")
        return [StopTechnique(), failed, *self._follow(token, now)]

    def _answer(self, said: Said, now: float) -> list[Action]:
        self._round_deadline = now + BUDGET_MAX_S + RESPONDER_GRACE_S
        self.state = State.ARMED
        return [self._token(Kind.ANSWER, card=said.card)]

    def _skip(self, broke: Broke, now: float) -> list[Action]:
        farewell = _SKIP_REASONS.get(broke.reason, Farewell.UNSUPPORTED)
        failed = self._fail_round(broke.reason, "")
        self.state = State.WAITING
        return [StopTechnique(), self._token(Kind.SKIP, farewell=farewell), failed]

    def _pause(self, _: None, now: float) -> list[Action]:
        failed = self._fail_round(Code.TIMEOUT, "the initiator's round is over")
        self.state = State.WAITING
        return [StopTechnique(), failed]
