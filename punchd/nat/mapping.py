"""What kind of mapping the own NAT makes, and which port the next peer will see.

Several servers are asked at once from one local port, and each says from where its question came. The order in which
the questions were *sent* is the order in which the NAT made its mappings.

    observed                                            behaviour               the next destination will see
    the local endpoint itself                           open                    the same port
    the same endpoint by servers at two addresses       endpoint-independent    the same port (RFC 4787 §4.1)
    one IP address, ports at most MAX_STEP apart        sequential              the last port plus the step, twice, ...
    anything else                                       random                  nobody knows
    one server's answer; two servers at one address     unknown                 the same port, if the NAT is kind
      that saw the same

It is a verdict on what was observed, not on the NAT: RFC 5780 asks a dozen questions, takes seconds and needs a server
with two addresses; two answers that come in one round-trip time are enough to choose ports.

**Negative steps.** A NAT that counts down is rare, two questions that reach the NAT in the wrong order (the first was
lost on the way to it and repeated) are rare as well, and the two look the same. So a step keeps its sign in `step`, a
prediction covers both readings, and the text form, which knows no sign, counts as ports do, modulo 65536:
`sequential+65535` is a step of -1. With three servers or more only ports that fall from first to last make a negative
step; other disorder is taken as what it is, questions that overtook each other.

**Steps larger than one** are real (some NATs keep the port's parity and so count by two), or one with a stranger's new
mapping in between. The questions leave back to back, so the step is taken at its word; with more than two servers the
smallest distance is the step, as strangers only ever add to it. A server that stayed silent among three or four still
had its mapping made, and the distance across it may be a multiple of the step: one of the reasons why a guess is
called one.

**Several public addresses** (a carrier's pool without pairing, RFC 4787 §4.1 REQ-2) count as random: even a right port
would be guessed at the wrong address.

Left out: wrap-around. A counter that starts again between two questions is judged random, once in thousands of
probes, and a predicted port above 65535 is dropped, for where the NAT starts again is not known.

Source: RFC 4787 §4.1, RFC 5780 §4.3; "sequential" from the measurements in the laboratory (two reflectors predict a
NAT that counts while it is idle).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from punchd.endpoint import MAX_RUNS, Endpoint, IPAddress, PortSet

# Ports. Counting NATs step by 1 or 2; the rest is room for strangers' mappings in between. A random NAT lands within
# 16 ports of its last one by chance once in 2,000 probes (32 / 65536), and is then guessed wrong as it would be anyway.
MAX_STEP = 16
# Ports. Each beyond the first tolerates one mapping that a stranger makes between the probe and the punch; each also
# costs packets at every candidate, and half of a list's 16 leaves the other half to the technique.
DEFAULT_COUNT = 8

_PORTS = 65536


class Behaviour(StrEnum):
    """How the NAT chooses a port for a new destination."""

    OPEN = "open"
    ENDPOINT_INDEPENDENT = "endpoint-independent"
    SEQUENTIAL = "sequential"
    RANDOM = "random"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Mapping:
    """What was observed, and what it means.

    Attributes:
        local: the endpoint that asked.
        observed: what each server saw, in the order in which they were asked first; at least one.
        behaviour: the verdict.
        step: ports from one new mapping to the next, -16 to 16 and not 0 if sequential, else 0.
    """

    local: Endpoint
    observed: tuple[Endpoint, ...]
    behaviour: Behaviour
    step: int = 0

    def __str__(self) -> str:
        """MAPPING of the line protocol §13.1: `open`, `endpoint-independent`, `sequential+N`, `random`, `unknown`."""
        if self.behaviour is Behaviour.SEQUENTIAL:
            return f"{self.behaviour}+{self.step % _PORTS}"
        return str(self.behaviour)

    @property
    def public_ip(self) -> IPAddress:
        """The address to tell a peer; the newest where there are several."""
        return self.observed[-1].ip

    @property
    def is_guess(self) -> bool:
        """Whether the ports of `predict` are guesses, and not ports that a server saw and others will see too.

        False for `unknown`: that port was seen, and nothing speaks against it.
        """
        return self.behaviour in (Behaviour.SEQUENTIAL, Behaviour.RANDOM)


def judge(local: Endpoint, observations: Sequence[Endpoint], *, one_address: bool = False) -> Mapping:
    """The verdict on what servers saw.

    Args:
        local: the endpoint that asked; an unspecified address ("0.0.0.0") is never found open.
        observations: one for each server that answered, in the order in which the servers were first asked; ports of
            1 to 65535, addresses of one family.
        one_address: all these servers share one IP address. If they saw the same, that proves nothing about other
            addresses (RFC 4787: the mapping may be address-dependent), and the verdict is `unknown`.
    """
    if not observations:
        raise ValueError("no server answered: there is nothing to judge")
    observed = tuple(observations)
    distinct = set(observed)
    if distinct == {local}:
        return Mapping(local, observed, Behaviour.OPEN)
    if len(observed) == 1 or (len(distinct) == 1 and one_address):
        return Mapping(local, observed, Behaviour.UNKNOWN)
    if len(distinct) == 1:
        return Mapping(local, observed, Behaviour.ENDPOINT_INDEPENDENT)
    if len({endpoint.ip for endpoint in observed}) > 1:
        return Mapping(local, observed, Behaviour.RANDOM)
    ports = [endpoint.port for endpoint in observed]
    distances = [higher - lower for lower, higher in pairwise(sorted(set(ports)))]
    if max(distances) > MAX_STEP:
        return Mapping(local, observed, Behaviour.RANDOM)
    falling = all(later <= earlier for earlier, later in pairwise(ports))
    return Mapping(local, observed, Behaviour.SEQUENTIAL, -min(distances) if falling else min(distances))


def predict(mapping: Mapping, later: int = 0, count: int = DEFAULT_COUNT) -> PortSet:
    """The public ports that the next new destination may see, best first.

    For `random` this is the last port observed, which is as good as useless; see `Mapping.is_guess`.

    Args:
        mapping: what was judged.
        later: new destinations that will be sent to before the one that is predicted for.
        count: how many ports at most, from 1 on; a list holds 16 in four runs, so that steps of more than one get four.
    """
    if later < 0 or count < 1:
        raise ValueError(f"later must not be negative, count must be positive: got {later} and {count}")
    last = mapping.observed[-1].port
    if mapping.behaviour is not Behaviour.SEQUENTIAL:
        return PortSet((last,))
    size = abs(mapping.step)
    ports = [endpoint.port for endpoint in mapping.observed]
    rising = (max(ports) + size * number for number in range(1 + later, 1 + later + count))
    if mapping.step > 0:
        return _port_set(rising, last)
    # Two readings share the list. Falling ports make no runs, so beside a run of rising ones three of them fit.
    falling = (min(ports) - size * number for number in range(1 + later, 1 + later + count))
    up = (count + 1) // 2 if size == 1 else min((count + 1) // 2, MAX_RUNS // 2)
    return _port_set([*list(rising)[:up], *list(falling)[: count - up]], last)


def _port_set(candidates: Iterable[int], otherwise: int) -> PortSet:
    """The candidates that are ports; `otherwise`, a port observed, where the counter has reached the end."""
    ports = [port for port in candidates if 1 <= port < _PORTS]
    return PortSet.of(ports or (otherwise,))
