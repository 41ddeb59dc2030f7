"""The numbers of the media protocol, with units and reasons. All times in seconds, all sizes in bytes.

Source: seed 004 §6, §7, §9; media specification C17, C46, D5, D13, D14, D22, D25-D31.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from punchd.media.buffers import block_size
from punchd.media.datagrams import MAX_DATAGRAM_SIZE
from punchd.media.options import NO_OPTIONS, Options

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Timing:
    """When handshake datagrams are repeated, and when a tuple counts as dead.

    Attributes:
        first_retry_s: until the first repetition; each further wait is twice as long (C17). TCP's 1 s (RFC 6298) is
            made for the unknown path; the tuple here was punched a moment ago.
        tries: how often a SYN or an ACK is sent at most: 0, 0.5, 1.5, 3.5, 7.5, 15.5 s, given up after 31.5 s.
        repeats_s: when a new connection id is sent again, after the first time (D25).
        keep_alive_s: silence after which the connection id is sent; NATs forget UDP after 30 s and more (RFC 4787
            REQ-5 asks for 2 minutes, many keep it for 30 s).
        idle_s: silence of the other side after which the session ends; None: never. A peer of another make may send
            nothing after its ACK.
        half_open_s: how long a responder waits for an ACK.
    """

    first_retry_s: float = 0.5
    tries: int = 6
    repeats_s: tuple[float, ...] = (0.25, 0.5, 1.0)
    keep_alive_s: float = 15.0
    idle_s: float | None = 120.0
    half_open_s: float = 32.0

    def retry_s(self, tries: int) -> float:
        """How long to wait after the try of that number, from 1 on."""
        return self.first_retry_s * 2.0 ** (tries - 1)


@dataclass(frozen=True, slots=True)
class ResponderSettings:
    """What a responder does.

    Attributes:
        optimistic: send media right after the SYN-ACK (C25), within what D5 allows.
        path_validated: every tuple was validated below (the path was punched, or the carrier authenticates): nothing
            is withheld before the ACK.
        legacy_start: START begins a stream (D1). Whoever forges a source address can then aim the stream.
        max_half_open: tuples that wait for an ACK; the oldest is evicted.
        max_open: sessions; a SYN beyond them is refused.
        options: what is told in the SYN-ACK, as far as the SYN's size leaves room.
    """

    timing: Timing = field(default_factory=Timing)
    optimistic: bool = False
    path_validated: bool = False
    legacy_start: bool = False
    max_half_open: int = 1024
    max_open: int = 256
    options: Options = NO_OPTIONS


@dataclass(frozen=True, slots=True)
class ReceiverSettings:
    """What is kept of media that are not yet delivered.

    Attributes:
        max_total: longest logical send (D13), 64 MiB.
        max_entries, max_reserved: logical sends in reassembly, and their buffers together (D14).
        max_intervals: separate runs of bytes of one logical send (D14).
        reassembly_timeout_s: seed §9: 5 s.
        remembered: sequence numbers for deduplication (D14).
        ordered: deliver in the order of sequence numbers, waiting at most `window_s` (D27) with at most `max_held`
            logical sends of together `max_held_bytes`.
    """

    max_total: int = 64 * MIB
    max_entries: int = 64
    max_reserved: int = 192 * MIB
    max_intervals: int = 256
    reassembly_timeout_s: float = 5.0
    remembered: int = 8192
    ordered: bool = False
    window_s: float = 0.2
    max_held: int = 1024
    max_held_bytes: int = 64 * MIB

    def __post_init__(self) -> None:
        if self.window_s > self.reassembly_timeout_s:
            raise ValueError("window_s: expected at most reassembly_timeout_s")
        if block_size(self.max_total) > self.max_reserved:
            raise ValueError("max_total: expected at most max_reserved, and so for the next power of two")


DEFAULT_DATAGRAM_SIZE = 1200  # D31: fits every path that carries QUIC (RFC 9000 §14)
MAX_BATCH_BYTES = MAX_DATAGRAM_SIZE  # of one GSO send
MAX_BATCH_DATAGRAMS = 128  # UDP_MAX_SEGMENTS was 64 before Linux 6.9; who sends with GSO may ask for fewer
