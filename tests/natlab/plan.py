"""From sites to nodes, cables, addresses and routes: a pure plan, which laboratory.py carries out.

    host ─lan─ box ─(access)─ [carrier] ─wan─ isp-left ──┐                      the same for sites on the right
                                                       core ── server (two addresses)
    host ─lan─ box ─(access)─ [carrier] ─wan─ isp-right ─┘

Three routers lie between the outermost boxes of a left and a right site: a packet that starts with TTL 4 leaves its
own NAT and dies at the other provider, before the other NAT. That holds behind a carrier, where it dies one earlier.

| addresses (documentation and shared ranges only) | for |
|---|---|
| 100.100.K.2/24, box 100.100.K.1                  | LAN of site K (RFC 6598: private, not a target) |
| 100.64.K.2/24, carrier 100.64.K.1                | between a home router and its carrier's NAT |
| 198.51.100.N, 203.0.113.N (N to 100)             | public address of the Nth site left, right |
| 198.51.100.100+N, 203.0.113.100+N                | own address of a box that has not the public one |
| 198.51.100.254, 203.0.113.254, 192.0.2.254       | the providers, the core |
| 192.0.2.10, 192.0.2.20                           | the server: STUN, rendezvous, whatever |
| 2001:db8:0:K::/64, 2001:db8:ffff::/64            | LAN of site K, the server's; no IPv6 is translated |
| 2001:db8:fffd:K::1, 2001:db8:fffe:N::1           | the carrier, the providers |

Cables are point to point and every neighbour entry is written down; ARP, neighbour discovery and multicast are off:
the first packet is as quick as the second, and traces show nothing but the traffic. Routers are unnumbered: one address
each, reached by `onlink` routes. There are no IPv6 link-local addresses for the same reasons.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from .model import PLAIN, Engine, Link, Mapping, Nat, Side, Site
from .rules import provider_rules, ruleset, tracking

SERVER4: Final = ("192.0.2.10", "192.0.2.20")
SERVER6: Final = ("2001:db8:ffff::10", "2001:db8:ffff::20")
CORE4: Final = "192.0.2.254"
PROVIDERS4: Final = {Side.LEFT: "198.51.100.254", Side.RIGHT: "203.0.113.254"}
MOST_PER_SIDE: Final = 100  # what the address plan has room for

_CORE6: Final = "2001:db8:ffff::1"
_NETS: Final = {Side.LEFT: "198.51.100", Side.RIGHT: "203.0.113"}
_ISP6: Final = {Side.LEFT: "2001:db8:fffe:1::1", Side.RIGHT: "2001:db8:fffe:2::1"}

_EVERYWHERE: Final = {
    "ipv4/icmp_ratemask": "0",  # every error message is sent: low-TTL probes count on them
    "ipv6/icmp/ratelimit": "0",
    "ipv4/icmp_msgs_per_sec": "1000000",
    "ipv4/icmp_msgs_burst": "10000",
    "ipv6/conf/all/accept_dad": "0",  # else IPv6 is dead for a second
    "ipv6/conf/default/accept_dad": "0",
    "ipv6/conf/default/dad_transmits": "0",
    "ipv6/conf/default/addr_gen_mode": "1",
    "ipv6/conf/default/accept_ra": "0",
    "ipv4/conf/all/rp_filter": "0",
    "ipv4/conf/default/rp_filter": "0",
}
# Written when the interfaces are up without multicast: else each joins the routers' group and reports it (MLD).
_FORWARDING: Final = {"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1"}


@dataclass(frozen=True, slots=True)
class End:
    """One end of a cable: the interface `device` of `node`."""

    node: str
    device: str
    mac: str


@dataclass(frozen=True, slots=True)
class Cable:
    """A point-to-point cable."""

    ends: tuple[End, End]
    link: Link


@dataclass(frozen=True, slots=True)
class Tunnel:
    """What a userspace NAT process needs to know of its box."""

    nat: Nat
    public: str


@dataclass(slots=True)
class NodePlan:
    """One namespace: what `ip -batch`, `nft -f` and /proc/sys are told. Filled while the plan is made."""

    name: str
    sysctls: dict[str, str]
    late_sysctls: dict[str, str]
    commands: list[str] = field(default_factory=lambda: ["link set lo up"])
    rules: str = ""
    tunnel: Tunnel | None = None


@dataclass(frozen=True, slots=True)
class SitePlan:
    """Where a site is: its nodes from the inside out, and its addresses."""

    site: Site
    side: Side
    boxes: tuple[str, ...]
    ipv4: str
    ipv6: str | None
    public_ipv4: str


@dataclass(frozen=True, slots=True)
class Plan:
    """All of a laboratory. The server comes first among the nodes: it takes longest to become ready."""

    nodes: tuple[NodePlan, ...]
    cables: tuple[Cable, ...]
    sites: tuple[SitePlan, ...]


def plan(sites: Sequence[Site], *, backbone: Link = PLAIN, server: Link = PLAIN) -> Plan:
    """Lays a laboratory out.

    Args:
        sites: the hosts with their boxes.
        backbone: the cables between the providers and the core.
        server: the cable between the core and the server.

    Raises:
        ValueError: two sites have one name, or one side has too many.
    """
    names = [site.name for site in sites]
    if len(set(names)) < len(names):
        raise ValueError(f"expected sites with different names, got {names}")
    draft = _Draft()
    draft.server_and_providers(backbone, server)
    counts = dict.fromkeys(Side, 0)
    placed: list[SitePlan] = []
    for index, site in enumerate(sites):
        side = site.side or (Side.LEFT, Side.RIGHT)[index % 2]
        counts[side] += 1
        if counts[side] > MOST_PER_SIDE:
            raise ValueError(f"expected at most {MOST_PER_SIDE} sites on the {side.value}")
        placed.append(draft.place(site, side, number=index + 1, seat=counts[side]))
    draft.provider_filters()
    return Plan(tuple(draft.nodes.values()), tuple(draft.cables), tuple(placed))


class _Draft:
    """A plan in the making."""

    def __init__(self) -> None:
        self.nodes: dict[str, NodePlan] = {}
        self.cables: list[Cable] = []
        self.customers: dict[Side, list[str]] = {side: [] for side in Side}

    def node(self, name: str, *, forwards: bool, sysctls: Iterable[tuple[str, str]] = ()) -> NodePlan:
        self.nodes[name] = NodePlan(name, _EVERYWHERE | dict(sysctls), _FORWARDING if forwards else {})
        return self.nodes[name]

    def connect(self, near: tuple[str, str], far: tuple[str, str], link: Link = PLAIN) -> None:
        number = len(self.cables)
        ends = tuple(
            End(*end, f"02:00:00:{number >> 8:02x}:{number & 255:02x}:{side:02x}")
            for side, end in enumerate((near, far), 1)
        )
        self.cables.append(Cable((ends[0], ends[1]), link))
        for end in ends:
            self.nodes[end.node].commands.append(f"link set {end.device} arp off multicast off up")

    def address(self, node: str, device: str, *addresses: str) -> None:
        for address in addresses:
            self.nodes[node].commands.append(f"addr add {address} dev {device}{' nodad' if ':' in address else ''}")

    def route(self, node: str, device: str, gateway: str, *prefixes: str) -> None:
        """Routes to prefixes through a neighbour, and who that neighbour is."""
        mac = next(
            cable.ends[1 - here].mac
            for cable in self.cables
            for here in (0, 1)
            if (cable.ends[here].node, cable.ends[here].device) == (node, device)
        )
        commands = self.nodes[node].commands
        commands.append(f"neigh replace {gateway} lladdr {mac} dev {device} nud permanent")
        for prefix in prefixes:
            via = f"dev {device}" if prefix == gateway else f"via {gateway} dev {device} onlink"
            commands.append(f"route replace {prefix} {via}")

    def server_and_providers(self, backbone: Link, server: Link) -> None:
        self.node("server", forwards=False)
        self.node("core", forwards=True)
        self.connect(("server", "eth0"), ("core", "server"), server)
        self.address("server", "eth0", *(f"{a}/24" for a in SERVER4), *(f"{a}/64" for a in SERVER6))
        self.address("core", "server", f"{CORE4}/32", f"{_CORE6}/128")
        self.route("server", "eth0", CORE4, "default")
        self.route("server", "eth0", _CORE6, "default")
        for own in (*SERVER4, *SERVER6):
            self.route("core", "server", own, own)
        for side in Side:
            isp = f"isp-{side.value}"
            self.node(isp, forwards=True)
            self.connect((isp, "core"), ("core", side.value), backbone)
            self.address(isp, "core", f"{PROVIDERS4[side]}/32", f"{_ISP6[side]}/128")
            self.route(isp, "core", CORE4, "default")
            self.route(isp, "core", _CORE6, "default")
            self.route("core", side.value, PROVIDERS4[side], f"{_NETS[side]}.0/24")
            self.route("core", side.value, _ISP6[side], _ISP6[side])

    def place(self, site: Site, side: Side, *, number: int, seat: int) -> SitePlan:
        nat, isp = site.nat, f"isp-{side.value}"
        public, own = f"{_NETS[side]}.{seat}", f"{_NETS[side]}.{100 + seat}"
        gateway, gateway6 = f"100.100.{number}.1", f"2001:db8:0:{number:x}::1"
        host4 = public if nat.mapping is Mapping.NONE else f"100.100.{number}.2"
        host6 = f"2001:db8:0:{number:x}::2"
        box = f"{site.name}-box"
        self.node(site.name, forwards=False)
        self.box(box, nat, public=f"100.64.{number}.2" if nat.carrier else public, host=host4)
        self.connect((site.name, "eth0"), (box, "lan"), site.lan)

        self.address(site.name, "eth0", f"{host4}/{32 if host4 == public else 24}")
        self.address(box, "lan", f"{gateway}/24")
        self.route(site.name, "eth0", gateway, "default")
        self.route(box, "lan", host4, host4)
        self.address(box, "lan", f"{gateway6}/64")
        if site.ipv6:
            self.address(site.name, "eth0", f"{host6}/64")
            self.route(site.name, "eth0", gateway6, "default")
            self.route(box, "lan", host6, host6)

        boxes, outermost, outer_nat = [box], box, nat
        if nat.carrier:
            outer_nat, outermost = nat.carrier, f"{site.name}-carrier"
            boxes.append(outermost)
            self.carrier(box, outermost, nat.carrier, public=public, number=number, home6=gateway6)
        self.uplink(site, isp, outermost, outer_nat, line=f"line{number}", own=own, public=public)
        # The provider reaches the site's IPv6 through the outermost box, which knows the way.
        self.route(isp, f"line{number}", gateway6, f"2001:db8:0:{number:x}::/64")
        self.route("core", side.value, _ISP6[side], f"2001:db8:0:{number:x}::/64")
        self.route(outermost, "wan", _ISP6[side], "default")
        self.customers[side].append(f"line{number}")
        return SitePlan(site, side, tuple(boxes), host4, host6 if site.ipv6 else None, public)

    def carrier(self, box: str, carrier: str, nat: Nat, *, public: str, number: int, home6: str) -> None:
        home, inner = f"100.64.{number}.2", f"100.64.{number}.1"
        inner6 = f"2001:db8:fffd:{number:x}::1"
        self.box(carrier, nat, public=public, host=home, filters6=False)
        self.connect((box, "wan"), (carrier, "lan"))
        through_tunnel = self.nodes[box].tunnel is not None
        self.address(box, "wan", f"100.64.{number}.3/24" if through_tunnel else f"{home}/24")
        self.address(carrier, "lan", f"{inner}/24", f"{inner6}/128")
        self.route(box, "wan", inner, "default")
        self.route(carrier, "lan", home)
        self.route(box, "wan", inner6, "default")
        self.route(carrier, "lan", home6, f"2001:db8:0:{number:x}::/64")

    def uplink(self, site: Site, isp: str, box: str, nat: Nat, *, line: str, own: str, public: str) -> None:
        isp4 = PROVIDERS4[Side(isp.removeprefix("isp-"))]
        self.connect((box, "wan"), (isp, line), site.wan)
        owns_public = nat.mapping is not Mapping.NONE and nat.engine is not Engine.USERSPACE
        self.address(box, "wan", f"{public if owns_public else own}/32")
        self.route(box, "wan", isp4, "default")
        self.route(isp, line, public, public)
        if not owns_public:
            self.route(isp, line, own, own)

    def box(self, name: str, nat: Nat, *, public: str, host: str, filters6: bool = True) -> None:
        prefixed = ((f"netfilter/{key}", value) for key, value in tracking(nat).items())
        node = self.node(name, forwards=True, sysctls=prefixed)
        node.rules = ruleset(nat, public=public, host=host, filters6=filters6)
        if nat.engine is Engine.USERSPACE:
            node.tunnel = Tunnel(nat, public)
            # Both ways through the process; what it hands back is routed as usual. The queue holds a burst.
            node.commands += [
                "link set nat0 multicast off up txqueuelen 10000",
                "route add default dev nat0 table 100",
                "rule add iif lan lookup 100",
                "rule add iif wan lookup 100",
            ]

    def provider_filters(self) -> None:
        for side, lines in self.customers.items():
            self.nodes[f"isp-{side.value}"].rules = provider_rules(lines)
