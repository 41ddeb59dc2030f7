"""Addresses and ports as values, and which addresses may be aimed at.

Python's `is_private` also calls documentation and benchmark ranges private, and its tables change from one release
to the next; what a privileged daemon may send packets to is decided by the tables in this file (line protocol §6 and
§13.7).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from punchd.errors import DecodeError

IPAddress = IPv4Address | IPv6Address

MAX_PORTS = 16  # ports of one list, line protocol §2
MAX_RUNS = 4  # runs ("40000-40007") of one list, same place


@dataclass(frozen=True, slots=True, order=True)
class Endpoint:
    """An IP address and a UDP or TCP port (0-65535; 0 only where a port is yet to be chosen)."""

    ip: IPAddress
    port: int

    def __str__(self) -> str:
        return f"[{self.ip}]:{self.port}" if self.ip.version == 6 else f"{self.ip}:{self.port}"

    @property
    def sockaddr(self) -> tuple[str, int]:
        """What the socket module takes; a scope is never needed, link-local addresses are refused."""
        return str(self.ip), self.port

    @classmethod
    def from_sockaddr(cls, sockaddr: tuple[object, ...]) -> Endpoint:
        """From what `recvfrom` or `getsockname` return: (text, port) or (text, port, flow, scope)."""
        ip = ip_address(str(sockaddr[0]).partition("%")[0])
        port = sockaddr[1]
        if not isinstance(port, int):
            raise DecodeError(f"socket address: expected a port number, got {port!r}")
        return cls(ip, port)


@dataclass(frozen=True, slots=True)
class PortSet:
    """1 to 16 distinct ports, best first, written as at most four runs: `40000`, `40000-40003,50000`."""

    ports: tuple[int, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.ports) <= MAX_PORTS:
            raise ValueError(f"expected 1 to {MAX_PORTS} ports, got {len(self.ports)}")
        if len(set(self.ports)) != len(self.ports):
            raise ValueError("a port stands twice")
        for port in self.ports:
            if not 1 <= port <= 65535:
                raise ValueError(f"port {port} is not in 1-65535")

    def __iter__(self) -> Iterator[int]:
        return iter(self.ports)

    def __len__(self) -> int:
        return len(self.ports)

    def __contains__(self, port: object) -> bool:
        return port in self.ports

    def __str__(self) -> str:
        return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs(self.ports))

    @classmethod
    def of(cls, ports: Iterable[int]) -> PortSet:
        """The first ports of `ports` that fit: valid ones, each once, at most 16 in at most four runs."""
        kept: list[int] = []
        for port in ports:
            if not 1 <= port <= 65535 or port in kept:
                continue
            if len(kept) == MAX_PORTS or len(runs((*kept, port))) > MAX_RUNS:
                break
            kept.append(port)
        return cls(tuple(kept))


def runs(ports: Iterable[int]) -> list[tuple[int, int]]:
    """Neighbouring ascending ports joined, in the order given: 7,8,9,3 → (7,9),(3,3)."""
    found: list[tuple[int, int]] = []
    for port in ports:
        if found and port == found[-1][1] + 1:
            found[-1] = (found[-1][0], port)
        else:
            found.append((port, port))
    return found


# RFC 1918, RFC 6598, RFC 4193: reachable only inside somebody's network.
PRIVATE: tuple[IPv4Network | IPv6Network, ...] = tuple(
    ip_network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")
)
# Never a peer: RFC 6890 and the special-purpose registries it started.
REFUSED: tuple[tuple[str, IPv4Network | IPv6Network], ...] = tuple(
    (name, ip_network(text))
    for name, text in (
        ("unspecified", "0.0.0.0/8"),
        ("loopback", "127.0.0.0/8"),
        ("link-local", "169.254.0.0/16"),
        ("multicast", "224.0.0.0/4"),
        ("broadcast", "255.255.255.255/32"),
        ("reserved", "240.0.0.0/4"),
        ("unspecified", "::/128"),
        ("loopback", "::1/128"),
        ("IPv4-mapped", "::ffff:0:0/96"),
        ("IPv4-compatible", "::/96"),
        ("link-local", "fe80::/10"),
        ("site-local", "fec0::/10"),
        ("multicast", "ff00::/8"),
    )
)


def is_private(ip: IPAddress) -> bool:
    """Whether `ip` belongs to RFC 1918, RFC 6598 or fc00::/7."""
    return any(ip in network for network in PRIVATE if network.version == ip.version)


def is_global(ip: IPAddress) -> bool:
    """Whether others may reach `ip` as it is: neither private nor one that is never a peer."""
    return objection(ip, allow_private=False) is None


def objection(ip: IPAddress, *, allow_private: bool) -> str | None:
    """Why `ip` must not be aimed at, in words for an error line; None where it may be.

    The host's own addresses and directed broadcasts are known to the kernel only: `punchd.kernel.routes` adds those.
    """
    for name, network in REFUSED:
        if network.version == ip.version and ip in network:
            return f"{ip} is {'an' if name[0] in 'aeiouI' else 'a'} {name} address"
    if is_private(ip) and not allow_private:
        return f"{ip} is a private address (allow-private = true permits these)"
    return None


def parse_ip(text: str) -> IPAddress:
    """An IPv4 or IPv6 literal in its one canonical form (RFC 5952), no zone, no brackets, not IPv4-mapped.

    Raises:
        DecodeError: anything else.
    """
    try:
        ip = ip_address(text)
    except ValueError:
        raise DecodeError(f"expected an IPv4 or IPv6 address, got {text[:64]!r}") from None
    if isinstance(ip, IPv6Address):
        if ip.ipv4_mapped is not None:
            raise DecodeError(f"IPv4-mapped address {text[:64]!r}: write it as IPv4")
        if ip.scope_id is not None or str(ip) != text:
            raise DecodeError(f"expected the form of RFC 5952, {IPv6Address(int(ip))}, got {text[:64]!r}")
    return ip
