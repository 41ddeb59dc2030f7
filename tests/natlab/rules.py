"""From a `Nat` to the nftables rules of its box: a pure function, so that the rules can be read and tested as text.

Theory of operation. A box has two interfaces, `lan` and `wan`. All rules stand in one table of family inet:

- *translation* is one `snat` rule; conntrack remembers the way back. A flow that was never opened finds no way back
  and ends in the `input` chain, since the public address is the box's own: what happens there is `unsolicited`.
  It must be dropped or rejected there. Where it is accepted, conntrack keeps an entry for it, and a later mapping
  to the same peer loses its port; that is the kind `no-filter`.
- *wider filtering* (EIF, ADF) needs more than conntrack: a `learning` chain, behind the translation, notes which
  outside port belongs to which inside endpoint, and `destination_nat` leads strangers there.
- *symmetric sequential*: `numgen` with a map. `numgen … offset` written into a port is byte-swapped by nft 1.0.6.
- *scrambled ports*: XOR by a constant, which keeps distinct ports distinct; jhash would make two inside ports clash.
- *IPv6* is never translated. The same box is then a firewall with the filtering of its kind, in `forward`.

Userspace boxes get the IPv6 part only; their IPv4 goes through a TUN device (plan.py, translator.py).

Pitfalls of nft 1.0.6 met here: `snat`, `dnat` and `learn` are no names for chains; a closing brace wants a line of
its own; `typeof … : ct original ip saddr . ct original proto-src` in an inet table loses its second half, so the
map says `type`. All of it measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from .model import Engine, Filtering, InboundSyn, Mapping, Nat, Ports, TcpTracking, Unsolicited

IDLE_TIMEOUT_S: Final = 300
"""How long a learnt endpoint lives without traffic: RFC 4787 REQ-5's recommendation."""

PORT_SCRAMBLE: Final = 0x0155
"""Bits below 1024 only, so that an unprivileged port never becomes a privileged one."""

_SYN: Final = "tcp flags & (syn | ack | rst) == syn"
_BOTH: Final = "meta l4proto { tcp, udp }"

_Block = tuple[str, list[str]]  # the head of a set, map or chain, and its lines


def ruleset(nat: Nat, *, public: str, host: str, filters6: bool = True) -> str:
    """The rules, for `nft -f`, of one box.

    Args:
        nat: the box.
        public: its outside IPv4 address; for a box without translation the host's own.
        host: the IPv4 address behind it, which only the stateless engine needs to know.
        filters6: False for a carrier, behind which IPv6 has met its firewall already.
    """
    return _render(
        "table inet natlab",
        [
            *_memory(nat),
            *_raw(nat, public, host),
            *_translation(nat, public, host),
            *_input(nat),
            *_forward(nat, filters6=filters6),
        ],
    )


def tracking(nat: Nat) -> dict[str, str]:
    """The sysctls, below net.netfilter, that the description asks for."""
    settings: dict[str, str] = {}
    if nat.tcp is TcpTracking.STRICT:
        settings["nf_conntrack_tcp_loose"] = "0"
    if nat.udp_timeout_s is not None:
        settings["nf_conntrack_udp_timeout"] = str(nat.udp_timeout_s)
        settings["nf_conntrack_udp_timeout_stream"] = str(nat.udp_timeout_s)
    return settings


def provider_rules(lines: Iterable[str]) -> str:
    """The rules of a provider's router: no private source leaves a customer (BCP 38, RFC 2827).

    A masquerading Linux router leaks packets that conntrack calls invalid, with the private address in them. Here
    they end, as they do in the Internet.

    Args:
        lines: the interfaces towards customers.
    """
    customers = ", ".join(f'"{line}"' for line in lines)
    return _render(
        "table inet natlab",
        [
            _chain(
                "forward",
                "filter hook forward priority filter; policy accept;",
                [f"iifname {{ {customers} }} ip saddr 100.64.0.0/10 drop"] if customers else [],
            )
        ],
    )


