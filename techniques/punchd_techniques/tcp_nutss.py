"""TCP without spoofing: NUTSS's low-TTL SYN, as a simultaneous open from both sides.

As published (Guha, Takeda, Francis, "NUTSS: A SIP-based Approach to UDP and TCP Network Connectivity", FDNA 2004,
§4.2.2) one side sends a SYN with a TTL that takes it out of its own NAT but not to the peer's, gives that connection
up, and listens on the same port; the other side then connects. It fails today: a connection-tracking NAT remembers the
sequence number of the first SYN, and the SYN-ACK of the listener has another one, so that every such NAT drops it (88
of 400 pairs of the laboratory's NATs let it through).

So here both sides do the same (simultaneous open, RFC 9293 §3.5):

    A                                                       B
    holds its port; raw low-TTL SYN(x-1): A's NAT opens
    offer ─────────────────── side channel ───────────────▶ the same towards A: raw low-TTL SYN(y-1)
                       ◀────────────── SYN(y) ───────────── connect()
    sees SYN(y): connect()  ────────── SYN(x) ────────────▶ SYN-RECEIVED
                       ◀──────────── SYN-ACK(y) ─────────── (or the answer token comes first: the same)
    ESTABLISHED ────────────────────── ACK ───────────────▶ ESTABLISHED

- The opening SYN is raw and one *below* the sequence number of the connection to come. The ICMP time-exceeded that it
  provokes is about a number outside of the window, so the kernel ignores it; with the same number it would end
  connect() with EHOSTUNREACH, and a firewall rule would be needed. Conntrack tolerates the gap of one.
- The port is held by a deaf listener meanwhile: a port that nobody listens on answers the peer's early SYN with RST.
- When a side connects, its listener is opened as well: a NAT that lets any SYN in then needs no simultaneous open, and
  a peer whose port nobody could predict gets through. It stays deaf to the ports that are connected to: its SYN-ACK
  would have another sequence number than the SYN that opened the NAT, and a tracking NAT drops all that follows (both
  sides were ESTABLISHED then and no byte got through, in one attempt of a hundred).
- RST and ICMP errors that come back from a NAT are no verdict: the SYN is sent again.
- The kernel repeats a lost SYN after a second; copies are sent sooner.

What this cannot do: two NATs that both drop every inbound SYN (see `tcp-syni`, `tcp-repair`).
"""

from __future__ import annotations

from typing import ClassVar

import trio

from punchd.technique import Capability, Facts, Hole, Kit, Sighted, TcpPort
from punchd.wire.tcp import Flags, plus
from punchd.wire.token import Card
from punchd_techniques.handshake import Handshake

# Copies of a SYN, seconds between them: the kernel's own second is too long where packets get lost.
REPEAT_S = (0.05, 0.1, 0.2, 0.4, 0.5)
# Between the first port to try and the next: two pairs that connect at once would leave the sides with different ones.
STAGGER_RTT, STAGGER_S = 2.5, 0.05


class TcpNutss:
    """The technique `tcp-nutss`."""

    name: ClassVar[str] = "tcp-nutss"
    number: ClassVar[int] = 2
    protocol: ClassVar[str] = "tcp"
    needs: ClassVar[Capability] = Capability.NET_RAW | Capability.NET_ADMIN
    is_reversible: ClassVar[bool] = False

    def plan(self, facts: Facts) -> Facts:
        return facts

    async def initiate(self, plan: Facts, kit: Kit) -> Hole:
        async with kit.tcp() as port:
            await port.learn()
            punch = _Punch(plan, kit, port)
            punch.aim.offer()
            return await punch.run()

    async def respond(self, plan: Facts, offer: Card, kit: Kit) -> Hole:
        async with kit.tcp() as port:
            punch = _Punch(plan, kit, port)
            punch.take(offer)
            return await punch.run()


class _Punch(Handshake):
    """One side of one round."""

    def __init__(self, plan: Facts, kit: Kit, port: TcpPort) -> None:
        self._isns: dict[int, int] = {}  # the peer's port -> initial sequence number of the connection to it
        self._peer_rtt_s = 0.0
        super().__init__(plan, kit, port, b"")

    def take(self, card: Card) -> None:
        self._peer_rtt_s = max(self._peer_rtt_s, card.rtt_ms / 1000)
        super().take(card)

    def fire(self) -> None:
        """A raw low-TTL SYN to each port that is not being connected to."""
        for port in self.aim.targets:
            if port not in self.connecting and self.aim.spend(port):
                self.port.send(Flags.SYN, port, seq=plus(self._isn(port), -1), ttl=self.plan.ttl)

    def see(self, sighted: Sighted) -> None:
        if not sighted.is_outgoing and not sighted.segment.flags & Flags.RST:
            self.hear(sighted)
            self.aim.go_full("the peer was heard")

    async def act(self) -> None:
        """Low until there is a reason to go up; then connect, port by port."""
        await self.aim.keep_firing(REPEAT_S, ())
        self.port.listen(deaf_to=self.aim.opened)
        self.nursery.start_soon(self.accept)
        await self.connect_each(self._connect, self._stagger_s)

    async def _connect(self, port: int) -> None:
        self.port.listen(deaf_to=self.aim.opened)
        await self.connect(port, self._isn(port), self._repeat)

    async def _repeat(self, port: int) -> None:
        for pause_s in REPEAT_S:
            await trio.sleep(pause_s)
            self.port.repeat(port)

    def _stagger_s(self) -> float:
        own_rtt_s = self.port.outlook.rtt_ms / 1000
        return STAGGER_RTT * (max(self._peer_rtt_s, own_rtt_s) + own_rtt_s) + STAGGER_S

    def _isn(self, port: int) -> int:
        if port not in self._isns:
            self._isns[port] = int.from_bytes(self.kit.random(4), "big")
        return self._isns[port]
