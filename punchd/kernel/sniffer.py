"""Sees the packets of one TCP or UDP port, both ways, and the ICMP errors that are about them.

An AF_PACKET socket sees what the stack gets before any listener, and what leaves it. A classic BPF program lets only
what comes from or goes to the port pass, and ICMP that quotes it, so that a busy host costs nothing: a hundred attempts
at once provoke hundreds of errors, and each has a sniffer. ICMP is read further in `punchd.wire.icmp`.
SOCK_DGRAM cuts the link header off: packets begin with the IP header whatever the interface. What is injected is
seen as well (it crosses `lo`). Needs CAP_NET_RAW.

What comes in between `socket` and the attached filter is whoever's; readers decode and check every packet anyway.

Source: packet(7), linux/filter.h.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from dataclasses import dataclass

import trio

from punchd.errors import Code, PunchError

MAX_PACKET = 2048  # bytes; handshakes and ICMP errors are shorter
_ETH_P_ALL = 0x0003
_PACKET_OUTGOING = 4
_ARPHRD_LOOPBACK = 772  # linux/if_arp.h
_SO_ATTACH_FILTER = 26


@dataclass(frozen=True, slots=True)
class Captured:
    """An IP packet, from its first header on.

    Attributes:
        is_outgoing: it was leaving.
        is_loopback: it stayed in this host: what was injected, seen once as it left and once as it came.
    """

    data: bytes
    is_outgoing: bool
    is_loopback: bool = False


# Instructions of classic BPF (linux/filter.h), and where their jumps go: to the next one unless a label is named.
_LOAD_BYTE, _LOAD_HALF, _LOAD_HALF_BEHIND, _SKIP_HEADER = 0x30, 0x28, 0x48, 0xB1
_AND, _IF_EQUAL, _IF_ANY_BIT, _RETURN = 0x54, 0x15, 0x45, 0x06
_TAKE, _DROP, _NO_ICMP = "take", "drop", "no ICMP"


@dataclass(frozen=True, slots=True)
class _Step:
    code: int
    value: int
    if_true: str = ""
    if_false: str = ""
    label: str = ""


# IPv4: the header's length is read; later fragments carry no ports. IPv6: extension headers are not followed, TCP and
# ICMPv6 hardly ever come behind one. In ICMP the quoted packet begins at byte 8, and hardly ever has options.
def _steps(version: int, port: int, protocol: int) -> tuple[_Step, ...]:
    if version == 4:
        return (
            _Step(_LOAD_BYTE, 0),
            _Step(_AND, 0xF0),
            _Step(_IF_EQUAL, 0x40, "", _DROP),
            _Step(_LOAD_HALF, 6),
            _Step(_IF_ANY_BIT, 0x1FFF, _DROP, ""),
            _Step(_SKIP_HEADER, 0),
            _Step(_LOAD_BYTE, 9),
            _Step(_IF_EQUAL, socket.IPPROTO_ICMP, "", _NO_ICMP),
            _Step(_LOAD_HALF_BEHIND, 8 + 20),
            _Step(_IF_EQUAL, port, _TAKE, ""),
            _Step(_LOAD_HALF_BEHIND, 8 + 22),
            _Step(_IF_EQUAL, port, _TAKE, _DROP),
            _Step(_IF_EQUAL, protocol, "", _DROP, label=_NO_ICMP),
            _Step(_LOAD_HALF_BEHIND, 0),
            _Step(_IF_EQUAL, port, _TAKE, ""),
            _Step(_LOAD_HALF_BEHIND, 2),
            _Step(_IF_EQUAL, port, _TAKE, _DROP),
        )
    return (
        _Step(_LOAD_BYTE, 0),
        _Step(_AND, 0xF0),
        _Step(_IF_EQUAL, 0x60, "", _DROP),
        _Step(_LOAD_BYTE, 6),
        _Step(_IF_EQUAL, socket.IPPROTO_ICMPV6, "", _NO_ICMP),
        _Step(_LOAD_HALF, 40 + 8 + 40),
        _Step(_IF_EQUAL, port, _TAKE, ""),
        _Step(_LOAD_HALF, 40 + 8 + 42),
        _Step(_IF_EQUAL, port, _TAKE, _DROP),
        _Step(_IF_EQUAL, protocol, "", _DROP, label=_NO_ICMP),
        _Step(_LOAD_HALF, 40),
        _Step(_IF_EQUAL, port, _TAKE, ""),
        _Step(_LOAD_HALF, 42),
        _Step(_IF_EQUAL, port, _TAKE, _DROP),
    )


def _port_filter(version: int, port: int, protocol: int) -> bytes:
    """`struct sock_filter[]`: what comes from or goes to this port, or quotes such a packet, of one IP version."""
    steps = _steps(version, port, protocol)
    places = {step.label: index for index, step in enumerate(steps)} | {_TAKE: len(steps), _DROP: len(steps) + 1}

    def offset(index: int, label: str) -> int:
        return places[label] - index - 1 if label else 0

    program = [
        struct.pack("HBBI", step.code, offset(index, step.if_true), offset(index, step.if_false), step.value)
        for index, step in enumerate(steps)
    ]
    program += [struct.pack("HBBI", _RETURN, 0, 0, MAX_PACKET), struct.pack("HBBI", _RETURN, 0, 0, 0)]
    return b"".join(program)


class Sniffer:
    """The packets of one port. Whoever made it closes it."""

    def __init__(self, version: int, port: int, protocol: int = socket.IPPROTO_TCP) -> None:
        """Start to listen; `protocol` is IPPROTO_TCP or IPPROTO_UDP.

        Raises:
            PunchError: no-privilege, without CAP_NET_RAW.
        """
        try:
            kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
            self._socket = socket.socket(socket.AF_PACKET, kind, socket.htons(_ETH_P_ALL))
        except PermissionError:
            raise PunchError(Code.NO_PRIVILEGE, "sniffing needs CAP_NET_RAW") from None
        program = _port_filter(version, port, protocol)
        held = ctypes.create_string_buffer(program)
        attached = struct.pack("HP", len(program) // 8, ctypes.addressof(held))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, attached)

    async def capture(self) -> Captured:
        """The next packet; its first 2,048 bytes."""
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            if (captured := self.take()) is not None:
                return captured

    def take(self) -> Captured | None:
        """What was seen and not yet taken, one packet; None: nothing, or an interface went down."""
        try:
            data, (_, _, kind, hardware, *_) = self._socket.recvfrom(MAX_PACKET)
        except OSError:
            return None
        return Captured(data, kind == _PACKET_OUTGOING, hardware == _ARPHRD_LOOPBACK)

    def close(self) -> None:
        """In a thread: the kernel lets go of a packet socket after an RCU grace period, 10 to 30 ms here (measured), in
        which the loop would serve nobody. Harmless when it is closed."""
        if (fd := self._socket.detach()) >= 0:
            trio.lowlevel.start_thread_soon(lambda: os.close(fd), lambda _: None)
