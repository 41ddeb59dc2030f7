"""IPv4 and IPv6 headers: around the segments we send raw, and in front of those we sniff.

    IPv4   0 version, IHL | 1 TOS | 2 total length | 4 identification | 6 flags, fragment offset
           8 TTL | 9 protocol | 10 header checksum | 12 source 4 | 16 destination 4 | options ...
    IPv6   0 version, class, flow label | 4 payload length | 6 next header | 7 hop limit
           8 source 16 | 24 destination 16 | extension headers ...

**What we send** never fragments (DF): a first fragment that opens a NAT and a second one that gets lost there help
nobody. With DF the identification means nothing and may be 0 (RFC 6864 §4.1). On a raw socket the kernel overwrites
total length and header checksum, and fills in an identification of 0 (raw(7)); both are right here all the same, since
the laboratory's wires have no kernel behind them.

**What we read** comes off a wire, so every length is checked before it is believed. An Ethernet frame pads short
packets: what stands behind the length in the header is no payload. A later fragment begins in the middle of something
and has no ports; it is flagged. The IPv4 header checksum is not looked at: what arrives broken, the kernel drops beside
us, and in the packet quoted by an ICMP error the checksum is often stale.

Left out: jumbograms (RFC 2675) and the BIG TCP packets that Linux builds inside one host: both say 0 where their length
should be, neither is a SYN. Reassembly. IP options and extension headers are skipped, not understood; AH, ESP and
Mobility end the walk and are reported as the protocol.

`DecodeError` is the only error that a decoder here raises. Encoders raise ValueError for what a programmer did wrong.

Measured (Python 3.11, µs, quietest of several runs): encode 0.6 for IPv4 and 0.5 for IPv6, decode 1.3 and 1.5; scapy
2.8 takes 139 and 100, 33 and 19. A whole packet, a SYN with MSS, SACK and window scale: written in 2.0 and 1.8, read in
4.0 and 4.2; scapy 264 and 214, 65 and 48.

Source: RFC 791, RFC 8200 (§3, §4), RFC 1071 (checksum).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from punchd.endpoint import IPAddress
from punchd.errors import DecodeError

ICMP: Final = 1
TCP: Final = 6
UDP: Final = 17
ICMPV6: Final = 58

MAX_SIZE: Final = 0xFFFF  # the length fields have 16 bits
# RFC 8200 §4.1 recommends an order with at most five of those that are skipped here, and wants any order read. Without
# a limit a packet of 64 KiB keeps a privileged daemon busy with 8,000 empty headers.
MAX_EXTENSION_HEADERS: Final = 8

_HEADER4: Final = struct.Struct("!BBHHHBBHII")
_HEADER6: Final = struct.Struct("!IHBB16s16s")
_VERSION_AND_IHL: Final = 0x45  # IPv4, five words of header
_VERSION6: Final = 0x60000000  # IPv6; neither class nor flow label
_DONT_FRAGMENT: Final = 0x4000
_FRAGMENT_OFFSET4: Final = 0x1FFF
_FRAGMENT_OFFSET6: Final = 0xFFF8

_FRAGMENT: Final = 44
_SKIPPED: Final = frozenset({0, 43, _FRAGMENT, 60})  # hop-by-hop options, routing, fragment, destination options
_EXTENSION_UNIT: Final = 8  # bytes; the length field counts these, the first one not included


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet's header, as far as it matters here, and what it carries.

    Attributes:
        source, destination: of one family.
        protocol: what the payload is, 0-255; for IPv6 the last next header.
        ttl: time to live or hop limit, 0-255.
        payload: cut to the length in the header.
        fragment: it is a later fragment. Its payload starts in the middle of something: there are no ports in it.
            A first fragment is not flagged: it starts like the whole, though its checksum cannot be right.
    """

    source: IPAddress
    destination: IPAddress
    protocol: int
    ttl: int
    payload: bytes
    fragment: bool = False


def encode(
    source: IPAddress, destination: IPAddress, protocol: int, payload: bytes, ttl: int, *, identification: int = 0
) -> bytes:
    """The packet: 20 (IPv4) or 40 (IPv6) bytes of header and `payload`.

    Args:
        source, destination: of one family, which is the packet's.
        protocol: of the payload, 0-255.
        payload: with its own checksum in it.
        ttl: time to live or hop limit, 1-255.
        identification: 0-65535; IPv6 has none and ignores it.

    Raises:
        ValueError: a number out of its range, a payload that does not fit, or addresses of two families.
    """
    if not 1 <= ttl <= 255 or not 0 <= protocol <= 255 or not 0 <= identification <= 0xFFFF:
        raise ValueError(f"IP header: ttl {ttl}, protocol {protocol}, identification {identification}")
    if isinstance(source, IPv4Address) and isinstance(destination, IPv4Address):
        size = _HEADER4.size + len(payload)
        _check_size(size)
        start, end, ttl_and_protocol = int(source), int(destination), ttl << 8 | protocol
        # 2**16 is 1 modulo 0xffff, so the plain sum of the words (of any width) stands for that of their halves.
        words = (_VERSION_AND_IHL << 8) + size + identification + _DONT_FRAGMENT + ttl_and_protocol + start + end
        checked = _checksum_of(words)
        return (
            _HEADER4.pack(_VERSION_AND_IHL, 0, size, identification, _DONT_FRAGMENT, ttl, protocol, checked, start, end)
            + payload
        )
    if isinstance(source, IPv6Address) and isinstance(destination, IPv6Address):
        _check_size(len(payload))
        return _HEADER6.pack(_VERSION6, len(payload), protocol, ttl, source.packed, destination.packed) + payload
    raise ValueError(f"IP header: {source} and {destination} are of two families")


