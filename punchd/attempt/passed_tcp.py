"""One TCP round with the application's own socket: what that cannot do, and what it does instead.

There is one socket, it can connect to one port of the peer, and its initial sequence number is the kernel's: to choose
it would take TCP_REPAIR, and while that mode is on the application could forge connections (`punchd.kernel.passed`). So
nothing can be sent raw before the kernel's own SYN has told the number, nothing can be injected and nothing forged, and
there is no listener. What remains is the classic form of `tcp-nutss`, inside a firewall exemption; techniques that
want more hear `unsupported`.

Where the classic form replaces its socket to send a SYN again, here a raw copy of the SYN that the sniffer saw goes
out: the same sequence number, so the same connection to NATs and the peer. What tells the peer that the connection
stands (one ACK below the next sequence number, else made by TCP_REPAIR) is made up from both SYNs in the same way.

The port. Until the first SYN the daemon's own deaf listener holds it; sockets of two users cannot share a port of which
one listens, so it is closed in the moment in which the application's is bound. STUN's connections stay.

connect(2) blocks if the application makes its socket blocking again, so it runs in a thread. At the end of a round
without success `shutdown` takes the socket out of SYN_SENT, silently, and ends whatever waits in connect.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager, suppress
from typing import NoReturn

import trio

from punchd.attempt.tcp_port import TTL, LearningTcpPort, RoundTcpPort
from punchd.endpoint import Endpoint, IPAddress
from punchd.errors import Code, PunchError
from punchd.kernel import tcp as sockets
from punchd.kernel.firewall import Firewall
from punchd.kernel.passed import PassedSocket
from punchd.kernel.sniffer import Captured
from punchd.technique import Agreed, Complaint, Connection, Hole, Sighted
from punchd.wire.tcp import Flags, Options, Segment, plus

_WAITING = frozenset({errno.EINPROGRESS, errno.EALREADY, errno.EINTR})


class PassedTcpPort(RoundTcpPort):
    """Implements `punchd.technique.TcpPort`, as far as that goes; `close` it. `passed` stays the caller's."""

    def __init__(
        self,
        port: LearningTcpPort,
        peer: IPAddress,
        packets: int,
        keep: Callable[[Hole], Hole],
        record: Callable[[bytes], None] | None = None,
        *,
        firewall: Firewall,
        nonce: bytes,
        passed: PassedSocket,
    ) -> None:
        super().__init__(port, peer, packets, keep, record, firewall=firewall, nonce=nonce)
        self._passed = passed
        self._own: PassedConnection | None = None
        self._syns: dict[tuple[int, bool], Segment] = {}  # the peer's port, and whether it is ours -> the last SYN

    # --- technique.TcpPort -----------------------------------------------------------------------------------------

    @property
    def can_send_raw(self) -> bool:
        return False

    def exempt(self) -> AbstractAsyncContextManager[None]:
        if self._raw is None or not self.can_exempt:
            _unsupported("needs CAP_NET_RAW and a firewall that makes exemptions")
        return super().exempt()

    def send(self, flags: Flags, port: int, *, seq: int, ack: int = 0, ttl: int | None = None) -> None:
        _unsupported("cannot have its sequence number chosen")

    def inject(self, flags: Flags, port: int, *, seq: int, ack: int = 0, options: Options) -> None:
        _unsupported("does not listen")

    def listen(self, deaf_to: Iterable[int] = ()) -> None:
        self._check_open()

    async def accept(self) -> Connection:
        await trio.sleep_forever()
        raise AssertionError

    def connect(self, port: int, isn: int, ttl: int | None = None) -> Connection:
        if self._own is not None:
            raise PunchError(Code.REFUSED, f"the application's socket connects to port {self._own.port} only")
        self._check_room()
        self._port.placeholder.close()
        self._own = PassedConnection(self._passed, self.local, Endpoint(self._peer, port), ttl, self._announce)
        return self._own

    def reconnect(self, connection: Connection, isn: int, ttl: int | None = None) -> None:
        if self._own is None or not self._own.is_unanswered():
            return
        self._own.ttl = ttl
        first = self._syns.get((self._own.port, True))
        if first is not None and not self._own.is_closed():
            self._send(first, ttl or TTL)

    def repeat(self, port: int) -> None:
        return

    def forge(self, port: int, agreed: Agreed) -> Connection:
        _unsupported("cannot be forged")

    def hand_over(self, connection: Connection) -> Hole:
        if self._own is None:
            raise AssertionError("nothing to hand over")
        own, self._own = self._own, None
        return self._keep(Hole(own.part(), self.local, Endpoint(self._peer, own.port)))

    def close(self) -> None:
        super().close()
        if self._own is not None:
            self._own.drop()

    # --- inside ----------------------------------------------------------------------------------------------------

    def _read(self, captured: Captured) -> Sighted | Complaint | None:
        found = super()._read(captured)
        if isinstance(found, Sighted) and found.segment.flags & Flags.SYN and not found.is_injected:
            self._syns[found.port, found.is_outgoing] = found.segment
        return found

    def _announce(self, port: int) -> None:
        ours, theirs = self._syns.get((port, True)), self._syns.get((port, False))
        if ours is not None and theirs is not None:
            self._send(Segment(self.local.port, port, ours.seq, plus(theirs.seq, 1), Flags.ACK, 1, Options()), TTL)


