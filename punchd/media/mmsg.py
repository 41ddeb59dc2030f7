"""recvmmsg(2) and sendmmsg(2), which Python does not have: many datagrams for one system call.

The structures are those of <sys/socket.h>, laid out by ctypes for this machine. They are made once; a call costs
resetting the lengths that the kernel wrote, which is one copy of the whole array.

Nothing here waits (MSG_DONTWAIT) or owns a descriptor.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

UDP_SEGMENT = 103  # <linux/udp.h>
UDP_GRO = 104

_NAME_SIZE = 28  # sockaddr_in6
_CONTROL_SIZE = 128
_CMSG = struct.Struct("@Nii")  # cmsghdr
_WORD = ctypes.sizeof(ctypes.c_size_t)
_U32 = struct.Struct("@I")
_FAMILY = struct.Struct("@H")


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Msghdr(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("iov", ctypes.c_void_p),
        ("iov_length", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Mmsghdr(ctypes.Structure):
    _fields_ = (("header", _Msghdr), ("length", ctypes.c_uint32))


_SIZE = ctypes.sizeof(_Mmsghdr)
_AT_LENGTH = _Mmsghdr.length.offset
_AT_CONTROL = _Msghdr.control_length.offset


class Unavailable(Exception):  # noqa: N818 (a fact, which leads to the other path)
    """The C library or the kernel has no such call."""


class Arrival(NamedTuple):
    """What stands in a slot, or in some that follow each other.

    Attributes:
        data: good until the next call; ends where the last datagram ends.
        segment: length of each datagram but the last; 0: there is one datagram.
        source: raw sockaddr.
        distance: from one datagram to the next; 0: they follow each other.
    """

    data: memoryview
    segment: int
    source: bytes
    distance: int = 0

    @property
    def size(self) -> int:
        """Of all datagrams together, bytes; of a last one in a slot of its own as much as of the others."""
        return len(self.data) if not self.distance else -(-len(self.data) // self.distance) * self.segment


class Slots:
    """Memory for so many messages of 64 KiB, and the call that fills it.

    Args:
        with_names: whether sources are asked for.

    Raises:
        Unavailable: there is no recvmmsg.
    """

    # A power of two as distance would have all slots share the same few cache sets.
    STRIDE = 65_536 + 192

    def __init__(self, count: int, *, with_names: bool) -> None:
        self._call = _function("recvmmsg")
        self._count = count
        self._with_names = with_names
        self._memory = bytearray(count * self.STRIDE)
        self._view = memoryview(self._memory)
        self._names = bytearray(count * _NAME_SIZE)
        self._controls = bytearray(count * _CONTROL_SIZE)
        iovecs = (_Iovec * count)()
        headers = bytearray(count * _SIZE)
        base, names, controls = (_address(one) for one in (self._memory, self._names, self._controls))
        for number, header in enumerate((_Mmsghdr * count).from_buffer(headers)):
            iovecs[number] = _Iovec(base + number * self.STRIDE, 65_536)
            header.header = _Msghdr(
                names + number * _NAME_SIZE if with_names else None, _NAME_SIZE if with_names else 0,
                ctypes.addressof(iovecs) + number * ctypes.sizeof(_Iovec), 1,
                controls + number * _CONTROL_SIZE, _CONTROL_SIZE, 0,
            )  # fmt: skip
        self._iovecs = iovecs
        self._fresh = bytes(headers)
        self._headers = headers
        self._headers_at = _address(headers)
        self._lengths = memoryview(headers).cast("I")[_AT_LENGTH // 4 :]
        self._control_lengths = memoryview(headers).cast("L")[_AT_CONTROL // _WORD :]
        self._every, self._every_control = _SIZE // 4, _SIZE // _WORD
        self._filled = count

    def receive(self, fd: int) -> Iterator[Arrival]:
        """What has come, as much as there are slots.

        Raises:
            BlockingIOError: nothing.
            Unavailable: the kernel has no such call.
            OSError: as recvmsg does.
        """
        self._headers[: self._filled * _SIZE] = self._fresh[: self._filled * _SIZE]
        filled = self._call(fd, self._headers_at, self._count, socket.MSG_DONTWAIT, None)
        if filled < 0:
            self._filled = 0
            raise _error()
        self._filled = filled
        return self._arrivals(filled)

    def _arrivals(self, filled: int) -> Iterator[Arrival]:
        """Datagrams of one length and source in slots that follow each other are one arrival."""
        lengths = self._lengths[: filled * self._every : self._every].tolist()
        controls = self._control_lengths[: filled * self._every_control : self._every_control].tolist()
        number = 0
        while number < filled:
            length, control = lengths[number], controls[number]
            source = self._source(number)
            start = number * self.STRIDE
            segment = self._segment(number * _CONTROL_SIZE, control) if control else 0
            number += 1
            if segment or not length:
                yield Arrival(self._view[start : start + length], segment, source)
                continue
            last = length
            while number < filled and last == length and 0 < lengths[number] <= length and not controls[number]:
                if self._with_names and self._source(number) != source:
                    break
                last = lengths[number]
                number += 1
            end = (number - 1) * self.STRIDE + last
            is_one = end - start == length
            yield Arrival(self._view[start:end], 0 if is_one else length, source, 0 if is_one else self.STRIDE)

    def _source(self, number: int) -> bytes:
        return bytes(self._names[number * _NAME_SIZE : (number + 1) * _NAME_SIZE]) if self._with_names else b""

    def _segment(self, at: int, size: int) -> int:
        """Of the control messages at byte `at`; the socket's owner may have asked for others."""
        end = at + min(size, _CONTROL_SIZE)
        while at + _CMSG.size + _U32.size <= end:
            length, level, kind = _CMSG.unpack_from(self._controls, at)
            if (level, kind) == (socket.IPPROTO_UDP, UDP_GRO):
                return int(_U32.unpack_from(self._controls, at + _CMSG.size)[0])
            at += max(-(-length // _WORD) * _WORD, _CMSG.size)
        return 0


class Train:
    """Sends the datagrams that stand in a buffer one after the other.

    Args:
        buffer: stays as long as this is used, and is not resized.

    Raises:
        Unavailable: there is no sendmmsg.
    """

    def __init__(self, buffer: bytearray, most: int) -> None:
        self._call = _function("sendmmsg")
        self._buffer = buffer
        self._base = _address(buffer)
        self._iovecs = (_Iovec * most)()
        self._headers = (_Mmsghdr * most)()
        self._name: ctypes.Array[ctypes.c_char] | None = None
        for number in range(most):
            self._headers[number].header.iov = ctypes.addressof(self._iovecs) + number * ctypes.sizeof(_Iovec)
            self._headers[number].header.iov_length = 1
        self._segment = 0
        self._named = b""

    def send(self, fd: int, start: int, end: int, segment: int, name: bytes) -> int:
        """Sends the datagrams of `segment` bytes from `start` to `end`, the last maybe shorter.

        Args:
            start: a multiple of `segment`.
            name: raw sockaddr; empty: the socket is connected.

        Returns:
            Where the first datagram begins that was not sent.

        Raises:
            BlockingIOError, OSError: about the first datagram.
        """
        if segment != self._segment or name != self._named:
            self._lay_out(segment, name)
        first, after = start // segment, min(-(-end // segment), len(self._iovecs))
        last = self._iovecs[after - 1]
        last.length = min(segment, end - (after - 1) * segment)
        at = ctypes.addressof(self._headers) + first * _SIZE
        sent = self._call(fd, at, after - first, socket.MSG_DONTWAIT)
        last.length = segment
        if sent < 0:
            raise _error()
        return min(start + int(sent) * segment, end)

    def _lay_out(self, segment: int, name: bytes) -> None:
        self._segment, self._named = segment, name
        self._name = ctypes.create_string_buffer(name, len(name)) if name else None
        at = None if self._name is None else ctypes.addressof(self._name)
        for number, header in enumerate(self._headers):
            self._iovecs[number].base = self._base + number * segment
            self._iovecs[number].length = segment
            header.header.name = at
            header.header.name_length = len(name)


def raw_name(family: int, address: tuple[str | int, ...]) -> bytes:
    """A sockaddr_in or sockaddr_in6 of an address as Python's sockets give it."""
    host, port, *more = address
    packed_port = struct.pack("!H", port)
    if family == socket.AF_INET:
        return _FAMILY.pack(family) + packed_port + socket.inet_pton(family, str(host)) + bytes(8)
    flow, scope = (*map(int, more), 0, 0)[:2]
    plain = socket.inet_pton(family, str(host).partition("%")[0])
    return _FAMILY.pack(family) + packed_port + struct.pack("!I", flow) + plain + struct.pack("@I", scope)


def is_same_source(one: bytes, other: bytes) -> bool:
    """Whether two sockaddrs have the same address and port; flow labels and padding do not count."""
    if one[:4] != other[:4]:
        return False
    return one[8:24] == other[8:24] if _FAMILY.unpack_from(one)[0] == socket.AF_INET6 else one[4:8] == other[4:8]


def _function(name: str) -> Any:
    try:
        function = getattr(ctypes.CDLL(None, use_errno=True), name)
    except AttributeError:
        raise Unavailable(name) from None
    function.restype = ctypes.c_int
    more = (ctypes.c_void_p,) if name == "recvmmsg" else ()
    function.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, *more)
    return function


def _address(buffer: bytearray) -> int:
    return ctypes.addressof((ctypes.c_char * len(buffer)).from_buffer(buffer))


def _error() -> Exception:
    number = ctypes.get_errno()
    if number == errno.ENOSYS:
        return Unavailable("ENOSYS")
    return OSError(number, os.strerror(number))
