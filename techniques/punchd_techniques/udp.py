"""UDP hole punching with the low TTL first.

The textbook (Ford, Srisuresh, Kegel 2005, §3) lets both sides send at once and hope. Where one side's first datagram
reaches the other's NAT before that side has sent anything, several NATs take offence: a Linux router that accepts
stray packets itself keeps the entry, and the peer's own mapping then gets another port than the one that was
announced. A responder that is 0.3 s late is enough. So here no datagram reaches a NAT that does not expect it:

    initiator A                                     responder B
    low-TTL datagrams to B's ports: A's NAT opens
    offer ──────────────── side channel ──────────▶ the same towards A's ports, or at full TTL at once if A
                                                     has opened its NAT for the very port that B has
                       ◀──────────── PROBE ───────── (answer token beside it)
    ACK ─────────────────────────────────────────▶  both directions are proven to B
                       ◀──────────── DONE ────────── and B's socket is handed over
    both directions are proven to A: handed over

Three legs after the offer, the least that proves both directions to both sides.

Full or low TTL, and towards which ports: see `aim`, which all techniques share.

One side decides. With several ports on both sides more than one pair may work, and the sides must end with the same
one. The responder nominates: it alone sends DONE, to the source of the first valid ACK, and connects there; the
initiator connects to where DONE came from. A PROBE of the initiator is answered by a PROBE, not by an ACK.

DONE may be lost, so it is sent a few times. If all of them are, the first datagram of B's application has the same
meaning, since only a finished peer hands its socket over; it is left in the queue for A's application.

What this cannot do: two NATs that both pick random ports, or one of those against a peer that filters by port.

Source: line protocol, Appendix B and §13.2, §13.3, §13.9; RFC 4787 for the words; the measurements on unsolicited
packets are reproduced by the laboratory's kinds `no-filter` and `rst`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import trio

from punchd.endpoint import Endpoint, is_private
from punchd.errors import DecodeError
from punchd.events import Complained, Explained, Heard, Passed
from punchd.technique import Capability, Complaint, Datagram, Facts, Hole, Kit, Role, UdpPort
from punchd.wire import probe
from punchd.wire.probe import Probe, Type
from punchd.wire.token import Card
from punchd_techniques.aim import LAST_RESORT_ANSWERED_S, LAST_RESORT_S, LAST_RESORT_UNANSWERED_S, Aim
from punchd_techniques.diagnosis import Seen, words_of

__all__ = ["Udp", "DONE_S", "LAST_RESORT_ANSWERED_S", "LAST_RESORT_S", "LAST_RESORT_UNANSWERED_S"]

# Appendix B: a probe every 50 ms, twenty times, then every 200 ms, to each port.
PROBING_S = (*[0.05] * 20, 0.2)
# A low-TTL datagram only has to leave the own NAT: repeated for loss, then for NATs that forget within seconds.
OPENING_S = (0.05, 0.1, 0.2, 0.4, 0.5)
# DONE: four copies, so that 5 % loss takes all of them once in 160,000 times; spaced, since losses come in bursts.
DONE_S = (0.0, 0.002, 0.004, 0.006)
DATAGRAM = "a datagram"


class Udp:
    """The technique `udp`."""

    name: ClassVar[str] = "udp"
    number: ClassVar[int] = 3
    protocol: ClassVar[str] = "udp"
    needs: ClassVar[Capability] = Capability.NONE
    is_reversible: ClassVar[bool] = False

    def plan(self, facts: Facts) -> Facts:
        """The packets for DONE are set aside: without it a responder would hold a socket that its peer never hears of.

        The others are for all ports alike.
        """
        packets = facts.packets - len(DONE_S)
        per_port = max(1, min(facts.packets_per_port - len(DONE_S), packets // len(facts.peer_ports)))
        return replace(facts, packets_per_port=per_port, packets=packets)

    async def initiate(self, plan: Facts, kit: Kit) -> Hole:
        async with kit.udp() as port:
            await port.learn()
            punch = _Punch(plan, kit, port, kit.random(probe.KEY_SIZE))
            punch.aim.offer()
            return await punch.run()

    async def respond(self, plan: Facts, offer: Card, kit: Kit) -> Hole:
        async with kit.udp() as port:
            punch = _Punch(plan, kit, port, offer.body)
            punch.aim.take(offer)
            punch.aim.tell()
            return await punch.run()


class _Punch:
    """One side of one round: whom it has heard, and what it answers."""

    def __init__(self, plan: Facts, kit: Kit, port: UdpPort, key: bytes) -> None:
        self._plan = plan
        self._kit = kit
        self._port = port
        self._key = key
        self._role = probe.Role.INITIATOR if plan.role is Role.INITIATOR else probe.Role.RESPONDER
        self._heard: set[Endpoint] = set()  # where the peer's valid datagrams come from
        self._seen = Seen(plan.peer, plan.ttl)
        self._explained = ""
        self.aim = Aim(plan, kit, port, body=key, fire=self._probe_all)

    async def run(self) -> Hole:
        """Send, listen to the peer's cards and datagrams, until one of them proves the hole."""
        self._explain()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.aim.keep_firing, OPENING_S, PROBING_S)
            nursery.start_soon(self._hear_cards)
            proven = await self._receive()
            nursery.cancel_scope.cancel()
        # Only now, and with no checkpoint up to our caller: a cancellation on the way would lose the descriptor.
        return self._port.hand_over(proven)

    async def _hear_cards(self) -> None:
        while True:
            card = await self._kit.hear_peer()
            if not self._heard:  # where the peer really is, no card knows better
                self.aim.take(card)
            self.aim.tell()
            self._explain()

    # --- sending ---------------------------------------------------------------------------------------------------

    def _probe_all(self) -> None:
        """One probe to each target, unless this is an initiator that was already heard: it answers, no more."""
        if self._heard and self._role is probe.Role.INITIATOR:
            return
        for port in self.aim.targets:
            self._send(Type.PROBE, port, self.aim.ttl)

    def _send(self, what: Type, port: int, ttl: int | None = None) -> None:
        if self.aim.spend(port):
            self._transmit(what, port, ttl)

    def _transmit(self, what: Type, port: int, ttl: int | None = None) -> None:
        self._port.send(probe.encode(Probe(what, self._role, self._kit.nonce), self._key), port, ttl)
        self._seen.sent(what.name, port, ttl)
        self._kit.emit(Passed("sent", what.name, port, ttl))

    # --- receiving -------------------------------------------------------------------------------------------------

    async def _receive(self) -> int:
        """The peer's port towards which both directions are proven."""
        while True:
            news = await self._port.peek()
            if isinstance(news, Complaint):
                self._kit.emit(Complained(words_of(news.kind), news.router, news.port))
                self._seen.complained(news)
                self._explain()
            elif not isinstance(news, Datagram):
                self.aim.learned()
                self._explain()
            elif self._is_application_data(news):
                return news.source.port
            else:
                self._port.discard()
                if await self._answer(news):
                    return news.source.port

    def _is_application_data(self, datagram: Datagram) -> bool:
        """The peer hands its socket over only when it has finished, so its application's data means DONE."""
        from_peer = self._role is probe.Role.INITIATOR and datagram.source in self._heard
        return from_peer and not probe.is_probe(datagram.data)

    async def _answer(self, datagram: Datagram) -> bool:
        """Whether this datagram completes the proof; if not, it gets its answer if it deserves one."""
        source = datagram.source
        if source.ip != self._plan.peer:
            return False
        try:
            heard = probe.decode(datagram.data, self._key)
        except DecodeError:
            return False
        if heard.role is self._role or heard.nonce != self._kit.nonce:
            return False
        self._seen.came(DATAGRAM, source.port)
        self._kit.emit(Passed("came", heard.type.name, source.port))
        self._hear(heard, source)
        if self._role is probe.Role.INITIATOR:
            return self._answer_responder(heard, source)
        return await self._answer_initiator(heard, source)

    def _hear(self, heard: Probe, source: Endpoint) -> None:
        """A port that is proven in one direction is the first candidate, whether a card named it or not."""
        if source in self._heard:
            return
        self._heard.add(source)
        self.aim.add(source.port)
        if len(self._heard) == 1:
            self._kit.emit(Heard(source, heard.type.name))
            self.aim.go_full("the peer was heard")
            self._explain()

    def _answer_responder(self, heard: Probe, source: Endpoint) -> bool:
        if heard.type is Type.DONE:
            return True
        self._send(Type.ACK, source.port)
        return False

    async def _answer_initiator(self, heard: Probe, source: Endpoint) -> bool:
        if heard.type is not Type.ACK:
            self._send(Type.PROBE, source.port)
            return False
        for pause_s in DONE_S:
            await trio.sleep(pause_s)
            self._transmit(Type.DONE, source.port)
        return True

    def _explain(self) -> None:
        """What to say if this ends without a socket."""
        text = self._seen.explain(
            self.aim.named,
            own_is_random=self._port.outlook.behaviour == "random",
            peer_guesses=self.aim.peer_guesses,
            is_private_here=is_private(self._port.local.ip),
        )
        if text != self._explained:
            self._explained = text
            self._kit.emit(Explained(text))
