"""Datagrams from a socket, as many at a time as the kernel gives.

    asked for            if it is not there
    UDP_GRO              datagrams come one by one; also where the path does not merge them
    recvmmsg             recvmsg, one slot for each call
    SO_MEMINFO           `drops` stays 0

An ICMP error that an earlier send provoked comes out of a receive; anybody on the way can forge one, so it means
nothing here. Nothing waits, whatever mode the socket is in.

Resource handling: the socket is the caller's. UDP_GRO is set back by `close`, since a program that does not expect
merged datagrams would take them for long ones; a larger receive buffer stays.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from contextlib import suppress

from punchd.media.fast import Fast
from punchd.media.mmsg import UDP_GRO, Arrival, Slots, Unavailable, raw_name
from punchd.media.udp_out import SOFT_ERRORS

SLOTS = 32
WANTED_BUFFER = 4 << 20  # bytes; the kernel gives net.core.rmem_max at most, and counts twice
_SO_MEMINFO = 55  # <asm-generic/socket.h>, Linux 4.12
_MEMINFO = struct.Struct("@9I")  # <linux/sock_diag.h>; the last is SK_MEMINFO_DROPS
_ANCILLARY_SIZE = socket.CMSG_SPACE(4) + 64  # the owner may have asked for other messages
_U32 = struct.Struct("@I")


class Inlet:
    """The receiving side of a socket.

    Args:
        with_names: whether the socket hears several sources.
    """

    def __init__(self, sock: socket.socket, fast: Fast, *, with_names: bool) -> None:
        self._socket = sock
        self._with_names = with_names
        self._drops_before = self._count_drops()
        self._merged_before: int | None = None
        self._slots: Slots | None = None
        self._slot = memoryview(bytearray(0))
        if fast.mmsg:
            with suppress(Unavailable):
                self._slots = Slots(SLOTS, with_names=with_names)
        if fast.gro:
            with suppress(OSError):
                merged = sock.getsockopt(socket.IPPROTO_UDP, UDP_GRO)
                sock.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
                self._merged_before = merged
        with suppress(OSError):
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) < WANTED_BUFFER:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, WANTED_BUFFER)

    @property
    def path(self) -> str:
        """The way in use: `gro+recvmmsg` at best."""
        call = "recvmsg" if self._slots is None else "recvmmsg"
        return call if self._merged_before is None else f"gro+{call}"

    @property
    def room(self) -> int:
        """What the socket's buffer holds, as the kernel counts: memory, which is more than payload."""
        return self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)

    @property
    def drops(self) -> int:
        """What the kernel dropped since this began: the buffer was full, or a socket filter said so.

        Datagrams; of those that GRO has put together, all count as one.
        """
        return (self._count_drops() - self._drops_before) % (1 << 32)

    def receive(self) -> Iterable[Arrival]:
        """What has come. Good until the next call.

        Raises:
            BlockingIOError: nothing.
            OSError: the socket cannot be used.
        """
        try:
            if self._slots is not None:
                try:
                    return self._slots.receive(self._socket.fileno())
                except Unavailable:
                    self._slots = None
            return (self._receive_one(),)
        except (ConnectionError, TimeoutError):
            return ()
        except BlockingIOError:
            raise
        except OSError as error:
            if error.errno in SOFT_ERRORS:
                return ()
            raise

    def close(self) -> None:
        """Sets the socket's option back. Again: nothing."""
        if self._merged_before is not None:
            with suppress(OSError):  # closed by its owner
                self._socket.setsockopt(socket.IPPROTO_UDP, UDP_GRO, self._merged_before)
            self._merged_before = None

    def _receive_one(self) -> Arrival:
        if not self._slot:
            self._slot = memoryview(bytearray(Slots.STRIDE))
        size, ancillary, _, address = self._socket.recvmsg_into([self._slot], _ANCILLARY_SIZE, socket.MSG_DONTWAIT)
        segment = 0
        for level, kind, data in ancillary:
            if (level, kind) == (socket.IPPROTO_UDP, UDP_GRO):
                (segment,) = _U32.unpack_from(data)
        source = raw_name(self._socket.family, address) if self._with_names else b""
        return Arrival(self._slot[:size], segment, source)

    def _count_drops(self) -> int:
        try:
            told = self._socket.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
        except OSError:
            return 0
        return int(_MEMINFO.unpack(told)[-1]) if len(told) == _MEMINFO.size else 0
