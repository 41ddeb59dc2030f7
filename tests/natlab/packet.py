"""IPv4 packets as a NAT sees them: the few fields it reads, and the few it overwrites in place.

Checksums are not computed anew but adjusted for what changed (RFC 1624, equation 3): a NAT that recomputed them
would hide a host's wrong checksum. The exceptions are ICMP errors and selective acknowledgements, whose changes may
lie at odd offsets; there the difference is taken over the whole.

scapy does all of this and more, at 0.8 ms a packet; it is the oracle in the unit tests.

Left out: IPv6 (never translated), fragments (`parse` refuses them), IP options (kept, not understood).
"""

from __future__ import annotations

import struct
from typing import Final, Self

ICMP: Final = 1
TCP: Final = 6
UDP: Final = 17

FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10

_ECHO_TYPES: Final = (0, 8)
_ERROR_TYPES: Final = (3, 4, 11, 12)
_FRAGMENT: Final = 0x3FFF  # more-fragments flag and offset
_CHECKSUM_AT: Final = {TCP: 16, UDP: 6}
_LEAST_SIZE: Final = {TCP: 20, UDP: 8, ICMP: 8}
_QUOTED_SIZE: Final = 8  # RFC 792: an error quotes at least so much behind the IP header
_ICMP_HEADER_SIZE: Final = 8
_OPTION_END, _OPTION_NOTHING, _OPTION_SACK = 0, 1, 5

Endpoint = tuple[int, int]
"""IPv4 address as an integer, and port (for an ICMP echo its identifier)."""


