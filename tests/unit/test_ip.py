"""IP headers: against scapy both ways, and whatever lengths, versions and extension headers can get wrong."""

from __future__ import annotations

import contextlib
import struct
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from punchd.endpoint import IPAddress
from punchd.errors import DecodeError
from punchd.wire import ip

A4, B4 = IPv4Address("192.0.2.1"), IPv4Address("198.51.100.7")
A6, B6 = IPv6Address("2001:db8::1"), IPv6Address("2001:db8::2")
UNKNOWN = 253  # for experiments (RFC 3692): scapy leaves what is inside alone

HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION = 0, 43, 44, 51, 60

Pair = tuple[IPAddress, IPAddress]
addresses4 = st.integers(0, 2**32 - 1).map(IPv4Address)
addresses6 = st.integers(0, 2**128 - 1).map(IPv6Address)
pairs: SearchStrategy[Pair] = st.one_of(st.tuples(addresses4, addresses4), st.tuples(addresses6, addresses6))
protocols = st.sampled_from([ip.ICMP, ip.TCP, ip.UDP, AUTHENTICATION, ip.ICMPV6, UNKNOWN])
ttls = st.integers(1, 255)
payloads = st.binary(max_size=64)
against_scapy = settings(deadline=None)  # its import takes 0.5 s, within the first example


def ipv4(*, ihl: int = 5, size: int | None = None, offset: int = 0, body: bytes = b"") -> bytes:
    """An IPv4 packet by hand; `size` and `ihl` may lie. Options are in `body`."""
    size = 20 + len(body) if size is None else size
    return struct.pack("!BBHHHBBH", 0x40 | ihl, 0, size, 7, offset, 64, UNKNOWN, 0) + A4.packed + B4.packed + body


def ipv6(following: int, body: bytes = b"", *, size: int | None = None) -> bytes:
    """An IPv6 packet by hand; `size` may lie."""
    return (
        struct.pack("!IHBB", 6 << 28, len(body) if size is None else size, following, 64) + A6.packed + B6.packed + body
    )


def extension(following: int, units: int = 0, body: bytes = bytes(6)) -> bytes:
    """An extension header that says it has `units` times eight bytes more than eight."""
    return bytes((following, units)) + body


def fragment(following: int, *, offset: int = 0, more: bool = False, reserved: int = 0) -> bytes:
    """`offset` in bytes, a multiple of 8."""
    return struct.pack("!BBHI", following, reserved, offset | more, 0xABCD)


# --- the checksum ----------------------------------------------------------------------------------------------------


def textbook_checksum(data: bytes) -> int:
    """RFC 1071 §4.1, word by word."""
    data += bytes(len(data) % 2)
    total = 0
    for (word,) in struct.iter_unpack("!H", data):
        total += word
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


CHECKSUMS = [
    pytest.param(b"", 0xFFFF, id="nothing"),
    pytest.param(bytes(20), 0xFFFF, id="zeros sum to plus zero"),
    pytest.param(b"\xff\xff", 0, id="minus zero"),
    pytest.param(b"\xff\xfe\x00\x01", 0, id="a sum of minus zero"),
    pytest.param(b"\xff\xff" * 3, 0, id="ones sum to minus zero"),
    pytest.param(b"\x00\x01\xf2\x03\xf4\xf5\xf6\xf7", 0x220D, id="RFC 1071 section 3"),
    pytest.param(b"\x12", 0xEDFF, id="an odd byte is the upper half"),
]


@pytest.mark.parametrize(("data", "expected"), CHECKSUMS)
def test_the_checksum_knows_its_corner_cases(data: bytes, expected: int) -> None:
    assert ip.checksum(data) == textbook_checksum(data) == expected


@given(st.one_of(st.binary(max_size=100), st.lists(st.sampled_from([b"\0", b"\xff"]), max_size=8).map(b"".join)))
def test_the_remainder_is_the_textbook_checksum(data: bytes) -> None:
    assert ip.checksum(data) == textbook_checksum(data)


