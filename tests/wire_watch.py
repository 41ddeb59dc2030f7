"""What left a host, from a trace of all its interfaces (`tests.natlab.Trace`), held against what may leave.

The trace is tcpdump's on `any`: a "cooked" header of twenty bytes (LINKTYPE_LINUX_SLL2) stands before each packet.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

from scapy.utils import RawPcapReader

from punchd.endpoint import Endpoint, IPAddress
from punchd.wire import ip

_SLL2 = struct.Struct("!HHIHBB8s")
_LINKTYPE_SLL2 = 276
_ETH_P_IP = (0x0800, 0x86DD)
_OUTGOING = 4
_LOOPBACK = 772  # ARPHRD_LOOPBACK
# By RFC number and written down once more, so that a mistake in `punchd.endpoint` is not believed twice.
NEVER = [
    ip_network(text)
    for text in (
        *("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4"),  # RFC 6890, 5771, 1112
        *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"),  # RFC 1918, 6598, 4193
        *("::/128", "::1/128", "::ffff:0:0/96", "fe80::/10", "ff00::/8"),  # RFC 4291
    )
]


@dataclass(frozen=True, slots=True)
class Sent:
    """A packet of TCP or UDP that a host sent, or a part of one; others have port 0."""

    source: Endpoint
    destination: Endpoint
    protocol: int
    on_loopback: bool


def sent(trace: Path) -> Iterator[Sent]:
    """The IP packets in a trace that the host itself sent, but for what the kernel says about neighbours (ICMPv6)."""
    with RawPcapReader(str(trace)) as reader:
        assert reader.linktype == _LINKTYPE_SLL2
        for data, _ in reader:
            kind, _, _, hardware, direction, _, _ = _SLL2.unpack_from(data)
            if direction != _OUTGOING or kind not in _ETH_P_IP:
                continue
            packet = ip.decode(data[_SLL2.size :], truncated=True)
            if packet.protocol in (ip.ICMPV6, 0) and is_of_neighbours(packet):
                continue
            has_ports = packet.protocol in (ip.TCP, ip.UDP)
            ports = struct.unpack_from("!HH", packet.payload) if has_ports else (0, 0)
            source, destination = Endpoint(packet.source, ports[0]), Endpoint(packet.destination, ports[1])
            yield Sent(source, destination, packet.protocol, hardware == _LOOPBACK)


def is_of_neighbours(packet: ip.Packet) -> bool:
    """Neighbour discovery and multicast listeners' reports: the kernel's, on the link."""
    return packet.protocol == 0 or 130 <= packet.payload[0] <= 143  # RFC 4861, 2710, 3810


@dataclass(frozen=True, slots=True)
class Findings:
    """What is wrong with what left, and how much went where."""

    wrong: Counter[str]
    by_port: Counter[int]  # towards strangers, that is neither servers nor friends, by local port
    total: int


def findings(trace: Path, own: set[IPAddress], allowed: list[str], servers: set[IPAddress]) -> Findings:
    """Look at all that left.

    Args:
        own: the host's addresses.
        allowed: networks that may be aimed at by anybody who was active.
        servers: STUN servers, and friends of users who are not restricted.
    """
    networks = [ip_network(text) for text in allowed]
    wrong: Counter[str] = Counter()
    by_port: Counter[int] = Counter()
    total = 0
    for packet in sent(trace):
        total += 1
        source, destination = packet.source.ip, packet.destination.ip
        if packet.on_loopback:  # injected, or between programs of the host
            if destination not in own and not destination.is_loopback:
                wrong[f"through lo to {destination}"] += 1
            continue
        if source not in own:
            wrong[f"from {source} to {destination}"] += 1
        if destination in servers:
            continue
        if any(destination in network for network in NEVER if network.version == destination.version):
            wrong[f"to {destination}, where nobody may aim"] += 1
        elif not any(destination in network for network in networks if network.version == destination.version):
            wrong[f"to {destination}, which the policy forbids"] += 1
        by_port[packet.source.port] += 1
    return Findings(wrong, by_port, total)