class PassedConnection:
    """The application's socket on its way. Implements `punchd.technique.Connection`; owns a descriptor of its own.

    Attributes:
        ttl: of its next SYN; None is the system's.
    """

    def __init__(
        self,
        passed: PassedSocket,
        local: Endpoint,
        remote: Endpoint,
        ttl: int | None,
        announce: Callable[[int], None],
    ) -> None:
        self._passed = passed
        self._socket = passed.borrow()
        self._local = local
        self._remote = remote
        self._announce = announce
        self._is_bound = False
        self._alone = trio.CapacityLimiter(1)  # an application can make its thread wait, but nobody else's
        self.ttl = ttl

    @property
    def port(self) -> int:
        return self._remote.port

    async def result(self) -> int:
        number = await trio.to_thread.run_sync(
            self._connect, self._passed.borrow(), abandon_on_cancel=True, limiter=self._alone
        )
        if number == 0:
            await trio.lowlevel.wait_writable(self._socket)
            number = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        # Whoever else holds the socket may have taken it elsewhere meanwhile.
        return number or (0 if self._is_where_it_should_be() else errno.ENOTCONN)

    def is_closed(self) -> bool:
        return sockets.is_unanswered(self._socket) and not sockets.is_connecting(self._socket)

    def is_unanswered(self) -> bool:
        return sockets.is_unanswered(self._socket)

    def announce(self) -> None:
        self._announce(self.port)

    def drop(self) -> None:
        """Others hold the socket, too: closing alone would leave it in SYN_SENT."""
        if self._socket.fileno() < 0:
            return
        trio.lowlevel.notify_closing(self._socket)
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def part(self) -> int:
        """Give a descriptor of it away, as the application had it; the caller owns it."""
        self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self._passed.restore()
        return self._socket.detach()

    def _connect(self, own: socket.socket) -> int:
        """In a thread, with a descriptor of its own, since nobody can tell how long it takes: 0, or an errno."""
        try:
            with own:
                if not self._is_bound:
                    sockets.bind_beside(own, self._local)
                    self._is_bound = True
                sockets.connect_low(own, self._remote, self.ttl)
        except OSError as error:
            number = error.errno or errno.EIO
            return 0 if number in _WAITING else number
        return 0

    def _is_where_it_should_be(self) -> bool:
        try:
            where = Endpoint.from_sockaddr(self._socket.getpeername())
        except OSError:
            return False
        return where == self._remote and sockets.is_synchronized(self._socket)


def _unsupported(why: str) -> NoReturn:
    raise PunchError(Code.UNSUPPORTED, f"a TCP socket of the application {why}")
