"""A UDP socket as hole punching needs it: a TTL for single packets, a look before reading, a filter on parting.

Theory of operation. Until the hole is proven, the socket is not connected and the daemon reads it. Then it becomes the
application's, and what lies in its queue becomes the application's, too. So the daemon never reads ahead: it looks at
the first datagram (MSG_PEEK) and removes it only when it is the daemon's own business. On parting, a classic BPF
filter first stops late probes at the door, then the socket is connected, so that no stranger's datagram comes in any
more, and then what already came and is not the peer's is removed from the head of the queue. A late probe that stands
behind a datagram of the peer's application (it was overtaken within the last millisecond) stays: removing it would
take the application's datagram with it.

The filter drops datagrams of 30 bytes and more that start with `PCH1`; without the test of the length, a load beyond
the end would drop every datagram shorter than four bytes. It sees the UDP header, so offsets are 8 further.

ICMP errors. An unconnected socket hears of none unless it asks (IP_RECVERR); then each waits in a queue of its own,
with who sent it and which destination it is about, and besides makes the next call fail once, whatever that call is
about. So a failed send is tried again. On parting the queue is emptied and closed: the application never asked.

Source: line protocol §5; socket(7), udp(7), ip(7), linux/errqueue.h, linux/filter.h; measured on Linux 6.1 and 6.18.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from dataclasses import dataclass
from ipaddress import ip_address

import trio

from punchd.endpoint import Endpoint, IPAddress
from punchd.errors import Code, DecodeError, PunchError
from punchd.kernel.passed import PassedSocket
from punchd.kernel.raw import REFUSED
from punchd.technique import Complaint
from punchd.wire import icmp, probe

MAX_DATAGRAM = 2048  # bytes; longer ones are nobody's probes and STUN answers, and peeking does not shorten them
_UDP_HEADER = 8
_LOOK = socket.MSG_PEEK | socket.MSG_DONTWAIT
_MOST_QUEUED = 10_000  # datagrams; far more than a receive buffer holds
_SO_ATTACH_FILTER = 26  # asm-generic/socket.h; the socket module has no name for it
# in.h and in6.h, errqueue.h
_IP_RECVERR, _IPV6_RECVERR = 11, 25
_EXTENDED_ERR = struct.Struct("IBBBxII")  # errno, origin, type, code, info, data; then the sender's sockaddr
_FROM_ICMP = frozenset({2, 3})  # SO_EE_ORIGIN_ICMP, SO_EE_ORIGIN_ICMP6
_ERROR_SPACE = 128  # bytes; _EXTENDED_ERR and a sockaddr_in6 fit
# Errors of earlier packets that may make a send fail: one for each candidate port that a card can name.
_SEND_TRIES = 16
# Packets may get lost; these say that this one did, and the techniques repeat theirs anyway.
_LOST = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ECONNREFUSED, errno.EHOSTUNREACH})


def _late_probe_filter() -> bytes:
    """`struct sock_filter[]`: drop if at least SIZE bytes and starting with MAGIC, else pass."""
    load_length, load_word = 0x80, 0x20  # BPF_LD | BPF_W | BPF_LEN, BPF_LD | BPF_W | BPF_ABS
    jump_ge, jump_eq, give_back = 0x35, 0x15, 0x06  # BPF_JMP | BPF_JGE or BPF_JEQ | BPF_K, BPF_RET | BPF_K
    program = (
        (load_length, 0, 0, 0),
        (jump_ge, 0, 3, _UDP_HEADER + probe.SIZE),
        (load_word, 0, 0, _UDP_HEADER),
        (jump_eq, 0, 1, int.from_bytes(probe.MAGIC, "big")),
        (give_back, 0, 0, 0),
        (give_back, 0, 0, 0xFFFFFFFF),
    )
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)


_FILTER = ctypes.create_string_buffer(_late_probe_filter())
_FILTER_PROGRAM = struct.pack("HP", len(_late_probe_filter()) // 8, ctypes.addressof(_FILTER))


@dataclass(frozen=True, slots=True)
class Complained:
    """An ICMP error that came, and to whom the packet went that it is about."""

    complaint: Complaint
    about: IPAddress


class UdpSocket:
    """One bound UDP socket. Whoever made it closes it, unless `part` gave it away."""

    def __init__(self, local: Endpoint, passed: PassedSocket | None = None) -> None:
        """Bind to `local`; port 0 lets the kernel choose.

        Args:
            local: where; of an application's socket that is bound already, where that is.
            passed: an application's socket to use instead of a new one. It has other holders, and what they do to it
                is seen to in every call.

        Raises:
            PunchError: port-in-use; network, for anything else that the kernel has against it.
        """
        self._ipv6 = local.ip.version == 6
        self._parts_blocking = passed is None or passed.is_blocking
        if passed is None:
            family = socket.AF_INET6 if self._ipv6 else socket.AF_INET
            self._socket = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        else:
            self._socket = passed.borrow()
        try:
            self._hear_errors(True)
            if passed is None or passed.bound is None:
                if self._ipv6:
                    self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                self._socket.bind(local.sockaddr)
                local = Endpoint.from_sockaddr(self._socket.getsockname())
            self.local = local
        except OSError as error:
            self._socket.close()
            taken = error.errno == errno.EADDRINUSE
            raise PunchError(Code.PORT_IN_USE if taken else Code.NETWORK, f"bind {local}: {_reason(error)}") from None

    def send(self, data: bytes, to: Endpoint, ttl: int | None = None) -> None:
        """Send one datagram; None is the system's TTL. What a full queue swallows counts as lost on the way.

        Raises:
            PunchError: refused, when a local firewall forbids it; network, for anything else, e.g. no route.
        """
        level, option = (
            (socket.IPPROTO_IPV6, socket.IPV6_HOPLIMIT) if self._ipv6 else (socket.IPPROTO_IP, socket.IP_TTL)
        )
        control = [] if ttl is None else [(level, option, struct.pack("i", ttl))]
        for _ in range(_SEND_TRIES):
            try:
                self._socket.sendmsg([data], control, socket.MSG_DONTWAIT, to.sockaddr)
            except OSError as error:
                failure = error
            else:
                return
        if failure.errno in (errno.EPERM, errno.EACCES):
            text = f"send to {to}: {REFUSED.format(error=_reason(failure), protocol='UDP')}"
            raise PunchError(Code.REFUSED, text)
        if failure.errno not in _LOST:
            raise PunchError(Code.NETWORK, f"send to {to}: {_reason(failure)}")

    async def readable(self) -> None:
        """A datagram is there, or an error to be fetched by `peek`."""
        await trio.lowlevel.wait_readable(self._socket)

    def peek(self) -> tuple[bytes, Endpoint] | None:
        """The first datagram in the queue, which stays there; its first 2,048 bytes. None: there is none."""
        try:
            data, source = self._socket.recvfrom(MAX_DATAGRAM, _LOOK)
        except BlockingIOError:
            return None
        except OSError:
            return None  # a pending ICMP error, fetched and thereby gone
        return data, Endpoint.from_sockaddr(source)

    def complained(self) -> Complained | None:
        """The next ICMP error, if one waits. It may be about any packet of this port, and anybody can forge one."""
        try:
            _, control, _, to = self._socket.recvmsg(0, _ERROR_SPACE, socket.MSG_ERRQUEUE)
        except OSError:
            return None
        for level, kind, data in control:
            if (level, kind) in ((socket.IPPROTO_IP, _IP_RECVERR), (socket.IPPROTO_IPV6, _IPV6_RECVERR)):
                return self._complained(data, to)
        return None

    def _complained(self, data: bytes, to: tuple[object, ...]) -> Complained | None:
        _, origin, number, code, _, _ = _EXTENDED_ERR.unpack_from(data)
        meaning = icmp.meaning_of(number, code, 6 if self._ipv6 else 4)
        at = _EXTENDED_ERR.size + (8 if self._ipv6 else 4)  # behind family, port and, for IPv6, the flow
        router = data[at : at + (16 if self._ipv6 else 4)]
        if origin not in _FROM_ICMP or meaning is None:
            return None
        try:
            destination = Endpoint.from_sockaddr(to)
        except (DecodeError, ValueError):
            return None
        return Complained(Complaint(meaning, ip_address(router), destination.port), destination.ip)

    def _hear_errors(self, wanted: bool) -> None:
        level, option = (socket.IPPROTO_IPV6, _IPV6_RECVERR) if self._ipv6 else (socket.IPPROTO_IP, _IP_RECVERR)
        self._socket.setsockopt(level, option, int(wanted))

    def discard(self) -> None:
        """Remove the first datagram from the queue."""
        try:
            self._socket.recv(1, socket.MSG_DONTWAIT)  # a recv(0) never reaches the kernel
        except OSError:
            return

    def part(self, remote: Endpoint) -> int:
        """Connect to `remote` and give the descriptor away; the caller owns it, this object is empty.

        The socket is blocking (an application's own one as it was), its TTL the system's, and filters late probes.

        Raises:
            PunchError: network, when the kernel refuses; the socket is still ours then.
        """
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, _FILTER_PROGRAM)
            self._hear_errors(False)  # which empties their queue as well
            self._socket.connect(remote.sockaddr)
        except OSError as error:
            raise PunchError(Code.NETWORK, f"connect to {remote}: {_reason(error)}") from None
        self._clear_queue(remote)
        self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # fetched and thereby gone
        self._socket.setblocking(self._parts_blocking)
        return self._socket.detach()

    def _clear_queue(self, remote: Endpoint) -> None:
        """Remove what stands before the first datagram of the peer's application."""
        for _ in range(_MOST_QUEUED):
            try:
                data, source = self._socket.recvfrom(MAX_DATAGRAM, _LOOK)
            except BlockingIOError:
                return
            except OSError:
                continue  # a pending ICMP error, gone now; the queue stands behind it
            if Endpoint.from_sockaddr(source) == remote and not probe.is_probe(data):
                return
            self.discard()

    def close(self) -> None:
        self._socket.close()


def _reason(error: OSError) -> str:
    number = error.errno or 0
    return f"{errno.errorcode.get(number, number)} {os.strerror(number)}"
