"""What a laboratory is made of: NATs in RFC 4787's words, links with their faults, sites.

A NAT is a value, not a program. Six questions describe nearly every box that has been met in the field:

- *mapping* (RFC 4787 §4.1): when does one inside endpoint keep one outside endpoint?
- *ports* (§4.2): which outside port does it get?
- *filtering* (§5): whose packets come back in?
- *unsolicited* (RFC 5382 §4.3): what happens to a packet that nobody inside asked for?
- *syn* (RFC 5382 §4.2): does an inbound SYN pass after an outbound one (simultaneous open)?
- *tcp*: how closely does the box follow the TCP state machine?

The rest (sequence rewriting, death by RST, a carrier's NAT in front) names particular faults. Who carries the
description out is the *engine*: the kernel's conntrack, nftables without state, or a process on a TUN device.
Not every engine can do everything; `Nat` refuses the combinations that its engine would silently not perform,
because a laboratory that lies about its NATs proves nothing.

Left out: hairpinning (no kind does it; RFC 4787 §6 wants it, few do), port parity, address pooling with several
public addresses, application-level gateways, fragments.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any, Final


class Mapping(Enum):
    """RFC 4787 §4.1: what an outside endpoint depends on, besides the inside endpoint."""

    NONE = "none"  # no translation: the host's own address is public
    ENDPOINT_INDEPENDENT = "endpoint-independent"
    ADDRESS_DEPENDENT = "address-dependent"
    ADDRESS_AND_PORT_DEPENDENT = "address-and-port-dependent"


class Filtering(Enum):
    """RFC 4787 §5: what must have been sent to, before somebody may answer."""

    NONE = "none"  # everything passes, asked for or not: a router, not a firewall
    ENDPOINT_INDEPENDENT = "endpoint-independent"  # once anything was sent from the port
    ADDRESS_DEPENDENT = "address-dependent"
    ADDRESS_AND_PORT_DEPENDENT = "address-and-port-dependent"


class Ports(Enum):
    """RFC 4787 §4.2: how the outside port is chosen."""

    PRESERVED = "preserved"  # the inside port, if it is free
    SCRAMBLED = "scrambled"  # a function of the inside port, but never the port itself
    SEQUENTIAL = "sequential"  # one counter for the box, `port_step` apart
    RANDOM = "random"  # anything in `port_range`


class Unsolicited(Enum):
    """What the box does with a packet from outside that it has no use for."""

    DROPPED = "dropped"
    RESET = "reset"  # TCP RST, for UDP ICMP port unreachable
    PROHIBITED = "prohibited"  # ICMP administratively prohibited
    TO_ROUTER = "to-router"  # its own stack takes it: answers like RESET, and keeps a clashing conntrack entry


class InboundSyn(Enum):
    """What happens to a SYN from outside on a mapping that is open for its sender."""

    PASSED = "passed"
    DROPPED = "dropped"  # but the state machine has seen it
    DROPPED_UNTRACKED = "dropped-untracked"  # the state machine has not


class TcpTracking(Enum):
    """How closely the box follows TCP's states."""

    LOOSE = "loose"  # conntrack's default: a bare outbound ACK opens a mapping, a SYN-ACK does not
    STRICT = "strict"  # only a SYN opens
    ABSENT = "absent"  # any outbound segment opens


class Engine(Enum):
    """Who translates."""

    CONNTRACK = "conntrack"  # nftables with the kernel's connection tracking
    STATELESS = "stateless"  # nftables without it: sets that remember, addresses overwritten
    USERSPACE = "userspace"  # a process on a TUN device


