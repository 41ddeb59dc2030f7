"""On which endpoints STUN listens, and which of them can answer in another's stead. Pure.

    --stun 192.0.2.10:3478                             one place, plain STUN
    --stun 192.0.2.10:3478 --stun 192.0.2.20:3478      four places: both addresses, ports 3478 and 3479
    --stun 192.0.2.10:3478 --stun 192.0.2.20:5000      four places: both addresses, ports 3478 and 5000
    --stun 0.0.0.0:3478 --stun [::]:3478               two places, plain STUN

Behaviour discovery (RFC 5780 §6) needs two addresses of one family with the same two ports on each. It is offered for
a family as soon as two addresses of it are named; **the other port is the second one that is named, else the next
one** (3479 beside 3478, as coturn has it). Two ports of one address are two plain servers. A wildcard address cannot
be one of two: OTHER-ADDRESS has to name an address, and an answer has to come from it.

Left out: a server whose public addresses are not its own (a 1:1 NAT before it). Plain STUN works there; OTHER-ADDRESS
would name an address that nobody can reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from punchd.endpoint import Endpoint
from punchd.errors import ConfigError

_MAX_ADDRESSES = 2  # of one family: CHANGE-REQUEST knows "the other" and no third


@dataclass(frozen=True, slots=True)
class Place:
    """One endpoint the server listens on, UDP and TCP.

    Attributes:
        endpoint: its port may be 0 where it is the only place of its family.
        turns: indices of the places that answer, for CHANGE-REQUEST's flags as a number: 0 this one, 1 the other port,
            2 the other address, 3 both. Empty without a second address.
    """

    endpoint: Endpoint
    turns: tuple[int, ...] = ()


def places(endpoints: Sequence[Endpoint]) -> tuple[Place, ...]:
    """Where to listen, each place once.

    Raises:
        ConfigError: three addresses or ports of one family, or a second address beside a wildcard one or a port 0.
    """
    found: list[Place] = []
    for version in (4, 6):
        of_family = [endpoint for endpoint in dict.fromkeys(endpoints) if endpoint.ip.version == version]
        addresses = list(dict.fromkeys(endpoint.ip for endpoint in of_family))
        ports = list(dict.fromkeys(endpoint.port for endpoint in of_family))
        if len(addresses) < _MAX_ADDRESSES:
            found.extend(Place(endpoint) for endpoint in of_family)
            continue
        if len(addresses) > _MAX_ADDRESSES or len(ports) > _MAX_ADDRESSES:
            raise ConfigError(
                f"stun: expected at most two IPv{version} addresses with two ports, got {_listed(of_family)}"
            )
        if 0 in ports or any(ip.is_unspecified for ip in addresses):
            raise ConfigError(f"stun: a second address needs two real ones and no port 0, got {_listed(of_family)}")
        if len(ports) == 1:
            if ports[0] == 65535:
                raise ConfigError("stun: port 65535 has no next one for the second address; name another port")
            ports.append(ports[0] + 1)
        first = len(found)
        grid = [Endpoint(ip, port) for ip in addresses for port in ports]
        found.extend(Place(end, tuple(first + (at ^ flags) for flags in range(4))) for at, end in enumerate(grid))
    return tuple(found)


def _listed(endpoints: Sequence[Endpoint]) -> str:
    return ", ".join(map(str, endpoints))
