"""ICMP errors: every code that matters, against scapy both ways, and quotes that are shorter than they should be."""

from __future__ import annotations

import contextlib
import struct
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from punchd.endpoint import Endpoint, IPAddress
from punchd.errors import DecodeError
from punchd.wire import icmp, ip, tcp
from punchd.wire.icmp import Error, Kind, Quoted

A4, B4, ROUTER4 = IPv4Address("192.0.2.1"), IPv4Address("198.51.100.7"), IPv4Address("203.0.113.1")
A6, B6, ROUTER6 = IPv6Address("2001:db8::1"), IPv6Address("2001:db8::2"), IPv6Address("2001:db8::ff")
SYN = tcp.Segment(40000, 50000, 0xDEADBEEF, 0, tcp.Flags.SYN, 64240, tcp.Options(1460, 7, sack_permitted=True))
DATAGRAM = struct.pack("!HHHH", 40000, 50000, 13, 0xABCD) + b"probe"

# A low-TTL SYN as it reaches the router, and what the router quotes of it: not one byte more than it must.
SYN4 = ip.encode(A4, B4, ip.TCP, tcp.encode(SYN, A4, B4), 1)
SYN6 = ip.encode(A6, B6, ip.TCP, tcp.encode(SYN, A6, B6), 1)
QUOTE4, QUOTE6 = SYN4[:28], SYN6[:48]
QUOTED4 = Quoted(ip.TCP, Endpoint(A4, 40000), Endpoint(B4, 50000), 0xDEADBEEF)
QUOTED6 = Quoted(ip.TCP, Endpoint(A6, 40000), Endpoint(B6, 50000), 0xDEADBEEF)


def message(kind: int, code: int, quote: bytes, rest: int = 0) -> bytes:
    """An ICMP message by hand; nobody looks at its checksum."""
    return struct.pack("!BBHI", kind, code, 0xBAD0, rest) + quote


def quoted_of(source: IPAddress, destination: IPAddress) -> tuple[bytes, Quoted]:
    """A SYN between these two and what is to be read of it."""
    data = ip.encode(source, destination, ip.TCP, tcp.encode(SYN, source, destination), 1)
    return data, Quoted(ip.TCP, Endpoint(source, 40000), Endpoint(destination, 50000), SYN.seq)


addresses4 = st.integers(0, 2**32 - 1).map(IPv4Address)
addresses6 = st.integers(0, 2**128 - 1).map(IPv6Address)
kinds = st.sampled_from(Kind)
against_scapy = settings(deadline=None)  # its import takes 0.5 s, within the first example


# --- what the codes mean ---------------------------------------------------------------------------------------------

MEANINGS4 = [
    (11, 0, Kind.TIME_EXCEEDED),
    (3, 0, Kind.NET_UNREACHABLE),
    (3, 1, Kind.HOST_UNREACHABLE),
    (3, 2, Kind.PROTOCOL_UNREACHABLE),
    (3, 3, Kind.PORT_UNREACHABLE),
    (3, 4, Kind.TOO_BIG),
    (3, 5, None),  # source route failed: we never send one
    (3, 6, Kind.NET_UNREACHABLE),
    (3, 7, Kind.HOST_UNREACHABLE),
    (3, 8, Kind.HOST_UNREACHABLE),
    (3, 9, Kind.ADMIN_PROHIBITED),
    (3, 10, Kind.ADMIN_PROHIBITED),
    (3, 11, Kind.NET_UNREACHABLE),
    (3, 12, Kind.HOST_UNREACHABLE),
    (3, 13, Kind.ADMIN_PROHIBITED),
    (3, 14, Kind.ADMIN_PROHIBITED),
    (3, 15, Kind.ADMIN_PROHIBITED),
    (3, 16, None),
    (11, 1, None),  # fragment reassembly took too long
    (4, 0, None),  # source quench
    (5, 1, None),  # redirect
    (12, 0, None),  # parameter problem
    (0, 0, None),  # echo reply
    (8, 0, None),  # echo
]
MEANINGS6 = [
    (3, 0, Kind.TIME_EXCEEDED),
    (1, 0, Kind.NET_UNREACHABLE),
    (1, 1, Kind.ADMIN_PROHIBITED),
    (1, 2, Kind.NET_UNREACHABLE),
    (1, 3, Kind.HOST_UNREACHABLE),
    (1, 4, Kind.PORT_UNREACHABLE),
    (1, 5, Kind.ADMIN_PROHIBITED),
    (1, 6, Kind.ADMIN_PROHIBITED),
    (1, 7, None),
    (2, 0, Kind.TOO_BIG),
    (2, 99, Kind.TOO_BIG),  # RFC 4443 §3.2: the code is ignored
    (3, 1, None),  # fragment reassembly took too long
    (4, 1, Kind.PROTOCOL_UNREACHABLE),
    (4, 0, None),  # erroneous header field
    (11, 0, None),  # ICMPv4's time exceeded
    (128, 0, None),  # echo
    (135, 0, None),  # neighbour solicitation
]


