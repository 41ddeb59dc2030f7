"""Which packets the two backends' rules mean: both are run here, by small interpreters, on packets that scapy made.

The interpreters know only what the kernel's documentation says of the expressions (nft(8), iptables-extensions(8)
under u32), and nothing of punchd. That the kernel agrees is shown in tests/netns/test_firewall_connect.py.
"""

from __future__ import annotations

import re
import socket
import struct
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP, TCPerror
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6TimeExceeded, IPv6
from scapy.packet import Packet

from punchd.kernel.firewall import Exemption, messages, rules
from punchd.kernel.firewall.owner import Owner

OWNER = Owner(pid=4711, start=893412, namespace=4026531836)
PORT = 40001
FAMILIES = [socket.AF_INET, socket.AF_INET6]
NONCE = bytes.fromhex("00112233aabbccdd")


def error(family: int, quoted: Packet, *, kind: str = "time exceeded", options: int = 0) -> bytes:
    """An ICMP error from a router, quoting a packet of ours."""
    if family == socket.AF_INET:
        icmp = ICMP(type=11 if kind == "time exceeded" else 3)
        outer = IP(src="192.0.2.1", dst="198.51.100.1", options=[IPOption_NOP()] * options)
        return bytes(outer / icmp / IP(src="198.51.100.1", dst="203.0.113.1", ttl=1) / quoted)
    icmp6 = ICMPv6TimeExceeded() if kind == "time exceeded" else ICMPv6DestUnreach()
    outer = IPv6(src="2001:db8::1", dst="2001:db8::2")
    return bytes(outer / icmp6 / IPv6(src="2001:db8::2", dst="2001:db8::3", hlim=1) / quoted)


def syn(port: int = PORT) -> Packet:
    return TCP(sport=port, dport=443, flags="S")


def packets(family: int) -> list[tuple[str, bytes, bool]]:
    """Name, bytes, whether it is to be dropped."""
    other = socket.AF_INET if family == socket.AF_INET6 else socket.AF_INET6
    return [
        ("about our SYN", error(family, syn()), True),
        ("about another port's SYN", error(family, syn(PORT + 1)), False),
        ("about a SYN to our port's number", error(family, TCP(sport=443, dport=PORT, flags="S")), False),
        ("about UDP from the same port number", error(family, UDP(sport=PORT, dport=33434)), False),
        ("unreachable", error(family, syn(), kind="unreachable"), False),
        ("of the other family", error(other, syn()), False),
    ]


# --- nft ------------------------------------------------------------------------------------------------------------


