"""The web server: lets clients in, counts them, and lets go of all of them in time when it is told to stop.

It runs in the caller's nursery and on the caller's sockets, takes no signals and reads no configuration. Counting is by
source: an IPv4 address, or an IPv6 /64, since a customer has at least one of those for itself. One client too many
hears 503 if that can be said in a moment, which under TLS it cannot. A source that connects over and over is left to
the kernel for a while, see `shun`: else its connections would fill the queue in which everybody waits.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from ipaddress import IPv6Address

import trio

from punchd.endpoint import Endpoint, IPAddress
from punchd.web.connection import Connection, Counts, Service
from punchd.web.farewell import drop
from punchd.web.http import encode
from punchd.web.limits import Limits
from punchd.web.messages import Handler, Problem, Response, problem_response
from punchd.web.rate import source_key
from punchd.web.shun import Census, Shunned

STOP_S = 2.0  # how long connections may take to hear that the server stops
_ACCEPT_PAUSE_S = 0.1  # after running out of descriptors: others have to end first

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_BUSY = Problem(503, "BUSY", "too many connections", (("Retry-After", "1"),))

log = logging.getLogger(__name__)


class WebServer:
    """Serves HTTP/1.1 and WebSocket on listening TCP sockets.

    Args:
        handler: answers each request. What it raises is logged, and the client hears 500.
        limits: see Limits.
        tls: gives the context for a new connection, so that a certificate can be replaced; None is plain HTTP.
        problem: makes the answer where the shell itself objects (4xx, 5xx), so that a server's errors look alike.
        trusted: whose connections are many people's, such as a reverse proxy: no limit by source.
        notice_shunned: told of each source that connects too often.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        limits: Limits | None = None,
        tls: Callable[[], ssl.SSLContext] | None = None,
        problem: Callable[[Problem], Response] = problem_response,
        trusted: Collection[IPAddress] = (),
        notice_shunned: Callable[[bytes], None] = lambda _source: None,
    ) -> None:
        self._service = Service(handler, limits or Limits(), tls, problem)
        self._connections: set[Connection] = set()
        self._sources: Counter[bytes] = Counter()
        self._trusted = frozenset(trusted)
        self._census = Census(self._service.limits.connects_per_second)
        self._notice_shunned = notice_shunned
        self._shunned: Shunned
        self._tasks: trio.Nursery

    @property
    def counts(self) -> Counts:
        """What the server has seen so far."""
        return self._service.counts

    async def serve(self, listeners: Sequence[socket.socket], stop: trio.Event) -> None:
        """Accept and serve until `stop` is set; then let go of everybody in at most 2 s and return.

        When it stops, idle connections are closed, long polls get their last answer, WebSockets a close frame (1001);
        answers under way are finished. The listening sockets stay the caller's. Cancellation ends everything at once.
        A server serves once.
        """
        self._shunned = Shunned(listeners, trio.current_time, self._notice)
        async with trio.open_nursery() as self._tasks:
            async with trio.open_nursery() as accepting:
                accepting.start_soon(self._shunned.run)
                accepting.start_soon(self._service.turns.run)
                for listener in listeners:
                    accepting.start_soon(self._accept, trio.socket.from_stdlib_socket(listener))
                await stop.wait()
                accepting.cancel_scope.cancel()
            self._service.is_stopping = True
            for connection in self._connections:
                connection.shut_down()
            self._tasks.cancel_scope.deadline = trio.current_time() + STOP_S

    async def _accept(self, listener: trio.socket.SocketType) -> None:
        while True:
            try:
                sock, address = await listener.accept()
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    continue  # the client went away between knocking and being let in
                log.warning("accept: %s", error.strerror)
                await trio.sleep(_ACCEPT_PAUSE_S)
                continue
            peer = _peer(address)
            if peer.ip not in self._trusted and self._is_shunned(source_key(peer.ip)):
                drop(sock)
            else:
                self._tasks.start_soon(self._serve, sock, peer)

    def _is_shunned(self, source: bytes) -> bool:
        if source not in self._shunned:  # else it waited in the queue when the filter came
            for one in self._census.count((source,), trio.current_time()):
                self._shunned.add(one)
        return source in self._shunned

    def _notice(self, source: bytes) -> None:
        self._service.counts.shunned += 1
        self._notice_shunned(source)

    async def _serve(self, sock: trio.socket.SocketType, peer: Endpoint) -> None:
        source = source_key(peer.ip)
        limits, counts = self._service.limits, self._service.counts
        has_too_many = self._sources[source] >= limits.connections_per_source and peer.ip not in self._trusted
        if len(self._connections) >= limits.connections or has_too_many:
            counts.refused_connections += 1
            self._send_away(sock)
            return
        connection = Connection(sock, peer, self._service)
        self._connections.add(connection)
        self._sources[source] += 1
        counts.connections += 1
        try:
            await connection.run()
        except Exception:
            log.exception("internal error, connection closed")
        finally:
            counts.connections -= 1
            self._connections.discard(connection)
            self._sources[source] -= 1
            if not self._sources[source]:
                del self._sources[source]

    def _send_away(self, sock: trio.socket.SocketType) -> None:
        """One answer, if the kernel takes it at once."""
        with sock, contextlib.suppress(OSError):
            if self._service.tls is None:
                answer = encode(self._service.problem(_BUSY), date=self._service.date(), connection="close")
                os.write(sock.fileno(), answer)
                sock.shutdown(socket.SHUT_WR)


def _peer(address: tuple[object, ...]) -> Endpoint:
    peer = Endpoint.from_sockaddr(address)
    if isinstance(peer.ip, IPv6Address) and peer.ip.ipv4_mapped is not None:  # a socket for both families
        return Endpoint(peer.ip.ipv4_mapped, peer.port)
    return peer
