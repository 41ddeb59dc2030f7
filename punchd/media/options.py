"""The options at the end of a control body: type u16, length u16, value; little-endian.

    0x8001  max_total     u64   longest logical send that its sender reassembles, bytes
    0x8002  max_datagram  u16   longest datagram that it wants to get, bytes
    0x8003  rate          u64   at most so much media, bit/s

The seed says "TLV" and "length-prefixed" and no more; the layout and the types are this implementation's. All are
optional, so a peer with another layout loses nothing but these limits. Type 0 is reserved. Of two of one type the first
counts. Unknown types, known types of another length, and whatever follows a value that is cut off are ignored and
counted. After `MAX_OPTIONS` nothing is read: a datagram has room for 16,000.

Source: seed 004 §6; media specification C15, D17.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

MAX_OPTIONS = 32

_HEAD = struct.Struct("<HH")
_NAMES = {0x8001: ("max_total", 8), 0x8002: ("max_datagram", 2), 0x8003: ("rate", 8)}


@dataclass(frozen=True, slots=True)
class Options:
    """Limits of whoever sends them; None where none is given.

    Attributes:
        max_total, max_datagram: in bytes.
        rate: in bit/s.
        ignored: how many were not understood; not sent.
    """

    max_total: int | None = None
    max_datagram: int | None = None
    rate: int | None = None
    ignored: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        for name, size in _NAMES.values():
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1 << 8 * size:
                raise ValueError(f"option {name}: expected 0 to 2^{8 * size} - 1, got {value}")


NO_OPTIONS = Options()


def parse(data: bytes) -> Options:
    """The options in `data`; never an error."""
    found: dict[str, int] = {}
    ignored = position = 0
    for _ in range(MAX_OPTIONS):
        if len(data) - position < _HEAD.size:
            break
        kind, size = _HEAD.unpack_from(data, position)
        start, position = position + _HEAD.size, position + _HEAD.size + size
        if position > len(data):
            break
        name, expected = _NAMES.get(kind, ("", -1))
        if size == expected and name not in found:
            found[name] = int.from_bytes(data[start:position], "little")
        else:
            ignored += 1
    return Options(**found, ignored=ignored + (position != len(data)))


def encode(options: Options, room: int) -> bytes:
    """As many of the options, in the order of their types, as fit into `room` bytes."""
    encoded = b""
    for kind, (name, size) in _NAMES.items():
        value = getattr(options, name)
        if value is not None and len(encoded) + _HEAD.size + size <= room:
            encoded += _HEAD.pack(kind, size) + value.to_bytes(size, "little")
    return encoded


SIZE = sum(_HEAD.size + size for _, size in _NAMES.values())  # of all options together
