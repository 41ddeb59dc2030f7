"""The two ends of a stream, from raw datagrams on: the reference that faster paths are held against.

    Incoming   asks and receives: `Initiator` and `Receiver` over one tuple
    Outgoing   is asked: `Responder` over one socket

Datagrams that are not well-formed are counted and dropped. Only media of the session's tuple are looked at, and only
when the session has an identity.

Source: seed 004 §6.4, §8; media specification C27, C40, C41, D22, D24.
"""

from __future__ import annotations

from collections.abc import Sequence

from punchd.media.buffers import Delivery
from punchd.media.counters import Count, Counters
from punchd.media.datagrams import Ack, Buffer, Datagram, DatagramError, Media, Syn, SynAck, parse
from punchd.media.initiator import Initiator
from punchd.media.moves import Action, Flush, PacketTuple
from punchd.media.receiving import Receiver
from punchd.media.responder import Responder


def read(data: Buffer, counters: Counters, *, legacy_start: bool = False) -> Datagram | None:
    """What a datagram says; None where it is to be dropped, which is then counted."""
    try:
        datagram = parse(data, legacy_start=legacy_start)
    except DatagramError as error:
        counters.add(error.reason)
        return None
    if isinstance(datagram, Syn | SynAck | Ack) and datagram.options.ignored:
        counters.add(Count.OPTIONS_IGNORED, datagram.options.ignored)
    return datagram


class Incoming:
    """The receiving end of one session. `Flush` is carried out here and not handed on."""

    def __init__(self, initiator: Initiator, receiver: Receiver, counters: Counters) -> None:
        self.initiator = initiator
        self.receiver = receiver
        self._counters = counters

    def take(self, peer: PacketTuple, data: Buffer, now: float) -> tuple[list[Action], Sequence[Delivery]]:
        """A datagram came: what to do, and what to deliver."""
        datagram = read(data, self._counters)
        if datagram is None:
            return [], ()
        if not isinstance(datagram, Media):
            return self._carry_out(self.initiator.handle(peer, datagram, now))
        if peer != self.initiator.peer:
            self._counters.add(Count.UNKNOWN_TUPLE)
            return [], ()
        if not self.initiator.takes_media:
            self._counters.add(Count.EARLY_MEDIA)
            return [], ()
        self.initiator.hear_media(now)
        return [], self.receiver.receive(datagram, now)

    def next_timeout(self) -> float | None:
        """When `handle_timeout` wants to be called, but for `Receiver.next_gap_timeout`."""
        timeouts = (self.initiator.next_timeout(), self.receiver.reassembly.next_timeout())
        return min((timeout for timeout in timeouts if timeout is not None), default=None)

    def handle_timeout(self, now: float, heard_until: float | None = None) -> tuple[list[Action], Sequence[Delivery]]:
        """Time has passed, and what came before `heard_until` was taken; None: until now."""
        delivered = self.receiver.handle_timeout(now, heard_until)
        actions, flushed = self._carry_out(self.initiator.handle_timeout(now))
        return actions, [*delivered, *flushed]

    def reidentify(self, new: bytes, now: float) -> tuple[list[Action], Sequence[Delivery]]:
        """Name the session anew; as `Initiator.reidentify`."""
        return self._carry_out(self.initiator.reidentify(new, now))

    def _carry_out(self, actions: list[Action]) -> tuple[list[Action], Sequence[Delivery]]:
        flushed: list[Delivery] = []
        for action in actions:
            if isinstance(action, Flush):
                flushed += self.receiver.flush()
        return [action for action in actions if not isinstance(action, Flush)], flushed


class Outgoing:
    """The sending end of all sessions of one socket."""

    def __init__(self, responder: Responder, counters: Counters) -> None:
        self.responder = responder
        self._counters = counters

    def take(self, peer: PacketTuple, data: Buffer, now: float) -> list[Action]:
        """A datagram came: what to do."""
        datagram = read(data, self._counters, legacy_start=self.responder.settings.legacy_start)
        if datagram is None:
            return []
        if isinstance(datagram, Media):
            self._counters.add(Count.UNEXPECTED)
            return []
        return self.responder.handle(peer, datagram, len(data), now)
