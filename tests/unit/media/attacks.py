"""What strangers may send, and what it makes a process hold. An attack makes a datagram of a number, always another."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

from punchd.media.counters import Count
from punchd.media.datagrams import Ack, ConnectionId, Syn, SynAck, encode
from punchd.media.options import Options
from tests.unit.media.parts import MIB, data, fragment

Attack = Callable[[int], bytes]

# By name: what is sent to a receiver, from the tuple of its session, and what is counted then.
ON_RECEIVER: dict[str, tuple[Attack, Count]] = {
    "sequence numbers": (lambda number: data(number << 40), Count.COMPLETED),
    "sends that never end": (lambda number: fragment(number << 40, 5, 10, b"x"), Count.EVICTIONS),
    "lengths of 2^63": (lambda number: fragment(number, number, 2**63 + number, b"x"), Count.TOTAL_TOO_LARGE),
    "ends beyond 2^64": (lambda number: fragment(number, 2**64 - 1, 64 * MIB, b"xx"), Count.BEYOND_END),
    "claims of 64 MiB": (lambda number: fragment(number, 0, 64 * MIB, b"x"), Count.EVICTIONS),
    "overlaps": (lambda number: fragment(1, 7 + number * 61 % 40_000, 50_000, b"evil" * 25), Count.OVERLAP),
    "single bytes": (lambda number: fragment(1, 2 + 2 * number, MIB, b"x"), Count.TOO_MANY_INTERVALS),
    "connection ids": (lambda number: encode(ConnectionId(b"forged %d" % number)), Count.FLUSHES_REFUSED),
    "SYN-ACKs": (lambda number: encode(SynAck(True, b"forged %d" % number)), Count.FLUSHES_REFUSED),
    "SYNs": (lambda number: encode(Syn(b"forged %d" % number)), Count.REFUSED),
    "unknown flags": (lambda number: (number % 60_000 + 0x1001).to_bytes(2, "little") + bytes(98), Count.UNKNOWN_FLAG),
}  # fmt: skip

# What is sent to a responder, each from another tuple.
ON_RESPONDER: dict[str, tuple[Attack, Count]] = {
    "SYNs": (lambda number: encode(Syn(b"forged %d" % number, Options(1, 2, 3))), Count.HALF_OPEN_EVICTED),
    "SYNs without an id": (lambda number: encode(Syn(b"")), Count.HALF_OPEN_EVICTED),
    "ACKs": (lambda number: encode(Ack(b"forged %d" % number)), Count.ACK_MISMATCH),
    "connection ids": (lambda number: encode(ConnectionId(b"forged %d" % number)), Count.UNKNOWN_TUPLE),
    "STARTs": (lambda number: b"START", Count.REFUSED),
    "media": (data, Count.UNEXPECTED),
}


class Heap:
    """Bytes that Python has allocated since this began, at most."""

    def __enter__(self) -> Heap:
        tracemalloc.start()
        self._before = tracemalloc.get_traced_memory()[0]
        return self

    def __exit__(self, *_: object) -> None:
        tracemalloc.stop()

    def peak(self) -> int:
        """Since the last time that it was asked for."""
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        return peak - self._before
