"""The UDP port that SRT will use, until it does: held, seen by STUN, kept open in the NAT.

STUN is asked from that very port, because the NAT's mapping of it is what counts. Asking again every KEEPALIVE_S keeps
the mapping, and shows when it has become another one. All else that comes, such as the handshakes of a peer who was
quicker, is dropped without an answer.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable, Sequence
from ipaddress import ip_address

import trio

from punchd.endpoint import Endpoint
from punchd.nat.discover import Datagram, Discovered, Discovery
from punchd.nat.servers import StunServers
from punchd.punch.outcomes import EndedError, Exit
from punchd.wire import stun

KEEPALIVE_S = 15.0  # RFC 8489 §12 and RFC 8445 §11: NATs may forget a UDP mapping after 30 s
BUSY_S = 0.5  # between two tries to have the port back
PATIENCE_S = 5.0  # until somebody is told that it is in use
_MAX_BYTES = 2048


class HeldPort:
    """Binds a port when `hold` runs, and has let go of it when `release` returns.

    Args:
        number: 0: any; it stays the same once it was bound.
        on_busy: is told, once each time, that another program has the port.
    """

    def __init__(self, number: int, servers: Sequence[tuple[str, int]], on_busy: Callable[[int], None]) -> None:
        self.number = number
        self._servers = StunServers(servers)
        self._on_busy = on_busy
        self._socket: trio.socket.SocketType | None = None
        self._scope = trio.CancelScope()

    def bind(self) -> None:
        """Whether it can be had at all; chooses one, if any may be.

        Raises:
            EndedError: it is in use, or not ours to have.
        """
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as trial:
                trial.bind(("", self.number))
                self.number = trial.getsockname()[1]
        except OSError as error:
            raise EndedError(Exit.USAGE, f"UDP port {self.number}: {error.strerror}") from None

    async def hold(self, version: int, take: Callable[[Discovered], None]) -> None:
        """Hold the port over IPv4 or IPv6 until `release`, and tell what STUN says, again and again.

        Raises:
            EndedError: this host cannot bind it.
        """
        self.release()
        with trio.CancelScope() as self._scope, contextlib.suppress(trio.ClosedResourceError):
            sock = self._socket = await self._bound(version)
            with sock:
                while True:
                    servers = await self._servers.of_family(version)
                    take(await self._discover(sock, servers, version))
                    with trio.move_on_after(KEEPALIVE_S):
                        while True:
                            await self._receive(sock)

    def release(self) -> None:
        """Close the socket, at once."""
        self._scope.cancel()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def _bound(self, version: int) -> trio.socket.SocketType:
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        started_at = trio.current_time()
        is_told = False
        while True:
            made = trio.socket.socket(family, socket.SOCK_DGRAM)
            try:
                if version == 6:
                    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                await made.bind(("", self.number))
            except OSError as error:
                made.close()
                if error.errno != errno.EADDRINUSE:
                    raise EndedError(Exit.BROKEN, f"UDP port {self.number}: {error.strerror}") from None
            except BaseException:
                made.close()
                raise
            else:
                return made
            if not is_told and trio.current_time() > started_at + PATIENCE_S:
                is_told = True
                self._on_busy(self.number)
            await trio.sleep(BUSY_S)

    async def _discover(self, sock: trio.socket.SocketType, servers: Sequence[Endpoint], version: int) -> Discovered:
        anywhere = Endpoint(ip_address("0.0.0.0" if version == 4 else "::"), self.number)  # noqa: S104 (it is bound so)
        ids = [os.urandom(stun.TRANSACTION_ID_SIZE) for _ in servers]
        discovery = Discovery(servers, anywhere, ids)
        await self._ask(sock, discovery, discovery.start(trio.current_time()))
        while (found := discovery.result()) is None:
            due_at = discovery.next_timeout()
            with trio.move_on_at(trio.current_time() if due_at is None else due_at) as patience:
                received = await self._receive(sock)
            now = trio.current_time()
            if patience.cancelled_caught:
                await self._ask(sock, discovery, discovery.handle_timeout(now))
            elif received is not None:
                discovery.handle_datagram(*received, now)
        return found

    @staticmethod
    async def _ask(sock: trio.socket.SocketType, discovery: Discovery, questions: Sequence[Datagram]) -> None:
        for question in questions:
            try:
                await sock.sendto(question.payload, question.destination.sockaddr)
            except OSError as error:
                discovery.handle_unreachable(question.destination, error.strerror or str(error))

    @staticmethod
    async def _receive(sock: trio.socket.SocketType) -> tuple[bytes, Endpoint] | None:
        """The next datagram; None for an error about one that was sent."""
        try:
            data, source = await sock.recvfrom(_MAX_BYTES)
        except trio.ClosedResourceError:
            raise
        except OSError:
            return None
        return data, Endpoint.from_sockaddr(source)