@given(pairs, st.integers(0, 255), payloads)
def test_the_pseudo_header_counts_as_if_it_stood_in_front(pair: Pair, protocol: int, data: bytes) -> None:
    source, destination = pair
    if source.version == 4:
        header = source.packed + destination.packed + struct.pack("!BBH", 0, protocol, len(data))
    else:
        header = source.packed + destination.packed + struct.pack("!IxxxB", len(data), protocol)
    start = ip.pseudo_header_sum(source, destination, protocol, len(data))
    assert ip.checksum(data, start) == textbook_checksum(header + data)


# --- encoding, and an independent implementation ---------------------------------------------------------------------


@given(pairs, protocols, payloads, ttls, st.integers(0, 0xFFFF))
def test_every_packet_is_read_as_it_was_written(
    pair: Pair, protocol: int, payload: bytes, ttl: int, number: int
) -> None:
    data = ip.encode(*pair, protocol, payload, ttl, identification=number)
    assert ip.decode(data) == ip.Packet(*pair, protocol, ttl, payload)


@against_scapy
@given(addresses4, addresses4, payloads, ttls, st.integers(0, 0xFFFF))
def test_scapy_builds_our_ipv4_packet(
    source: IPv4Address, destination: IPv4Address, payload: bytes, ttl: int, number: int
) -> None:
    from scapy.layers.inet import IP

    theirs = IP(src=str(source), dst=str(destination), proto=UNKNOWN, ttl=ttl, id=number, flags="DF") / payload
    data = ip.encode(source, destination, UNKNOWN, payload, ttl, identification=number)
    assert data == bytes(theirs)
    assert ip.checksum(data[:20]) == 0


@against_scapy
@given(addresses6, addresses6, payloads, ttls)
def test_scapy_builds_our_ipv6_packet(source: IPv6Address, destination: IPv6Address, payload: bytes, ttl: int) -> None:
    from scapy.layers.inet6 import IPv6

    theirs = IPv6(src=str(source), dst=str(destination), nh=UNKNOWN, hlim=ttl) / payload
    assert ip.encode(source, destination, UNKNOWN, payload, ttl) == bytes(theirs)


@against_scapy
@given(addresses4, addresses4, payloads, st.integers(0, 255), st.integers(0, 9))
def test_we_read_scapys_ipv4_packet_with_options(
    source: IPv4Address, destination: IPv4Address, payload: bytes, ttl: int, words: int
) -> None:
    from scapy.layers.inet import IP, IPOption_NOP

    options = [IPOption_NOP() for _ in range(words * 4)]
    theirs = IP(src=str(source), dst=str(destination), proto=UNKNOWN, ttl=ttl, options=options) / payload
    assert ip.decode(bytes(theirs)) == ip.Packet(source, destination, UNKNOWN, ttl, payload)


@against_scapy
@given(
    addresses6, addresses6, payloads, st.lists(st.sampled_from(["hop", "routing", "destination", "atomic"]), max_size=8)
)
def test_we_read_scapys_ipv6_packet_with_extension_headers(
    source: IPv6Address, destination: IPv6Address, payload: bytes, kinds: list[str]
) -> None:
    from scapy.layers.inet6 import (
        IPv6,
        IPv6ExtHdrDestOpt,
        IPv6ExtHdrFragment,
        IPv6ExtHdrHopByHop,
        IPv6ExtHdrRouting,
        PadN,
    )

    makers = {
        "hop": IPv6ExtHdrHopByHop,
        "routing": lambda: IPv6ExtHdrRouting(addresses=["2001:db8::9"]),
        "destination": lambda: IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(20))]),
        "atomic": lambda: IPv6ExtHdrFragment(offset=0, m=0),
    }
    theirs = IPv6(src=str(source), dst=str(destination), hlim=9)
    for kind in kinds:
        theirs = theirs / makers[kind]()
    theirs.lastlayer().nh = UNKNOWN
    assert ip.decode(bytes(theirs / payload)) == ip.Packet(source, destination, UNKNOWN, 9, payload)


