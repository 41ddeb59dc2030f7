"""`punch listen`: takes calls, one for standard input and output, or many for what it forwards to."""

from __future__ import annotations

from collections import deque
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TYPE_CHECKING

import trio

from punchd.client.events import Connected
from punchd.client.trio_client import Attempt, TrioSocket
from punchd.control.requests import Protocol
from punchd.punch import calls, tls
from punchd.punch.admission import Admission, Policy, Verdict
from punchd.punch.conductor import Conductor, Means
from punchd.punch.hole import Hole, Secured
from punchd.punch.mail import Box, Mailroom
from punchd.punch.messages import Call, Code, Message, Reject
from punchd.punch.outcomes import EndedError, Exit
from punchd.punch.records import Wish
from punchd.punch.relay import relay
from punchd.punch.sockets import TargetError, dial, keep_alive
from punchd.punch.stdio import Stdio
from punchd.punch.talk import Carry, talk

if TYPE_CHECKING:
    from punchd.punch.holes import Puncher
    from punchd.punch.news import News
    from punchd.rendezvous.identity import Identity

MOST_EARLY = 8  # signals of a call that waits for its turn: it may have been given up
VERDICT_S = 3.0  # that punchd may take to say why an attempt's time was not enough


class Listener:
    """Takes up calls. `take` hears them, `run` serves them.

    Args:
        timeout_s: for a call.
        keep: whether a listener for standard input and output goes on after the first connection.
        carry: what connections are for, if not for standard input and output.
    """

    def __init__(
        self,
        puncher: Puncher,
        identity: Identity,
        policy: Policy,
        news: News,
        *,
        timeout_s: float,
        keep: bool,
        carry: Carry | None = None,
    ) -> None:
        self._puncher = puncher
        self._identity = identity
        self._policy = policy
        self._admission = Admission(policy)
        self._news = news
        self._timeout_s = timeout_s
        self._carry = carry
        self._is_once = not keep and not policy.targets
        self._nursery: trio.Nursery | None = None
        self._mailroom: Mailroom | None = None
        self._ending: EndedError | None = None

    def take(self, sender: bytes, call_id: str, call: Call, age_s: int) -> None:
        """A call that is not known yet."""
        if self._nursery is None or self._mailroom is None:
            return
        try:
            key = None if call.is_plain else tls.fingerprint_of(call.certificate)
        except tls.UnsafeError:
            key = None
        match self._admission.judge(sender, call_id, call, key, age_s):
            case Verdict.TAKE:
                self._nursery.start_soon(self._serve, sender, call_id, call)
            case Reject() as reject:
                if not self._mailroom.reject(sender, call_id, reject):
                    return
                self._news.say("rejected", f"a call was rejected: {reject.text}", code=str(reject.code))
            case _:
                pass

    async def run(self, mailroom: Mailroom) -> None:
        """Serve calls: until cancelled, or until the one is over.

        Raises:
            EndedError: the one connection broke.
        """
        self._mailroom = mailroom
        try:
            async with trio.open_nursery() as self._nursery:
                await trio.sleep_forever()
        finally:
            self._nursery = None
        if self._ending is not None:
            raise self._ending

    async def _serve(self, sender: bytes, call_id: str, call: Call) -> None:
        mailroom, nursery = self._mailroom, self._nursery
        if mailroom is None or nursery is None:
            return
        news = self._news.of_call(call_id, is_one_of_many=bool(self._policy.targets))
        hole: Hole | None = None
        try:
            with mailroom.box(sender, call_id, lambda message: None) as box:
                hole = await self._answer(box, call, news)
                await self._talk(hole, box)
        except EndedError as error:
            ending: EndedError | None = error
            if not self._is_once or hole is None:  # otherwise whoever runs us tells it
                news.fail(error.code, str(error))
        else:
            news.say("ended", "the connection has ended")
            ending = None
        finally:
            self._admission.end(sender, call_id)
        if self._is_once and hole is not None:
            self._ending = ending
            nursery.cancel_scope.cancel()

    async def _answer(self, box: Box, call: Call, news: News) -> Hole:
        mailroom, started_at = self._mailroom, trio.current_time()
        if mailroom is None:
            raise RuntimeError("a call before `run`")

        async def post(message: Message) -> None:
            await mailroom.post(box.peer, box.call_id, message)

        early = deque[Message](maxlen=MOST_EARLY)
        box.take = early.append
        try:
            async with self._puncher.daemon() as daemon:

                def attempt(offer: str | None) -> AbstractAsyncContextManager[Attempt]:
                    return self._puncher.initiate(daemon, call, self._timeout_s)

                side = calls.Listener(call, trio.current_time(), self._timeout_s + VERDICT_S)
                secure = partial(self._secure, box.call_id, call)
                conductor = Conductor(side, Means(self._puncher.protocol, post, attempt, secure), news)
                box.take = conductor.take
                news.say("called", f"called from {call.ip}", ip=str(call.ip))
                hole = await conductor.run(side.begin(), early)
        except EndedError as error:
            if error.code is Exit.DAEMON:
                await post(Reject(Code.FAILED, "the listener's punchd is in trouble"))
            raise
        hole.tell(news, trio.current_time() - started_at)
        return hole

    async def _talk(self, hole: Hole, box: Box) -> None:
        stream, target = hole.secured.stream, hole.secured.target
        if target is not None and stream is not None:
            await relay(stream, target)
        elif self._mailroom is not None and self._carry is not None:
            await self._carry(hole, self._mailroom, box)
        elif self._mailroom is not None:
            await talk(hole, self._mailroom, box, Stdio(is_last=self._is_once))

    # --- securing ----------------------------------------------------------------------------------------------------

    async def _secure(self, call_id: str, call: Call, connected: Connected[TrioSocket]) -> Secured:
        if call.protocol is Protocol.UDP:
            return Secured()
        keep_alive(connected.socket)
        if call.is_plain:
            return Secured(trio.SocketStream(connected.socket), None, await self._dial_plain(call.target))
        dialled: list[trio.SocketStream] = []
        try:
            judge = partial(self._judge, call_id, dialled)
            peer = await tls.accept(connected.socket, self._identity, call.certificate, judge)
        except BaseException:
            for stream in dialled:
                stream.socket.close()
            raise
        return Secured(peer.stream, peer.key, dialled[0] if dialled else None)

    async def _judge(self, call_id: str, dialled: list[trio.SocketStream], wish: Wish) -> Reject | None:
        """About the greeting of a connector that has proven its key."""
        if wish.call_id != call_id:
            return Reject(Code.FAILED, "that was another call")
        objection = self._policy.objection_to_target(wish.target)
        if objection is not None:
            return Reject(Code.TARGET, objection)
        target = self._policy.target(wish.target)
        if target is None:
            return None
        try:
            dialled.append(await dial(target))
        except TargetError as error:
            return Reject(Code.TARGET, str(error))
        return None

    async def _dial_plain(self, wanted: str | None) -> trio.SocketStream | None:
        target = self._policy.target(wanted)
        if target is None:
            return None
        try:
            return await dial(target)
        except TargetError as error:
            raise tls.RejectedError(Reject(Code.TARGET, str(error))) from None
