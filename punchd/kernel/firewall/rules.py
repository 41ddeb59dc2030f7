"""The iptables exemption as text: the words of a rule, and the tag by which its owner is found. Pure.

    iptables-legacy -I INPUT -p icmp --icmp-type 11 -j DROP
        -m u32 --u32 "0>>22&0x3C@14&0xFF=6&&0>>22&0x3C@28>>16=40000"
        -m comment --comment punchd:4711:893412:4026531836:40000:00112233aabbccdd

How to read the u32 expression (iptables-extensions(8)): `0>>22&0x3C` is the length of the IPv4 header, four times
the low half of byte 0; `@` moves there, to the ICMP header. `14&0xFF` is the last of the four bytes from 14 on,
byte 17 = 8 + 9: the protocol of the quoted packet. `28>>16` is the first half of those from 28 on, 28 = 8 + 20: its
source port. For IPv6 the numbers are plain, 40 bytes of header before either: 40 + 8 + 6 = 54 is the last byte from 51
on, and 40 + 8 + 40 = 88. An error that arrives with IPv6 extension headers is not matched (nft's is).

The tag names the owner (owner.py) and all else that the rule is made of, so that the rule can be built again from
its tag. A leftover is removed by asking the kernel's copy for exactly that rule: somebody else's rule with a comment
like ours differs in some word, and stays.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass

from punchd.kernel.firewall.exemptions import Exemption
from punchd.kernel.firewall.owner import Owner

_TAG = re.compile(rb"punchd:([0-9]{1,10}):([0-9]{1,20}):([0-9]{1,20}):([0-9]{1,5}):((?:[0-9a-f]{2}){0,16})\0")


@dataclass(frozen=True, slots=True)
class RuleText:
    """The words of one rule in chain INPUT of table filter; its target is DROP.

    Attributes:
        protocol: the outer packet's.
        matches: name of a match, its option, the option's value.
    """

    protocol: str
    matches: tuple[tuple[str, str, str], ...]


def rule(exemption: Exemption, owner: Owner) -> RuleText:
    """The rule of an exemption."""
    if exemption.family == socket.AF_INET:
        protocol, kind, option, time_exceeded = "icmp", "icmp", "icmp_type", "11"
        u32 = f"0>>22&0x3C@14&0xFF=6&&0>>22&0x3C@28>>16={exemption.port}"
    else:
        protocol, kind, option, time_exceeded = "icmpv6", "icmp6", "icmpv6_type", "3"
        u32 = f"51&0xFF=6&&88>>16={exemption.port}"
    comment = tag(exemption, owner)
    return RuleText(protocol, ((kind, option, time_exceeded), ("u32", "u32", u32), ("comment", "comment", comment)))


def tag(exemption: Exemption, owner: Owner) -> str:
    """The comment: `punchd:PID:START:PIDNS:PORT:NONCE`, at most 104 of the 255 bytes that a comment may have."""
    return f"punchd:{owner.pid}:{owner.start}:{owner.namespace}:{exemption.port}:{exemption.nonce.hex()}"


def find_tag(entry: bytes, family: int) -> tuple[Exemption, Owner] | None:
    """Who made a rule and what for, from the kernel's bytes of it; None if there is no tag of ours in it."""
    found = _TAG.search(entry)
    if found is None:
        return None
    pid, start, namespace, port = (int(number) for number in found.groups()[:4])
    if not 0 < port < 65536:
        return None
    return Exemption(family, port, bytes.fromhex(found[5].decode())), Owner(pid, start, namespace)
