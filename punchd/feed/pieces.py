"""How an input is cut into logical sends. Pure.

MPEG-TS (recognised by the sync bytes of its first two packets, ISO/IEC 13818-1 §2.4.3.2) is cut between its packets of
188 bytes, so that a lost send costs whole packets and nobody else's; a datagram's worth of them is one send, so that a
lost datagram is a lost send and no more. Anything else is cut where it comes.

What was read is sent at once, without waiting for a full send: inputs may be live.
"""

from __future__ import annotations

from dataclasses import dataclass

PACKET = 188
SYNC = 0x47
DEFAULT_SIZE = 16_384  # at 1 % loss of datagrams one in seven of these is lost, and nearly all of 1 MiB
_DECIDED_BY = PACKET + 1  # bytes


@dataclass(frozen=True, slots=True)
class Cut:
    """What may be sent now.

    Attributes:
        data: maybe nothing.
        size: of each logical send, the last maybe shorter.
    """

    data: bytes
    size: int


class Cutter:
    """Takes what was read, in any portions.

    Args:
        size: of a logical send, bytes; None: what suits.
        room: payload of one unfragmented datagram, bytes.
    """

    def __init__(self, size: int | None, room: int) -> None:
        self._size = size
        self._room = room
        self._rest = b""
        self._is_ts: bool | None = None

    def feed(self, data: bytes) -> Cut:
        """More was read; nothing: it was the end."""
        is_end = not data
        data, self._rest = self._rest + data if self._rest else data, b""
        if self._is_ts is None:
            if len(data) < _DECIDED_BY and not is_end:
                self._rest = data
                return Cut(b"", 1)
            self._is_ts = len(data) >= _DECIDED_BY and data[0] == data[PACKET] == SYNC
        if not self._is_ts:
            return Cut(data, self._size or DEFAULT_SIZE)
        size = max((self._size or self._room) // PACKET, 1) * PACKET
        whole = len(data) if is_end else len(data) // PACKET * PACKET
        self._rest = data[whole:]
        return Cut(data[:whole] if self._rest else data, size)
