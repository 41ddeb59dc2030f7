"""One client's TCP connection: its requests one after the other, each with its deadlines and its answer."""

from __future__ import annotations

import logging
import random
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from email.utils import formatdate

import trio

from punchd.endpoint import Endpoint
from punchd.web.farewell import GONE, drop, part
from punchd.web.handshake import Protocol, open_handshake
from punchd.web.head import Head, RefusedError
from punchd.web.http import CONTINUE, RequestReader, encode
from punchd.web.limits import Limits
from punchd.web.messages import Answer, Handler, LongPoll, Problem, Request, Response, Upgrade
from punchd.web.rate import source_key
from punchd.web.turns import Turns
from punchd.web.websocket import WebSocket

_RECEIVE_BYTES = 16_384
_BYTES_PER_DEADLINE = 65_536  # a longer answer may take `write_s` for each of these

_STOPPING = Problem(503, "STOPPING", "the server stops", (("Retry-After", "1"),))
_INTERNAL = Problem(500, "INTERNAL_ERROR", "the server could not answer this; its log says why")
_LATE = RefusedError(408, "REQUEST_TIMEOUT", "the request took too long to arrive")

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Counts:
    """What a server has seen so far, for metrics."""

    connections: int = 0  # open now
    websockets: int = 0  # of those
    refused_connections: int = 0  # too many of them, in all or of one source
    shunned: int = 0  # sources that connected too often
    failed_handshakes: int = 0  # of TLS
    dropped: int = 0  # clients that did not read their answers
    failures: int = 0  # handlers that raised
    answers: Counter[int] = field(default_factory=Counter)  # by status


@dataclass(slots=True)
class Service:
    """What all connections of a server share."""

    handler: Handler
    limits: Limits
    tls: Callable[[], ssl.SSLContext] | None
    problem: Callable[[Problem], Response]
    counts: Counts = field(default_factory=Counts)
    turns: Turns = field(default_factory=Turns)
    is_stopping: bool = False
    _date: str = ""
    _date_s: int = -1

    def date(self) -> str:
        """The Date field for an answer sent now."""
        now_s = int(time.time())
        if now_s != self._date_s:
            self._date, self._date_s = formatdate(now_s, usegmt=True), now_s
        return self._date


class _GoneError(Exception):
    """The client cannot be answered any more."""


