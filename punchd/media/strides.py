"""Batches of equal datagrams in one buffer, written and read with the standard library.

A batch is what one GSO call sends and what one GRO call brings: datagrams of `segment` bytes one after the other, the
last maybe shorter. `strides_numpy` does the same by columns, in a third of the time; `best` takes it where NumPy is
installed. Both write the same bytes.

Pure, but for NumPy itself.
"""

from __future__ import annotations

import struct
from functools import cache
from typing import NamedTuple, Protocol

from punchd.media.datagrams import DATA, FRAGMENT, FRAGMENT_HEADER_SIZE, HEADER_SIZE
from punchd.media.sending import QPF

FRAGMENT_HEADER = struct.Struct("<HQQQQQ")
HEADER = struct.Struct("<HQQQ")

Fields = tuple[int, int, int, int, int, int]  # flag, sequence, QPC, QPF, offset, total


class Row(NamedTuple):
    """Fragments of one length in a buffer, the last maybe shorter.

    Attributes:
        at: where the first begins.
        distance: from the beginning of one to that of the next.
        step: length of each one's payload but the last's.
        fragments: how many, at most `MAX_BATCH_DATAGRAMS`.
        size: of all payloads together, bytes.
    """

    at: int
    distance: int
    step: int
    fragments: int
    size: int


class Writer(Protocol):
    """Fills one buffer, again and again.

    Attributes:
        buffer: what was written last; `MAX_BATCH_BYTES` long.
    """

    buffer: bytearray

    def fragments(self, sequence: int, qpc: int, payload: memoryview, *, offset: int, step: int, count: int) -> int:
        """Fragments of one logical send, `payload`, of `step` bytes each from `offset` on.

        Returns:
            How many bytes were written. The last fragment is shorter if the payload ends there.
        """
        ...

    def wholes(self, first: int, qpc: int, pieces: memoryview, size: int, count: int) -> int:
        """Unfragmented logical sends with the numbers from `first` on, `size` bytes each of `pieces`, the last maybe
        shorter.

        Returns:
            How many bytes were written.
        """
        ...


class Strides(Protocol):
    """What both kinds can do. The caller has checked the numbers of a run, in Python's integers, which do not wrap."""

    name: str

    def writer(self, size: int) -> Writer:
        """With a buffer of so many bytes."""
        ...

    def is_run(self, slot: memoryview, row: Row, first: Fields) -> bool:
        """Whether the datagrams are fragments of one send and one batch that follow each other, `first` being the
        first one's header."""
        ...

    def gather(self, slot: memoryview, row: Row, place: memoryview) -> None:
        """Copies the payloads of these fragments to `place`, which is as long as they are together."""
        ...


class PlainWriter:
    """See `Writer`."""

    def __init__(self, size: int) -> None:
        self.buffer = bytearray(size)

    def fragments(self, sequence: int, qpc: int, payload: memoryview, *, offset: int, step: int, count: int) -> int:
        buffer, total, at = self.buffer, len(payload), 0
        for start in range(offset, offset + count * step, step):
            piece = payload[start : start + step]
            FRAGMENT_HEADER.pack_into(buffer, at, FRAGMENT, sequence, qpc, QPF, start, total)
            end = at + FRAGMENT_HEADER_SIZE + len(piece)
            buffer[at + FRAGMENT_HEADER_SIZE : end] = piece
            at = end
        return at

    def wholes(self, first: int, qpc: int, pieces: memoryview, size: int, count: int) -> int:
        buffer, at = self.buffer, 0
        for number in range(count):
            piece = pieces[number * size : number * size + size]
            HEADER.pack_into(buffer, at, DATA, first + number, qpc, QPF)
            end = at + HEADER_SIZE + len(piece)
            buffer[at + HEADER_SIZE : end] = piece
            at = end
        return at


class Plain:
    """See `Strides`."""

    name = "stdlib"

    def writer(self, size: int) -> Writer:
        return PlainWriter(size)

    def is_run(self, slot: memoryview, row: Row, first: Fields) -> bool:
        flag, sequence, qpc, qpf, offset, total = first
        at, distance, step, count, _ = row
        unpack = FRAGMENT_HEADER.unpack_from
        return all(
            unpack(slot, at + number * distance) == (flag, sequence, qpc, qpf, offset + number * step, total)
            for number in range(1, count)
        )

    def gather(self, slot: memoryview, row: Row, place: memoryview) -> None:
        at, distance, step, _, size = row
        at += FRAGMENT_HEADER_SIZE
        rest = size % step
        for start in range(0, size - rest, step):
            place[start : start + step] = slot[at : at + step]
            at += distance
        if rest:
            place[size - rest :] = slot[at : at + rest]


@cache
def best() -> Strides:
    """NumPy's if it is there."""
    try:
        from punchd.media.strides_numpy import Columns
    except ImportError:
        return Plain()
    return Columns()
