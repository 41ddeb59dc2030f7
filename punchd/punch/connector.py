"""`punch connect`: one call with standard input and output, or one call for each local connection."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import trio

from punchd.client.events import Connected
from punchd.client.trio_client import Attempt, TrioSocket
from punchd.control.requests import Protocol
from punchd.punch import calls, tls
from punchd.punch.conductor import Conductor, Means
from punchd.punch.hole import Hole, Secured
from punchd.punch.mail import Box, Mailroom
from punchd.punch.messages import Call, Message
from punchd.punch.moves import Action
from punchd.punch.news import News
from punchd.punch.outcomes import EndedError, Exit
from punchd.punch.records import Wish
from punchd.punch.sockets import keep_alive
from punchd.punch.stdio import Stdio
from punchd.punch.talk import Carry, talk
from punchd.rendezvous.client import RendezvousError
from punchd.rendezvous.identity import address

if TYPE_CHECKING:
    from punchd.punch.holes import Puncher
    from punchd.rendezvous.identity import Identity

VERDICT_S = 2.0  # that punchd may take to say why an attempt's time was not enough


@dataclass(slots=True)
class Caller:
    """Calls one ADDRESS.

    Attributes:
        identity: the own key; None: plain.
        wanted: fingerprint of the key to be reached.
        timeout_s: for a call.
    """

    mailroom: Mailroom
    puncher: Puncher
    identity: Identity | None
    wanted: bytes
    timeout_s: float
    news: News

    async def find(self) -> bytes:
        """The client that the address stands for.

        Raises:
            EndedError: nobody is there, or the rendezvous server is not.
        """
        try:
            found = await self.mailroom.ask(lambda: self.mailroom.service.resolve(self.wanted))
        except RendezvousError as error:
            raise EndedError(Exit.RENDEZVOUS, str(error)) from None
        if found is None:
            raise EndedError(Exit.NOT_ONLINE, f"{address(self.wanted)} is not online")
        return found

    async def call(self, box: Box, target: str | None, news: News) -> Hole:
        """A call until there is a hole. `box`: an empty one, with the call's id.

        Raises:
            EndedError: nothing came of it.
        """
        started_at = trio.current_time()
        renewals = self.mailroom.renewals
        box.peer = await self.find()
        async with self.puncher.daemon() as daemon:
            own = await self.puncher.probe(daemon)
            now = trio.current_time()
            certificate = b"" if self.identity is None else tls.certificate(self.identity)
            said = None if certificate else target
            call = Call(self.puncher.protocol, own.ip, own.ports, certificate, said)
            side = calls.Connector(call, now, self.timeout_s)
            probed = iter((own,))  # for the first attempt; a later one must not wait for its port

            def attempt(offer: str | None) -> AbstractAsyncContextManager[Attempt]:
                left_s = now + self.timeout_s - VERDICT_S - trio.current_time()
                return self.puncher.respond(daemon, offer or "", next(probed, None), left_s)

            async def post(message: Message) -> None:
                await self._post(box, message, is_strict=renewals == self.mailroom.renewals)

            secure = partial(self._secure, Wish(box.call_id, target))
            conductor = Conductor(side, Means(self.puncher.protocol, post, attempt, secure), news)
            box.take = conductor.take
            news.say("calling", f"calling {address(self.wanted)}", address=address(self.wanted))
            hole = await self._conduct(conductor, side.begin(now), box)
        hole.tell(news, trio.current_time() - started_at)
        return hole

    async def _conduct(self, conductor: Conductor, first: list[Action], box: Box) -> Hole:
        try:
            return await conductor.run(first)
        except EndedError as error:
            if error.code is not Exit.NOT_ONLINE:
                raise
            raise EndedError(error.code, f"{error}{await self._last_seen(box.peer)}") from None

    async def _last_seen(self, peer: bytes) -> str:
        try:
            presence = await self.mailroom.service.status(peer)
        except RendezvousError:
            return ""
        if presence is None or presence.is_online or presence.last_online_s is None:
            return ""
        return f"; {address(self.wanted)} was last seen {presence.last_online_s} s ago"

    async def _post(self, box: Box, message: Message, *, is_strict: bool) -> None:
        """Send a signal to whoever the address stands for now; `is_strict`: it is an error if that is nobody.

        After a restart of the server the other side may need a while to be back, as we did.
        """
        if await self.mailroom.post(box.peer, box.call_id, message) or not isinstance(message, Call):
            return
        try:
            box.peer = await self.find()
        except EndedError:
            if is_strict:
                raise
        else:
            await self.mailroom.post(box.peer, box.call_id, message)

    async def _secure(self, wish: Wish, connected: Connected[TrioSocket]) -> Secured:
        if self.puncher.protocol is Protocol.UDP:
            return Secured()
        keep_alive(connected.socket)
        if self.identity is None:
            return Secured(trio.SocketStream(connected.socket))
        peer = await tls.connect(connected.socket, self.identity, self.wanted, wish)
        return Secured(peer.stream, peer.key)


@contextmanager
def new_call(caller: Caller, *, is_one_of_many: bool) -> Iterator[tuple[Box, News]]:
    """The box of a call that is to be made, and where its news go."""
    call_id = secrets.token_hex(8)
    with caller.mailroom.box(b"", call_id, lambda message: None) as box:
        yield box, caller.news.of_call(call_id, is_one_of_many=is_one_of_many)


async def connect(caller: Caller, carry: Carry | None = None) -> None:
    """A call, with standard input and output or for `carry`, to its end.

    Raises:
        EndedError: there was no connection, or it broke.
    """
    with new_call(caller, is_one_of_many=False) as (box, news):
        hole = await caller.call(box, None, news)
        if carry is not None:
            await carry(hole, caller.mailroom, box)
        else:
            await talk(hole, caller.mailroom, box, Stdio())
    news.say("ended", "the connection has ended")
