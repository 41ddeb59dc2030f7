"""Batches of datagrams to a socket, in the fastest way that works there.

    way         what                                         left for the next way when
    gso         one sendmsg with UDP_SEGMENT for a batch     the kernel has none (ENOPROTOOPT), or the device or the
                                                             path can do nothing with it (EIO, EINVAL, EMSGSIZE)
    sendmmsg    one call, many datagrams                     the C library or the kernel has none
    send        one call for each datagram                   -

EMSGSIZE first of all means that the path takes shorter datagrams: then the MTU is read again and the caller is asked
to cut anew (`TooLongError`). It may also be an ICMP message about an earlier batch, and this one is all right: so a
batch is tried again before a way is given up. Only GSO and sockets that ask for it (IP_PMTUDISC_DO) get it at all,
since the kernel else fragments.

Errors that ICMP causes mean nothing (anybody on the way can forge one): the datagram is tried once more and then counts
as lost. Nothing waits, whatever mode the socket is in.

Resource handling: the socket is the caller's and stays as it is.
"""

from __future__ import annotations

import errno
import socket
import struct
from contextlib import suppress

from punchd.media.datagrams import FRAGMENT_HEADER_SIZE
from punchd.media.fast import Fast
from punchd.media.mmsg import UDP_SEGMENT, Train, Unavailable, raw_name
from punchd.media.settings import MAX_BATCH_DATAGRAMS

MOST_SEGMENTS = 64  # of one GSO send: UDP_MAX_SEGMENTS before Linux 6.9
_IP_MTU = 14
_IPV6_MTU = 24
_HEADERS = {socket.AF_INET: 28, socket.AF_INET6: 48}  # IP and UDP
_LEAST_SIZE = FRAGMENT_HEADER_SIZE + 64
_NO_GSO = frozenset({errno.EIO, errno.EINVAL, errno.ENOPROTOOPT, errno.EOPNOTSUPP})
SOFT_ERRORS = frozenset(
    {
        errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN, errno.EPROTO,
        errno.ENOPROTOOPT, errno.EPERM, errno.EACCES, errno.ENOBUFS, errno.ETIMEDOUT, errno.EMSGSIZE,
    }
)  # fmt: skip
_SEGMENT = struct.Struct("@H")

Address = tuple[str | int, ...]


class TooLongError(Exception):
    """The datagrams are to be cut anew, with the outlet's new `size`."""


class Outlet:
    """Sends what stands in a buffer to one address.

    Attributes:
        size: longest datagram that the path takes, as far as it is known; bytes of UDP payload.
        way: the one in use.
        unsent: datagrams that the system did not take.

    Args:
        buffer: of a batch; stays.
        address: None: the socket is connected.
        size: longest datagram that is wanted.
    """

    def __init__(
        self, sock: socket.socket, buffer: bytearray, address: Address | None, fast: Fast, *, size: int
    ) -> None:
        self._socket = sock
        self._view = memoryview(buffer)
        self._address = address
        self._name = b"" if address is None else raw_name(sock.family, address)
        self._train: Train | None = None
        if fast.mmsg:
            with suppress(Unavailable):
                self._train = Train(buffer, MAX_BATCH_DATAGRAMS)
        self._slow = "send" if self._train is None else "sendmmsg"
        self.way = "gso" if fast.gso and _has_gso(sock) else self._slow
        self._tries = 0
        self.unsent = 0
        self.size = size
        self.size = min(size, self._path_size())

    def send(self, start: int, end: int, segment: int) -> int:
        """Sends the datagrams of `segment` bytes (the last maybe shorter) that stand from `start` to `end`.

        Returns:
            Where the first one begins that was not sent.

        Raises:
            BlockingIOError: no room in the socket's buffer.
            TooLongError: `size` is smaller now.
            OSError: the socket cannot be used.
        """
        try:
            sent = self._send(start, end, segment)
        except BlockingIOError:
            raise
        except OSError as error:
            return self._survive(error, start, end, segment)
        self._tries = 0
        return sent

    def _send(self, start: int, end: int, segment: int) -> int:
        if self.way == "gso":
            end = min(end, start + MOST_SEGMENTS * segment)
            ancillary = [(socket.IPPROTO_UDP, UDP_SEGMENT, _SEGMENT.pack(segment))] if end - start > segment else []
            self._sendmsg(start, end, ancillary)
            return end
        if self._train is not None:
            try:
                return self._train.send(self._socket.fileno(), start, end, segment, self._name)
            except Unavailable:
                self._train, self.way, self._slow = None, "send", "send"
        end = min(end, start + segment)
        self._sendmsg(start, end, [])
        return end

    def _sendmsg(self, start: int, end: int, ancillary: list[tuple[int, int, bytes]]) -> None:
        data = [self._view[start:end]]
        if self._address is None:
            self._socket.sendmsg(data, ancillary, socket.MSG_DONTWAIT)
        else:
            self._socket.sendmsg(data, ancillary, socket.MSG_DONTWAIT, self._address)

    def _survive(self, error: OSError, start: int, end: int, segment: int) -> int:
        self._tries += 1
        is_gso = self.way == "gso" and end - start > segment
        if error.errno == errno.EMSGSIZE:
            self.size = min(self.size, self._path_size())
            if self.size < segment:
                self._tries = 0
                raise TooLongError
        if self._tries == 1 and error.errno in SOFT_ERRORS:
            return start
        self._tries = 0
        if is_gso and (error.errno in _NO_GSO or error.errno == errno.EMSGSIZE):
            self.way = self._slow
            return start
        if error.errno in SOFT_ERRORS:
            self.unsent += 1
            return min(start + segment, end)
        raise error

    def _path_size(self) -> int:
        """What the path takes, as the kernel knows it of a connected socket."""
        is_ipv6 = self._socket.family == socket.AF_INET6
        level, option = (socket.IPPROTO_IPV6, _IPV6_MTU) if is_ipv6 else (socket.IPPROTO_IP, _IP_MTU)
        try:
            mtu = self._socket.getsockopt(level, option)
        except OSError:
            return self.size
        return max(mtu - _HEADERS[self._socket.family], _LEAST_SIZE)


def _has_gso(sock: socket.socket) -> bool:
    """A kernel without it would send a batch as one datagram."""
    try:
        return sock.getsockopt(socket.IPPROTO_UDP, UDP_SEGMENT) >= 0
    except OSError:
        return False
