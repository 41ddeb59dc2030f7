"""What a responder knows of each tuple, and how many it knows at most.

Half-open links, made by anybody who can send a SYN, are counted apart from open ones: a flood of SYNs pushes out the
oldest half-open link and touches no session.

Source: media specification D5, D24, D26; RFC 4987 §3 (defences against SYN floods); RFC 9000 §8.1 (three times).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

from punchd.media.flushes import FlushLimit
from punchd.media.moves import PacketTuple
from punchd.media.options import NO_OPTIONS, Options

AMPLIFICATION = 3  # bytes sent for a byte received, before the tuple is validated
UNVALIDATED_MAX = 64 * 1024  # and never more than this


class State(Enum):
    ABSENT = auto()  # nothing is known of the tuple
    HALF_OPEN = auto()  # the SYN-ACK was sent
    OPEN = auto()  # the ACK came, or none is needed


@dataclass(slots=True)
class Link:
    """One tuple.

    Attributes:
        id, previous: the current id, and the one that it replaced.
        assigned, desired: of the handshake, to tell a repeated SYN or ACK from another.
        options: of the SYN.
        syn_size: of the last SYN; the SYN-ACK is never longer.
        validated: whether the tuple's owner has shown that it gets what is sent there.
        received, sent: bytes, as long as it is not validated.
        tries: SYN-ACKs sent without being asked.
        retry_at, expires_at: of a half-open link.
        repeats: when the connection id is sent again.
        sent_at, heard_at: the last datagram each way.
    """

    peer: PacketTuple
    state: State
    id: bytes = b""
    previous: bytes | None = None
    assigned: bytes = b""
    desired: bytes = b""
    options: Options = NO_OPTIONS
    syn_size: int = 0
    validated: bool = False
    received: int = 0
    sent: int = 0
    tries: int = 0
    retry_at: float = 0.0
    expires_at: float = 0.0
    repeats: list[float] = field(default_factory=list)
    sent_at: float = 0.0
    heard_at: float = 0.0
    flushes: FlushLimit = field(default_factory=FlushLimit)

    @property
    def knows_ids(self) -> bool:
        """Whether the tuple takes connection-id datagrams; one that only said START does not."""
        return bool(self.assigned or self.id)

    @property
    def allowance(self) -> int | None:
        """How many bytes may still be sent; None: no limit."""
        if self.validated:
            return None
        return max(0, min(AMPLIFICATION * self.received, UNVALIDATED_MAX) - self.sent)


class Links:
    """The links by tuple.

    Args:
        max_half_open: more than that push out the oldest.
    """

    def __init__(self, max_half_open: int) -> None:
        self._max_half_open = max_half_open
        self._half_open: dict[PacketTuple, Link] = {}
        self._open: dict[PacketTuple, Link] = {}

    def __len__(self) -> int:
        return len(self._half_open) + len(self._open)

    @property
    def open_count(self) -> int:
        return len(self._open)

    def get(self, peer: PacketTuple) -> Link | None:
        return self._open.get(peer) or self._half_open.get(peer)

    def put(self, link: Link) -> Link | None:
        """Files the link under its state. Returns a half-open one that had to make room, which is then forgotten."""
        self.forget(link.peer)
        if link.state is State.OPEN:
            self._open[link.peer] = link
            return None
        evicted = None
        if len(self._half_open) >= self._max_half_open:
            evicted = self._half_open.pop(next(iter(self._half_open)))
        self._half_open[link.peer] = link
        return evicted

    def forget(self, peer: PacketTuple) -> None:
        self._open.pop(peer, None)
        self._half_open.pop(peer, None)
