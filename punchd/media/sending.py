"""Logical sends to datagrams: sequence numbers, the plan of fragments, clock samples, pacing.

A send that fits goes out without a fragment block, any other as fragments of one length but the last, all with the
same sequence number. No datagram is longer than `datagram_size`. Datagrams come in batches of equal lengths that one
GSO call can send; a batch has one clock sample.

The protocol has no congestion control, so whoever sends has to say how fast (`Pacer`). A lost fragment loses its send:
at 1 % loss and 1,200 bytes a datagram, one in seven sends of 16 KiB, and nearly all of 1 MiB.

Source: seed 004 §5, §9; media specification C09, C42, C43, D16, D23, D28, D30, D31.
"""

from __future__ import annotations

from typing import NamedTuple

from punchd.errors import PunchdError
from punchd.media.datagrams import (
    FRAGMENT_HEADER_SIZE,
    HEADER_SIZE,
    MAX_DATAGRAM_SIZE,
    MAX_U64,
    write_header,
)
from punchd.media.settings import DEFAULT_DATAGRAM_SIZE, MAX_BATCH_BYTES, MAX_BATCH_DATAGRAMS

QPF = 10**9  # the clock is in nanoseconds

_FIRST_BITS = 48
_APART = 1 << 32


class SequenceExhaustedError(PunchdError):
    """All 2^64 sequence numbers of a session are used: it takes a new connection id."""


class Sequences:
    """The sequence numbers of one tuple's sessions.

    The first is random, so that media that are still under way when the session changes are not taken for the next's.

    Args:
        entropy: 6 bytes.
    """

    def __init__(self, entropy: bytes) -> None:
        self._first = self._next = _random_first(entropy)

    def next(self) -> int:
        """The next one.

        Raises:
            SequenceExhaustedError: there is none.
        """
        if self._next > MAX_U64:
            raise SequenceExhaustedError("sequence numbers: all are used, expected a new connection id")
        self._next += 1
        return self._next - 1

    def renew(self, entropy: bytes) -> None:
        """Another session: another range, at least 2^32 away from all numbers of the old one."""
        first = _random_first(entropy)
        if self._first - _APART < first < self._next + _APART:
            first = (first + (1 << _FIRST_BITS - 1)) % (1 << _FIRST_BITS)
        self._first = self._next = first


def _random_first(entropy: bytes) -> int:
    if len(entropy) != _FIRST_BITS // 8:
        raise ValueError(f"entropy: expected {_FIRST_BITS // 8} bytes, got {len(entropy)}")
    return int.from_bytes(entropy, "little")


class Plan(NamedTuple):
    """How a logical send is cut.

    Attributes:
        total: of the send, bytes.
        step: payload of each datagram but the last, bytes.
        datagrams: how many.
        is_fragmented: whether they have fragment blocks.
        batch: datagrams of a full batch.
    """

    total: int
    step: int
    datagrams: int
    is_fragmented: bool
    batch: int


def plan(total: int, datagram_size: int = DEFAULT_DATAGRAM_SIZE, max_total: int | None = None) -> Plan:
    """How a send of `total` bytes is cut into datagrams of at most `datagram_size`.

    Args:
        max_total: what the other side takes at most, if it said so.

    Raises:
        ValueError: longer than that, or a size that no datagram of ours can have.
    """
    if not FRAGMENT_HEADER_SIZE < datagram_size <= MAX_DATAGRAM_SIZE:
        raise ValueError(
            f"datagram_size: expected {FRAGMENT_HEADER_SIZE + 1} to {MAX_DATAGRAM_SIZE}, got {datagram_size}"
        )
    if max_total is not None and total > max_total:
        raise ValueError(f"logical send: the other side takes at most {max_total} bytes, got {total}")
    batch = min(MAX_BATCH_BYTES // datagram_size, MAX_BATCH_DATAGRAMS)
    if total <= datagram_size - HEADER_SIZE:
        return Plan(total, total, 1, False, batch)
    step = datagram_size - FRAGMENT_HEADER_SIZE
    return Plan(total, step, -(-total // step), True, batch)


class LogicalSend:
    """One payload under way. Ask for batches until there is none.

    Args:
        payload: is not copied before it is sent, so it must not change.
    """

    def __init__(self, sequence: int, payload: bytes | bytearray | memoryview, cut: Plan) -> None:
        if len(payload) != cut.total:
            raise ValueError(f"payload: expected the plan's {cut.total} bytes, got {len(payload)}")
        self._sequence = sequence
        self._payload = memoryview(payload)
        self._plan = cut
        self._sent = 0

    def batch(self, qpc: int) -> list[bytearray]:
        """The next datagrams, all of one length but the last; empty when everything was sent.

        Args:
            qpc: the clock now, in nanoseconds modulo 2^64.
        """
        cut = self._plan
        last = min(self._sent + cut.batch, cut.datagrams)
        datagrams = [self._datagram(index * cut.step, qpc) for index in range(self._sent, last)]
        self._sent = last
        return datagrams

    def _datagram(self, offset: int, qpc: int) -> bytearray:
        cut = self._plan
        payload = self._payload[offset : offset + cut.step]
        datagram = bytearray(HEADER_SIZE + 16 * cut.is_fragmented + len(payload))
        total = cut.total if cut.is_fragmented else None
        datagram[write_header(datagram, 0, self._sequence, qpc, QPF, offset=offset, total=total) :] = payload
        return datagram


class Pacer:
    """When the next batch may go, for a given rate (the leaky bucket of ATM's GCRA).

    Args:
        bits_per_s: the rate, headers included.
        burst: bytes that may go at once after a pause.
    """

    def __init__(self, bits_per_s: float, burst: int = MAX_BATCH_BYTES) -> None:
        if bits_per_s <= 0:
            raise ValueError(f"bits_per_s: expected more than 0, got {bits_per_s}")
        self._s_per_byte = 8 / bits_per_s
        self._burst_s = burst * self._s_per_byte
        self._due = 0.0  # when all that was sent would have left at the rate

    def delay_s(self, now: float) -> float:
        """How long to wait before sending."""
        return max(0.0, self._due - self._burst_s - now)

    def spend(self, size: int, now: float) -> None:
        """So many bytes were sent."""
        self._due = max(self._due, now) + size * self._s_per_byte