def attributes(expression: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    name, data = (value for _, value in expression["attrs"])
    return name, {key.split("_", 2)[2]: value for key, value in data["attrs"]}


def nft_drops(expressions: list[dict[str, Any]], packet: bytes, ports: set[bytes]) -> bool:
    """Runs the expressions of one rule: any that does not match ends it."""
    version = packet[0] >> 4
    transport = packet[(packet[0] & 15) * 4 :] if version == 4 else packet[40:]
    register = b""
    for expression in expressions:
        name, words = attributes(expression)
        match name:
            case "meta" if words["KEY"] == 15:  # nfproto
                register = bytes([socket.AF_INET if version == 4 else socket.AF_INET6])
            case "meta" if words["KEY"] == 16:  # l4proto
                register = packet[9:10] if version == 4 else packet[6:7]
            case "payload":
                assert words["BASE"] == 2
                register = transport[words["OFFSET"] :][: words["LEN"]]
                if len(register) < words["LEN"]:
                    return False
            case "cmp":
                assert words["OP"] == 0
                if register != words["DATA"]["attrs"][0][1]:
                    return False
            case "lookup":
                assert words["SET"] in messages.SETS.values()
                if register not in ports:
                    return False
            case "immediate":
                ((_, verdict),) = words["DATA"]["attrs"]
                return bool(verdict["attrs"] == [("NFTA_VERDICT_CODE", 0)])
            case _:
                raise AssertionError(f"no such expression: {name} {words}")
    return False


# --- u32 ------------------------------------------------------------------------------------------------------------


def u32_matches(tests: str, packet: bytes) -> bool:
    """`start&mask>>shift@start…=value`, several joined by &&. Reading beyond the end is no match."""
    for test in tests.split("&&"):
        location, _, expected = test.partition("=")
        base, value = 0, 0
        for part in location.split("@"):
            base += value
            number, *operations = re.findall(r"&|>>|0x[0-9A-Fa-f]+|\d+", part)
            offset = base + int(number, 0)
            if offset + 4 > len(packet):
                return False
            (value,) = struct.unpack_from("!I", packet, offset)
            for operator, operand in zip(operations[::2], operations[1::2], strict=True):
                value = value & int(operand, 0) if operator == "&" else value >> int(operand, 0)
        if value != int(expected, 0):
            return False
    return True


def iptables_drops(text: rules.RuleText, packet: bytes) -> bool:
    version = packet[0] >> 4
    transport = packet[(packet[0] & 15) * 4 :] if version == 4 else packet[40:]
    (kind, option, value), (_, _, u32), _ = text.matches
    assert (kind, option) == (("icmp", "icmp_type") if text.protocol == "icmp" else ("icmp6", "icmpv6_type"))
    if version != (4 if text.protocol == "icmp" else 6):
        return False  # the tables are of one family each
    return transport[0] == int(value) and u32_matches(u32, packet)


def exemption(family: int, port: int = PORT) -> Exemption:
    return Exemption(family, port, NONCE)


def drops(backend: str, family: int, packet: bytes, port: int = PORT) -> bool:
    if backend == "nft":
        return nft_drops(messages.expressions(family), packet, {port.to_bytes(2, "big")})
    return iptables_drops(rules.rule(exemption(family, port), OWNER), packet)


@pytest.mark.parametrize("backend", ["nft", "iptables"])
@pytest.mark.parametrize("family", FAMILIES)
def test_only_time_exceeded_about_tcp_from_the_port_is_dropped(backend: str, family: int) -> None:
    for name, packet, dropped in packets(family):
        assert drops(backend, family, packet) == dropped, name


@pytest.mark.parametrize("backend", ["nft", "iptables"])
def test_a_router_that_quotes_only_eight_bytes_of_tcp_is_understood(backend: str) -> None:
    """RFC 792 promises the header and eight bytes; scapy would not say that the protocol is TCP, so it is cut here."""
    for options in (0, 4):
        whole = error(socket.AF_INET, syn(), options=options)
        assert drops(backend, socket.AF_INET, whole[: len(whole) - 12])


@pytest.mark.parametrize("backend", ["nft", "iptables"])
@given(port=st.integers(1, 65535), other=st.integers(1, 65535), family=st.sampled_from(FAMILIES))
@example(port=255, other=65280, family=socket.AF_INET)
def test_the_port_is_compared_whole_and_in_network_order(backend: str, port: int, other: int, family: int) -> None:
    assert drops(backend, family, error(family, syn(other)), port) == (port == other)


@pytest.mark.parametrize("backend", ["nft", "iptables"])
@given(tail=st.binary(max_size=120), family=st.sampled_from(FAMILIES))
def test_short_and_strange_errors_pass(backend: str, tail: bytes, family: int) -> None:
    """The rule's reader never reads beyond the packet, and what it cannot read it lets pass."""
    head = error(family, syn())[: 28 if family == socket.AF_INET else 48]
    packet = head + tail
    header = 20 if family == socket.AF_INET else 40
    protocol = tail[9:10] if family == socket.AF_INET else tail[6:7]
    expected = protocol == b"\x06" and tail[header : header + 2] == PORT.to_bytes(2, "big")
    if len(tail) >= header + 4:  # u32 reads four bytes at a time
        assert drops(backend, family, packet) == expected
    elif len(tail) < header + 2:
        assert not drops(backend, family, packet)


def test_the_scapy_quotes_are_what_a_router_sends() -> None:
    assert IP(error(socket.AF_INET, syn()))[TCPerror].sport == PORT


# --- a batch --------------------------------------------------------------------------------------------------------


def split(data: bytes) -> list[tuple[int, int, int]]:
    """Type, flags, sequence number of each netlink message."""
    found = []
    while data:
        length, kind, flags, sequence, port = struct.unpack_from("=IHHII", data)
        assert (length % 4, port) == (0, 0)
        found.append((kind, flags, sequence))
        data = data[length:]
    return found


def test_a_batch_is_numbered_and_asks_for_one_acknowledgement() -> None:
    parts = split(messages.batch(messages.table("punchd-1-abc", 1024), 100))
    assert [sequence for _, _, sequence in parts] == list(range(100, 108))
    assert [kind for kind, _, _ in parts] == [0x10, 0xA00, 0xA09, 0xA09, 0xA03, 0xA06, 0xA06, 0x11]
    assert [bool(flags & 4) for _, flags, _ in parts] == [False] * 6 + [True, False]


def test_messages_can_be_sent_again() -> None:
    add = messages.add_port("punchd-1-abc", socket.AF_INET, PORT, 1000)
    assert messages.batch([add], 1) == messages.batch([add], 1)


def test_elements_are_in_network_order() -> None:
    data = messages.batch([messages.add_port("t", socket.AF_INET, 0x1234, 5000)], 1)
    assert b"\x12\x34\0\0" in data
    assert (5000).to_bytes(8, "big") in data
    assert b"ports4\0" in data
    assert b"ports6\0" in messages.batch([messages.remove_port("t", socket.AF_INET6, 1)], 1)


# --- tags -----------------------------------------------------------------------------------------------------------

NUMBERS = st.integers(0, 10**10 - 1)
EXEMPTIONS = st.builds(Exemption, st.sampled_from(FAMILIES), st.integers(1, 65535), st.binary(max_size=16))


@given(EXEMPTIONS, st.builds(Owner, NUMBERS, NUMBERS, NUMBERS), st.binary(), st.binary())
def test_a_tag_tells_all_that_its_rule_was_made_of(one: Exemption, owner: Owner, before: bytes, after: bytes) -> None:
    tag = rules.tag(one, owner)
    assert len(tag) <= 104
    assert rules.find_tag(before + tag.encode() + b"\0" + after, one.family) == (one, owner)


@pytest.mark.parametrize(
    "comment",
    [
        "punchd:1:00112233aabbccdd",
        "punchd:1:2:3:0:00",
        "punchd:1:2:3:65536:00",
        "punchd:1:2:3:40000:0",
        "punchd:1:2:3:40000:00 and more",
        "punchd:1:2:3:40000:" + "00" * 17,
        "punchd:-1:2:3:40000:00",
        "PUNCHD:1:2:3:40000:00",
        "punchd:99999999999:2:3:40000:00",
    ],
)
def test_a_comment_that_only_looks_alike_is_no_tag(comment: str) -> None:
    assert rules.find_tag(comment.encode() + b"\0", socket.AF_INET) is None


@given(st.binary())
def test_no_bytes_upset_the_search_for_tags(data: bytes) -> None:
    rules.find_tag(data, socket.AF_INET)
    rules.find_tag(b"punchd:1:2:3:" + data, socket.AF_INET)


@pytest.mark.parametrize(
    ("family", "port", "nonce"),
    [(socket.AF_UNIX, 1, b""), (socket.AF_INET, 0, b""), (socket.AF_INET, 65536, b""), (socket.AF_INET, 1, bytes(17))],
)
def test_what_is_no_port_family_or_nonce_is_refused(family: int, port: int, nonce: bytes) -> None:
    with pytest.raises(ValueError, match="firewall: expected"):
        Exemption(family, port, nonce)