WRONG = [
    pytest.param({"ttl": 0}, "ttl 0", id="a packet that may not be sent"),
    pytest.param({"ttl": 256}, "ttl 256", id="TTL"),
    pytest.param({"protocol": -1}, "protocol -1", id="protocol below"),
    pytest.param({"protocol": 256}, "protocol 256", id="protocol above"),
    pytest.param({"identification": 65536}, "identification 65536", id="identification"),
    pytest.param({"payload": bytes(65516)}, "at most 65535 bytes, got 65536", id="IPv4 payload"),
    pytest.param({"source": A6, "destination": B6, "payload": bytes(65536)}, "got 65536", id="IPv6 payload"),
    pytest.param({"source": A6}, "two families", id="from IPv6 to IPv4"),
    pytest.param({"destination": B6}, "two families", id="from IPv4 to IPv6"),
]


@pytest.mark.parametrize(("change", "why"), WRONG)
def test_what_no_header_can_say_is_not_written(change: dict[str, object], why: str) -> None:
    right: dict[str, object] = {
        "source": A4, "destination": B4, "protocol": 6, "payload": b"", "ttl": 3, "identification": 0
    }  # fmt: skip
    with pytest.raises(ValueError, match=why):
        ip.encode(**{**right, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize(("source", "destination", "most"), [(A4, B4, 65515), (A6, B6, 65535)])
def test_the_largest_packet_is_written_and_read(source: IPAddress, destination: IPAddress, most: int) -> None:
    assert len(ip.decode(ip.encode(source, destination, UNKNOWN, bytes(most), 1)).payload) == most


# --- IPv4 ------------------------------------------------------------------------------------------------------------

READ4 = [
    pytest.param(ipv4(body=b"abc"), b"abc", id="plain"),
    pytest.param(ipv4(), b"", id="empty"),
    pytest.param(ipv4(body=b"abc") + bytes(23), b"abc", id="Ethernet padding is cut off"),
    pytest.param(ipv4(ihl=6, body=b"\1\1\1\1abc"), b"abc", id="one word of options"),
    pytest.param(ipv4(ihl=15, body=b"\1" * 40 + b"abc"), b"abc", id="ten words of options"),
    pytest.param(ipv4(ihl=6, body=b"\1\1\1\1"), b"", id="nothing but options"),
    pytest.param(ipv4(offset=0x4000, body=b"abc"), b"abc", id="don't fragment"),
    pytest.param(ipv4(offset=0x2000, body=b"abc"), b"abc", id="a first fragment starts like the whole"),
    pytest.param(ipv4(offset=0x8000, body=b"abc"), b"abc", id="the evil bit"),
]


@pytest.mark.parametrize(("data", "payload"), READ4)
def test_an_ipv4_payload_lies_between_header_and_total_length(data: bytes, payload: bytes) -> None:
    assert ip.decode(data) == ip.Packet(A4, B4, UNKNOWN, 64, payload)


@pytest.mark.parametrize("offset", [1, 0x1FFF, 0x2001, 0x4001])
def test_a_later_ipv4_fragment_is_flagged(offset: int) -> None:
    assert ip.decode(ipv4(offset=offset, body=b"tail")) == ip.Packet(A4, B4, UNKNOWN, 64, b"tail", fragment=True)


REFUSED4 = [
    pytest.param(b"", "got nothing", id="nothing"),
    pytest.param(b"\x45", "at least 20 bytes, got 1", id="one byte"),
    pytest.param(ipv4()[:19], "at least 20 bytes, got 19", id="one byte short"),
    pytest.param(b"\x00" + ipv4()[1:], "version 4 or 6, got 0", id="version 0"),
    pytest.param(b"\x55" + ipv4()[1:], "version 4 or 6, got 5", id="version 5"),
    pytest.param(ipv4(ihl=4), "it says 16", id="less than a header"),
    pytest.param(ipv4(ihl=0), "it says 0", id="no header"),
    pytest.param(ipv4(size=19), "20 to 19 bytes of it", id="a total length inside the header"),
    pytest.param(ipv4(size=0), "20 to 0 bytes of it", id="BIG TCP"),
    pytest.param(ipv4(ihl=6, size=20, body=bytes(4)), "it says 24", id="options beyond the total length"),
    pytest.param(ipv4(ihl=6, size=24), "24 bytes announced, 24 of them header, got 20", id="options not there"),
]


@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize(("data", "why"), REFUSED4)
def test_an_ipv4_header_that_is_not_whole_is_refused_even_in_a_quote(data: bytes, why: str, *, truncated: bool) -> None:
    with pytest.raises(DecodeError, match=why):
        ip.decode(data, truncated=truncated)


# --- IPv6 ------------------------------------------------------------------------------------------------------------

MANY = b"".join(extension(DESTINATION) for _ in range(ip.MAX_EXTENSION_HEADERS - 1)) + extension(UNKNOWN)

READ6 = [
    pytest.param(ipv6(UNKNOWN, b"abc"), UNKNOWN, b"abc", id="plain"),
    pytest.param(ipv6(UNKNOWN), UNKNOWN, b"", id="empty"),
    pytest.param(ipv6(UNKNOWN, b"abc") + bytes(9), UNKNOWN, b"abc", id="padding is cut off"),
    pytest.param(ipv6(HOP_BY_HOP, extension(UNKNOWN) + b"abc"), UNKNOWN, b"abc", id="hop-by-hop"),
    pytest.param(ipv6(ROUTING, extension(UNKNOWN, 2, bytes(22)) + b"abc"), UNKNOWN, b"abc", id="long routing"),
    pytest.param(ipv6(DESTINATION, MANY + b"abc"), UNKNOWN, b"abc", id="as many as are read"),
    pytest.param(ipv6(FRAGMENT, fragment(UNKNOWN) + b"abc"), UNKNOWN, b"abc", id="atomic fragment"),
    pytest.param(ipv6(FRAGMENT, fragment(UNKNOWN, more=True) + b"abc"), UNKNOWN, b"abc", id="first fragment"),
    pytest.param(ipv6(FRAGMENT, fragment(UNKNOWN, reserved=99) + b"abc"), UNKNOWN, b"abc", id="no length in there"),
    pytest.param(ipv6(HOP_BY_HOP, extension(59)), 59, b"", id="no next header"),
    pytest.param(ipv6(AUTHENTICATION, extension(UNKNOWN)), AUTHENTICATION, extension(UNKNOWN), id="AH ends the walk"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "protocol", "payload"), READ6)
def test_an_ipv6_payload_begins_behind_the_extension_headers(data: bytes, protocol: int, payload: bytes) -> None:
    assert ip.decode(data) == ip.Packet(A6, B6, protocol, 64, payload)


def test_a_later_ipv6_fragment_is_flagged_and_not_searched_for_further_headers() -> None:
    data = ipv6(HOP_BY_HOP, extension(FRAGMENT) + fragment(DESTINATION, offset=8) + b"\xff" * 16)
    assert ip.decode(data) == ip.Packet(A6, B6, DESTINATION, 64, b"\xff" * 16, fragment=True)


TOO_MANY = extension(DESTINATION) * ip.MAX_EXTENSION_HEADERS + extension(UNKNOWN)
REFUSED6 = [
    pytest.param(b"\x60", "40 bytes, got 1", id="one byte"),
    pytest.param(ipv6(UNKNOWN)[:39], "40 bytes, got 39", id="one byte short"),
    pytest.param(ipv6(HOP_BY_HOP), "header 0: expected at least 8 bytes, 0 left", id="not there (jumbogram)"),
    pytest.param(ipv6(ROUTING, bytes(7)), "header 43: expected at least 8 bytes, 7 left", id="not whole"),
    pytest.param(ipv6(DESTINATION, extension(UNKNOWN, 1)), "header 60: 16 bytes announced, 8 left", id="overrun"),
    pytest.param(ipv6(DESTINATION, extension(UNKNOWN, 255)), "2048 bytes announced, 8 left", id="far overrun"),
    pytest.param(ipv6(ROUTING, extension(UNKNOWN, 1) + bytes(8), size=8), "16 bytes announced", id="into the padding"),
    pytest.param(ipv6(FRAGMENT, bytes(7)), "header 44: expected at least 8 bytes, 7 left", id="half a fragment header"),
    pytest.param(ipv6(DESTINATION, TOO_MANY), "more than 8 extension headers", id="too many"),
    pytest.param(ipv6(HOP_BY_HOP, extension(DESTINATION) + bytes(8), size=8), "60: expected", id="in the padding"),
]  # fmt: skip


@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize(("data", "why"), REFUSED6)
def test_ipv6_headers_that_are_not_whole_are_refused_even_in_a_quote(data: bytes, why: str, *, truncated: bool) -> None:
    with pytest.raises(DecodeError, match=why):
        ip.decode(data, truncated=truncated)


# --- cut short -------------------------------------------------------------------------------------------------------


@given(pairs, st.binary(min_size=1, max_size=40), st.data())
def test_a_packet_cut_short_is_refused_but_as_a_quote(pair: Pair, payload: bytes, data: st.DataObject) -> None:
    whole = ip.encode(*pair, UNKNOWN, payload, 5)
    kept = data.draw(st.integers(0, len(payload) - 1))
    quoted = whole[: len(whole) - len(payload) + kept]
    with pytest.raises(DecodeError, match=f"announced.*got {len(quoted)}"):
        ip.decode(quoted)
    assert ip.decode(quoted, truncated=True) == ip.Packet(*pair, UNKNOWN, 5, payload[:kept])


def test_a_whole_quote_is_cut_to_its_length_as_well() -> None:
    for data in (ipv4(body=b"abc") + b"RFC 4884", ipv6(UNKNOWN, b"abc") + b"RFC 4884"):
        assert ip.decode(data, truncated=True).payload == b"abc"


packet_shaped4 = st.builds(
    lambda ihl, size, offset, body: ipv4(ihl=ihl, size=size, offset=offset, body=body),
    st.integers(0, 15),
    st.one_of(st.none(), st.integers(0, 80), st.just(0xFFFF)),
    st.sampled_from([0, 0x4000, 0x2000, 1]),
    st.binary(max_size=60),
)
kinds6 = st.sampled_from([HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION, AUTHENTICATION, ip.TCP])
packet_shaped6 = st.builds(
    lambda first, headers, tail, size: ipv6(first, b"".join(headers) + tail, size=size),
    kinds6,
    st.lists(st.builds(extension, kinds6, st.sampled_from([0, 0, 1, 2, 255]), st.binary(max_size=22)), max_size=10),
    st.binary(max_size=20),
    st.one_of(st.none(), st.integers(0, 200), st.just(0xFFFF)),
)


@given(st.one_of(packet_shaped4, packet_shaped6), st.integers(0, 12), st.booleans())
def test_whatever_comes_is_a_packet_or_a_decode_error(data: bytes, cut: int, truncated: bool) -> None:
    data = data[: len(data) - cut]
    with contextlib.suppress(DecodeError):
        packet = ip.decode(data, truncated=truncated)
        assert packet.payload in data
        assert packet.source.version == packet.destination.version == data[0] >> 4


@given(pairs, payloads, st.integers(0, 8 * 40 - 1), st.booleans())
def test_a_flipped_bit_gives_a_packet_or_a_decode_error(pair: Pair, payload: bytes, bit: int, truncated: bool) -> None:
    data = bytearray(ip.encode(*pair, ip.TCP, payload, 64))
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    with contextlib.suppress(DecodeError):
        assert ip.decode(bytes(data), truncated=truncated).payload in data