@dataclass(frozen=True, slots=True, kw_only=True)
class Nat:
    """One kind of NAT or firewall.

    Attributes:
        summary: one line: what it is and which devices behave so.
        port_step: distance of consecutive ports, for `Ports.SEQUENTIAL`.
        port_range: first and last outside port, for `Ports.RANDOM` and `Ports.SEQUENTIAL`.
        rewrites_sequence: TCP sequence numbers are shifted by a random amount per connection.
        dies_of_errors: an inbound RST or ICMP error ends the mapping.
        blocks_udp: no UDP passes in either direction.
        udp_timeout_s: idle time after which a UDP mapping ends; None is the engine's default (30 s and more).
        carrier: the provider's NAT in front of this one.

    Raises:
        ValueError: its engine cannot do what is described.
    """

    mapping: Mapping = Mapping.ENDPOINT_INDEPENDENT
    filtering: Filtering = Filtering.ADDRESS_AND_PORT_DEPENDENT
    ports: Ports = Ports.PRESERVED
    unsolicited: Unsolicited = Unsolicited.DROPPED
    syn: InboundSyn = InboundSyn.PASSED
    tcp: TcpTracking = TcpTracking.LOOSE
    engine: Engine = Engine.CONNTRACK
    port_step: int = 1
    port_range: tuple[int, int] = (20000, 60000)
    rewrites_sequence: bool = False
    dies_of_errors: bool = False
    blocks_udp: bool = False
    udp_timeout_s: int | None = None
    carrier: Nat | None = None
    summary: str = ""

    def __post_init__(self) -> None:
        for wrong, why in (
            *self._mapping_faults(),
            *(self._userspace_faults() if self.engine is Engine.USERSPACE else self._kernel_faults()),
        ):
            if wrong:
                raise ValueError(f"no such NAT: {why} (engine {self.engine.value})")

    def _mapping_faults(self) -> tuple[tuple[bool, str], ...]:
        behind_carrier = self.carrier is not None
        first, last = self.port_range
        return (
            (behind_carrier and self.mapping is Mapping.NONE, "a carrier's NAT in front needs a NAT behind it"),
            (
                self.carrier is not None and self.carrier.mapping is Mapping.NONE,
                "a carrier's NAT must translate",
            ),
            (not 1024 <= first < last <= 65535, f"port range {first}-{last} is not within 1024-65535"),
            (not 1 <= self.port_step <= 64, f"port step {self.port_step} is not within 1-64"),
            (
                self.filtering is Filtering.NONE and self.mapping is not Mapping.NONE,
                "what was not asked for has no inside address: translation always filters",
            ),
        )

    def _kernel_faults(self) -> tuple[tuple[bool, str], ...]:
        per_flow = self.mapping is Mapping.ADDRESS_AND_PORT_DEPENDENT
        fresh = self.ports in {Ports.SEQUENTIAL, Ports.RANDOM}
        stateless = self.engine is Engine.STATELESS
        return (
            (self.mapping is Mapping.ADDRESS_DEPENDENT, "address-dependent mapping needs the userspace engine"),
            (per_flow != fresh, "per-flow mapping and fresh ports come together"),
            (
                per_flow and self.filtering is not Filtering.ADDRESS_AND_PORT_DEPENDENT,
                "a mapping of its own for each flow filters by address and port",
            ),
            (self.rewrites_sequence or self.dies_of_errors, "packets can be rewritten or judged only in userspace"),
            (
                self.mapping is Mapping.NONE and self.filtering not in _FIREWALLS,
                "a firewall without translation filters by address and port, or not at all",
            ),
            ((self.tcp is TcpTracking.ABSENT) != stateless, "conntrack follows TCP, the stateless engine does not"),
            (
                stateless
                and (
                    self.ports is not Ports.PRESERVED
                    or self.unsolicited is not Unsolicited.DROPPED
                    or self.filtering is not Filtering.ADDRESS_AND_PORT_DEPENDENT
                    or self.mapping is not Mapping.ENDPOINT_INDEPENDENT
                ),
                "without state there is one behaviour: EIM, APDF, ports kept, the rest dropped",
            ),
        )

    def _userspace_faults(self) -> tuple[tuple[bool, str], ...]:
        return (
            (self.mapping is Mapping.NONE, "the userspace engine always translates"),
            (self.blocks_udp, "the userspace engine knows no protocol filter"),
            (self.unsolicited is not Unsolicited.DROPPED, "the userspace engine answers nothing"),
            (self.tcp is TcpTracking.LOOSE, "the userspace engine is strict or does not track at all"),
            (
                self.syn is InboundSyn.DROPPED_UNTRACKED and self.tcp is TcpTracking.STRICT,
                "the strict state machine always sees the SYN",
            ),
        )


