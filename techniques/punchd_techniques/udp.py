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

Full or low TTL. Each card lists the receiver's ports that its sender has opened its NAT for. A side goes to full TTL
when its own port is among them, when it cannot know its port (a NAT that picks ports at random: then only a peer that
does not filter by port can be reached, and waiting gains nothing), when it has heard the peer, or, as a last resort,
when time passes and no card comes: tokens need not be relayed back.

Wrong guesses. When a card names other ports than those opened so far, the NAT is opened for the new ones, and a note
says so. A sequential NAT gives each of these a new port of its own; the note carries the new predictions, and it is by
these that a side then judges whether the peer expects it. A port that a datagram of the peer really came from becomes
a target, too: behind a NAT with random ports no card can name it.

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

from dataclasses import dataclass
from typing import ClassVar

import trio

from punchd.endpoint import Endpoint, IPAddress, PortSet
from punchd.errors import DecodeError
from punchd.events import Aimed, Explained, Heard, Opened
from punchd.technique import Capability, Datagram, Facts, Hole, Kit, Role, UdpPort, Unsuitable
from punchd.wire import probe
from punchd.wire.probe import Probe, Type
from punchd.wire.token import MAX_COUNTER, Card, openable

# Appendix B: a probe every 50 ms, twenty times, then every 200 ms, to each port.
FAST_S, FAST_COUNT, SLOW_S = 0.05, 20, 0.2
# A low-TTL datagram only has to leave the own NAT: repeated for loss, then for NATs that forget within seconds.
OPENING_S = (0.05, 0.1, 0.2, 0.4, 0.5)
# DONE: four copies, so that 5 % loss takes all of them once in 160,000 times; spaced, since losses come in bursts.
DONE_S = (0.0, 0.002, 0.004, 0.006)
# Full TTL although no card allows it. The responder: no note has come for so long that none may be relayed.
LAST_RESORT_S = 1.5
# The initiator without an answer: the responder may be late; a datagram too early can spoil its NAT's mapping.
LAST_RESORT_UNANSWERED_S = 4.0
# The initiator after a card: on short paths its round ends one second after the answer, and half of that must be left.
LAST_RESORT_ANSWERED_S = 0.5


@dataclass(frozen=True, slots=True)
class UdpPlan:
    """Which ports to aim at, how low the low TTL is, how many probes and ACKs each port and all together may get.

    The packets for DONE are set aside: a responder that could not send it would hold a socket that its peer never hears
    of.
    """

    role: Role
    peer: IPAddress
    targets: PortSet
    ttl: int
    packets_per_port: int
    packets: int


