"""Where a client's pulses go out and their replies come in: one connected UDP socket, made anew when it must be.

A connected socket hears nobody but the server, but it also keeps the source address that it was given. When the host
gets another address, or another route leads to the server, the old one sends into nowhere; so whoever owns this asks
`has_moved` from time to time and calls `reconnect`.

What the kernel says of a datagram (no route, nobody listens) is not looked at: a pulse that is not answered is
repeated, whatever the reason is.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from ipaddress import ip_address

import trio

from punchd.endpoint import Endpoint, IPAddress
from punchd.errors import DecodeError
from punchd.rendezvous import pulse

_LONGEST_REPLY = 64  # bytes read; a reply has 12 at most
_REPLIES_AT_ONCE = 16


class PulsePort:
    """The socket.

    Args:
        host, port: of the server; a name or an address. `resolve` must have succeeded before the first `send`.
        on_reply: called with each reply.

    Resource handling: owns the socket; `close` it.
    """

    def __init__(self, host: str, port: int, on_reply: Callable[[pulse.Reply], None]) -> None:
        self.host = host
        self._port = port
        self._on_reply = on_reply
        self._servers: list[Endpoint] = []
        self._turn = 0  # which of them
        self._socket: socket.socket | None = None
        self._opened = trio.lowlevel.ParkingLot()

    @property
    def server(self) -> Endpoint:
        """Where pulses go."""
        return self._servers[self._turn % len(self._servers)]

    async def resolve(self) -> None:
        """Look the server's addresses up (again).

        Raises:
            OSError: its name cannot be resolved; what was known before stays.
        """
        try:
            found = await trio.socket.getaddrinfo(self.host, self._port, type=socket.SOCK_DGRAM)
        except UnicodeError:  # a label of more than 63 characters, an empty one
            raise socket.gaierror(socket.EAI_NONAME, "not a host name") from None
        self._servers = [Endpoint(ip_address(str(entry[4][0]).partition("%")[0]), self._port) for entry in found]

    def send(self, datagram: bytes) -> None:
        """Send a pulse, as far as the network takes it."""
        if self._socket is None:
            self._socket = self._open()
            self._opened.unpark_all()
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.send(datagram)

    def reconnect(self, *, to_next: bool = False) -> None:
        """The next pulse goes out from a new socket; `to_next`: to the server's next address."""
        self._turn += to_next
        self.close()

    def has_moved(self) -> bool:
        """Whether a new socket would have another source address than the one in use, or there was no way until now.

        False while there is none.
        """
        trial = self._open()
        if trial is None:
            return False
        with trial:
            return self._socket is None or _source(trial) != _source(self._socket)

    async def read(self) -> None:
        """Hand replies on, until cancelled."""
        while True:
            if self._socket is None:
                await self._opened.park()
                continue
            try:
                await trio.lowlevel.wait_readable(self._socket)
            except trio.ClosedResourceError:
                continue
            for _ in range(_REPLIES_AT_ONCE):
                if not self._read_one():
                    break

    def close(self) -> None:
        """Close the socket. May be called twice."""
        if self._socket is not None:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()
            self._socket = None

    def _read_one(self) -> bool:
        """Whether there may be more."""
        if self._socket is None:  # a reply made somebody reconnect
            return False
        try:
            datagram = self._socket.recv(_LONGEST_REPLY)
        except BlockingIOError:
            return False
        except OSError:  # ECONNREFUSED and its like: news of an earlier pulse, now taken
            return True
        with contextlib.suppress(DecodeError):
            self._on_reply(pulse.read_reply(datagram))
        return True

    def _open(self) -> socket.socket | None:
        """A new socket; None if there is no way to the server."""
        family = socket.AF_INET6 if self.server.ip.version == 6 else socket.AF_INET
        try:
            sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        except OSError:  # no such family here, no descriptors
            return None
        try:
            sock.connect(self.server.sockaddr)
        except OSError:
            sock.close()
            return None
        return sock


def _source(sock: socket.socket) -> IPAddress:
    return Endpoint.from_sockaddr(sock.getsockname()).ip