def decode(data: bytes, *, truncated: bool = False) -> Packet:
    """The packet that `data` begins with.

    Args:
        data: from the IP header on. What follows the packet's own length (padding) is cut off.
        truncated: take a packet that is cut short behind its headers, as ICMP errors quote it.

    Raises:
        DecodeError: neither IPv4 nor IPv6, headers that are not whole or contradict themselves, a packet that is not
            whole (unless `truncated`), or more than MAX_EXTENSION_HEADERS.
    """
    match data[0] >> 4 if data else None:
        case 4:
            return _decode4(data, truncated=truncated)
        case 6:
            return _decode6(data, truncated=truncated)
        case None:
            raise DecodeError("IP packet: expected a header, got nothing")
        case version:
            raise DecodeError(f"IP packet: expected version 4 or 6, got {version}")


def checksum(data: bytes, start: int = 0) -> int:
    """The Internet checksum of `data` (padded to even length), 0-65535, for the field in network order.

    Over data that has its checksum in it, the result is 0 exactly if that one is right.

    The ones' complement sum of 16-bit words is the number that they spell, modulo 0xffff (2**16 leaves 1). CPython
    takes that remainder of a long integer in one pass of C. Measured in µs for 20, 60 and 1480 bytes: this 0.2, 0.2,
    2.4; `sum` of `struct.unpack` 0.5, 0.6, 7.6; `sum` of `array("H")` 0.4, 0.5, 5.3.

    Args:
        start: a sum to add, such as `pseudo_header_sum`.
    """
    return _checksum_of(start + int.from_bytes(data + b"\0" if len(data) & 1 else data))


def pseudo_header_sum(source: IPAddress, destination: IPAddress, protocol: int, size: int) -> int:
    """What a transport checksum covers besides its own `size` bytes (RFC 9293 §3.1, RFC 8200 §8.1).

    For `checksum` only: a sum that is right modulo 0xffff, not folded to 16 bits.
    """
    return int(source) + int(destination) + protocol + size


def _checksum_of(words: int) -> int:
    # Only nothing but zeros sums to 0; any other multiple of 0xffff is the ones' complement sum 0xffff ("minus zero").
    return 0xFFFF - (words % 0xFFFF or (0xFFFF if words else 0))


def _check_size(size: int) -> None:
    if size > MAX_SIZE:
        raise ValueError(f"IP packet: expected at most {MAX_SIZE} bytes, got {size}")


def _decode4(data: bytes, *, truncated: bool) -> Packet:
    if len(data) < _HEADER4.size:
        raise DecodeError(f"IPv4 header: expected at least {_HEADER4.size} bytes, got {len(data)}")
    first, _, size, _, offset, ttl, protocol, _, source, destination = _HEADER4.unpack_from(data)
    header = (first & 15) * 4
    if not _HEADER4.size <= header <= size:
        raise DecodeError(f"IPv4 header: expected {_HEADER4.size} to {size} bytes of it, it says {header}")
    if len(data) < (header if truncated else size):
        raise DecodeError(f"IPv4 packet: {size} bytes announced, {header} of them header, got {len(data)}")
    return Packet(
        IPv4Address(source), IPv4Address(destination), protocol, ttl, data[header:size], offset & _FRAGMENT_OFFSET4 > 0
    )


def _decode6(data: bytes, *, truncated: bool) -> Packet:
    if len(data) < _HEADER6.size:
        raise DecodeError(f"IPv6 header: expected {_HEADER6.size} bytes, got {len(data)}")
    _, size, following, hops, source, destination = _HEADER6.unpack_from(data)
    end = _HEADER6.size + size
    if len(data) < end:
        if not truncated:
            raise DecodeError(f"IPv6 packet: {end} bytes announced, got {len(data)}")
        end = len(data)
    start, later = _HEADER6.size, False
    if following in _SKIPPED:
        following, start, later = _behind_extensions(data, following, end)
    return Packet(IPv6Address(source), IPv6Address(destination), following, hops, data[start:end], later)


def _behind_extensions(data: bytes, following: int, end: int) -> tuple[int, int, bool]:
    """Protocol and offset of what stands behind the extension headers, and whether that is a later fragment."""
    start = _HEADER6.size
    for _ in range(MAX_EXTENSION_HEADERS):
        if following not in _SKIPPED:
            return following, start, False
        # All four kinds begin with the next header and a length, and have at least eight bytes. The length byte of a
        # fragment header is reserved (§4.5): it always has eight.
        if end - start < _EXTENSION_UNIT:
            raise DecodeError(f"IPv6 extension header {following}: expected at least 8 bytes, {end - start} left")
        kind, following = following, data[start]
        size = _EXTENSION_UNIT if kind == _FRAGMENT else _EXTENSION_UNIT * (data[start + 1] + 1)
        if size > end - start:
            raise DecodeError(f"IPv6 extension header {kind}: {size} bytes announced, {end - start} left")
        if kind == _FRAGMENT and int.from_bytes(data[start + 2 : start + 4]) & _FRAGMENT_OFFSET6:
            return following, start + size, True
        start += size
    if following in _SKIPPED:
        raise DecodeError(f"IPv6 packet: more than {MAX_EXTENSION_HEADERS} extension headers")
    return following, start, False
