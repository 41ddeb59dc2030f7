"""The same as `strides.Plain`, by columns: a header field of all datagrams of a batch is one strided array.

Views of void type copy about twice as fast as two-dimensional ones of bytes. NumPy's integers wrap at 2^64; that no
sum here does is checked before.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from punchd.media.datagrams import DATA, FRAGMENT, FRAGMENT_HEADER_SIZE, HEADER_SIZE
from punchd.media.sending import QPF
from punchd.media.settings import MAX_BATCH_DATAGRAMS
from punchd.media.strides import FRAGMENT_HEADER, HEADER, Fields, Row, Writer

_NUMBERS = np.arange(MAX_BATCH_DATAGRAMS, dtype="<u8")
_HEAD = np.dtype(f"V{HEADER_SIZE}")
_PLACE = np.dtype(f"V{FRAGMENT_HEADER_SIZE - HEADER_SIZE}")
_MOST_LAYOUTS = 8  # lengths of datagrams, of which a peer may choose many

Array = np.ndarray[Any, Any]


def _column(buffer: bytearray | memoryview, at: int, stride: int, count: int, kind: Any) -> Array:
    return np.ndarray((count,), kind, buffer, at, (stride,))


@lru_cache(_MOST_LAYOUTS)
def _kind(size: int) -> np.dtype[Any]:
    """Of a payload."""
    return np.dtype(f"V{size}")


@lru_cache(_MOST_LAYOUTS)
def _advances(step: int) -> Array:
    """How far offset and total of each fragment are from the first one's: a row for each."""
    return np.column_stack((_NUMBERS * np.uint64(step), np.zeros_like(_NUMBERS)))


class ColumnWriter:
    """See `strides.Writer`."""

    def __init__(self, size: int) -> None:
        self.buffer = bytearray(size)
        self._layouts: dict[tuple[int, int], tuple[Array, Array, Array, Array]] = {}

    def fragments(self, sequence: int, qpc: int, payload: memoryview, *, offset: int, step: int, count: int) -> int:
        segment, total = step + FRAGMENT_HEADER_SIZE, len(payload)
        head, offsets, totals, payloads = self._layout(segment, FRAGMENT_HEADER_SIZE)
        head[:count] = np.void(FRAGMENT_HEADER.pack(FRAGMENT, sequence, qpc, QPF, 0, 0)[:HEADER_SIZE])
        np.add(_NUMBERS[:count] * np.uint64(step), np.uint64(offset), out=offsets[:count])
        totals[:count] = total
        return self._copy(payload[offset:], step, count, payloads, FRAGMENT_HEADER_SIZE)

    def wholes(self, first: int, qpc: int, pieces: memoryview, size: int, count: int) -> int:
        head, sequences, _, payloads = self._layout(size + HEADER_SIZE, HEADER_SIZE)
        head[:count] = np.void(HEADER.pack(DATA, 0, qpc, QPF))
        np.add(_NUMBERS[:count], np.uint64(first), out=sequences[:count])
        return self._copy(pieces, size, count, payloads, HEADER_SIZE)

    def _copy(self, source: memoryview, step: int, count: int, payloads: Array, header: int) -> int:
        full = min(count, len(source) // step) if step else 0
        if full:
            np.copyto(payloads[:full], np.frombuffer(source, payloads.dtype, full))
        if full == count:
            return count * (header + step)
        rest = source[full * step : count * step]
        at = full * (header + step) + header
        self.buffer[at : at + len(rest)] = rest
        return at + len(rest)

    def _layout(self, segment: int, header: int) -> tuple[Array, Array, Array, Array]:
        """Columns: heads, then offsets and totals of fragments or sequence numbers of others, then payloads."""
        found = self._layouts.get((segment, header))
        if found is None:
            if len(self._layouts) == _MOST_LAYOUTS:
                self._layouts.clear()
            count = min(len(self.buffer) // segment, MAX_BATCH_DATAGRAMS)
            places = (HEADER_SIZE, HEADER_SIZE + 8) if header == FRAGMENT_HEADER_SIZE else (2, 2)
            first, second = (_column(self.buffer, at, segment, count, "<u8") for at in places)
            head = _column(self.buffer, 0, segment, count, _HEAD)
            payloads = _column(self.buffer, header, segment, count, f"V{max(segment - header, 1)}")
            found = self._layouts[segment, header] = head, first, second, payloads
        return found


class Columns:
    """See `strides.Strides`."""

    name = "numpy"

    def writer(self, size: int) -> Writer:
        return ColumnWriter(size)

    def is_run(self, slot: memoryview, row: Row, first: Fields) -> bool:
        at, distance, step, count, _ = row
        header = FRAGMENT_HEADER.pack(*first)
        if _column(slot, at, distance, count, _HEAD).tobytes() != header[:HEADER_SIZE] * count:
            return False
        places = _column(slot, at + HEADER_SIZE, distance, count, _PLACE).tobytes()
        begins: Array = np.ndarray((count, 2), "<u8", places) - _advances(step)[:count]
        return begins.tobytes() == header[HEADER_SIZE:] * count

    def gather(self, slot: memoryview, row: Row, place: memoryview) -> None:
        at, distance, step, _, size = row
        at += FRAGMENT_HEADER_SIZE
        full, rest = divmod(size, step)
        kind = _kind(step)
        np.ndarray((full,), kind, place)[:] = _column(slot, at, distance, full, kind)
        if rest:
            at += full * distance
            place[full * step :] = slot[at : at + rest]
