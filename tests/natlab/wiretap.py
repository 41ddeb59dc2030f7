"""Raw TCP segments and ICMP errors of one host: what a probe says to a NAT that no ordinary socket would say.

The host's own stack would answer such segments with RST, which changes the state of the NAT under test. While a
wiretap is open, an nftables rule in the host's namespace drops RSTs that do not carry our mark.
"""

from __future__ import annotations

import itertools
import socket
import struct
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from .host import Host
from .packet import ACK, ICMP, TCP, Endpoint, Packet, ones_sum

_MARK: Final = 1
_MUTE: Final = f"""
table inet natlab_wiretap {{
    chain output {{
        type filter hook output priority filter; policy accept;
        meta mark != {_MARK} tcp flags & rst == rst drop
    }}
}}
"""
_WINDOW: Final = 65535
_identifications: Final = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Segment:
    """A TCP segment without options or data."""

    source: Endpoint
    target: Endpoint
    flags: int
    sequence: int = 0
    acknowledgement: int = 0

    def encode(self, ttl: int = 64) -> bytes:
        """The whole IPv4 packet."""
        tcp = struct.pack(
            "!HHIIBBHHH",
            self.source[1],
            self.target[1],
            self.sequence,
            self.acknowledgement,
            5 << 4,
            self.flags,
            _WINDOW,
            0,
            0,
        )
        pseudo = struct.pack("!IIBBH", self.source[0], self.target[0], 0, TCP, len(tcp))
        checksum = ones_sum(pseudo + tcp) ^ 0xFFFF
        tcp = tcp[:16] + checksum.to_bytes(2, "big") + tcp[18:]
        identification = next(_identifications) & 0xFFFF
        size = 20 + len(tcp)
        header = struct.pack(
            "!BBHHHBBHII", 0x45, 0, size, identification, 0, ttl, TCP, 0, self.source[0], self.target[0]
        )
        return header[:10] + (ones_sum(header) ^ 0xFFFF).to_bytes(2, "big") + header[12:] + tcp


@dataclass(frozen=True, slots=True)
class IcmpError:
    """An ICMP error and the packet that it quotes."""

    sender: int
    kind: int
    code: int
    quoted: Packet


class Wiretap:
    """Sends and collects raw packets of a host, for the length of a `with` block."""

    def __init__(self, host: Host) -> None:
        self.segments: list[Segment] = []
        self.errors: list[IcmpError] = []
        self._host = host
        self._out = host.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        self._out.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, _MARK)
        self._tcp = host.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
        self._icmp = host.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        for tap in (self._tcp, self._icmp):
            tap.setblocking(False)

    def __enter__(self) -> Self:
        self._host.run(["nft", "-f", "-"], input=_MUTE.encode(), check=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for tap in (self._out, self._tcp, self._icmp):
            tap.close()
        self._host.run(["nft", "delete", "table", "inet", "natlab_wiretap"], check=True)

    def send(self, segment: Segment) -> None:
        """Sends it as it is."""
        self._out.sendto(segment.encode(), (socket.inet_ntoa(segment.target[0].to_bytes(4, "big")), 0))

    def send_flags(self, source: Endpoint, target: Endpoint, flags: int, sequence: int = 0, answers: int = 0) -> None:
        """Sends a segment; with ACK it acknowledges the SYN whose sequence number is `answers`."""
        acknowledgement = (answers + 1) & 0xFFFFFFFF if flags & ACK else 0
        self.send(Segment(source, target, flags, sequence, acknowledgement))

    def collect(self) -> None:
        """Takes in what has come by now."""
        for data in _drain(self._tcp):
            packet = Packet.parse(data)
            if packet and packet.protocol == TCP:
                sequence, acknowledgement = struct.unpack_from("!II", packet.data, packet.start + 4)
                self.segments.append(Segment(packet.source, packet.target, packet.flags, sequence, acknowledgement))
        for data in _drain(self._icmp):
            packet = Packet.parse(data)
            if packet and packet.protocol == ICMP and packet.is_error and (quoted := packet.quote()):
                kind, code = packet.data[packet.start], packet.data[packet.start + 1]
                self.errors.append(IcmpError(packet.source[0], kind, code, quoted))


def _drain(tap: socket.socket) -> list[bytes]:
    packets: list[bytes] = []
    while True:
        try:
            packets.append(tap.recv(65535))
        except BlockingIOError:
            return packets
