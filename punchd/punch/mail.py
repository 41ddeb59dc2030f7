"""The signals of all calls over one registration at a rendezvous server.

A server that keeps its clients in memory forgets them when it is restarted. Calls that are under way then cannot hear
of each other any more, except through the hole; so we register anew, our address is bound to the new id, and whoever
calls resolves it once more.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import trio

from punchd.errors import DecodeError
from punchd.punch import messages
from punchd.punch.messages import Call, Code, Message, OtherVersionError, Reject
from punchd.rendezvous.client import IdentityLostError, PeerGoneError, Rendezvous, RendezvousError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from punchd.punch.news import News

MOST_REJECTS = 32  # that wait to be sent; the rest gets no answer
REJECT_S = 5.0  # for one: the server takes nothing for a client that does not fetch its signals
FIRST_PAUSE_S = 0.5  # between tries to register anew; doubled
MOST_PAUSE_S = 8.0

OnCall = Callable[[bytes, str, Call, int], None]  # sender, id, call, age in s

_AnswerT = TypeVar("_AnswerT")


@dataclass(slots=True)
class Box:
    """The signals of one call, from one client. All of it may change.

    Attributes:
        peer: the client's id.
        take: is called with each message, at once.
    """

    peer: bytes
    call_id: str
    take: Callable[[Message], None]


class Mailroom:
    """See above. `run` must run.

    Attributes:
        renewals: how often we had to register anew.
    """

    def __init__(self, service: Rendezvous, news: News, on_call: OnCall | None = None) -> None:
        self.service = service
        self.renewals = 0
        self._news = news
        self._on_call = on_call
        self._boxes: dict[tuple[str, int], Box] = {}
        self._numbers = 0
        self._send_reject, self._rejects = trio.open_memory_channel[tuple[bytes, str, Reject]](MOST_REJECTS)
        self._renewed = trio.Event()

    @contextmanager
    def box(self, peer: bytes, call_id: str, take: Callable[[Message], None]) -> Iterator[Box]:
        """Take the signals of a call while the block runs."""
        self._numbers += 1
        name, box = (call_id, self._numbers), Box(peer, call_id, take)
        self._boxes[name] = box
        try:
            yield box
        finally:
            del self._boxes[name]

    async def post(self, peer: bytes, call_id: str, message: Message) -> bool:
        """Send a signal; False if there is no such client. What else goes wrong is as if it got lost."""
        try:
            await self.service.send(peer, messages.encode(call_id, message))
        except PeerGoneError:
            return False
        except RendezvousError as error:
            self._news.say("lost-signal", f"a signal was not sent: {error}", text=str(error))
        return True

    def reject(self, peer: bytes, call_id: str, reject: Reject) -> bool:
        """Have a call rejected that nobody takes up, without waiting; False if too many are waiting.

        Whoever calls may have a full queue at the server on purpose, and must not keep us from hearing others.
        """
        try:
            self._send_reject.send_nowait((peer, call_id, reject))
        except trio.WouldBlock:
            return False
        return True

    async def ask(self, question: Callable[[], Awaitable[_AnswerT]]) -> _AnswerT:
        """What the server answers; asked again after we had to register anew."""
        while True:
            renewed = self._renewed
            try:
                return await question()
            except IdentityLostError:
                await renewed.wait()

    async def run(self) -> None:
        """Hand out what comes; never ends by itself."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._reject_all)
            await self._receive_all()

    async def _reject_all(self) -> None:
        async for peer, call_id, reject in self._rejects:
            with trio.move_on_after(REJECT_S):
                await self.post(peer, call_id, reject)

    async def _receive_all(self) -> None:
        complaint = ""
        while True:
            try:
                signal = await self.service.receive()
            except IdentityLostError:
                await self._renew()
            except RendezvousError as error:
                if str(error) != complaint:
                    complaint = str(error)
                    self._news.warn(complaint)
                await trio.sleep(FIRST_PAUSE_S)
            else:
                self._hand_out(signal.sender, signal.text, signal.age_s)

    def _hand_out(self, sender: bytes, text: str, age_s: int) -> None:
        try:
            call_id, message = messages.decode(text)
        except OtherVersionError as error:
            if self._on_call is not None:
                self.reject(sender, error.call_id, Reject(Code.VERSION, "this punch speaks version 1: update one"))
            return
        except DecodeError:
            return  # foreign
        found = [box for box in self._boxes.values() if box.call_id == call_id and box.peer == sender]
        for box in found:
            box.take(message)
        if not found and isinstance(message, Call) and self._on_call is not None:
            self._on_call(sender, call_id, message, age_s)

    async def _renew(self) -> None:
        self._news.say("lost", "the rendezvous server does not know us any more: registering anew")
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                await self.service.renew()
            except RendezvousError as error:
                self._news.say("unreachable", f"still no way to the rendezvous server: {error}", text=str(error))
                await trio.sleep(pause_s)
                pause_s = min(2 * pause_s, MOST_PAUSE_S)
            else:
                break
        self.renewals += 1
        self._news.say("registered", "registered again")
        renewed, self._renewed = self._renewed, trio.Event()
        renewed.set()
