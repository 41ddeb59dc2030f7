"""The sockets of the STUN server: one UDP socket and one TCP listener for each place.

A socket that is bound to an address answers from it. For one that is bound to a wildcard address see
`punchd.rendezvous.packet_info`.

Source: ip(7), ipv6(7), socket(7).
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from punchd.endpoint import Endpoint
from punchd.errors import KernelError
from punchd.rendezvous import packet_info
from punchd.rendezvous.packet_info import Control
from punchd.rendezvous.stun_layout import Place, places

BACKLOG = 128
_TRIES = 16  # for a port that is free for both protocols
# Bytes; longer datagrams are cut, and then their header's length is wrong. The longest honest one has 1,500 bytes of
# PADDING, more than a datagram on Ethernet can have in one piece.
MAX_DATAGRAM = 2048
_RECEIVE_BUFFER = 4 << 20  # bytes, some 5,000 requests; the kernel cuts it to net.core.rmem_max


@dataclass(slots=True)
class UdpPort:
    """A bound UDP socket, non-blocking, that answers from the address it was asked at. `close` it."""

    socket: socket.socket
    is_wildcard: bool

    def receive(self) -> tuple[bytes, Any, Control]:
        """The next datagram, where it came from, and what to send along with the answer.

        Raises:
            BlockingIOError: there is none.
            OSError: a pending error, now gone.
        """
        if not self.is_wildcard:
            data, source = self.socket.recvfrom(MAX_DATAGRAM)
            return data, source, []
        data, ancillary, _, source = self.socket.recvmsg(MAX_DATAGRAM, packet_info.SPACE)
        return data, source, [packet_info.reply(*item) for item in ancillary]

    def send(self, data: bytes, control: Control, to: Any) -> None:
        """Send one datagram.

        Raises:
            OSError: it is lost.
        """
        if control:
            self.socket.sendmsg([data], control, 0, to)
        else:
            self.socket.sendto(data, to)

    def close(self) -> None:
        self.socket.close()


@dataclass(slots=True)
class Listening:
    """The sockets of a STUN server. Owns them: `close`, unless `serve` has them.

    Attributes:
        places: where it listens, with the ports that the kernel chose.
        udp: one for each place.
        tcp: one for each place, listening.
    """

    places: tuple[Place, ...] = ()
    udp: list[UdpPort] = field(default_factory=list)
    tcp: list[socket.socket] = field(default_factory=list)

    def close(self) -> None:
        for port in self.udp:
            port.close()
        for listener in self.tcp:
            listener.close()


def listen(endpoints: Sequence[Endpoint]) -> Listening:
    """Bind UDP and TCP sockets for these endpoints (`punchd.rendezvous.stun_layout` says which).

    Raises:
        ConfigError: endpoints that do not go together.
        KernelError: one that cannot be had, in use for example. Either way nothing is left open.
    """
    listening = Listening()
    bound: list[Place] = []
    try:
        for place in places(endpoints):
            udp, tcp = _pair(place.endpoint)
            listening.udp.append(UdpPort(udp, place.endpoint.ip.is_unspecified))
            listening.tcp.append(tcp)
            if place.endpoint.ip.is_unspecified:
                packet_info.ask(udp)
            udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
            bound.append(Place(Endpoint.from_sockaddr(udp.getsockname()), place.turns))
    except BaseException:
        listening.close()
        raise
    listening.places = tuple(bound)
    return listening


def _pair(endpoint: Endpoint) -> tuple[socket.socket, socket.socket]:
    """A UDP and a TCP socket with one port. The kernel chooses port 0 for UDP alone, so TCP may find it taken."""
    for tries_left in reversed(range(_TRIES if endpoint.port == 0 else 1)):
        udp = _bound(socket.SOCK_DGRAM, endpoint)
        try:
            return udp, _bound(socket.SOCK_STREAM, Endpoint.from_sockaddr(udp.getsockname()))
        except KernelError:
            udp.close()
            if not tries_left:
                raise
    raise AssertionError("unreachable: the last try returns or raises")


def _bound(kind: socket.SocketKind, endpoint: Endpoint) -> socket.socket:
    """Unlike `punchd.web.listen`, this takes one address and any port."""
    family = socket.AF_INET6 if endpoint.ip.version == 6 else socket.AF_INET
    made = socket.socket(family, kind | socket.SOCK_NONBLOCK)
    try:
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if kind == socket.SOCK_STREAM:  # a restart must not wait for the TIME-WAIT of the last run
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(endpoint.sockaddr)
        if kind == socket.SOCK_STREAM:
            made.listen(BACKLOG)
    except OSError as error:
        made.close()
        protocol = "TCP" if kind == socket.SOCK_STREAM else "UDP"
        raise KernelError(f"stun: {endpoint}: cannot listen there ({protocol}): {error.strerror}") from None
    return made