class Packet:
    """A packet in a buffer of its own, with the fields that translation reads.

    Attributes:
        data: the whole packet.
        protocol: ICMP, TCP or UDP.
        source, target: endpoints; zero ports for an ICMP error.
        flags: TCP's, else 0.
        is_error: whether it is an ICMP error, which quotes another packet.
    """

    __slots__ = ("data", "flags", "is_error", "protocol", "source", "start", "target")

    def __init__(self, data: bytearray, start: int, protocol: int) -> None:
        self.data = data
        self.start = start
        self.protocol = protocol
        source, target = struct.unpack_from("!II", data, 12)
        first, second = struct.unpack_from("!HH", data, start)
        self.flags = 0
        self.is_error = False
        if protocol == ICMP:
            self.is_error = data[start] in _ERROR_TYPES
            first = second = 0 if self.is_error else int(struct.unpack_from("!H", data, start + 4)[0])
        elif protocol == TCP and len(data) > start + 13:
            self.flags = data[start + 13]
        self.source: Endpoint = (source, first)
        self.target: Endpoint = (target, second)

    @classmethod
    def parse(cls, data: bytes, *, quoted: bool = False) -> Self | None:
        """The packet, or None for what is no whole IPv4 packet of a known protocol, or a fragment.

        Args:
            data: from the IP header on; what follows its total length is cut off.
            quoted: it comes out of an ICMP error and may be cut short.
        """
        if len(data) < 20 or data[0] >> 4 != 4:
            return None
        start = (data[0] & 15) * 4
        size, _, fragment = struct.unpack_from("!HHH", data, 2)
        protocol = data[9]
        least = _QUOTED_SIZE if quoted else _LEAST_SIZE.get(protocol, 0)
        whole = len(data) if quoted else size
        if protocol not in _LEAST_SIZE or start < 20 or fragment & _FRAGMENT:
            return None
        if whole > len(data) or whole < start + least:
            return None
        if protocol == ICMP and data[start] not in _ECHO_TYPES + _ERROR_TYPES:
            return None
        return cls(bytearray(data[:whole]), start, protocol)

    def set_source(self, endpoint: Endpoint) -> None:
        """Overwrites address and port."""
        self._replace(12, 0, self.source, endpoint)
        self.source = endpoint

    def set_target(self, endpoint: Endpoint) -> None:
        """Overwrites address and port."""
        self._replace(16, 2, self.target, endpoint)
        self.target = endpoint

    def shift_sequence(self, amount: int) -> None:
        """Adds to a TCP sequence number, modulo 2**32."""
        self._shift(4, amount)

    def shift_acknowledgement(self, amount: int) -> None:
        """Adds to a TCP acknowledgement number and selective acknowledgements, if there are."""
        if not self.flags & ACK or len(self.data) < self.start + 20:
            return
        self._shift(8, amount)
        before = bytes(self.data[self.start + 20 : self.start + (self.data[self.start + 12] >> 4) * 4])
        after = shifted_sack(before, amount)
        if after != before:
            self.data[self.start + 20 : self.start + 20 + len(before)] = after
            self._adjust(self.start + 16, ones_sum(before), ones_sum(after))

    def quote(self) -> Packet | None:
        """The packet that this ICMP error quotes, as a copy; None if it is not understood."""
        return Packet.parse(bytes(self.data[self.start + _ICMP_HEADER_SIZE :]), quoted=True)

    def set_quote(self, quoted: Packet) -> None:
        """Overwrites the quoted packet with one of the same size."""
        at = self.start + _ICMP_HEADER_SIZE
        before = bytes(self.data[at:])
        self.data[at:] = quoted.data
        self._adjust(self.start + 2, ones_sum(before), ones_sum(bytes(quoted.data)))

    def raise_ttl(self) -> None:
        """Adds one hop: takes back what a router has just counted."""
        before = self.data[8] << 8
        self.data[8] = min(self.data[8] + 1, 255)
        self._adjust(10, before, self.data[8] << 8)

    def _replace(self, address_at: int, port_at: int, old: Endpoint, new: Endpoint) -> None:
        struct.pack_into("!I", self.data, address_at, new[0])
        if self.protocol == ICMP:
            port_at = 4
        if not self.is_error:
            struct.pack_into("!H", self.data, self.start + port_at, new[1])
        old_address, new_address = _halves(old[0]), _halves(new[0])
        self._adjust(10, old_address, new_address)
        if self.protocol == ICMP:  # its checksum has no pseudo header
            if not self.is_error:
                self._adjust(self.start + 2, old[1], new[1])
            return
        at = self.start + _CHECKSUM_AT[self.protocol]
        if self.protocol == UDP and self.data[at : at + 2] == b"\0\0":
            return  # none was computed (RFC 768)
        self._adjust(at, old_address + old[1], new_address + new[1])
        if self.protocol == UDP and self.data[at : at + 2] == b"\0\0":
            self.data[at : at + 2] = b"\xff\xff"

    def _shift(self, offset: int, amount: int) -> None:
        at = self.start + offset
        if len(self.data) < at + 4:
            return
        old: int = struct.unpack_from("!I", self.data, at)[0]
        new = (old + amount) & 0xFFFFFFFF
        struct.pack_into("!I", self.data, at, new)
        self._adjust(self.start + 16, _halves(old), _halves(new))

    def _adjust(self, at: int, old_sum: int, new_sum: int) -> None:
        """Makes the checksum at that offset, if the packet reaches so far, fit a change (RFC 1624, equation 3)."""
        if len(self.data) < at + 2:
            return
        checksum: int = struct.unpack_from("!H", self.data, at)[0]
        struct.pack_into("!H", self.data, at, _fold((checksum ^ 0xFFFF) + (_fold(old_sum) ^ 0xFFFF) + new_sum) ^ 0xFFFF)


def ones_sum(data: bytes) -> int:
    """The one's complement sum of 16-bit words (RFC 1071), before it is inverted."""
    if len(data) % 2:
        data += b"\0"
    return _fold(sum(struct.unpack(f"!{len(data) // 2}H", data)))


def shifted_sack(options: bytes, amount: int) -> bytes:
    """TCP options with every edge of selectively acknowledged blocks (RFC 2018) moved by `amount`."""
    shifted = bytearray(options)
    at = 0
    while at < len(options) and options[at] != _OPTION_END:
        if options[at] == _OPTION_NOTHING:
            at += 1
            continue
        size = options[at + 1] if at + 1 < len(options) else 0
        if size < 2 or at + size > len(options):
            break  # malformed: the receiver's problem
        if options[at] == _OPTION_SACK:
            for edge in range(at + 2, at + size - 3, 4):
                value: int = struct.unpack_from("!I", options, edge)[0]
                struct.pack_into("!I", shifted, edge, (value + amount) & 0xFFFFFFFF)
        at += size
    return bytes(shifted)


def _halves(value: int) -> int:
    return (value >> 16) + (value & 0xFFFF)


def _fold(total: int) -> int:
    while total > 0xFFFF:
        total = (total >> 16) + (total & 0xFFFF)
    return total