@pytest.mark.parametrize(("number", "code", "kind"), MEANINGS4)
def test_an_icmpv4_code_means(number: int, code: int, kind: Kind | None) -> None:
    expected = None if kind is None else Error(kind, code, QUOTED4)
    assert icmp.decode(message(number, code, QUOTE4), ip.ICMP) == expected


@pytest.mark.parametrize(("number", "code", "kind"), MEANINGS6)
def test_an_icmpv6_code_means(number: int, code: int, kind: Kind | None) -> None:
    expected = None if kind is None else Error(kind, code, QUOTED6)
    assert icmp.decode(message(number, code, QUOTE6), ip.ICMPV6) == expected


MTUS = [
    pytest.param(message(3, 4, QUOTE4, 1400), ip.ICMP, 1400, id="IPv4"),
    pytest.param(message(3, 4, QUOTE4, 0), ip.ICMP, 0, id="a router from before RFC 1191"),
    pytest.param(message(3, 4, QUOTE4, 0xFFFF0000 + 1400), ip.ICMP, 1400, id="the upper half is none of its business"),
    pytest.param(message(2, 0, QUOTE6, 1280), ip.ICMPV6, 1280, id="IPv6"),
    pytest.param(message(2, 0, QUOTE6, 0xFFFFFFFF), ip.ICMPV6, 0xFFFFFFFF, id="IPv6 has 32 bits for it"),
    pytest.param(message(11, 0, QUOTE4, 0x00110578), ip.ICMP, 0, id="RFC 4884 puts a length there"),
]


@pytest.mark.parametrize(("data", "protocol", "mtu"), MTUS)
def test_only_too_big_has_an_mtu(data: bytes, protocol: int, mtu: int) -> None:
    error = icmp.decode(data, protocol)
    assert error is not None
    assert error.mtu == mtu


# --- the quote -------------------------------------------------------------------------------------------------------

UDP4 = ip.encode(A4, B4, ip.UDP, DATAGRAM, 1)
UDP6 = ip.encode(A6, B6, ip.UDP, DATAGRAM, 1)
OPTIONED = b"\x46" + SYN4[1:20] + b"\1\1\1\1" + SYN4[20:28]
EXTENDED = SYN6[:6] + b"\0" + SYN6[7:40] + bytes((ip.TCP, 0, 1, 4, 0, 0, 0, 0)) + SYN6[40:48]

QUOTES = [
    pytest.param(QUOTE4, ip.ICMP, QUOTED4, id="IPv4, the least there is"),
    pytest.param(SYN4, ip.ICMP, QUOTED4, id="IPv4, all of it"),
    pytest.param(SYN4 + bytes(128), ip.ICMP, QUOTED4, id="IPv4, extensions of RFC 4884 behind it"),
    pytest.param(OPTIONED, ip.ICMP, QUOTED4, id="IPv4, behind options"),
    pytest.param(QUOTE6, ip.ICMPV6, QUOTED6, id="IPv6, the least there is"),
    pytest.param(SYN6, ip.ICMPV6, QUOTED6, id="IPv6, all of it"),
    pytest.param(EXTENDED, ip.ICMPV6, QUOTED6, id="IPv6, behind hop-by-hop options"),
    pytest.param(UDP4[:28], ip.ICMP, replace(QUOTED4, protocol=ip.UDP, seq=None), id="UDP over IPv4"),
    pytest.param(UDP6, ip.ICMPV6, replace(QUOTED6, protocol=ip.UDP, seq=None), id="UDP over IPv6"),
    pytest.param(ip.encode(A4, B4, ip.ICMP, bytes(8), 1), ip.ICMP, None, id="an echo has no ports"),
    pytest.param(ip.encode(A4, B4, 132, b"", 1), ip.ICMP, None, id="SCTP is not ours, however short"),
    pytest.param(SYN4[:6] + b"\0\1" + SYN4[8:28], ip.ICMP, None, id="a later fragment has no ports"),
    pytest.param(SYN4[:6] + b"\x20\0" + SYN4[8:28], ip.ICMP, QUOTED4, id="a first fragment has"),
]


@pytest.mark.parametrize(("quote", "protocol", "expected"), QUOTES)
def test_the_quote_names_the_packet(quote: bytes, protocol: int, expected: Quoted | None) -> None:
    number = 11 if protocol == ip.ICMP else 3
    error = None if expected is None else Error(Kind.TIME_EXCEEDED, 0, expected)
    assert icmp.decode(message(number, 0, quote), protocol) == error


