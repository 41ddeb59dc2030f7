"""What one call brought, to what it means: the fast path of `Incoming`.

Datagrams of one length stand at one distance from each other: GRO has put them together, or each is in a slot of its
own. Fragments of one logical send that follow each other are
taken as one, if that has the same effect; everything else goes, one by one, through `Incoming.take`, the reference. The
two are held equal by fuzzing: deliveries, counters, actions, telemetry.

Source: seed 004 §8, §9; media specification part C.
"""

from __future__ import annotations

from collections.abc import Sequence

from punchd.media.buffers import Delivery
from punchd.media.datagrams import FRAGMENT, FRAGMENT_HEADER_SIZE
from punchd.media.ends import Incoming
from punchd.media.moves import Action, PacketTuple
from punchd.media.receiving import Run
from punchd.media.settings import MAX_BATCH_DATAGRAMS
from punchd.media.strides import FRAGMENT_HEADER, Row, Strides

LEAST_RUN = 3  # shorter ones cost more than they save


class Bulk:
    """One session's fast path.

    Args:
        incoming: the reference, which holds all state.
    """

    def __init__(self, incoming: Incoming, strides: Strides) -> None:
        self._incoming = incoming
        self._strides = strides

    def take(
        self, peer: PacketTuple, slot: memoryview, segment: int, now: float, *, distance: int = 0
    ) -> tuple[list[Action], Sequence[Delivery]]:
        """Datagrams of `segment` bytes each, the last maybe shorter, came.

        Args:
            slot: unchanged until what is delivered was released or kept. It ends where the last datagram ends.
            segment: 0 if there is one datagram.
            distance: from one datagram to the next; 0: they follow each other.
        """
        incoming = self._incoming
        size, distance = len(slot), distance or segment
        if not 0 < segment < size:
            return incoming.take(peer, slot, now)
        actions: list[Action] = []
        delivered: list[Delivery] = []
        at, is_plain = 0, segment <= FRAGMENT_HEADER_SIZE
        while at < size:
            taken = 0
            if not is_plain:
                taken, complete = self._take_run(peer, slot, (at, segment, distance), now)
                delivered += complete
                # Whatever broke the run breaks its rest as well, and would be looked at again for each datagram.
                is_plain = taken <= 1
                at += taken * distance
            if not taken:
                more, complete = incoming.take(peer, slot[at : at + segment], now)
                actions += more
                delivered += complete
                at += distance
        return actions, delivered

    def _take_run(
        self, peer: PacketTuple, slot: memoryview, where: tuple[int, int, int], now: float
    ) -> tuple[int, Sequence[Delivery]]:
        """The fragments that begin with the datagram at (byte, segment, distance); how many were taken."""
        at, segment, distance = where
        incoming, receiver = self._incoming, self._incoming.receiver
        left = len(slot) - at
        count = min((left - segment) // distance + 1, MAX_BATCH_DATAGRAMS - 1)
        if count < LEAST_RUN - 1 or peer != incoming.initiator.peer or not incoming.initiator.takes_media:
            return 0, ()
        first = FRAGMENT_HEADER.unpack_from(slot, at)
        flag, sequence, qpc, qpf, offset, total = first
        step = segment - FRAGMENT_HEADER_SIZE
        count = min(count, (total - offset) // step)
        size = count * step
        if 0 < total - offset - size == left - count * distance - FRAGMENT_HEADER_SIZE < step:  # the send's last one
            count, size = count + 1, total - offset
        if flag != FRAGMENT or count < LEAST_RUN:
            return 0, ()
        row, run = Row(at, distance, step, count, size), Run(offset, total, size, count)
        if not receiver.suits(sequence, run) or not self._strides.is_run(slot, row, first):
            return 0, ()
        incoming.initiator.hear_media(now)
        place = receiver.claim(sequence, qpc, qpf, run, now)
        if place is None:
            return 1, ()
        self._strides.gather(slot, row, place)
        return count, receiver.finish(sequence, now)