class Udp:
    """The technique `udp`."""

    name: ClassVar[str] = "udp"
    number: ClassVar[int] = 3
    protocol: ClassVar[str] = "udp"
    needs: ClassVar[Capability] = Capability.NONE
    is_reversible: ClassVar[bool] = False

    def plan(self, facts: Facts) -> UdpPlan | Unsuitable:
        packets = facts.packets - len(DONE_S)
        per_port = max(1, min(facts.packets_per_port - len(DONE_S), packets // len(facts.peer_ports)))
        return UdpPlan(facts.role, facts.peer, facts.peer_ports, facts.ttl, per_port, packets)

    async def initiate(self, plan: UdpPlan, kit: Kit) -> Hole:
        async with kit.udp() as port:
            await port.learn()
            punch = _Punch(plan, kit, port, kit.random(probe.KEY_SIZE))
            punch.aim(plan.targets)
            punch.open()
            punch.tell()
            return await punch.run(LAST_RESORT_UNANSWERED_S)

    async def respond(self, plan: UdpPlan, offer: Card, kit: Kit) -> Hole:
        async with kit.udp() as port:
            punch = _Punch(plan, kit, port, offer.body)
            punch.take(offer)
            punch.tell()
            return await punch.run(LAST_RESORT_S)


class _Punch:
    """One side of one round: what it aims at, whether at full TTL, and whom it has heard."""

    def __init__(self, plan: UdpPlan, kit: Kit, port: UdpPort, key: bytes) -> None:
        self._plan = plan
        self._kit = kit
        self._port = port
        self._key = key
        self._role = probe.Role.INITIATOR if plan.role is Role.INITIATOR else probe.Role.RESPONDER
        self._targets: list[int] = []  # the peer's ports, those that it named last first
        self._sent: dict[int, int] = {}  # port -> packets; its keys are the ports that our NAT is open for
        self._sent_in_all = 0
        self._earlier = 0  # destinations that our NAT had already mapped when the last card came
        self._opened_by_peer: tuple[int, ...] = ()
        self._told: tuple[PortSet, tuple[int, ...]] | None = None  # own ports and opened ports in our last card
        self._cards_told = 0
        self._full_ttl = False
        self._heard: set[Endpoint] = set()  # where the peer's valid datagrams come from
        self._changed = trio.Event()
        self._last_resort_at = 0.0

    async def run(self, last_resort_s: float) -> Hole:
        """Send, listen to the peer's cards and datagrams, until one of them proves the hole."""
        self._last_resort_at = self._kit.now() + last_resort_s
        self._explain()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_sending)
            nursery.start_soon(self._hear_cards)
            proven = await self._receive()
            nursery.cancel_scope.cancel()
        # Only now, and with no checkpoint up to our caller: a cancellation on the way would lose the descriptor.
        return self._port.hand_over(proven)

    # --- cards -----------------------------------------------------------------------------------------------------

    def take(self, card: Card) -> None:
        """Aim where the card says, at the TTL that it allows."""
        patience_s = LAST_RESORT_ANSWERED_S if self._role is probe.Role.INITIATOR else LAST_RESORT_S
        self._last_resort_at = self._kit.now() + patience_s
        self._opened_by_peer = card.opened
        if not self._heard:
            self.aim(card.ports)
        self._judge_ttl()
        if not self._heard:
            self.open()

    def aim(self, ports: PortSet) -> None:
        """Put the peer's ports first. A NAT with a port for each destination will use later ones for the new ones."""
        if any(port not in self._sent for port in ports):
            self._earlier = len(self._sent)
        self._targets = [*ports, *(port for port in self._targets if port not in ports)]

    def open(self) -> None:
        """Send to all targets at once; at a low TTL that opens our NAT and does no more."""
        fresh = [port for port in self._targets if port not in self._sent]
        if fresh and not self._full_ttl:
            self._kit.emit(Opened(self._port.local, str(PortSet.of(fresh)), self._plan.ttl))
        self._changed.set()
        self._send_to_all()

    def tell(self) -> None:
        """A card for the peer, unless it would say what the last one said."""
        outlook = self._port.outlook
        news = (self._own_ports(), openable(port for port in self._targets if port in self._sent))
        if news == self._told or self._cards_told > MAX_COUNTER:
            return
        self._told = news
        self._cards_told += 1
        ports, opened = news
        self._kit.tell_peer(
            Card(outlook.address, ports, opened, outlook.is_predicted, self._plan.ttl, outlook.rtt_ms, self._key)
        )

    async def _hear_cards(self) -> None:
        while True:
            self.take(await self._kit.hear_peer())
            self.tell()

    def _own_ports(self) -> PortSet:
        return self._port.outlook.ports(self._earlier)

    def _judge_ttl(self) -> None:
        if self._port.outlook.behaviour == "random":
            self._go_full("our own port is random")
        elif any(port in self._opened_by_peer for port in self._own_ports()):
            self._go_full("the peer has opened its NAT for our port")

    # --- sending ---------------------------------------------------------------------------------------------------

    def _go_full(self, why: str) -> None:
        if self._full_ttl:
            return
        self._full_ttl = True
        self._changed.set()
        if self._targets:
            self._kit.emit(Aimed(str(PortSet.of(self._targets)), why))

    async def _keep_sending(self) -> None:
        sent = 0
        while True:
            with trio.move_on_after(self._interval_s(sent)):
                await self._changed.wait()
                self._changed = trio.Event()
                sent = 0
                continue
            if not self._full_ttl and self._kit.now() >= self._last_resort_at:
                self._go_full("no card came in time")
            sent += 1
            self._send_to_all()

    def _interval_s(self, sent: int) -> float:
        if self._full_ttl:
            return FAST_S if sent < FAST_COUNT else SLOW_S
        return min(OPENING_S[min(sent, len(OPENING_S) - 1)], max(self._last_resort_at - self._kit.now(), 0))

    def _send_to_all(self) -> None:
        """One probe to each target, unless this is an initiator that was already heard: it answers, no more."""
        if self._heard and self._role is probe.Role.INITIATOR:
            return
        for port in self._targets:
            self._send(Type.PROBE, port, None if self._full_ttl else self._plan.ttl)

    def _send(self, what: Type, port: int, ttl: int | None = None) -> None:
        sent = self._sent.get(port, 0)
        if sent >= self._plan.packets_per_port or self._sent_in_all >= self._plan.packets:
            return
        self._sent[port] = sent + 1
        self._sent_in_all += 1
        self._port.send(probe.encode(Probe(what, self._role, self._kit.nonce), self._key), port, ttl)

    # --- receiving -------------------------------------------------------------------------------------------------

    async def _receive(self) -> int:
        """The peer's port towards which both directions are proven."""
        while True:
            news = await self._port.peek()
            if not isinstance(news, Datagram):
                self._learned()
            elif self._is_application_data(news):
                return news.source.port
            else:
                self._port.discard()
                if await self._answer(news):
                    return news.source.port

    def _learned(self) -> None:
        """STUN said what our port looks like from outside: the peer may have to know, and we may have to aim higher."""
        self._judge_ttl()
        self._explain()
        self.tell()

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
        self._hear(heard, source)
        if self._role is probe.Role.INITIATOR:
            return self._answer_responder(heard, source)
        return await self._answer_initiator(heard, source)

    def _hear(self, heard: Probe, source: Endpoint) -> None:
        """A port that is proven in one direction is the first candidate, whether a card named it or not."""
        if source in self._heard:
            return
        self._heard.add(source)
        self._targets = [source.port, *(port for port in self._targets if port != source.port)]
        if len(self._heard) == 1:
            self._kit.emit(Heard(source, heard.type.name))
            self._go_full("the peer was heard")
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
        done = probe.encode(Probe(Type.DONE, self._role, self._kit.nonce), self._key)
        for pause_s in DONE_S:
            await trio.sleep(pause_s)
            self._port.send(done, source.port)
        return True

    def _explain(self) -> None:
        """What to say if this ends without a socket."""
        if self._heard:
            sources = ", ".join(str(source) for source in sorted(self._heard)[:2])
            text = f"datagrams of {sources} arrive here, but nothing shows that ours reach it"
        else:
            text = f"no datagram of {self._plan.peer} has come"
            if self._port.outlook.behaviour == "random":
                text += "; the own NAT picks a random port for each destination, so the peer cannot know ours"
        self._kit.emit(Explained(text))
