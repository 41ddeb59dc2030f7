"""HTTP/1.1 for the rendezvous client: one connection, one request after another.

The connection is kept for the next request, since a TLS handshake costs more than what is asked. A server may close
it at any time: a request that went out on a kept connection and got not one byte back is sent again on a new one. It
may have been served all the same (RFC 9112 §9.3.1), so nothing is asked here that does harm when it is done twice.

Redirects are not followed (a key would go to somebody else), no proxy is asked, no cookie is kept. The protocol itself,
by h11, is in client_connection.py.

Everything ends by itself: names, connections and handshakes within 10 s, answers within 10 s of when they may be
expected. These are the library's own deadlines for one try; callers cancel. Where an answer is awaited for longer, TCP
keepalive tells within 20 s that the path is dead.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from punchd import __version__
from punchd.rendezvous.client_errors import InsecureError, UnreachableError
from punchd.rendezvous.client_url import Url

if TYPE_CHECKING:
    import ssl

    from punchd.rendezvous.client_connection import Connection, Fields

CONNECT_S = 10.0
ANSWER_S = 10.0
KEEP_S = 20.0  # how long an idle connection is used again; servers and NATs forget it sooner or later
_KEEPALIVE = (  # tcp(7): a dead path is found after 8 + 3 * 4 s of silence, or 20 s after what was not acknowledged
    (socket.TCP_KEEPIDLE, 8),
    (socket.TCP_KEEPINTVL, 4),
    (socket.TCP_KEEPCNT, 3),
    (socket.TCP_USER_TIMEOUT, 20_000),
)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, whole; names of fields in lower case."""

    status: int
    fields: dict[str, str]
    body: bytes = field(repr=False)


class HttpClient:
    """A connection to a server, made when it is needed.

    Resource handling: owns the connection; `close` it.
    """

    def __init__(self, url: Url, tls: ssl.SSLContext | None) -> None:
        self._url = url
        self._tls = tls
        self._lock = trio.Lock()
        self._kept: Connection | None = None
        self._kept_until = 0.0
        self._scope: trio.CancelScope | None = None  # of what is under way
        self._is_dropped = False

    async def ask(
        self, method: str, path: str, *, key: bytes | None = None, body: bytes = b"", wait_s: float = 0.0
    ) -> Reply:
        """Send a request and read its answer.

        Args:
            key: for `Authorization: Bearer`.
            wait_s: how long the server may take on purpose.

        Raises:
            UnreachableError, InsecureError, NotRendezvousError: there is no answer. The connection is closed, as it is
                when the caller cancels; the request may have been served.
        """
        fields: Fields = [("Host", self._url.authority), ("User-Agent", f"punchd/{__version__}")]
        if key is not None:
            fields.append(("Authorization", f"Bearer {key.hex()}"))
        if method != "GET":
            fields.append(("Content-Length", str(len(body))))
        request = (method, self._url.prefix + path, fields)
        async with self._lock:
            kept, self._kept = self._kept, None
            if kept is not None and trio.current_time() > self._kept_until:
                kept.close()
                kept = None
            if kept is not None:
                try:
                    return await self._exchange(kept, request, body, wait_s)
                except UnreachableError:
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
            return await _connect(self._url, self._tls)

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
        raise UnreachableError(f"{named(self._url)}: {what}")


async def _connect(url: Url, tls: ssl.SSLContext | None) -> Connection:
    try:
        tcp = await trio.open_tcp_stream(url.host, url.port)
    except socket.gaierror as error:
        raise UnreachableError(f"{named(url)}: the name {url.host} cannot be resolved: {error.strerror}") from None
    except (OSError, UnicodeError) as error:  # UnicodeError: a label of more than 63 characters
        raise UnreachableError(f"{named(url)}: {reason(error)}") from None
    from punchd.rendezvous.client_connection import Connection  # h11: not before there is somebody to talk to

    try:
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            tcp.setsockopt(socket.IPPROTO_TCP, option, value)
        if tls is None:
            return Connection(url, tcp, None)
        # https_compatible: web servers just close; what an answer is long is said by HTTP.
        stream = trio.SSLStream(tcp, tls, server_hostname=url.host, https_compatible=True)
        await stream.do_handshake()
    except trio.BrokenResourceError as error:
        tcp.socket.close()
        raise _tls_error(url, error.__cause__) from None
    except BaseException:
        tcp.socket.close()
        raise
    return Connection(url, tcp, stream)


def _tls_error(url: Url, cause: BaseException | None) -> InsecureError | UnreachableError:
    import ssl

    match cause:
        case ssl.SSLCertVerificationError():
            return InsecureError(f"{named(url)}: its certificate cannot be trusted: {cause.verify_message}")
        case ssl.SSLError() if cause.reason == "WRONG_VERSION_NUMBER":
            return InsecureError(f"{named(url)}: expected TLS, got something else; maybe it is http://{url.authority}")
        case ssl.SSLEOFError() | ssl.SSLZeroReturnError() | None:
            return UnreachableError(f"{named(url)}: expected a TLS handshake, got the end of the connection")
        case ssl.SSLError():
            return InsecureError(f"{named(url)}: the TLS handshake failed: {cause.reason or cause}")
        case _:
            return UnreachableError(f"{named(url)}: the TLS handshake broke: {reason(cause)}")


def named(url: Url) -> str:
    """How errors begin."""
    return f"rendezvous server {url}"


def reason(error: BaseException) -> str:
    """Why, in a few words; the operating system's, where it was the one."""
    cause = error.__cause__
    if isinstance(cause, ExceptionGroup):  # one for each address that was tried
        return ", ".join(dict.fromkeys(reason(one) for one in cause.exceptions))
    if isinstance(error, trio.BrokenResourceError) and cause is not None:
        return reason(cause)
    if isinstance(error, OSError) and error.errno and not hasattr(error, "library"):  # ssl's numbers are its own
        return os.strerror(error.errno)  # error.strerror has what trio put before it
    return str(error) or type(error).__name__
