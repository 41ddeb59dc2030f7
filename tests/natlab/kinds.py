"""The named kinds of NAT. The first twenty are the matrix of the project: every pair of them is punched.

Each is the smallest description that shows one behaviour; everything not said is the default: endpoint-independent
mapping, address-and-port-dependent filtering, ports preserved, the rest dropped. That default is what a Linux
router with a sane firewall does, and most home routers are one.
"""

from __future__ import annotations

import difflib
from typing import Final

from .model import Engine, Filtering, InboundSyn, Mapping, Nat, Ports, TcpTracking, Unsolicited

_APDM = Mapping.ADDRESS_AND_PORT_DEPENDENT
_EIF = Filtering.ENDPOINT_INDEPENDENT

# fmt: off
MATRIX: Final[dict[str, Nat]] = {
    "firewall": Nat(mapping=Mapping.NONE,
        summary="stateful firewall, no NAT: offices and servers with public addresses, every IPv6 home router"),
    "full-cone": Nat(filtering=_EIF,
        summary="anybody may answer once the port is open: carrier NATs after RFC 6888, gaming modes"),
    "adf": Nat(filtering=Filtering.ADDRESS_DEPENDENT,
        summary="anybody at an address that was sent to may answer: older home routers (\"restricted cone\")"),
    "apdf": Nat(
        summary="only the endpoint that was sent to may answer: Linux, most home routers (\"port restricted cone\")"),
    "rst": Nat(unsolicited=Unsolicited.RESET,
        summary="as apdf, but answers the uninvited with RST or port unreachable: routers with a reject rule"),
    "no-filter": Nat(unsolicited=Unsolicited.TO_ROUTER,
        summary="Linux router that masquerades without any filter: its own stack answers and takes the port"),
    "icmp-prohibited": Nat(unsolicited=Unsolicited.PROHIBITED,
        summary="as apdf, but answers the uninvited with ICMP administratively prohibited: firewalld's default zones"),
    "eim-no-preserve": Nat(ports=Ports.SCRAMBLED,
        summary="one outside port for all peers, but another number than inside: carrier NATs with port blocks"),
    "symmetric-sequential": Nat(mapping=_APDM, ports=Ports.SEQUENTIAL, port_range=(40000, 41999),
        summary="a new port for each peer, counting up by one: older enterprise and mobile NATs"),
    "symmetric-random": Nat(mapping=_APDM, ports=Ports.RANDOM,
        summary="a new random port for each peer: pfSense and OPNsense, AWS NAT gateway, many mobile carriers"),
    "nosyn-after": Nat(syn=InboundSyn.DROPPED,
        summary="drops inbound SYNs after tracking them: routers with a \"block incoming connections\" rule"),
    "nosyn-before": Nat(syn=InboundSyn.DROPPED_UNTRACKED,
        summary="drops inbound SYNs before tracking them: access lists on the outside interface"),
    "nosyn-userspace": Nat(syn=InboundSyn.DROPPED_UNTRACKED, tcp=TcpTracking.ABSENT, engine=Engine.USERSPACE,
        summary="drops inbound SYNs but lets any outbound segment pass: simple embedded NATs"),
    "strict-conntrack": Nat(tcp=TcpTracking.STRICT,
        summary="Linux with nf_conntrack_tcp_loose=0: a mapping begins with a SYN or not at all"),
    "stateless": Nat(tcp=TcpTracking.ABSENT, engine=Engine.STATELESS,
        summary="rewrites addresses and remembers peers, knows no states, loses ICMP errors: cheap 1:1 NATs"),
    "any-opens": Nat(tcp=TcpTracking.ABSENT, engine=Engine.USERSPACE,
        summary="any outbound segment opens the mapping, no TCP states: early home routers"),
    "strict-tcp": Nat(tcp=TcpTracking.STRICT, engine=Engine.USERSPACE,
        summary="only a segment that fits the TCP state machine passes: enterprise firewalls"),
    "seq-rewrite": Nat(tcp=TcpTracking.ABSENT, engine=Engine.USERSPACE, rewrites_sequence=True,
        summary="shifts TCP sequence numbers: Cisco ASA and PIX, \"ISN randomisation\""),
    "killed-by-rst": Nat(tcp=TcpTracking.ABSENT, engine=Engine.USERSPACE, dies_of_errors=True,
        summary="an inbound RST or ICMP error ends the mapping, against RFC 5382 REQ-10: some home routers"),
    "carrier": Nat(carrier=Nat(summary="the carrier's NAT"),
        summary="a home router behind a carrier's NAT, two translations: mobile and fibre lines without own address"),
}

KINDS: Final[dict[str, Nat]] = MATRIX | {
    "open": Nat(mapping=Mapping.NONE, filtering=Filtering.NONE,
        summary="a router without NAT or filter: a server's line"),
    "short-timeouts": Nat(udp_timeout_s=2,
        summary="as apdf, but UDP mappings end after 2 s of silence, against RFC 4787 REQ-5: overloaded mobile NATs"),
    "symmetric-sequential-4": Nat(mapping=_APDM, ports=Ports.SEQUENTIAL, port_step=4, port_range=(40000, 47999),
        summary="a new port for each peer, counting up by four: NATs that reserve RTP/RTCP pairs"),
    "symmetric-random-adm": Nat(mapping=Mapping.ADDRESS_DEPENDENT, ports=Ports.RANDOM, tcp=TcpTracking.ABSENT,
        engine=Engine.USERSPACE, summary="a new random port for each peer address: some carrier NATs"),
    "carrier-symmetric": Nat(carrier=Nat(mapping=_APDM, ports=Ports.RANDOM, summary="the carrier's NAT"),
        summary="a home router behind a carrier's symmetric NAT: mobile lines"),
    "udp-blocked": Nat(blocks_udp=True,
        summary="as apdf, but no UDP at all: guest networks and strict offices"),
}
# fmt: on


def kind(name: str) -> Nat:
    """The NAT of that name.

    Raises:
        ValueError: there is none; the message names the nearest.
    """
    if name in KINDS:
        return KINDS[name]
    nearest = difflib.get_close_matches(name, KINDS, n=1, cutoff=0.0)
    raise ValueError(f"no kind of NAT is called {name!r}; the nearest is {nearest[0]!r} (--list shows all)")
