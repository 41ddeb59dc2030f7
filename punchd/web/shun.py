"""Floods: who sends far more than anybody needs is not heard for a while, and costs the process nothing meanwhile.

Theory of operation. A refusal costs nearly as much as an answer, so who asks often enough takes the processor from
everybody, however politely he is refused. `Census` counts by source, a second at a time; whoever passes the bound is
given to `Shunned`, which puts a filter on the sockets. From then on the kernel drops what comes from there before it
is queued: a SYN to a listening socket, a datagram to another. Connections that stand are not touched. After some
seconds the source is heard again, and counted anew.

The filter is a classic BPF program, which needs no privilege. It compares a source with at most 128 others one by one;
if more are to be shunned, the one that was first shunned is heard again.

A flood whose sources are forged, each for a few packets, cannot be told from a crowd here: that takes the network's
help. Who can forge one source can have it shunned, as he could before by filling everybody's queue.

Source: socket(7), SO_ATTACH_FILTER; Linux' Documentation/networking/filter.rst.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import trio

SHUN_S = 10.0  # a client whose NAT's other customers flood pulses again after 1, 2, 4 s, then 25 s: it is back in time
MOST = 128  # sources: the longest program has 11 instructions for each, and the kernel takes 4096
CENSUS_MOST = 65_536  # sources counted in one second

_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27  # <asm-generic/socket.h>; the socket module has no names for them
_LOAD_WORD, _LOAD_HALF, _JUMP_EQUAL, _RETURN = 0x20, 0x28, 0x15, 0x06  # <linux/bpf_common.h>
_NETWORK_HEADER = 0xFFF0_0000  # SKF_NET_OFF of <linux/filter.h>; the filter's own offsets begin at the transport header
_SOURCE4 = _NETWORK_HEADER + 12  # RFC 791
_SOURCE6 = _NETWORK_HEADER + 8  # RFC 8200
_SOURCE_PORT = 0  # of UDP and of TCP
_ALL = 0xFFFF_FFFF
_LENGTHS = {socket.AF_INET: (4, 6), socket.AF_INET6: (8, 18)}


class Census:
    """Counts by source within a second. Pure.

    Args:
        most: what a source may do in a second.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._second = -1
        self._counts: Counter[bytes] = Counter()

    def __len__(self) -> int:
        return len(self._counts)

    def count(self, sources: Sequence[bytes], now: float) -> list[bytes]:
        """One more for each of `sources` (as often as it is named); those of them that are over the bound."""
        counts = self._counts
        if int(now) != self._second or len(counts) > CENSUS_MOST:
            self._second = int(now)
            counts.clear()
        counts.update(sources)
        return [source for source in dict.fromkeys(sources) if counts[source] > self._most]


class Shunned:
    """Who is not heard on some sockets, which stay the caller's. `run` lets sources be heard again.

    Filters of before are taken away: a socket of the service manager outlives the process that put one there.

    A source is 4 bytes of an IPv4 address or 8 of an IPv6 one, or the whole address (4, 16) with 2 of a port.

    Args:
        notice: told of each source that is shunned from now on.
    """

    def __init__(
        self,
        sockets: Iterable[socket.socket],
        clock: Callable[[], float],
        notice: Callable[[bytes], None] = lambda _source: None,
    ) -> None:
        self._sockets = tuple(sockets)
        self._clock = clock
        self._notice = notice
        self._until: dict[bytes, float] = {}
        self._attach()

    def __contains__(self, source: bytes) -> bool:
        return source in self._until

    def __bool__(self) -> bool:
        return bool(self._until)

    def add(self, source: bytes) -> None:
        """Hear nothing of `source` for a while."""
        if source in self._until:
            return
        if len(self._until) >= MOST:
            del self._until[next(iter(self._until))]
        self._until[source] = self._clock() + SHUN_S
        self._attach()
        self._notice(source)

    async def run(self) -> None:
        """Let sources be heard again when their time is over. When it is cancelled, all are."""
        try:
            while True:
                await trio.sleep(1)
                now = self._clock()
                over = [source for source, until in self._until.items() if until <= now]
                if over:
                    self._forget(over)
        finally:
            self._forget(list(self._until))

    def _forget(self, sources: list[bytes]) -> None:
        for source in sources:
            del self._until[source]
        self._attach()

    def _attach(self) -> None:
        for sock in self._sockets:
            if not self._until:
                with contextlib.suppress(OSError):  # there is none
                    sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
                continue
            compiled = program(self._until, sock.family)
            size = len(compiled) // 8
            buffer = ctypes.create_string_buffer(compiled)
            filtering = struct.pack("HP", size, ctypes.addressof(buffer))  # struct sock_fprog
            with contextlib.suppress(OSError):  # no memory for options, or no such kernel: then it costs what it costs
                sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filtering)


def program(sources: Iterable[bytes], family: int) -> bytes:
    """A filter for a socket of `family` that drops what comes from `sources` and lets all else pass.

    Sources of the other family are left out. What a socket for both families gets over IPv4 passes.
    """
    lines: list[tuple[int, int, int, int]] = []
    for source in sources:
        if len(source) not in _LENGTHS[socket.AddressFamily(family)]:
            continue
        start = _SOURCE4 if family == socket.AF_INET else _SOURCE6
        size = len(source) // 4 * 4  # of the address; what is left over is a port
        compared = [
            (_LOAD_WORD, start + place, int.from_bytes(source[place : place + 4], "big")) for place in range(0, size, 4)
        ]
        if source[size:]:
            compared.append((_LOAD_HALF, _SOURCE_PORT, int.from_bytes(source[size:], "big")))
        for number, (load, where, value) in enumerate(compared):
            rest = 2 * (len(compared) - number - 1) + 1  # to the next source
            lines += [(load, 0, 0, where), (_JUMP_EQUAL, 0, rest, value)]
        lines.append((_RETURN, 0, 0, 0))
    lines.append((_RETURN, 0, 0, _ALL))
    return b"".join(struct.pack("HBBI", *line) for line in lines)
