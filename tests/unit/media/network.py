"""A receiver and a sender with a network between them that loses, doubles, delays and reorders; all in virtual time.

    Incoming ──datagrams──▶ fate ──▶ Outgoing      a fate: when a datagram arrives, as a list of delays in seconds:
             ◀──── fate ◀──datagrams──             none: it is lost; two: it is doubled

What both sides hold true is checked after every step.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from functools import partial

from punchd.media.buffers import Memory
from punchd.media.counters import Counters
from punchd.media.ends import Incoming, Outgoing
from punchd.media.initiator import Initiator
from punchd.media.initiator import State as AskingState
from punchd.media.links import State as LinkState
from punchd.media.moves import Action, Ended, Identified, MediaMayFlow, Send
from punchd.media.receiving import Receiver
from punchd.media.responder import Responder
from punchd.media.sending import LogicalSend, Sequences, plan
from punchd.media.settings import ReceiverSettings, ResponderSettings
from tests.unit.media.parts import ENTROPY, MIB, PEER, A

Fate = Callable[[], list[float]]


class Network:
    """One session from SYN on, and the payloads that it brings."""

    def __init__(
        self,
        fate: Fate,
        responder: ResponderSettings | None = None,
        receiver: ReceiverSettings | None = None,
        desired: bytes = A,
    ) -> None:
        self.now = 0.0
        self.fate = fate
        self.here, self.there = Counters(), Counters()
        self.memory = Memory(512 * MIB)
        self.settings = receiver or ReceiverSettings()
        self.asking = Initiator(PEER, desired, self.here)
        self.incoming = Incoming(self.asking, Receiver(self.settings, self.memory, self.here), self.here)
        self.answering = Responder(responder or ResponderSettings(), self.there, ENTROPY)
        self.outgoing = Outgoing(self.answering, self.there)
        self.sequences = Sequences(bytes(6))
        self.may_send = False
        self.events: list[tuple[str, Action]] = []
        self.delivered: list[bytes] = []
        self.wire: list[bytes] = []
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def at(self, after_s: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (self.now + after_s, next(self._numbers), what))

    def open(self) -> None:
        self._act("initiator", self.asking.open(self.now))

    def send(self, payload: bytes) -> bool:
        """One logical send, if the responder may; whether it was."""
        size = len(payload) + 42 * (1 + len(payload) // 1158)
        allowance = self.answering.allowance(PEER)
        if not self.may_send or (allowance is not None and size > allowance):
            return False
        send = LogicalSend(self.sequences.next(), payload, plan(len(payload)))
        while batch := send.batch(int(self.now * 1e9)):
            for datagram in batch:
                self.answering.count_sent(PEER, len(datagram), self.now)
                self._carry("initiator", bytes(datagram))
        return True

    def run(self, until: float) -> None:
        """Everything up to that time."""
        while (when := self._next()) is not None and when <= until:
            self.now = max(self.now, when)
            if self._agenda and self._agenda[0][0] <= self.now:
                heapq.heappop(self._agenda)[2]()
            else:
                self._act("responder", self.answering.handle_timeout(self.now))
                actions, deliveries = self.incoming.handle_timeout(self.now)
                self._act("initiator", actions)
                self.delivered += [one.take() for one in deliveries]
            self.check()
        self.now = until

    def told(self, side: str, kind: type[Action]) -> list[Action]:
        return [action for who, action in self.events if who == side and isinstance(action, kind)]

    def check(self) -> None:
        """What is true at any time."""
        reassembly = self.incoming.receiver.reassembly
        assert len(reassembly) <= self.settings.max_entries
        assert reassembly.reserved <= self.settings.max_reserved
        is_held = self.settings.ordered  # complete sends that wait for their turn hold memory, too
        assert reassembly.reserved == self.memory.reserved or (is_held and reassembly.reserved < self.memory.reserved)
        assert len(self.incoming.receiver.recent) <= self.settings.remembered
        assert len(self.told("initiator", Ended)) == (self.asking.state is AskingState.ENDED)
        link = self.answering.links.get(PEER)
        if link is not None and not link.validated:
            assert link.sent <= 3 * link.received

    def _next(self) -> float | None:
        times = [self._agenda[0][0] if self._agenda else None]
        times += [self.incoming.next_timeout(), self.answering.next_timeout()]
        return min((time for time in times if time is not None), default=None)

    def _carry(self, to: str, data: bytes) -> None:
        self.wire.append(data)
        for after_s in self.fate():
            self.at(after_s, partial(self._arrive, to, data))

    def _arrive(self, to: str, data: bytes) -> None:
        if to == "responder":
            self._act(to, self.outgoing.take(PEER, data, self.now))
            return
        actions, deliveries = self.incoming.take(PEER, memoryview(data), self.now)
        self._act(to, actions)
        self.delivered += [one.take() for one in deliveries]

    def _act(self, side: str, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Send():
                    self._carry("initiator" if side == "responder" else "responder", action.data)
                    continue
                case Identified() if side == "responder":
                    self.sequences.renew(bytes([next(self._numbers) % 256] * 6))
                case MediaMayFlow():
                    self.may_send = True
                case Ended() if side == "responder":
                    self.may_send = False
                case _:
                    pass
            self.events.append((side, action))


def is_open(network: Network) -> bool:
    """Whether both sides hold the session for established, under one id."""
    link = network.answering.links.get(PEER)
    return (
        link is not None
        and link.state is LinkState.OPEN
        and network.asking.state is AskingState.ESTABLISHED
        and link.id == network.asking.id
    )
