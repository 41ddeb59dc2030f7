"""The NAT laboratory: hosts behind NATs of every kind, in network namespaces of this machine.

    from tests.natlab import KINDS, Laboratory, Link, Site

    with Laboratory([Site("a", KINDS["apdf"], wan=Link(delay_s=0.02)), Site("b", KINDS["full-cone"])]) as lab:
        print(lab.topology())
        a = lab.site("a").host
        daemon = a.popen(["punchd", "--stun", lab.stun[0], "--stun", lab.stun[1]])  # dies with the laboratory
        with a.socket() as here:  # a socket of host a, in this process
            here.sendto(b"hello", (lab.server.ipv4, 5024))
        with lab.trace("/tmp/traces"):  # a.pcap, a-box.pcap, core.pcap and so on
            ...

or, from a shell, `python -m tests.natlab apdf full-cone`, `--list`, `--prove`.

    a --- a-box --- isp-left ---.                     each box is a NAT of a kind; sites may have a carrier's NAT
                               core --- server        more; every node is a namespace; server has two addresses,
    b --- b-box --- isp-right --'                     STUN (coturn) on port 3478, and room for other servers

Reading order, which is also who uses whom:

| file | topic |
|---|---|
| model.py, kinds.py | NATs in RFC 4787's words, links, sites; the twenty kinds of the matrix and some more |
| rules.py | a NAT as nftables rules: pure |
| packet.py, tcp_states.py, translator.py | a NAT as a process, where nftables cannot: pure |
| cable.py | delay, jitter, loss, reordering without netem: pure |
| plan.py, topology.py | nodes, addresses, routes; the drawing: pure |
| namespace.py, leftovers.py, spawner.py | namespaces, whose they are, programs that die with their owner |
| nat_process.py, cable_process.py, userspace.py | the two processes that stand in for the kernel |
| host.py, coturn.py, trace.py, laboratory.py | what runs in a laboratory, and the laboratory |
| proof.py, wiretap.py, measured_path.py, probe.py | probing a NAT with real packets, and what that proves |

It needs root, iproute2, nftables, util-linux (setpriv), coturn, and tcpdump for traces. It sends nothing to the
machine's own network: no namespace is connected to it.
"""

from .host import Host, Node
from .kinds import KINDS, MATRIX, kind
from .laboratory import Laboratory, LaboratoryError, RunningSite
from .model import Engine, Filtering, InboundSyn, Link, Mapping, Nat, Ports, Side, Site, TcpTracking, Unsolicited
from .trace import Trace

__all__ = [
    "KINDS",
    "MATRIX",
    "kind",
    "Nat",
    "Mapping",
    "Filtering",
    "Ports",
    "Unsolicited",
    "InboundSyn",
    "TcpTracking",
    "Engine",
    "Link",
    "Side",
    "Site",
    "Laboratory",
    "LaboratoryError",
    "RunningSite",
    "Host",
    "Node",
    "Trace",
]