def _memory(nat: Nat) -> Iterator[_Block]:
    timeout = f"timeout {nat.udp_timeout_s or IDLE_TIMEOUT_S}s"
    if nat.filtering in {Filtering.ENDPOINT_INDEPENDENT, Filtering.ADDRESS_DEPENDENT}:
        remote = "ip6 daddr . " if nat.filtering is Filtering.ADDRESS_DEPENDENT else ""
        yield (
            "set opened6",
            [f"typeof {remote}ip6 saddr . meta l4proto . th sport", "flags dynamic,timeout", timeout],
        )
        for protocol in ("udp", "tcp") if nat.engine is Engine.CONNTRACK else ():
            yield (
                f"map mapped_{protocol}",
                ["type inet_service : ipv4_addr . inet_service", "flags dynamic,timeout", timeout],
            )
            if nat.filtering is Filtering.ADDRESS_DEPENDENT:
                yield f"set peers_{protocol}", ["typeof ip daddr . udp sport", "flags dynamic,timeout", timeout]
    if nat.engine is Engine.STATELESS:
        yield "set opened", ["typeof ip daddr . meta l4proto . th dport . th sport", "flags dynamic,timeout", timeout]


def _raw(nat: Nat, public: str, host: str) -> Iterator[_Block]:
    lines: list[str] = []
    if nat.engine is not Engine.CONNTRACK:
        lines.append("meta nfproto ipv4 notrack")
    if nat.syn is InboundSyn.DROPPED_UNTRACKED:
        family = "" if nat.engine is not Engine.USERSPACE else "meta nfproto ipv6 "
        lines.append(f'iifname "wan" {family}{_SYN} drop')
    if nat.engine is Engine.STATELESS:
        lines.append(
            f'iifname "wan" ip daddr {public} ip saddr . meta l4proto . th sport . th dport @opened ip daddr set {host}'
        )
    if lines:
        yield _chain("before_tracking", "filter hook prerouting priority raw; policy accept;", lines)


def _translation(nat: Nat, public: str, host: str) -> Iterator[_Block]:
    if nat.mapping is Mapping.NONE or nat.engine is Engine.USERSPACE:
        return
    if nat.engine is Engine.STATELESS:
        yield _chain(
            "source_nat",
            "filter hook postrouting priority srcnat; policy accept;",
            [
                f'oifname "wan" ip saddr {host} {_BOTH} update @opened '
                "{ ip daddr . meta l4proto . th dport . th sport }",
                f'oifname "wan" ip saddr {host} ip saddr set {public}',
            ],
        )
        return
    yield _chain(
        "source_nat",
        "nat hook postrouting priority srcnat; policy accept;",
        [
            *(f'oifname "wan" meta nfproto ipv4 {_BOTH} {choice}' for choice in _port_choice(nat, public)),
            f'oifname "wan" meta nfproto ipv4 snat ip to {public}',
        ],
    )
    if nat.filtering is not Filtering.ADDRESS_AND_PORT_DEPENDENT:
        yield from _strangers(nat, public)


def _port_choice(nat: Nat, public: str) -> Iterator[str]:
    first, last = nat.port_range
    match nat.ports:
        case Ports.PRESERVED:
            return
        case Ports.SCRAMBLED:
            yield f"snat ip to {public} : th sport ^ {PORT_SCRAMBLE:#06x}"
        case Ports.RANDOM:
            yield f"snat ip to {public} : {first}-{last} fully-random"
        case Ports.SEQUENTIAL:
            ports = range(first, last + 1, nat.port_step)
            turns = ", ".join(f"{turn} : {port}" for turn, port in enumerate(ports))
            yield f"snat ip to {public} : numgen inc mod {len(ports)} map {{ {turns} }}"