REFUSED = [
    pytest.param(b"", ip.ICMP, "at least 8 bytes, got 0", id="nothing"),
    pytest.param(message(11, 0, b"")[:7], ip.ICMP, "at least 8 bytes, got 7", id="seven bytes"),
    pytest.param(message(8, 0, b"")[:7], ip.ICMPV6, "at least 8 bytes, got 7", id="seven bytes of no error"),
    pytest.param(message(11, 0, b""), ip.ICMP, "got nothing", id="no quote"),
    pytest.param(message(11, 0, QUOTE4[:19]), ip.ICMP, "20 bytes, got 19", id="half an IPv4 header"),
    pytest.param(message(11, 0, QUOTE4[:20]), ip.ICMP, "8 bytes behind the quoted header, got 0", id="an IPv4 header"),
    pytest.param(message(11, 0, QUOTE4[:27]), ip.ICMP, "8 bytes behind the quoted header, got 7", id="IPv4, 7 bytes"),
    pytest.param(message(11, 0, UDP4[:27]), ip.ICMP, "8 bytes behind the quoted header, got 7", id="UDP, 7 bytes"),
    pytest.param(message(3, 0, QUOTE6[:39]), ip.ICMPV6, "40 bytes, got 39", id="half an IPv6 header"),
    pytest.param(message(3, 0, QUOTE6[:47]), ip.ICMPV6, "quoted header, got 7", id="IPv6, 7 bytes"),
    pytest.param(message(3, 0, EXTENDED[:47]), ip.ICMPV6, "at least 8 bytes, 7 left", id="half an extension header"),
    pytest.param(message(11, 0, QUOTE6), ip.ICMP, "quoted IPv4 packet, got IPv6", id="ICMP about IPv6"),
    pytest.param(message(3, 0, QUOTE4), ip.ICMPV6, "quoted IPv6 packet, got IPv4", id="ICMPv6 about IPv4"),
]


@pytest.mark.parametrize(("data", "protocol", "why"), REFUSED)
def test_an_error_whose_quote_is_too_short_or_of_another_family_is_refused(
    data: bytes, protocol: int, why: str
) -> None:
    with pytest.raises(DecodeError, match=why):
        icmp.decode(data, protocol)


@pytest.mark.parametrize("protocol", [ip.TCP, 0])
def test_only_payloads_of_icmp_may_be_asked_about(protocol: int) -> None:
    with pytest.raises(ValueError, match=f"of IP protocol {protocol}"):
        icmp.decode(message(11, 0, QUOTE4), protocol)


# --- encoding, and an independent implementation ---------------------------------------------------------------------


@given(st.one_of(st.tuples(*[addresses4] * 3), st.tuples(*[addresses6] * 3)), kinds, st.integers(0, 0xFFFF))
def test_every_error_is_read_as_it_was_written(
    addresses: tuple[IPAddress, IPAddress, IPAddress], kind: Kind, mtu: int
) -> None:
    source, destination, router = addresses
    failed, quoted = quoted_of(source, destination)
    protocol = ip.ICMP if source.version == 4 else ip.ICMPV6
    error = icmp.decode(icmp.encode(kind, failed, router, source, mtu=mtu), protocol)
    assert error is not None
    assert (error.kind, error.quoted, error.mtu) == (kind, quoted, mtu if kind is Kind.TOO_BIG else 0)


@against_scapy
@given(addresses4, addresses4, kinds)
def test_scapy_reads_our_icmpv4_error(source: IPv4Address, destination: IPv4Address, kind: Kind) -> None:
    from scapy.layers.inet import ICMP, IP, IPerror, TCPerror

    failed, _ = quoted_of(source, destination)
    data = ip.encode(ROUTER4, source, ip.ICMP, icmp.encode(kind, failed, ROUTER4, source, mtu=1400), 64)
    theirs = IP(data)
    assert ip.checksum(data[20:]) == 0
    assert (theirs[ICMP].type, theirs[ICMP].code) in {numbers[:2] for numbers in MEANINGS4 if numbers[2] is kind}
    assert (theirs[IPerror].src, theirs[IPerror].dst) == (str(source), str(destination))
    assert (theirs[TCPerror].sport, theirs[TCPerror].dport, theirs[TCPerror].seq) == (40000, 50000, SYN.seq)
    assert kind is not Kind.TOO_BIG or theirs[ICMP].nexthopmtu == 1400


