"""HTTP/1.1 for the clients of our servers: one connection, one request after another.

The connection is kept for the next request, since a TLS handshake costs more than what is asked. A server may close
it at any time: a request that went out on a kept connection and got not one byte back is sent again on a new one. It
may have been served all the same (RFC 9112 §9.3.1), so what does harm when it is done twice is asked on a new one.

Redirects are not followed (a key would go to somebody else), no proxy is asked, no cookie is kept. The protocol itself,
by h11, is in client_connection.py.

Everything ends by itself: names, connections and handshakes within 10 s, answers within 10 s of when they may be
expected. These are the library's own deadlines for one try; callers cancel. Where an answer is awaited for longer, TCP
keepalive tells within 20 s that the path is dead.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from punchd import __version__
from punchd.web.client_stream import Server, connect

if TYPE_CHECKING:
    import ssl

    from punchd.web.client_connection import Connection, Fields

CONNECT_S = 10.0
ANSWER_S = 10.0
KEEP_S = 20.0  # how long an idle connection is used again; servers and NATs forget it sooner or later

_MOST_RETRY_S = 60.0  # a server may not put its clients to sleep


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, whole; names of fields in lower case."""

    status: int
    fields: dict[str, str]
    body: bytes = field(repr=False)


def retry_after_s(field: str | None) -> float:
    """The field Retry-After in seconds (RFC 9110 §10.2.3); 1 if it is missing or a date, at most 60."""
    if field is None or not re.fullmatch(r"[0-9]{1,9}", field):
        return 1.0
    return min(float(field), _MOST_RETRY_S)


class HttpClient:
    """A connection to a server, made when it is needed.

    Resource handling: owns the connection; `close` it.
    """

    def __init__(self, server: Server, tls: ssl.SSLContext | None) -> None:
        self._server = server
        self._tls = tls
        self._lock = trio.Lock()
        self._kept: Connection | None = None
        self._kept_until = 0.0
        self._scope: trio.CancelScope | None = None  # of what is under way
        self._is_dropped = False

    async def ask(
        self,
        method: str,
        path: str,
        *,
        bearer: str | None = None,
        body: bytes = b"",
        content_type: str | None = None,
        wait_s: float = 0.0,
        is_repeatable: bool = True,
    ) -> Reply:
        """Send a request and read its answer.

        Args:
            bearer: for `Authorization`.
            wait_s: how long the server may take on purpose.
            is_repeatable: whether it does no harm when it is served twice.

        Raises:
            `Server.unreachable`, `Server.insecure`, `Server.foreign`: there is no answer. The connection is closed, as
                it is when the caller cancels; the request may have been served.
        """
        fields: Fields = [("Host", self._server.url.authority), ("User-Agent", f"punchd/{__version__}")]
        if bearer is not None:
            fields.append(("Authorization", f"Bearer {bearer}"))
        if content_type is not None:
            fields.append(("Content-Type", content_type))
        if method != "GET":
            fields.append(("Content-Length", str(len(body))))
        request = (method, self._server.url.prefix + path, fields)
        async with self._lock:
            kept, self._kept = self._kept, None
            if kept is not None and (trio.current_time() > self._kept_until or not is_repeatable):
                kept.close()
                kept = None
            if kept is not None:
                try:
                    return await self._exchange(kept, request, body, wait_s)
                except self._server.unreachable:
                    if kept.has_heard or self._is_dropped:
                        raise
            return await self._exchange(await self._connect(), request, body, wait_s)

    def drop(self) -> None:
        """Give up the connection and whatever is being asked: it leads over a network that is no more."""
        self._kept_until = 0.0
        if self._scope is not None:
            self._is_dropped = True
            self._scope.cancel()

    def close(self) -> None:
        """Close the connection at once. May be called twice. What is being asked is for its caller to cancel."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    async def _connect(self) -> Connection:
        with self._bounded(CONNECT_S, "a connection"):
            stream = await connect(self._server, self._tls)
        from punchd.web.client_connection import Connection  # h11: not before there is somebody to talk to

        return Connection(self._server, stream)

    async def _exchange(
        self, connection: Connection, request: tuple[str, str, Fields], body: bytes, wait_s: float
    ) -> Reply:
        try:
            with self._bounded(wait_s + ANSWER_S, "an answer"):
                reply = await connection.exchange(*request, body)
            if connection.is_reusable:
                self._kept, self._kept_until = connection, trio.current_time() + KEEP_S
            return reply
        finally:
            if self._kept is not connection:
                connection.close()

    @contextmanager
    def _bounded(self, seconds: float, awaited: str) -> Iterator[None]:
        self._is_dropped = False
        with trio.CancelScope(deadline=trio.current_time() + seconds) as scope:
            self._scope = scope
            try:
                yield
            finally:
                self._scope = None
            return
        what = "the network changed" if self._is_dropped else f"expected {awaited} within {seconds:g} s, got none"
        raise self._server.unreachable(f"{self._server}: {what}")
