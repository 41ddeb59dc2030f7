"""What probing a NAT showed, and what its description promises: two values of one type, to be compared.

`expected` is the other half of the description in model.py: the kernel's behaviour that each word stands for,
measured. Where it says something surprising, a comment says why.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import Enum
from typing import Final

from .model import Engine, Filtering, InboundSyn, Mapping, Nat, Ports, TcpTracking, Unsolicited


class Answer(Enum):
    """What a stranger gets who sends to a port that nobody inside has used."""

    SILENCE = "silence"
    RESET = "RST"
    PORT_UNREACHABLE = "ICMP port unreachable"
    PROHIBITED = "ICMP administratively prohibited"
    DELIVERED = "delivered to the host"


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """Behaviour of the whole path from a host to the Internet. None: not applicable, or no UDP passes.

    Attributes:
        udp_mapping, tcp_mapping: from where two addresses with two ports each saw one inside endpoint.
        ports: how the outside port was chosen; port_step for sequential ones.
        sequence_kept: TCP sequence numbers arrived as sent.
        udp_filtering, tcp_filtering, ipv6_filtering: who could answer besides the one that was sent to.
        udp_answer, tcp_answer: to a stranger.
        stranger_takes_port: after a stranger's datagram, a mapping towards this stranger gets another port.
        inbound_syn_passes: a SYN that meets an own SYN reaches the host.
        syn_ack_then_passes: and the host's SYN-ACK gets out after it.
        bare_ack_opens, syn_ack_opens: such a segment out lets an answer in.
        checks_window: a SYN-ACK that acknowledges what was never sent is dropped.
        survives_rst, survives_icmp: after that, an answer still gets in.
        errors_reach_host: an ICMP error about a datagram is translated and delivered.
        hairpins: a packet to the own public endpoint comes back.
        low_ttl_dies_at: the node where a datagram with TTL 4 to the other side ends.
    """

    udp_mapping: Mapping | None
    tcp_mapping: Mapping
    ports: Ports
    port_step: int | None
    sequence_kept: bool
    udp_filtering: Filtering | None
    tcp_filtering: Filtering
    ipv6_filtering: Filtering | None
    udp_answer: Answer | None
    tcp_answer: Answer
    stranger_takes_port: bool | None
    inbound_syn_passes: bool
    syn_ack_then_passes: bool
    bare_ack_opens: bool
    syn_ack_opens: bool
    checks_window: bool
    survives_rst: bool
    survives_icmp: bool | None
    errors_reach_host: bool | None
    hairpins: bool | None
    low_ttl_dies_at: str | None

    def lines(self) -> list[str]:
        """One line a fact."""
        return [f"{field.name}: {_text(getattr(self, field.name))}" for field in fields(self)]

    def differences(self, other: Proof) -> list[str]:
        """One line for each fact that is not the same in both."""
        return [
            f"{field.name}: {_text(mine)}, expected {_text(theirs)}"
            for field in fields(self)
            if (mine := getattr(self, field.name)) != (theirs := getattr(other, field.name))
        ]


_DEPENDENCE: Final = tuple(Mapping)  # from none to all, as the enumeration lists them


def expected(nat: Nat, *, far_provider: str) -> Proof:
    """What the description promises.

    Args:
        nat: the box.
        far_provider: the node where a low-TTL datagram dies if there is no carrier.
    """
    outer = nat.carrier or nat
    mapping = max(nat.mapping, outer.mapping, key=_DEPENDENCE.index)
    ports = nat.ports if outer.ports is Ports.PRESERVED else outer.ports
    passes_all = nat.filtering is Filtering.NONE
    stateless = nat.tcp is TcpTracking.ABSENT or passes_all
    udp_answer, tcp_answer = _ANSWERS[outer.unsolicited]
    if passes_all:
        udp_answer = tcp_answer = Answer.DELIVERED
    filtering6 = Filtering.NONE if nat.unsolicited is Unsolicited.TO_ROUTER else nat.filtering
    kept = mapping is not Mapping.ADDRESS_AND_PORT_DEPENDENT and ports is Ports.PRESERVED
    udp = not nat.blocks_udp
    return Proof(
        udp_mapping=mapping if udp else None,
        tcp_mapping=mapping,
        ports=ports,
        port_step=outer.port_step if ports is Ports.SEQUENTIAL else None,
        sequence_kept=not nat.rewrites_sequence,
        udp_filtering=nat.filtering if udp else None,
        tcp_filtering=nat.filtering,
        ipv6_filtering=filtering6 if udp else None,
        udp_answer=udp_answer if udp else None,
        tcp_answer=tcp_answer,
        # A router that takes the packet itself keeps a conntrack entry for it, which clashes with our mapping.
        stranger_takes_port=outer.unsolicited is Unsolicited.TO_ROUTER if kept and udp else None,
        inbound_syn_passes=nat.syn is InboundSyn.PASSED,
        # conntrack calls a SYN-ACK invalid unless it has seen a SYN from either side (SYN_SENT2).
        syn_ack_then_passes=stateless or nat.syn is not InboundSyn.DROPPED_UNTRACKED,
        bare_ack_opens=stateless or nat.tcp is TcpTracking.LOOSE,
        syn_ack_opens=stateless,
        checks_window=nat.engine is Engine.CONNTRACK and not passes_all,
        # To conntrack a RST that answers our SYN closes the connection; SYN and SYN-ACK are blocked until our next SYN.
        survives_rst=stateless and not nat.dies_of_errors,
        survives_icmp=not nat.dies_of_errors if udp else None,
        errors_reach_host=nat.engine is not Engine.STATELESS if udp else None,
        hairpins=False if udp and mapping is not Mapping.NONE else None,
        low_ttl_dies_at=("core" if nat.carrier else far_provider) if udp else None,
    )


_ANSWERS: Final = {
    Unsolicited.DROPPED: (Answer.SILENCE, Answer.SILENCE),
    Unsolicited.RESET: (Answer.PORT_UNREACHABLE, Answer.RESET),
    Unsolicited.PROHIBITED: (Answer.PROHIBITED, Answer.PROHIBITED),
    Unsolicited.TO_ROUTER: (Answer.PORT_UNREACHABLE, Answer.RESET),
}
"""To UDP and to TCP."""


def _text(value: object) -> str:
    match value:
        case Enum():
            return str(value.value)
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case _:
            return str(value)
