"""The path between a site's host and the server, with the sockets and the fence that probes need."""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import select
import socket
import struct
import time
from collections.abc import Iterator
from typing import Final

from .host import Host
from .laboratory import Laboratory
from .packet import SYN, Endpoint
from .wiretap import Segment, Wiretap

NEAR_PORT: Final = 7001
NEAR_OTHER_PORT: Final = 7002
SEQUENCE: Final = 1_000_000
REMOTE_SEQUENCE: Final = 9_000_000

_ARRIVAL_LIMIT_S: Final = 1.0  # for what must arrive; it takes less than a millisecond
_SETTLE_S: Final = 0.002  # packets of one host may be handled by two processors
_SILENCE_S: Final = 0.1  # where no fence can be had
_FENCE_PORT: Final = 5000
_tokens: Final = itertools.count(1)


class ProbeError(Exception):
    """The path does not even carry what every NAT carries."""


class MeasuredPath:
    """One site and the server, with their sockets."""

    def __init__(self, lab: Laboratory, name: str, stack: contextlib.ExitStack) -> None:
        self.lab = lab
        self.site = lab.site(name)
        self.host: Host = self.site.host
        self.stack = stack
        self.inside = stack.enter_context(Wiretap(self.host))
        self.outside = stack.enter_context(Wiretap(lab.server))
        near, far = (number(address) for address in lab.server.ipv4_addresses)
        self.remotes: tuple[Endpoint, ...] = tuple((a, p) for a in (near, far) for p in (NEAR_PORT, NEAR_OTHER_PORT))
        self.near, self.near_other, self.far = self.remotes[0], self.remotes[1], self.remotes[2]
        self.own = number(self.host.ipv4)
        self.public = number(self.host.public_ipv4)
        self.servers = {remote: self.udp(lab.server, remote) for remote in self.remotes}
        self.fence_socket = self.udp(self.host, (self.own, _FENCE_PORT))
        self.udp_passes = True
        try:
            self.fence()
        except ProbeError:  # which, for all that follows, is said once and for all
            self.udp_passes = False
        self.ports = itertools.count(5001)

    def udp(self, host: Host, endpoint: Endpoint) -> socket.socket:
        """A bound UDP socket, closed with the probe."""
        bound = self.stack.enter_context(host.socket())
        bound.bind((text(endpoint[0]), endpoint[1]))
        bound.setblocking(False)
        return bound

    def fence(self) -> None:
        """Waits until everything sent before has come or will not.

        Raises:
            ProbeError: the fence itself does not come.
        """
        if not self.udp_passes:
            time.sleep(_SILENCE_S)
        else:
            time.sleep(_SETTLE_S)
            token = new_token()
            self.fence_socket.sendto(token, (text(self.near[0]), self.near[1]))
            there = arrival(self.servers[self.near], token)
            if there is None:
                raise ProbeError(f"{self.site.name}: UDP does not reach the server")
            self.servers[self.near].sendto(token, (text(there[0]), there[1]))
            if arrival(self.fence_socket, token) is None:
                raise ProbeError(f"{self.site.name}: the server's answer to UDP does not come back")
            time.sleep(_SETTLE_S)
        self.inside.collect()
        self.outside.collect()

    def seen(self, where: Wiretap, target: Endpoint, flags: int, source: Endpoint | None = None) -> list[Segment]:
        """Segments that have arrived there."""
        return [
            one
            for one in where.segments
            if one.target == target and one.flags == flags and source in {None, one.source}
        ]

    def syn_out(self, own: Endpoint, remote: Endpoint) -> Segment:
        """Sends a SYN and waits for it at the server: the SYN as it was seen there."""
        before = len(self.outside.segments)
        self.inside.send_flags(own, remote, SYN, SEQUENCE)
        limit = time.monotonic() + _ARRIVAL_LIMIT_S
        while time.monotonic() < limit:
            self.outside.collect()
            for segment in self.outside.segments[before:]:
                if segment.target == remote and segment.flags == SYN and segment.source[0] == self.public:
                    return segment
            time.sleep(_SETTLE_S / 10)
        raise ProbeError(f"{self.site.name}: a SYN does not reach {text(remote[0])}:{remote[1]}")


def new_token() -> bytes:
    """A datagram that no other is equal to."""
    return struct.pack("!4sQ", b"prob", next(_tokens))


def arrival(bound: socket.socket, token: bytes) -> Endpoint | None:
    """Waits for a datagram, forgetting others; who sent it, or None if it does not come."""
    for data, source in _datagrams(bound):
        if data == token:
            return source
    return None


def arrived_until(bound: socket.socket, token: bytes) -> set[bytes]:
    """All datagrams that come up to this one."""
    came: set[bytes] = set()
    for data, _ in _datagrams(bound):
        came.add(data)
        if data == token:
            break
    return came


def arrived(bound: socket.socket) -> set[bytes]:
    """All datagrams that have come by now."""
    data: set[bytes] = set()
    while True:
        try:
            data.add(bound.recv(2048))
        except BlockingIOError:
            return data


def number(address: str) -> int:
    """The IPv4 address as an integer."""
    return int.from_bytes(socket.inet_aton(address), "big")


def text(address: int) -> str:
    """The IPv4 address as people write it."""
    return socket.inet_ntoa(address.to_bytes(4, "big"))


def _datagrams(bound: socket.socket) -> Iterator[tuple[bytes, Endpoint]]:
    limit = time.monotonic() + _ARRIVAL_LIMIT_S
    while (left := limit - time.monotonic()) > 0 and select.select([bound], [], [], left)[0]:
        data, source = bound.recvfrom(2048)
        yield data, (int(ipaddress.ip_address(source[0])), source[1])