def encode(nat: Nat) -> dict[str, Any]:
    """The description as JSON has it, for another process; `decode` turns it back. Without the carrier."""
    values = {field.name: getattr(nat, field.name) for field in fields(nat) if field.name != "carrier"}
    return {name: value.value if isinstance(value, Enum) else value for name, value in values.items()}


def decode(values: dict[str, Any]) -> Nat:
    """What `encode` was given.

    Raises:
        ValueError: no Nat can be that.
    """
    enums: dict[str, type[Enum]] = {
        "mapping": Mapping,
        "filtering": Filtering,
        "ports": Ports,
        "unsolicited": Unsolicited,
        "syn": InboundSyn,
        "tcp": TcpTracking,
        "engine": Engine,
    }
    typed = {name: enums[name](value) if name in enums else value for name, value in values.items()}
    return Nat(**typed | {"port_range": tuple(values["port_range"])})


_FIREWALLS: Final = (Filtering.NONE, Filtering.ADDRESS_AND_PORT_DEPENDENT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What a cable does to the frames that cross it, in each direction alike and independently.

    Attributes:
        delay_s: one-way delay, seconds.
        jitter_s: the delay varies evenly by up to this much either way; order is kept.
        loss: probability (0 to 1) that a frame vanishes.
        reorder: probability (0 to 1) that a frame does not wait at all and so overtakes those that do.
        seed: of the random numbers, so that a run can be repeated.

    Raises:
        ValueError: a number is out of range.
    """

    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    reorder: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.jitter_s <= self.delay_s <= _LONGEST_DELAY_S:
            raise ValueError(f"expected 0 <= jitter_s <= delay_s <= {_LONGEST_DELAY_S}, got {self}")
        if not (0 <= self.loss <= 1 and 0 <= self.reorder <= 1):
            raise ValueError(f"expected probabilities between 0 and 1, got {self}")
        if self.reorder and not self.delay_s:
            raise ValueError(f"reordering means not waiting: it needs a delay, got {self}")

    @property
    def is_plain(self) -> bool:
        """Whether a frame crosses at once and always."""
        return not (self.delay_s or self.loss)


_LONGEST_DELAY_S: Final = 60.0  # a bound against milliseconds given by mistake


PLAIN: Final = Link()
"""A cable without faults."""


class Side(Enum):
    """Which of the two providers a site is connected to. Three routers lie between sites of different sides."""

    LEFT = "left"
    RIGHT = "right"


@dataclass(frozen=True, slots=True)
class Site:
    """A host behind a box that is described by `nat`.

    Attributes:
        name: lower-case letters, digits and hyphens, at most 40; unique in the laboratory.
        nat: the box; by default a plain router.
        lan: the cable between the host and the box.
        wan: the cable between the (outermost) box and the provider.
        side: the provider; by default left and right in turn.
        ipv6: whether the host has an IPv6 address, behind a firewall that filters as `nat` does.
    """

    name: str
    nat: Nat = field(default_factory=lambda: Nat(mapping=Mapping.NONE, filtering=Filtering.NONE))
    lan: Link = PLAIN
    wan: Link = PLAIN
    side: Side | None = None
    ipv6: bool = True

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?", self.name) or self.name in _TAKEN:
            raise ValueError(f"expected a site's name of a-z, 0-9 and hyphens, not one of {_TAKEN}, got {self.name!r}")


_TAKEN: Final = ("core", "isp-left", "isp-right", "server")
