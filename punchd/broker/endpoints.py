"""Where a peer can be reached: what the broker saw, and what it believes of what the peer says.

A register has a port and no address, so the address is the one that the WebSocket came from: a client that could name
one freely could aim the SRT handshakes of others at a third party. The port is the local one; the NAT is taken to keep
it, unless the peer found its public port out and the operator lets it say so.

Pure.

Source: seed 000 §9.4; broker specification C-07, C-08, C-10.
"""

from __future__ import annotations

from enum import Enum
from ipaddress import IPv6Address

from punchd.broker.messages import Register
from punchd.endpoint import Endpoint, IPAddress, is_global, parse_ip
from punchd.errors import DecodeError


class Reported(Enum):
    """How much of `meta.punch` is believed."""

    OFF = "off"
    PORT = "port"
    IP = "ip"  # also the address, if it is global unicast


def observed_ip(ip: IPAddress) -> IPAddress:
    """The address of a connection as peers are told it: IPv4 where it is mapped into IPv6, without a zone."""
    if isinstance(ip, IPv6Address):
        return ip.ipv4_mapped or IPv6Address(int(ip))
    return ip


def public_endpoint(observed: IPAddress, register: Register, reported: Reported) -> Endpoint:
    """Where the other peer is to send to."""
    ip, port = observed, register.port
    if reported is not Reported.OFF and register.public_port is not None:
        port = register.public_port
    if reported is Reported.IP and register.public_ip is not None:
        ip = _believed(register.public_ip) or observed
    return Endpoint(ip, port)


def families_differ(one: Endpoint, other: Endpoint) -> bool:
    """SRT's rendezvous cannot work then (C-10)."""
    return one.ip.version != other.ip.version


def _believed(text: str) -> IPAddress | None:
    try:
        ip = parse_ip(text)
    except DecodeError:
        return None
    return ip if is_global(ip) else None
