"""One call: the shell around its machine. Carries signals, runs attempts, makes TLS of the socket.

Whoever has news for the machine (a signal, an attempt, a timer) tells it at once, and what it says is done at once.
Signals go out one after the other, in a task of their own, since sending waits.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass

import trio

from punchd.client.errors import AttemptError, ClientError
from punchd.client.events import Connected, Failed, Relay, Trying
from punchd.client.trio_client import Attempt, TrioSocket
from punchd.control.requests import Protocol
from punchd.errors import Code as DaemonCode
from punchd.punch import moves
from punchd.punch.calls import Side
from punchd.punch.hole import Hole, Secured
from punchd.punch.messages import Code, Message
from punchd.punch.moves import Action, Reason
from punchd.punch.news import News
from punchd.punch.outcomes import EndedError, Exit
from punchd.punch.tls import BrokenHandshakeError, RejectedError, UnsafeError

MOST_UNSENT = 64  # signals; more are lost
MOST_LATE = 8  # signals
FLUSH_S = 2.0  # for the last signals of a call
GOODBYE_S = 1.0  # for those of a call that is cancelled
NO_OFFER = (DaemonCode.BAD_TOKEN, DaemonCode.STALE, DaemonCode.DUPLICATE_ATTEMPT)

_EXITS = {
    Reason.NO_CONNECTION: Exit.NO_CONNECTION,
    Reason.NO_ANSWER: Exit.NOT_ONLINE,
    Reason.REFUSED: Exit.REFUSED,
    Reason.CANCELLED: Exit.NO_CONNECTION,
    Reason.DAEMON: Exit.DAEMON,
}


@dataclass(frozen=True, slots=True)
class Means:
    """How a conductor does things.

    Attributes:
        post: sends a signal.
        attempt: opens an attempt: of the listener's own (None), or one that follows an offer.
        secure: makes of the connected socket what the call is for.
    """

    protocol: Protocol
    post: Callable[[Message], Awaitable[object]]
    attempt: Callable[[str | None], AbstractAsyncContextManager[Attempt]]
    secure: Callable[[Connected[TrioSocket]], Awaitable[Secured]]


class Conductor:
    """See above."""

    def __init__(self, side: Side, means: Means, news: News) -> None:
        self._side = side
        self._means = means
        self._news = news
        self._send, self._unsent = trio.open_memory_channel[Message](MOST_UNSENT)
        self._nursery: trio.Nursery | None = None
        self._attempt: Attempt | None = None
        self._early: list[str] = []  # tokens that came before there was an attempt
        self._connected: Connected[TrioSocket] | None = None
        self._securing = trio.CancelScope()
        self._secured: Secured | None = None
        self._ended: moves.Done | moves.GiveUp | None = None
        self._failure: EndedError | None = None
        self._late: list[Message] = []
        self._rescheduled = trio.Event()

    def take(self, message: Message) -> None:
        """A signal of this call."""
        if isinstance(self._ended, moves.Done):
            self._late += [message] if len(self._late) < MOST_LATE else []
        else:
            self._tell(moves.Heard(message))

    async def run(self, first: list[Action], early: Sequence[Message] = ()) -> Hole:
        """Conduct the call from its machine's first actions to its end.

        Args:
            early: signals that came before.

        Raises:
            EndedError: nothing came of it.
        """
        hole: Hole | None = None
        try:
            async with trio.open_nursery() as outer:
                outer.start_soon(self._post_all, outer.cancel_scope)
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    nursery.start_soon(self._run_timer)
                    for message in early:
                        self.take(message)
                    if self._ended is None:
                        self._do(first)
                self._send.close()
                outer.cancel_scope.deadline = trio.current_time() + FLUSH_S
            hole = self._result()
        finally:
            self._nursery = None
            if hole is None:
                await self._say_goodbye()
        return hole

    def _result(self) -> Hole:
        if self._failure is not None:
            raise self._failure
        if isinstance(self._ended, moves.GiveUp):
            raise EndedError(_EXITS[self._ended.reason], self._ended.text)
        if self._connected is None or self._secured is None:
            raise RuntimeError("a call was done without a socket")
        return Hole(self._connected, self._secured, self._late)

    def _fail(self, failure: EndedError) -> None:
        """What is not the machine's matter."""
        self._failure = failure
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    async def _say_goodbye(self) -> None:
        """What a call that ends in any other way leaves behind: nothing, and a `bye` if nothing else was said."""
        self._drop()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + GOODBYE_S), suppress(EndedError):
            for action in self._side.handle(moves.Cancelled(), trio.current_time()):
                if isinstance(action, moves.Send):
                    await self._means.post(action.message)

    # --- the machine -------------------------------------------------------------------------------------------------

    def _tell(self, event: moves.Event) -> None:
        self._do(self._side.handle(event, trio.current_time()))

    async def _run_timer(self) -> None:
        while True:
            self._rescheduled = trio.Event()
            with trio.move_on_at(self._side.next_timeout):
                await self._rescheduled.wait()
                continue
            self._do(self._side.handle_timeout(trio.current_time()))

    def _do(self, actions: list[Action]) -> None:
        nursery = self._nursery
        if nursery is None:
            return
        for action in actions:
            match action:
                case moves.Send():
                    with suppress(trio.WouldBlock, trio.ClosedResourceError):
                        self._send.send_nowait(action.message)
                case moves.Initiate():
                    nursery.start_soon(self._run_attempt, None)
                case moves.Respond():
                    nursery.start_soon(self._run_attempt, action.token)
                case moves.Deliver():
                    self._deliver(action.token)
                case moves.Secure():
                    nursery.start_soon(self._secure)
                case moves.Drop():
                    self._drop()
                case moves.Done() | moves.GiveUp():
                    self._ended = action
                    nursery.cancel_scope.cancel()
        self._rescheduled.set()

    async def _post_all(self, scope: trio.CancelScope) -> None:
        try:
            async for message in self._unsent:
                await self._means.post(message)
        except EndedError as error:
            self._fail(error)
        scope.cancel()

    # --- attempts ----------------------------------------------------------------------------------------------------

    def _deliver(self, token: str) -> None:
        if self._attempt is None:
            self._early.append(token)
        else:
            self._attempt.deliver(token)

    async def _run_attempt(self, offer: str | None) -> None:
        """From its start to its verdict; with a token, it may turn out that there is nothing to start."""
        means, is_taken = self._means, offer is None
        try:
            async with means.attempt(offer) as attempt:
                if is_taken:
                    self._follow(attempt)
                async for event in attempt:
                    if not is_taken:
                        is_taken = True
                        self._attempt = attempt
                        self._tell(moves.Taken())
                    match event:
                        case Relay():
                            self._tell(moves.Relayed(event.token))
                        case Trying():
                            text = f"trying {event.technique} (round {event.round})"
                            self._news.say("trying", text, technique=event.technique, round=event.round)
                        case Failed():
                            said = f"{event.code}: {event.text}" if event.text else event.code
                            self._news.say(
                                "failed", f"{event.technique} failed: {said}", technique=event.technique, reason=said
                            )
                        case Connected() if event.protocol is not means.protocol:
                            event.socket.close()
                            self._tell(moves.Failed(f"{event.technique} gives no {means.protocol.upper()} connection"))
                        case Connected():
                            self._drop()
                            self._connected = event
                            self._tell(moves.Punched())
                        case _:
                            pass
        except AttemptError as error:
            is_none = not is_taken and error.code in NO_OFFER
            self._tell(moves.NoOffer() if is_none else moves.Failed(str(error)))
        except ClientError as error:
            self._tell(moves.Failed(str(error), is_daemon=True))
        except EndedError as error:
            self._fail(error)

    def _follow(self, attempt: Attempt) -> None:
        self._attempt = attempt
        for token in self._early:
            attempt.deliver(token)

    # --- the socket --------------------------------------------------------------------------------------------------

    async def _secure(self) -> None:
        connected = self._connected
        if connected is None:
            return
        with trio.CancelScope() as self._securing:
            try:
                self._secured = await self._means.secure(connected)
            except RejectedError as error:
                self._tell(moves.Unsecured(str(error), error.verdict.code))
            except UnsafeError as error:
                self._tell(moves.Unsecured(str(error), Code.FAILED))
            except (BrokenHandshakeError, OSError, trio.BrokenResourceError) as error:
                self._tell(moves.Unsecured(str(error)))
            else:
                self._tell(moves.Secured())

    def _drop(self) -> None:
        """Close the socket; what was made of it is closed with it."""
        self._securing.cancel()
        if self._secured is not None:
            self._secured.close()
            self._secured = None
        if self._connected is not None:
            self._connected.socket.close()
            self._connected = None
