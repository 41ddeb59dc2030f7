"""One call, as a pure machine for each side: events and the time go in, actions come out.

    connector                         rendezvous server                          listener
    probe                                                                                      the daemons' part
    ── call (address, certificate) ──────────────────────────────────────────▶  initiate
    respond  ◀─────────────────────────────────────────────────────── token ──
    ── token ────────────────────────────────────────────────────────────────▶  … until both daemons say ok
    ◀═══════════════════════ TLS through the hole; plain: ready both ways ═════▶

The listener initiates, because the connector's address comes with the call: two trips of signals until both punch.

    CALLING    connector only: the call is out, and out again after 2, 6 and 14 s; the listener answers a doubled call
               with its last token, so that one lost signal costs two seconds and not the call
    PUNCHING   a daemon's attempt runs
    SETTLING   this side holds a socket. Does the other one? TLS tells; in plain calls both say `ready`
    OVER       done, or given up

Signals may be lost, doubled, reordered, or forged by the rendezvous server. Doubled tokens are the daemon's matter.
Only the daemon knows which token is an offer, so whatever comes first is tried as one: if it was none (`NoOffer`), the
next is tried; tokens that came meanwhile wait. The same is done while settling: an offer after success means that the
listener's side has given that hole up (line protocol, "Races"), so the socket is dropped and the new offer followed.

In a plain call with a `ready` that was lost, both sides go on after four seconds: silence proves nothing.

Glare needs no rule: two sides that call each other have two calls with ids of their own, and both may succeed.

Pure: `now` is in seconds of a clock that never goes back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from punchd.punch.messages import Bye, Call, Code, Message, Ready, Reject, Token
from punchd.punch.moves import (
    Action,
    Cancelled,
    Deliver,
    Done,
    Drop,
    Event,
    Failed,
    GiveUp,
    Heard,
    Initiate,
    NoOffer,
    Punched,
    Reason,
    Relayed,
    Respond,
    Secure,
    Secured,
    Send,
    State,
    Taken,
    Unsecured,
)

FIRST_REPEAT_S = 2.0  # of a call that nobody answers; doubled each time
ANSWER_S = 30.0  # then nobody will: a listener with many calls may keep one waiting
SETTLE_S = 10.0  # for TLS: six trips and a look at the target
READY_S = 4.0  # for the other side's `ready` in a plain call
LATE_OFFER_S = 3.0  # after a socket that broke while settling: an initiator's next round is that close
MAX_TOKENS = 64  # of one call and side; a hundred rounds would be needed for more


class Side(ABC):
    """What both sides have in common. Feed it events and the time; do what it says, in order.

    Attributes:
        next_timeout: when to call `handle_timeout`.
    """

    def __init__(self, state: State, deadline: float, *, is_plain: bool) -> None:
        self.state = state
        self.next_timeout = deadline
        self._deadline = deadline  # of the whole call
        self._is_plain = is_plain
        self._is_ready = False  # this side
        self._is_peer_ready = False
        self._tokens_heard = 0

    def handle(self, event: Event, now: float) -> list[Action]:
        """What to do about an event. Never raises for what another side may send."""
        if self.state is State.OVER:
            return [Drop()] if isinstance(event, Punched) else []
        match event:
            case Heard():
                return self._hear(event.message, now)
            case Relayed():
                return [self._relay(event.token)]
            case Punched():
                self.state = State.SETTLING
                self.next_timeout = now + SETTLE_S
                return [Secure()]
            case Secured():
                return self._secured(now)
            case Cancelled():
                return [Send(Bye()), *self._give_up(Reason.CANCELLED, "cancelled")]
            case _:
                return self._handle(event, now)

    @abstractmethod
    def handle_timeout(self, now: float) -> list[Action]:
        """What to do when `next_timeout` has come."""

    @abstractmethod
    def _handle(self, event: Event, now: float) -> list[Action]: ...

    @abstractmethod
    def _hear_token(self, token: str) -> list[Action]: ...

    def _hear(self, message: Message, now: float) -> list[Action]:
        match message:
            case Token():
                self._tokens_heard += 1
                return self._hear_token(message.token) if self._tokens_heard <= MAX_TOKENS else []
            case Ready():
                self._is_peer_ready = True
                return self._done() if self._is_ready and self._is_peer_ready else []
            case Reject():
                if message.code is not Code.FAILED:
                    return self._give_up(Reason.REFUSED, message.text)
                return self._give_up(Reason.NO_CONNECTION, f"the other side: {message.text}")
            case Bye():
                return self._give_up(Reason.CANCELLED, "the other side has given up")
            case Call():
                return self._hear_again()

    def _hear_again(self) -> list[Action]:
        return []

    def _relay(self, token: str) -> Send:
        return Send(Token(token))

    def _secured(self, now: float) -> list[Action]:
        if self.state is not State.SETTLING:
            return []
        if not self._is_plain:
            return self._done()
        self._is_ready = True
        self.next_timeout = now + READY_S
        return [Send(Ready()), *(self._done() if self._is_peer_ready else [])]

    def _done(self) -> list[Action]:
        self.state = State.OVER
        return [Done()]

    def _give_up(self, reason: Reason, text: str) -> list[Action]:
        self.state = State.OVER
        return [GiveUp(reason, text)]

    def _fail(self, code: Code, text: str, reason: Reason = Reason.NO_CONNECTION) -> list[Action]:
        return [Send(Reject(code, text)), *self._give_up(reason, text)]


class Connector(Side):
    """The side that calls.

    Args:
        timeout_s: for the call, until both sides hold the socket.
    """

    def __init__(self, call: Call, now: float, timeout_s: float) -> None:
        super().__init__(State.CALLING, now + timeout_s, is_plain=call.is_plain)
        self._call = call
        self._asked_at = now
        self._pause_s = FIRST_REPEAT_S
        self._is_trying = False  # a token as an offer
        self._waiting: list[str] = []  # tokens that came meanwhile
        self._broken: str | None = None  # what was wrong with the socket, while waiting for another offer

    def begin(self, now: float) -> list[Action]:
        self.next_timeout = min(now + self._pause_s, self._deadline)
        return [Send(self._call)]

    def handle_timeout(self, now: float) -> list[Action]:
        match self.state:
            case State.CALLING if now >= min(self._deadline, self._asked_at + ANSWER_S):
                text = f"no answer for {now - self._asked_at:.0f} s"
                return [Send(Bye()), *self._give_up(Reason.NO_ANSWER, text)]
            case State.CALLING:
                self._pause_s *= 2
                self.next_timeout = min(now + self._pause_s, self._deadline, self._asked_at + ANSWER_S)
                return [Send(self._call)]
            case State.SETTLING if self._is_ready:
                return self._done()
            case State.SETTLING:
                return self._fail(Code.FAILED, self._broken or "the connection through the hole was not confirmed")
            case State.PUNCHING:
                return self._fail(Code.FAILED, "the time for the call is over")
            case State.OVER:
                return []

    def _handle(self, event: Event, now: float) -> list[Action]:
        match event:
            case Taken():
                return self._follow()
            case NoOffer():
                self._is_trying = False
                return self._try(self._waiting.pop(0)) if self._waiting else []
            case Failed() if self.state is State.SETTLING:
                return self._handle(NoOffer(), now)  # the attempt for a late token: the hole that is there counts
            case Failed():
                reason = Reason.DAEMON if event.is_daemon else Reason.NO_CONNECTION
                return self._fail(Code.FAILED, event.text, reason)
            case Unsecured() if event.code is not None:
                return self._give_up(_verdict(event.code), event.text)
            case Unsecured():
                self._broken = event.text
                self.next_timeout = now + LATE_OFFER_S
                return [Drop()]
            case _:
                return []

    def _hear_token(self, token: str) -> list[Action]:
        if self.state is State.PUNCHING:
            return [Deliver(token)]
        if self._is_trying:
            self._waiting.append(token)
            return []
        return self._try(token)

    def _try(self, token: str) -> list[Action]:
        self._is_trying = True
        return [Respond(token)]

    def _follow(self) -> list[Action]:
        dropped: list[Action] = [Drop()] if self.state is State.SETTLING else []
        self.state = State.PUNCHING
        self.next_timeout = self._deadline
        self._is_trying = self._is_ready = self._is_peer_ready = False
        waiting, self._waiting = self._waiting, []
        return [*dropped, *(Deliver(token) for token in waiting)]


class Listener(Side):
    """The side that is called.

    Args:
        timeout_s: until there is a hole.
    """

    def __init__(self, call: Call, now: float, timeout_s: float) -> None:
        super().__init__(State.PUNCHING, now + timeout_s, is_plain=call.is_plain)
        self._last_token: str | None = None

    def begin(self) -> list[Action]:
        return [Initiate()]

    def handle_timeout(self, now: float) -> list[Action]:
        match self.state:
            case State.SETTLING if self._is_ready:
                return self._done()
            case State.SETTLING:
                return self._fail(Code.FAILED, "the other side was not heard through the hole")
            case State.OVER:
                return []
            case _:
                return self._fail(Code.FAILED, "the time for the call is over")

    def _handle(self, event: Event, now: float) -> list[Action]:
        match event:
            case Failed():
                reason = Reason.DAEMON if event.is_daemon else Reason.NO_CONNECTION
                return self._fail(Code.FAILED, event.text, reason)
            case Unsecured():
                return self._fail(event.code or Code.FAILED, event.text)
            case _:
                return []

    def _hear_token(self, token: str) -> list[Action]:
        return [Deliver(token)] if self.state is State.PUNCHING else []

    def _hear_again(self) -> list[Action]:
        is_lost = self._last_token is not None and not self._tokens_heard and self.state is State.PUNCHING
        return [self._relay(self._last_token)] if is_lost and self._last_token is not None else []

    def _relay(self, token: str) -> Send:
        self._last_token = token
        return Send(Token(token))


def _verdict(code: Code) -> Reason:
    return Reason.NO_CONNECTION if code is Code.FAILED else Reason.REFUSED