@against_scapy
@given(addresses6, addresses6, kinds)
def test_scapy_builds_our_icmpv6_error(source: IPv6Address, destination: IPv6Address, kind: Kind) -> None:
    from scapy.layers import inet6

    failed, _ = quoted_of(source, destination)
    layers: dict[Kind, Any] = {
        Kind.TIME_EXCEEDED: inet6.ICMPv6TimeExceeded(code=0),
        Kind.NET_UNREACHABLE: inet6.ICMPv6DestUnreach(code=0),
        Kind.HOST_UNREACHABLE: inet6.ICMPv6DestUnreach(code=3),
        Kind.PROTOCOL_UNREACHABLE: inet6.ICMPv6ParamProblem(code=1, ptr=0),
        Kind.PORT_UNREACHABLE: inet6.ICMPv6DestUnreach(code=4),
        Kind.ADMIN_PROHIBITED: inet6.ICMPv6DestUnreach(code=1),
        Kind.TOO_BIG: inet6.ICMPv6PacketTooBig(mtu=1400),
    }
    theirs = inet6.IPv6(src=str(ROUTER6), dst=str(source), hlim=64) / layers[kind] / failed
    ours = icmp.encode(kind, failed, ROUTER6, source, mtu=1400 if kind is Kind.TOO_BIG else 0)
    assert ip.encode(ROUTER6, source, ip.ICMPV6, ours, 64) == bytes(theirs)


@against_scapy
@given(addresses4, addresses4, st.integers(0, 0xFFFF), st.integers(0, 2**32 - 1), st.integers(8, 40))
def test_we_read_scapys_time_exceeded(
    source: IPv4Address, destination: IPv4Address, port: int, seq: int, kept: int
) -> None:
    from scapy.layers.inet import ICMP, IP, TCP

    failed = bytes(IP(src=str(source), dst=str(destination)) / TCP(sport=port, dport=443, seq=seq))[: 20 + kept]
    theirs = IP(bytes(IP(src="203.0.113.1", dst=str(source)) / ICMP(type=11, code=0) / failed))
    packet = ip.decode(bytes(theirs))
    quoted = Quoted(ip.TCP, Endpoint(source, port), Endpoint(destination, 443), seq)
    assert icmp.decode(packet.payload, packet.protocol) == Error(Kind.TIME_EXCEEDED, 0, quoted)


@pytest.mark.parametrize(("source", "destination", "router", "most"), [(A4, B4, ROUTER4, 576), (A6, B6, ROUTER6, 1280)])
def test_an_error_quotes_as_much_as_the_rfcs_allow(
    source: IPAddress, destination: IPAddress, router: IPAddress, most: int
) -> None:
    failed = ip.encode(source, destination, ip.UDP, DATAGRAM + bytes(1400), 1)
    protocol = ip.ICMP if source.version == 4 else ip.ICMPV6
    body = icmp.encode(Kind.TIME_EXCEEDED, failed, router, source)
    assert len(ip.encode(router, source, protocol, body, 64)) == most
    assert icmp.decode(body, protocol) is not None


WRONG = [
    pytest.param(ROUTER4, A6, 0, "two families", id="from IPv4 to IPv6"),
    pytest.param(ROUTER4, A4, 65536, "MTU of 65536", id="IPv4 has 16 bits for the MTU"),
    pytest.param(ROUTER6, A6, 2**32, "MTU of 4294967296", id="IPv6 has 32"),
    pytest.param(ROUTER6, A6, -1, "MTU of -1", id="below zero"),
]


@pytest.mark.parametrize(("source", "destination", "mtu", "why"), WRONG)
def test_what_no_error_can_say_is_not_written(source: IPAddress, destination: IPAddress, mtu: int, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        icmp.encode(Kind.TOO_BIG, QUOTE4, source, destination, mtu=mtu)


# --- anything --------------------------------------------------------------------------------------------------------

quote_shaped = st.builds(
    lambda quote, bit, cut: bytes(
        byte ^ (1 << bit % 8 if at == bit // 8 else 0) for at, byte in enumerate(quote[: len(quote) - cut])
    ),
    st.sampled_from([SYN4, SYN6, UDP4, UDP6, OPTIONED, EXTENDED]),
    st.integers(0, 8 * 60 - 1),
    st.integers(0, 60),
)


@given(
    st.sampled_from([1, 2, 3, 3, 4, 11, 11]),
    st.integers(0, 16),
    st.one_of(quote_shaped, st.binary(max_size=60)),
    st.integers(0, 2**32 - 1),
    st.sampled_from([ip.ICMP, ip.ICMPV6]),
)
def test_whatever_comes_is_an_error_or_nothing_or_a_decode_error(
    number: int, code: int, quote: bytes, rest: int, protocol: int
) -> None:
    with contextlib.suppress(DecodeError):
        error = icmp.decode(message(number, code, quote, rest), protocol)
        assert error is None or (error.quoted.seq is None) == (error.quoted.protocol == ip.UDP)