def _strangers(nat: Nat, public: str) -> Iterator[_Block]:
    """Lets in those that conntrack does not expect, towards ports that the learning chain has noted."""
    per_address = nat.filtering is Filtering.ADDRESS_DEPENDENT
    inside = "ct original ip saddr . ct original proto-src"
    learning: list[str] = []
    admitting: list[str] = []
    for protocol in ("udp", "tcp"):
        out = 'oifname "wan" meta nfproto ipv4 ct direction original'
        learning.append(f"{out} update @mapped_{protocol} {{ {protocol} sport : {inside} }}")
        known = ""
        if per_address:
            learning.append(f"{out} update @peers_{protocol} {{ ip daddr . {protocol} sport }}")
            known = f"ip saddr . {protocol} dport @peers_{protocol} "
        admitting.append(
            f'iifname "wan" ip daddr {public} {known}dnat ip to {protocol} dport map @mapped_{protocol}',
        )
    yield _chain("learning", "filter hook postrouting priority 150; policy accept;", learning)
    yield _chain("destination_nat", "nat hook prerouting priority dstnat; policy accept;", admitting)


def _input(nat: Nat) -> Iterator[_Block]:
    if nat.unsolicited is Unsolicited.TO_ROUTER or nat.filtering is Filtering.NONE:
        return
    yield _chain(
        "input",
        "filter hook input priority filter; policy drop;",
        [
            'iifname "lan" icmp type echo-request accept',
            'iifname "lan" icmpv6 type echo-request accept',
            *_refusal(nat),
        ],
    )


def _forward(nat: Nat, *, filters6: bool) -> Iterator[_Block]:
    if nat.filtering is Filtering.NONE:
        return
    lines: list[str] = [] if filters6 else ["meta nfproto ipv6 accept"]
    if nat.blocks_udp:
        lines.append("meta l4proto udp drop")
    if nat.syn is InboundSyn.DROPPED:
        lines.append(f'iifname "wan" {_SYN} drop')
    if nat.filtering in {Filtering.ENDPOINT_INDEPENDENT, Filtering.ADDRESS_DEPENDENT}:
        per_address = nat.filtering is Filtering.ADDRESS_DEPENDENT
        learnt, asked = ("ip6 daddr . ", "ip6 saddr . ") if per_address else ("", "")
        lines.append(f'iifname "lan" update @opened6 {{ {learnt}ip6 saddr . meta l4proto . th sport }}')
        lines.append(f'iifname "wan" {asked}ip6 daddr . meta l4proto . th dport @opened6 accept')
    if nat.engine is Engine.CONNTRACK:
        lines.append('iifname "wan" ct status dnat accept')
    else:
        lines.append("meta nfproto ipv4 accept")
    lines += ['iifname "lan" accept', 'iifname "wan" ct state established,related accept']
    # A router without a filter may still drop SYNs or UDP.
    policy = "accept" if nat.unsolicited is Unsolicited.TO_ROUTER else "drop"
    yield _chain("forward", f"filter hook forward priority filter; policy {policy};", lines + _refusal(nat))


def _refusal(nat: Nat) -> list[str]:
    match nat.unsolicited:
        case Unsolicited.DROPPED | Unsolicited.TO_ROUTER:
            return []
        case Unsolicited.RESET:
            return [
                'iifname "wan" meta l4proto tcp reject with tcp reset',
                'iifname "wan" reject with icmpx type port-unreachable',
            ]
        case Unsolicited.PROHIBITED:
            return ['iifname "wan" reject with icmpx type admin-prohibited']


def _chain(name: str, hook: str, lines: list[str]) -> _Block:
    return f"chain {name}", [f"type {hook}", *lines]


def _render(table: str, blocks: Iterable[_Block]) -> str:
    body = "\n".join(f"\t{head} {{\n" + "".join(f"\t\t{line}\n" for line in lines) + "\t}" for head, lines in blocks)
    return f"{table} {{\n{body}\n}}\n"
