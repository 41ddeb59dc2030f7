"""Two hosts, their addresses of one family, and what crosses the wire between them.

"Nothing is sent" is asserted by a second packet that was sent later and is there: a sniffer keeps the order.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address

import pytest
import trio

from punchd.endpoint import Endpoint
from punchd.kernel.raw import RawSender
from punchd.kernel.sniffer import Captured, Sniffer
from punchd.wire import ip, tcp
from punchd.wire.tcp import Flags, Options, Segment
from tests.natlab import Host, Laboratory, Link, Site

QUIET_S = 0.15  # a kernel's answer crosses four namespaces in far less than a millisecond
_FRESH_PORTS = itertools.count(30000, 10)  # each test has its own: what one leaves behind is not in the next one's way

either = pytest.mark.parametrize("version", [4, 6])


def two_hosts() -> Iterator[Laboratory]:
    """A fixture's body."""
    # a delay of a millisecond: without any, packets come back inside the call that sends
    with Laboratory([Site(name, wan=Link(delay_s=0.001)) for name in "ab"], stun=False) as laboratory:
        yield laboratory


@dataclass(frozen=True, slots=True)
class Ends:
    """Host a and host b, their addresses of one family, with the ports that are used here."""

    a: Host
    b: Host
    at_a: Endpoint
    at_b: Endpoint

    @property
    def version(self) -> int:
        return self.at_a.ip.version


def ends_of(laboratory: Laboratory, version: int) -> Ends:
    a, b = (laboratory.site(name).host for name in "ab")
    port = next(_FRESH_PORTS)
    addresses = [ip_address(str(host.ipv6) if version == 6 else host.ipv4) for host in (a, b)]
    return Ends(a, b, Endpoint(addresses[0], port), Endpoint(addresses[1], port + 5))


@contextmanager
def sniffing(host: Host, port: int, version: int = 4) -> Iterator[Sniffer]:
    with host.entered():
        sniffer = Sniffer(version, port)
    try:
        yield sniffer
    finally:
        sniffer.close()


@contextmanager
def sending(host: Host, version: int = 4) -> Iterator[RawSender]:
    with host.entered():
        sender = RawSender(version)
    try:
        yield sender
    finally:
        sender.close()


async def captured(sniffer: Sniffer, within_s: float = QUIET_S) -> list[Captured]:
    """All that comes until it has been quiet for so long."""
    found: list[Captured] = []
    with trio.move_on_after(within_s) as scope:
        while True:
            found.append(await sniffer.capture())
            scope.deadline = trio.current_time() + within_s
    return found


def segments(packets: list[Captured], *, leaving: bool | None = None) -> list[Segment]:
    return [
        tcp.decode(packet.payload)
        for item in packets
        if leaving in (None, item.is_outgoing) and (packet := ip.decode(item.data)).protocol == ip.TCP
    ]


def crafted(source: Endpoint, destination: Endpoint, flags: Flags, seq: int = 7, ack: int = 0) -> bytes:
    segment = Segment(source.port, destination.port, seq, ack, flags, 1000, Options(mss=1000))
    payload = tcp.encode(segment, source.ip, destination.ip)
    return ip.encode(source.ip, destination.ip, ip.TCP, payload, 64)
