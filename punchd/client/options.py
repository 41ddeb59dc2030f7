"""Arguments of `probe`, `initiate` and `respond`, from what is handy to write into the values of the protocol.

Addresses and ports often come from a rendezvous server, so texts are parsed strictly here: nothing that is not an
address, a port or a technique's name gets into a request line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Protocol, TypedDict, cast

from punchd.control.answers import parse_ports
from punchd.control.lines import TECHNIQUE
from punchd.control.requests import Options
from punchd.endpoint import IPAddress, PortSet, parse_ip
from punchd.errors import DecodeError

Address = IPAddress | str  # a literal address, never a name
Ports = PortSet | Iterable[int] | int | str  # as text: "40000" or "40000-40003,50000"; 1 to 16 ports, best first
Techniques = Iterable[str] | str  # as text: "auto", "all" or "tcp-syni,udp"

_HOST = re.compile(r"[A-Za-z0-9.:_-]{1,58}")


class Passable(Protocol):
    """A socket, of the standard library or of trio."""

    def fileno(self) -> int: ...


class PortOptions(TypedDict, total=False):
    """Which local port to use and how to learn about its NAT; for `probe`, `initiate` and `respond`.

    lport: local port, 0 (the default) = any free one. Name the `lport` of an earlier probe to use its mapping.
    local: local address to bind; chosen by the route to the other side when left out.
    stun: (host, port) of a STUN server to ask instead of the daemon's configured ones.
    """

    lport: int
    local: Address
    stun: tuple[str, int]


class AttemptOptions(PortOptions, total=False):
    """Options of `initiate` and `respond`. Leave them out unless the application knows better than the daemon.

    public: the own public address; probed when left out.
    pports: the public ports that the own NAT will use; predicted when left out.
    timeout_ms: for the whole attempt, 1000 to 120000; 30000 for initiate, 45000 for respond when left out.
    ttl: 1 to 64, of packets meant to open the own NAT and die before the other one.
    sock: a socket of the application's own to be connected, instead of one that the daemon makes: its user and its
        cgroup stay the application's. UDP, or TCP and unbound; not to be used until the attempt is over. The socket
        of `Connected` is the same one under another descriptor. The daemon has to allow it (`accept-sockets`).
    """

    public: Address
    pports: Ports
    timeout_ms: int
    ttl: int
    sock: Passable


def to_ip(address: Address) -> IPAddress:
    """The address as a value. Raises DecodeError when a text is no literal IPv4 or IPv6 address."""
    return parse_ip(address) if isinstance(address, str) else address


def to_ports(ports: Ports) -> PortSet:
    """The ports as a value. Raises DecodeError unless they are 1 to 16 different ports of 1 to 65535."""
    try:
        match ports:
            case PortSet():
                return ports
            case str():
                return parse_ports(ports)
            case int():
                return PortSet((ports,))
            case _:
                return PortSet(tuple(ports))
    except ValueError as error:
        raise DecodeError(f"ports: {error}, got {str(ports)[:64]!r}") from None


def to_techniques(techniques: Techniques) -> tuple[str, ...]:
    """The names as a tuple. Raises DecodeError when one cannot be the name of a technique."""
    names = tuple(techniques.split(",") if isinstance(techniques, str) else techniques)
    for name in names or ("",):
        if not TECHNIQUE.fullmatch(name):
            raise DecodeError(f"techniques: expected names such as udp or tcp-syni, auto or all, got {name[:32]!r}")
    return names


def to_options(chosen: PortOptions, *, peer: Address | None = None, techniques: Techniques | None = None) -> Options:
    """The options field of a request. Raises DecodeError as the functions above do."""
    given = cast("AttemptOptions", chosen)  # a subtype: the keys that it has in addition are simply left out
    stun = given.get("stun")
    if stun is not None and not (_HOST.fullmatch(stun[0]) and 1 <= stun[1] <= 65535):
        raise DecodeError(f"stun: expected a host and a port of 1-65535, got {stun!r}")
    return Options(
        local=to_ip(given["local"]) if "local" in given else None,
        lport=int(given.get("lport", 0)),
        public=to_ip(given["public"]) if "public" in given else None,
        pports=to_ports(given["pports"]) if "pports" in given else None,
        peer=to_ip(peer) if peer is not None else None,
        techniques=to_techniques(techniques) if techniques is not None else None,
        timeout_ms=int(given["timeout_ms"]) if "timeout_ms" in given else None,
        ttl=int(given["ttl"]) if "ttl" in given else None,
        stun=stun,
        sock="sock" in given,
    )


def descriptor(chosen: AttemptOptions) -> int | None:
    """Of the socket that is to be passed in; it stays the application's."""
    return chosen["sock"].fileno() if "sock" in chosen else None
