"""The WebSockets of this process: each a conversation, and an `Outlet` for what its session has to say.

What a session says goes to the kernel or to the connection's buffer at once, so its order is that of the events behind
it. A connection is let go by what it does (`conduct.py`) and by what it does not do (`connections.py`); the shell's
own pings are off, because the protocol has its own times.

Closes are 1000 and 1011 only: what `punchd.web` would send for broken frames is mapped in CLOSE_CODES.

Source: seed 000 §6, §8.2; broker specification §9, B-054, B-061, B-062, B-064, B-069 to B-071, C-05, C-06, C-48.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from itertools import count
from math import inf

from punchd.broker import messages, server_messages
from punchd.broker.agenda import Agenda
from punchd.broker.clock import Clock
from punchd.broker.conduct import Conduct
from punchd.broker.connections import Keeper, Step
from punchd.broker.health import Pacer
from punchd.broker.messages import InvalidMessage, KeepAlive
from punchd.broker.metrics import Counts
from punchd.broker.moves import Connected
from punchd.broker.server_messages import CloseCode, ErrorCode, ErrorMessage
from punchd.broker.settings import Limits
from punchd.broker.store import Store
from punchd.broker.tokens import Grant
from punchd.endpoint import IPAddress
from punchd.web.rate import Limiter, source_key
from punchd.web.websocket import WebSocket, WebSocketClosedError

MAX_FRAME_BYTES = 16_384  # §6.2.7
# From the shell's codes: going away, framing, kind of data, UTF-8, policy, size.
CLOSE_CODES: Mapping[int, int] = dict.fromkeys((1001, 1002, 1003, 1007, 1008, 1009), CloseCode.ERROR.value)

_HURRY_S = 1.0  # for the close frame of a client that is dead or is let go, C-05
_STOPPING = ErrorMessage(ErrorCode.SERVER_ERROR, "shutting down")
_BUG = ErrorMessage(ErrorCode.SERVER_ERROR, "internal error")

log = logging.getLogger(__name__)


class Sockets:
    """All conversations."""

    def __init__(self, store: Store, limits: Limits, clock: Clock, agenda: Agenda, counts: Counts) -> None:
        self.store = store
        self.limits = limits
        self.clock = clock
        self.agenda = agenda
        self.counts = counts
        self.rates = Limiter(limits.messages_per_second, limits.message_burst, limits.sources)
        self._numbers = count(1)
        self._lines: set[Line] = set()
        self._sources: Counter[bytes] = Counter()
        self._is_stopping = False

    def __len__(self) -> int:
        return len(self._lines)

    def has_room(self, ip: IPAddress) -> bool:
        """Whether a source may have another WebSocket."""
        return self._sources[source_key(ip)] < self.limits.websockets_per_source

    async def converse(self, socket: WebSocket, grant: Grant, digest: bytes, ip: IPAddress) -> None:
        """Hold one conversation, with a token that was found good."""
        line = Line(self, socket, grant, digest, f"{self.store.prefix}{next(self._numbers)}")
        source = source_key(ip)
        self._lines.add(line)
        self._sources[source] += 1
        try:
            if self._is_stopping:
                line.end("stopping", _STOPPING)
            else:
                await line.run(Connected(line.id, grant.role, grant.stream, ip, digest.hex()))
        finally:
            self._lines.discard(line)
            self._sources[source] -= 1
            if not self._sources[source]:
                del self._sources[source]

    def stop(self) -> None:
        """Close all of them, and those that are still opened."""
        self._is_stopping = True
        for line in list(self._lines):
            line.end("stopping", _STOPPING)


class Line:
    """One WebSocket; a `store.Outlet`, and a timer of the agenda."""

    __slots__ = (
        "_conduct", "_digest", "_grant", "_is_over", "_keeper", "_pacer", "_place", "_socket", "id",
    )  # fmt: skip

    def __init__(self, place: Sockets, socket: WebSocket, grant: Grant, digest: bytes, name: str) -> None:
        self.id = name
        self._place = place
        self._socket = socket
        self._grant = grant
        self._digest = digest
        self._keeper = Keeper(grant.role, place.clock.now())
        self._pacer: Pacer[str] = Pacer()
        self._conduct = Conduct(place.limits)
        self._is_over = False  # we have sent a close frame

    async def run(self, event: Connected) -> None:
        """Until the conversation is over."""
        self._socket.notice_frame = self._notice_frame
        self._place.agenda.look(self)
        session, store = self._grant.session, self._place.store
        try:
            await store.enter(session, event, self)
            while True:
                frame = await self._socket.receive()
                if not self._is_over:
                    await self._take(frame)
        except WebSocketClosedError:
            pass
        except Exception:
            log.exception("a message could not be handled; its connection is closed")
            self.end("failure", _BUG)
        finally:
            self._over()
            store.leave(session, self.id)

    # --- what the client says ----------------------------------------------------------------------------------------

    async def _take(self, frame: str | bytes) -> None:
        place, now = self._place, self._place.clock.now()
        if frame == messages.PING:
            if self._conduct.keeps_alive(now):
                self._queue(messages.PONG)
            else:
                self._drop(now)
            return
        if place.rates.allow(self._digest, now):
            self._limit(now)
            return
        try:
            message = messages.decode(frame)
        except InvalidMessage as error:
            self.deliver(_invalid(str(error)), ErrorCode.INVALID_MESSAGE)
            return
        if not isinstance(message, KeepAlive):
            place.counts.messages[type(message).__name__.lower()] += 1
            if not await place.store.hear(self._grant.session, self.id, message):
                self._limit(place.clock.now())

    def _limit(self, now: float) -> None:
        """The token says too much."""
        self._drop(now)
        if self._conduct.may_notice(now):
            self._queue(_invalid(f"rate limit: {self._place.limits.messages_per_second} messages a second"))

    def _drop(self, now: float) -> None:
        self._place.counts.dropped += 1
        if not self._conduct.drop(now):
            self.end("flood", ErrorMessage(ErrorCode.INVALID_MESSAGE, "far too many messages"))

    def _notice_frame(self) -> None:
        self._do(self._keeper.hear(self._place.clock.now()))

    # --- what the session says: store.Outlet -------------------------------------------------------------------------

    def deliver(self, text: str, code: ErrorCode | None = None) -> None:
        """See `Outlet`."""
        self._queue(text)
        if code is ErrorCode.INVALID_MESSAGE and not self._conduct.violate(self._place.clock.now()):
            self.end("violations", None)

    def report(self, text: str) -> None:
        """See `Outlet`."""
        now = self._pacer.offer(text, self._place.clock.now())
        if now is not None:
            self._queue(now)
        self._place.agenda.look(self)

    def close(self, code: CloseCode) -> None:
        """See `Outlet`."""
        if not self._is_over:
            self._over()
            self._socket.start_close(code.value)

    def probe(self) -> None:
        """See `Outlet`."""
        self._do(self._keeper.probe(self._place.clock.now()))

    def registered(self) -> None:
        """See `Outlet`."""
        self._keeper.register()

    # --- time: agenda.Timer ------------------------------------------------------------------------------------------

    def next_timeout(self) -> float:
        """See `agenda.Timer`."""
        return inf if self._is_over else min(self._keeper.next_timeout(), self._pacer.next_timeout())

    def handle_timeout(self, now: float) -> None:
        """See `agenda.Timer`."""
        report = self._pacer.handle_timeout(now)
        if report is not None:
            self._queue(report)
        self._do(self._keeper.handle_timeout(now))

    # --- small things ------------------------------------------------------------------------------------------------

    def end(self, cause: str, farewell: ErrorMessage | None) -> None:
        """Give the connection up with 1011."""
        if self._is_over:
            return
        self._over()
        self._place.counts.closed[cause] += 1
        if farewell is not None:
            self._socket.queue(server_messages.encode(farewell))
        self._socket.start_close(CloseCode.ERROR.value, patience_s=_HURRY_S)

    def _do(self, steps: list[Step]) -> None:
        for step in steps:
            match step:
                case Step.PING:
                    self._socket.ping()
                case Step.ALIVE:
                    self._place.store.answered(self._grant.session, self.id)
                case Step.END:
                    self.end("silence", self._keeper.farewell)
        if steps:
            self._place.agenda.look(self)

    def _queue(self, text: str) -> None:
        if self._is_over:
            return
        self._socket.queue(text)
        if not self._conduct.queue(len(text.encode()), self._socket.unsent):
            self.end("overflow", ErrorMessage(ErrorCode.INVALID_MESSAGE, "too much waits for you to be read"))

    def _over(self) -> None:
        self._is_over = True
        self._keeper.leave()
        self._place.agenda.forget(self)


def _invalid(text: str) -> str:
    return server_messages.encode(ErrorMessage(ErrorCode.INVALID_MESSAGE, text))
