"""Replies from the address that was asked.

A UDP socket that is bound to every address (0.0.0.0, [::]) replies from whatever address the routing table prefers, and
a client behind a NAT drops what comes from another than it asked. So the kernel is asked to say with each datagram
which address it came to, and is told so with the reply.

Source: ip(7), ipv6(7), RFC 3542 §6; linux/in.h, linux/ipv6.h.
"""

from __future__ import annotations

import socket
import struct

Control = list[tuple[int, int, bytes]]

_IP_PKTINFO = 8  # the socket module has no name for it before Python 3.14
_INFO4 = struct.Struct("=i4s4s")  # struct in_pktinfo: interface, local address, destination in the header
_INFO6 = struct.Struct("=16si")  # struct in6_pktinfo: destination, interface
SPACE = socket.CMSG_SPACE(max(_INFO4.size, _INFO6.size))  # for recvmsg


def ask(sock: socket.socket) -> None:
    """Have the kernel say, with each datagram of a UDP socket, which address it came to."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)


def reply(level: int, kind: int, info: bytes) -> tuple[int, int, bytes]:
    """What came with a datagram, made into what goes with its reply.

    The interface is left to the routing table, except for link-local addresses, which mean nothing without it.
    """
    if level == socket.IPPROTO_IP:
        _, local, _ = _INFO4.unpack(info)
        return level, kind, _INFO4.pack(0, local, bytes(4))
    local, interface = _INFO6.unpack(info)
    is_link_local = local[0] == 0xFE and local[1] & 0xC0 == 0x80
    return level, socket.IPV6_PKTINFO, _INFO6.pack(local, interface if is_link_local else 0)
