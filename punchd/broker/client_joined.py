"""A part in a session: the shell around the conversation (client_machine.py).

One task follows the conversation from connection to connection. While there is one, a second writes what waits, and a
third looks at the clock. Whoever has news tells the machine at once, and does at once what it says; nothing is queued
in between, but events for the application.
"""

from __future__ import annotations

import random
import socket
from collections import deque
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING

import trio

from punchd.broker.client_errors import BrokerError, InsecureError, RefusedError, VersionError
from punchd.broker.client_events import Event
from punchd.broker.client_link import MOST_UNSENT_BYTES, Link
from punchd.broker.client_machine import (
    Action,
    Conversation,
    End,
    HangUp,
    Look,
    Open,
    Phase,
    Ping,
    Send,
    Tell,
)
from punchd.broker.messages import ClientMessage, Health, Light, Ready, Register, Srt, Status, Tally

if TYPE_CHECKING:
    import ssl

    from punchd.web.client_stream import Server

MOST_EVENTS = 256  # that wait for the application; then nothing more is read
GOODBYE_S = 1.0  # for the broker's close frame
LOOK_S = 5.0

_LATER = frozenset({408, 425, 429})  # of the statuses from 400 to 499, those that pass
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


class Joined:
    """Our part in a session. Made by `Broker.join`; iterate over it for events.

    The iteration ends after `SessionClosed`. It raises EndedError if the broker closed the connection for good without
    it, and RefusedError, VersionError or InsecureError if it does not let us come back. Events that are not fetched
    wait, at most 256; then nothing more is read from the broker until some are.

    What is said goes over the connection that there is: each method is True if there was one. If not, what was to be
    said is lost; `Reconnected` tells when to say it again. Registrations are said again by themselves. What no broker
    would take (a port, a NaN) is a DecodeError. Several tasks may use one `Joined`, one of them iterates.
    """

    def __init__(
        self,
        server: Server,
        tls: ssl.SSLContext | None,
        *,
        path: str,
        token: str,
        register: Register | None,
        ip_version: int | None,
    ) -> None:
        self._server = server
        self._tls = tls
        self._path = path
        self._token = token
        self._in_query = False
        self._machine = Conversation(register, ip_version)
        self._wanted = ip_version
        self._link: Link | None = None
        self._scope: trio.CancelScope | None = None  # of the present connection
        self._is_hung_up = False
        self._events: deque[Event] = deque()
        self._failure: BrokerError | None = None
        self._changed = trio.lowlevel.ParkingLot()  # events, room for them, timers, the end
        self._nursery: trio.Nursery

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        await trio.lowlevel.checkpoint()
        while not self._events:
            if self._machine.phase is Phase.OVER:
                failure, self._failure = self._failure, None
                if failure is not None:
                    raise failure
                raise StopAsyncIteration
            await self._changed.park()
        event = self._events.popleft()
        self._changed.unpark_all()
        return event

    @property
    def ip_version(self) -> int | None:
        """Of the connection: 4 or 6; None while there is none. SRT needs a `Peer` of the same."""
        return self._machine.ip_version

    async def register(self, registration: Register) -> bool:
        """Take a slot, or change what was registered: a new round. Within 30 s of joining."""
        return await self._say(registration)

    async def ready(self, stream: str | None = None) -> bool:
        """After `Peer`: we will start SRT."""
        return await self._say(Ready(stream))

    async def status(self, srt: Srt, stream: str | None = None) -> bool:
        """How our SRT is."""
        return await self._say(Status(srt, stream))

    async def health(
        self,
        *,
        rtt: float,
        retransmit: float,
        bitrate: float,
        dropped: float | None = None,
        buffer: float | None = None,
        stream: str | None = None,
    ) -> bool:
        """How our SRT does: ms, percent, bit/s, packets. Every 5 s or so."""
        return await self._say(Health(rtt, retransmit, bitrate, dropped, buffer, stream))

    async def tally(self, light: Light, stream: str | None = None) -> bool:
        """Admins: set a stream's light. `Tally` comes back as confirmation."""
        return await self._say(Tally(light, stream))

    async def _say(self, message: ClientMessage) -> bool:
        await trio.lowlevel.checkpoint()
        link = self._link
        while link is not None and link is self._link and link.unsent > MOST_UNSENT_BYTES:
            await link.drain()
        actions, is_said = self._machine.say(trio.current_time(), message)
        self._do(actions)
        return is_said

    # --- from the beginning to the end -------------------------------------------------------------------------------

    async def open(self, ip_version: int | None) -> Link:
        """A connection.

        Raises:
            BrokerError: it cannot be had.
        """
        try:
            return await self._open(ip_version, in_query=self._in_query)
        except RefusedError as error:
            if error.status != 401 or self._in_query:
                raise
        link = await self._open(ip_version, in_query=True)
        self._in_query = True
        return link

    async def _open(self, ip_version: int | None, *, in_query: bool) -> Link:
        return await Link.open(
            self._server, self._tls, self._path, self._token, in_query=in_query, ip_version=ip_version
        )

    def begin(self, link: Link) -> None:
        """There is a connection. It is closed by `run`."""
        self._link, self._is_hung_up = link, False
        self._do(self._machine.opened(trio.current_time(), link.ip_version))

    async def run(self, nursery: trio.Nursery) -> None:
        """Follow the conversation, which has begun, to its end."""
        self._nursery = nursery
        while True:
            if self._link is not None:
                await self._converse(self._link)
            match self._machine.phase:
                case Phase.OPENING:
                    await self._try_open()
                case Phase.WAITING:
                    await self._wait()
                case _:
                    return

    async def leave(self) -> None:
        """Say goodbye, within a second."""
        with trio.move_on_after(GOODBYE_S):
            self._do(self._machine.leave())
            while self._link is not None:
                await self._changed.park()

    async def _try_open(self) -> None:
        try:
            self.begin(await self.open(self._wanted))
        except BrokerError as error:
            wait_s = (error.retry_after_s or 0.0) if isinstance(error, RefusedError) else 0.0
            is_final = _is_final(error)
            chance = random.random()  # noqa: S311 (no secret)
            now = trio.current_time()
            self._do(self._machine.failed(now, error, chance, is_final=is_final, wait_s=wait_s))

    async def _converse(self, link: Link) -> None:
        try:
            async with trio.open_nursery() as nursery:
                self._scope = nursery.cancel_scope
                if self._is_hung_up:  # before there were tasks
                    self._scope.deadline = trio.current_time() + GOODBYE_S
                nursery.start_soon(self._write, link)
                nursery.start_soon(self._watch_clock)
                await self._read(link)
                with trio.move_on_after(GOODBYE_S):
                    await link.drain()
                nursery.cancel_scope.cancel()
        finally:
            self._link = self._scope = None
            link.close()
            self._changed.unpark_all()

    async def _read(self, link: Link) -> None:
        while True:
            frames = await link.receive()
            for frame in frames:
                if not self._is_hung_up:
                    self._hear(frame)
            if not frames:
                self._closed(link)
                return
            while len(self._events) >= MOST_EVENTS and not self._is_hung_up:
                await self._changed.park()

    def _hear(self, frame: str | bytes | None) -> None:
        now = trio.current_time()
        self._machine.heard(now)
        match frame:
            case str():
                self._do(self._machine.text(now, frame))
            case bytes():
                self._do(self._machine.binary())
            case None:
                pass

    async def _write(self, link: Link) -> None:
        await link.write()
        self._closed(link)
        self._cut()

    def _closed(self, link: Link) -> None:
        if not self._is_hung_up:
            self._is_hung_up = True
            chance = random.random()  # noqa: S311 (no secret)
            self._do(self._machine.closed(trio.current_time(), link.close_code, link.why, chance))

    async def _watch_clock(self) -> None:
        while True:
            await self._wait()

    async def _wait(self) -> None:
        """For the next timer, or for news."""
        with trio.move_on_at(self._machine.next_timeout()):
            await self._changed.park()
        chance, now = random.random(), trio.current_time()  # noqa: S311 (no secret)
        if len(self._events) >= MOST_EVENTS:
            self._machine.heard(now)  # it is us who do not listen
        self._do(self._machine.handle_timeout(now, chance))

    async def _look(self, ip_version: int) -> None:
        url, found = self._server.url, False
        with trio.move_on_after(LOOK_S):
            try:
                family = _FAMILIES[ip_version]
                found = bool(await trio.socket.getaddrinfo(url.host, url.port, family=family, type=socket.SOCK_STREAM))
            except (OSError, UnicodeError):
                found = False
        self._do(self._machine.looked(ip_version, is_there=found))

    # --- what the machine says ---------------------------------------------------------------------------------------

    def _do(self, actions: Iterable[Action]) -> None:
        link = self._link
        for action in actions:
            match action:
                case Send(text):
                    if link is not None:
                        link.send(text)
                case Ping():
                    if link is not None:
                        link.ping()
                case Tell(event):
                    self._events.append(event)
                case Open(ip_version):
                    self._wanted = ip_version
                case Look(ip_version):
                    self._nursery.start_soon(self._look, ip_version)
                case HangUp(is_polite):
                    self._hang_up(is_polite=is_polite)
                case End(error):
                    self._failure = error
                    self._hang_up(is_polite=True)
        if actions:
            self._changed.unpark_all()

    def _hang_up(self, *, is_polite: bool) -> None:
        self._is_hung_up = True
        if not is_polite:
            self._cut()
        elif self._link is not None:
            self._link.hang_up()
            if self._scope is not None:
                self._scope.deadline = trio.current_time() + GOODBYE_S

    def _cut(self) -> None:
        if self._scope is not None:
            self._scope.cancel()


def _is_final(error: BrokerError) -> bool:
    """Whether trying again will not help."""
    if isinstance(error, RefusedError):
        return 400 <= error.status < 500 and error.status not in _LATER
    return isinstance(error, VersionError | InsecureError)
