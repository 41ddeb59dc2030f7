"""What is known of a port's public side, from whichever source: the application, STUN, or nothing but the port itself.

The application's word counts most (it may know from its own rendezvous server), then what STUN servers saw, then the
local endpoint, which is also the public one where there is no NAT and often enough has the same port where there is.

Pure. Implements `punchd.technique.Outlook`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address

from punchd.endpoint import Endpoint, IPAddress, PortSet, is_global
from punchd.nat.discover import Discovered
from punchd.nat.mapping import Behaviour, Mapping, predict

MAX_RTT_MS = 0xFFFF


@dataclass(frozen=True, slots=True)
class KnownSide:
    """One port's public side.

    Attributes:
        local: the bound endpoint.
        given_address, given_ports: what the application says, or None.
        mapping: what STUN servers saw, or None.
        rtt_ms: round trip to the nearest STUN server, 0 = unknown.
    """

    local: Endpoint
    given_address: IPAddress | None = None
    given_ports: PortSet | None = None
    mapping: Mapping | None = None
    rtt_ms: int = 0

    @property
    def address(self) -> IPAddress:
        if self.given_address is not None:
            return self.given_address
        if self.mapping is not None:
            return self.mapping.public_ip
        if is_global(self.local.ip):
            return self.local.ip
        return IPv4Address(0) if self.local.ip.version == 4 else IPv6Address(0)

    @property
    def is_complete(self) -> bool:
        """STUN could add nothing that is asked for."""
        return self.mapping is not None or (self.given_address is not None and self.given_ports is not None)

    @property
    def behaviour(self) -> str:
        """`open`, `endpoint-independent`, `sequential+N`, `random` or `unknown`."""
        return str(self.mapping or Behaviour.UNKNOWN)

    @property
    def is_predicted(self) -> bool:
        if self.given_ports is not None:
            return False
        return self.mapping is None or self.mapping.is_guess

    def ports(self, later: int = 0) -> PortSet:
        if self.given_ports is not None:
            return self.given_ports
        if self.mapping is not None:
            return predict(self.mapping, later)
        return PortSet((self.local.port,))

    def with_discovered(self, found: Discovered) -> KnownSide:
        """The same with STUN's answers, as far as there are any."""
        rtt_ms = min(round((found.rtt_s or 0) * 1000), MAX_RTT_MS)
        return replace(self, mapping=found.mapping, rtt_ms=max(rtt_ms, 1) if found.mapping else 0)