class Connection:
    """Serves one client until it or the server has had enough. Owns the socket."""

    __slots__ = (
        "_idle",
        "_is_first",
        "_opened",
        "_peer",
        "_poll",
        "_reader",
        "_service",
        "_sock",
        "_source",
        "_stream",
        "_websocket",
    )

    def __init__(self, sock: trio.socket.SocketType, peer: Endpoint, service: Service) -> None:
        self._sock = sock
        self._peer = peer
        self._source = source_key(peer.ip)
        self._service = service
        self._stream: trio.SocketStream | trio.SSLStream[trio.SocketStream] = trio.SocketStream(sock)
        self._reader = RequestReader(service.limits)
        self._is_first = True
        self._idle: trio.CancelScope | None = None  # of a wait during which the client is owed nothing
        self._poll: trio.CancelScope | None = None  # of a long poll
        self._opened: tuple[Upgrade, Protocol, bytes] | None = None  # the conversation that comes after HTTP
        self._websocket: WebSocket | None = None

    def shut_down(self) -> None:
        """The server stops: end what is idle, answer long polls, close WebSockets; let an answer be finished."""
        if self._idle is not None:
            self._idle.cancel()
        if self._poll is not None:
            self._poll.cancel()
        if self._websocket is not None:
            self._websocket.shut_down()

    async def run(self) -> None:
        """Serve the client. The socket is closed afterwards, also when cancelled."""
        try:
            if self._service.tls is None or await self._shake_hands(self._service.tls()):
                while await self._serve_one():
                    pass
                if self._opened is not None:
                    await self._converse(*self._opened)
                else:
                    await part(self._stream, self._service.limits.linger_s)
        except (*GONE, _GoneError):
            pass
        finally:
            self._sock.close()

    async def _shake_hands(self, context: ssl.SSLContext) -> bool:
        is_done = False
        with trio.move_on_after(self._service.limits.tls_s) as self._idle:
            try:
                await trio.lowlevel.wait_readable(self._sock)
                await self._service.turns.take_handshake(self._source)
                stream = trio.SSLStream(trio.SocketStream(self._sock), context, server_side=True, https_compatible=True)
                await stream.do_handshake()
                self._stream, is_done = stream, True
            except GONE as error:
                log.debug("%s: TLS handshake failed: %s", self._peer, error.__cause__ or error)
        self._idle = None
        if is_done:
            return True
        self._service.counts.failed_handshakes += 1
        raise _GoneError

    async def _serve_one(self) -> bool:
        """One request and its answer; whether another may follow."""
        try:
            arrived = await self._read_request()
        except RefusedError as refused:
            await self._answer(self._service.problem(refused.problem), "close")
            return False
        if arrived is None:
            return False
        head, request = arrived
        await self._service.turns.take(self._source)
        answer = await self._call(lambda: self._service.handler(request))
        unsent: Callable[[], Awaitable[None]] | None = None
        if isinstance(answer, LongPoll):
            unsent = answer.unsent
            answer = await self._wait(answer)
        if isinstance(answer, Upgrade):
            opened = self._open(answer, head)
            if not isinstance(opened, Response):
                self._opened = opened  # not here, where the request would live as long as the conversation
                return False
            answer = opened
        keeps = head.keep_alive and not self._service.is_stopping
        connection = "close" if not keeps else None if head.is_http11 else "keep-alive"
        try:
            await self._answer(answer, connection, is_head=head.method == "HEAD")
        except (*GONE, _GoneError):
            if unsent is not None:
                await unsent()
            raise
        if keeps and answer.pause_s:
            with trio.move_on_after(answer.pause_s * random.uniform(1, 2)) as self._idle:  # noqa: S311 (no secret)
                await trio.sleep_forever()
            self._idle = None
        return keeps

    async def _read_request(self) -> tuple[Head, Request] | None:
        """The next request; None if the client wants nothing more, or the server stops before it began.

        Raises:
            RefusedError: it is malformed, too large or too late.
        """
        service, reader = self._service, self._reader
        limits = service.limits
        if service.is_stopping:
            return None
        has_begun = len(reader) > 0
        patience_s = limits.head_s if has_begun or self._is_first else limits.idle_s
        self._is_first = False
        with trio.CancelScope(deadline=trio.current_time() + patience_s) as scope:
            self._idle = None if has_begun else scope
            while (head := reader.head()) is None:
                if not await self._receive():
                    return None
                if not has_begun:
                    has_begun = True
                    self._idle = None
                    scope.deadline = trio.current_time() + limits.head_s
            self._idle = None
            body = reader.body()
            if body is None:
                scope.deadline = trio.current_time() + limits.body_s
                if head.expects_continue:
                    await self._stream.send_all(CONTINUE)
                while (body := reader.body()) is None:
                    if not await self._receive():
                        return None
            is_tls = service.tls is not None
            return head, Request(
                head.method, head.target, head.path, head.query, head.headers, body, self._peer, is_tls=is_tls
            )
        if has_begun:
            raise _LATE
        return None

    async def _receive(self) -> bool:
        """More bytes for the reader; False if the client sends no more."""
        data = await self._stream.receive_some(_RECEIVE_BYTES)
        self._reader.feed(data)
        return bool(data)

    async def _wait(self, poll: LongPoll) -> Response:
        """The answer that `poll` waits for.

        Raises:
            _GoneError: the client went away meanwhile.
        """
        is_gone = False
        answer: Answer | None = None

        async def watch() -> None:
            nonlocal is_gone
            try:
                while len(self._reader) <= self._service.limits.head_bytes and await self._receive():
                    pass  # requests sent ahead wait for their turn
            except GONE:
                pass
            is_gone = True
            waiting.cancel_scope.cancel()

        async with trio.open_nursery() as waiting:
            waiting.start_soon(watch)
            self._poll = waiting.cancel_scope
            if self._service.is_stopping:
                self._poll.cancel()
            answer = await self._call(poll.wait)
            waiting.cancel_scope.cancel()
        self._poll = None
        if isinstance(answer, Response) and is_gone and poll.unsent is not None:
            await poll.unsent()
        elif isinstance(answer, Response):
            return answer
        if is_gone:
            raise _GoneError
        return poll.stopping or self._service.problem(_STOPPING)

    async def _call(self, act: Callable[[], Awaitable[Answer]]) -> Answer:
        """What the application answers; 500 if it raises."""
        try:
            answer = await act()
        except Exception:  # the edge of the application's session; neither target nor fields, they may hold secrets
            log.exception("a handler failed, answered with 500")
        else:
            if isinstance(answer, Answer):
                return answer
            log.error("a handler gave %s, which is no answer, answered with 500", type(answer).__name__)
        self._service.counts.failures += 1
        return self._service.problem(_INTERNAL)

    def _open(self, upgrade: Upgrade, head: Head) -> tuple[Upgrade, Protocol, bytes] | Response:
        """A WebSocket conversation and the bytes that begin it, or the answer that there is none."""
        service = self._service
        if service.is_stopping:
            return service.problem(_STOPPING)
        if head.method != "GET" or not head.is_http11 or head.length != 0:
            return service.problem(Problem(400, "BAD_REQUEST", "a WebSocket starts with GET, HTTP/1.1 and no body"))
        opened = open_handshake(head.headers, upgrade, service.limits)
        return service.problem(opened) if isinstance(opened, Problem) else (upgrade, *opened)

    async def _converse(self, upgrade: Upgrade, protocol: Protocol, answer: bytes) -> None:
        """Hold a WebSocket conversation until it is over."""
        service = self._service
        await self._send(answer)
        service.counts.answers[101] += 1
        service.counts.websockets += 1
        try:
            self._websocket = WebSocket(
                protocol,
                self._stream,
                self._sock,
                service.limits,
                turns=service.turns,
                source=self._source,
                audience=upgrade.audience or self._source,
            )
            await self._websocket.run(upgrade, self._reader.rest())
        finally:
            service.counts.websockets -= 1

    async def _answer(self, response: Response, connection: str | None, *, is_head: bool = False) -> None:
        self._service.counts.answers[response.status] += 1
        await self._send(encode(response, date=self._service.date(), connection=connection, is_head=is_head))

    async def _send(self, data: bytes) -> None:
        """Write `data`, or drop the client if it does not read."""
        patience_s = self._service.limits.write_s * (1 + len(data) // _BYTES_PER_DEADLINE)
        with trio.move_on_after(patience_s) as scope:
            await self._stream.send_all(data)
        if scope.cancelled_caught:
            self._service.counts.dropped += 1
            drop(self._sock)
            raise _GoneError
