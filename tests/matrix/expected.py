"""Which matrices there are, and which pairs of NATs a technique cannot connect.

The limits are those that the techniques' own docstrings name, in the words of the laboratory's descriptions of NATs.
A sequence fails only where each of its techniques does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.natlab import KINDS, Filtering, InboundSyn, Mapping, Nat, Ports, TcpTracking, Unsolicited

LATENESS_S = (0.0, 0.15, 0.3)


@dataclass(frozen=True, slots=True)
class Matrix:
    """What is measured together and gets a document of its own.

    Attributes:
        techniques: tried in this order.
        late_s: how late the responder is.
    """

    name: str
    techniques: tuple[str, ...]
    late_s: tuple[float, ...]

    @property
    def protocol(self) -> str:
        return "TCP" if self.techniques[0].startswith("tcp") else "UDP"


MATRICES = {
    matrix.name: matrix
    for matrix in (
        Matrix("udp", ("udp",), LATENESS_S),
        Matrix("all-tcp", ("tcp-nutss", "tcp-syni", "tcp-repair"), LATENESS_S),
        Matrix("auto-tcp", ("tcp-syni", "tcp-nutss"), LATENESS_S),
        Matrix("tcp-nutss", ("tcp-nutss",), (0.15,)),
        Matrix("tcp-syni", ("tcp-syni",), (0.15,)),
        Matrix("tcp-repair", ("tcp-repair",), (0.15,)),
    )
}


@dataclass(frozen=True, slots=True)
class Limit:
    """Pairs that a technique does not connect.

    Attributes:
        pairs: which, in words.
        reason: why.
        holds: whether it is about these two, the initiator's NAT and the responder's.
        always: if not, it is a race, and either outcome is right.
    """

    pairs: str
    reason: str
    holds: Callable[[Nat, Nat], bool]
    always: bool = True


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a sequence does not connect a pair: a limit of each of its techniques."""

    limits: tuple[tuple[str, Limit], ...]

    @property
    def always(self) -> bool:
        return all(limit.always for _, limit in self.limits)


def _is_random(nat: Nat) -> bool:
    return nat.mapping is Mapping.ADDRESS_AND_PORT_DEPENDENT and nat.ports is Ports.RANDOM


def _is_sequential(nat: Nat) -> bool:
    return nat.mapping is Mapping.ADDRESS_AND_PORT_DEPENDENT and nat.ports is Ports.SEQUENTIAL


def _filters_by_port(nat: Nat) -> bool:
    return nat.filtering is Filtering.ADDRESS_AND_PORT_DEPENDENT


def _drops_syn(nat: Nat) -> bool:
    return nat.syn is not InboundSyn.PASSED


def _drops_syn_unseen(nat: Nat) -> bool:
    """And will not let a SYN-ACK out, since it has seen no SYN come in."""
    return nat.syn is InboundSyn.DROPPED_UNTRACKED and nat.tcp is not TcpTracking.ABSENT


UNKNOWABLE = Limit(
    "one NAT picks a random port for each destination, the other filters by port",
    "nobody can know the port, and the other NAT lets in only the port that it was told to expect",
    lambda a, b: (_is_random(a) and _filters_by_port(b)) or (_filters_by_port(a) and _is_random(b)),
)

COUNTED_AGAIN = Limit(
    "the initiator's NAT counts its ports, and the responder's drops inbound SYNs before it tracks them",
    "only the round with reversed roles can connect them, and its counted port may be one that the responder has sent "
    "to before; then the responder's NAT still has the injector's side of the first round",
    lambda a, b: _is_sequential(a) and _drops_syn_unseen(b),
    always=False,
)

# Of techniques on their own.
LIMITS: dict[str, tuple[Limit, ...]] = {
    "udp": (),
    "tcp-nutss": (
        Limit(
            "both NATs drop inbound SYNs",
            "a simultaneous open needs one SYN that arrives",
            lambda a, b: _drops_syn(a) and _drops_syn(b),
        ),
        Limit(
            "the initiator's mapping dies of errors, and the responder's NAT answers the uninvited with errors",
            "a race: whether a SYN of the initiator is answered with an error in the moment that counts",
            lambda a, b: a.dies_of_errors and b.unsolicited is not Unsolicited.DROPPED,
            always=False,
        ),
    ),
    "tcp-syni": (
        Limit(
            "both NATs drop inbound SYNs before they track them",
            "the injector's NAT must have seen the sender's SYN, or it takes the SYN-ACK for invalid; reversed roles "
            "do not help",
            lambda a, b: _drops_syn_unseen(a) and _drops_syn_unseen(b),
        ),
        COUNTED_AGAIN,
    ),
    "tcp-repair": (
        Limit(
            "one NAT is strict about TCP's states",
            "a connection that begins with a bare ACK is none to it",
            lambda a, b: TcpTracking.STRICT in (a.tcp, b.tcp),
        ),
        Limit(
            "one NAT rewrites sequence numbers",
            "both sides must know the numbers beforehand",
            lambda a, b: a.rewrites_sequence or b.rewrites_sequence,
        ),
    ),
}


def obstacle(techniques: tuple[str, ...], a: str, b: str) -> Obstacle | None:
    """Why this sequence does not connect an initiator behind kind `a` to a responder behind kind `b`, or None."""
    found: list[tuple[str, Limit]] = []
    for technique in techniques:
        limits = (UNKNOWABLE, *LIMITS[technique])
        limit = next((limit for limit in limits if limit.holds(KINDS[a], KINDS[b])), None)
        if limit is None:
            return None
        found.append((technique, limit))
    return Obstacle(tuple(found))
