"""TCP by SYN injection: one side's SYN never has to cross the other's NAT.

As published (Holzapfel, Wander, Wacker, Weis, "SYNI - TCP Hole Punching Based on SYN Injection", NCA 2011) A sends a
low-TTL SYN(x) that opens its own NAT, and tells B x; B puts the same SYN into its own stack, which answers it with a
SYN-ACK; to A's NAT that is the expected answer. It fails today: B's SYN-ACK has to leave through B's own NAT, and a
connection-tracking NAT takes a SYN-ACK for invalid where it saw no SYN (every Linux router; a bare one even lets it out
untranslated).

So B's NAT is shown a SYN of each direction first:

    A, the sender                                          B, the injector
    holds its port; raw low-TTL SYN(x): A's NAT opens
    card with x ────────────── side channel ─────────────▶ listens, injects SYN(x) into its own stack,
                                                            sees its kernel's SYN-ACK(y) leave (and be dropped)
                                                            raw low-TTL SYN(y-1): B's NAT has seen a SYN go out
               ◀────────────── side channel ────────────── card: armed
    connect() with ISN x  ──────── SYN(x) ───────────────▶ B's NAT has seen one come in, even if it drops it
               ◀───────────────── SYN-ACK(y) ───────────── repeated, raw: now it passes
    ESTABLISHED ───────────────────── ACK ───────────────▶ ESTABLISHED

- y-1, not y: the ICMP time-exceeded that comes back would otherwise be about B's own half-open connection, and end it.
- A SYN-ACK that comes before A's connect() leaked: a plain firewall lets out what it takes for invalid. It proves that
  B listens, but not that B's own SYN is out, and A's must come after that one: else B's firewall stays in SYN-SENT.
  It would let the bytes pass and drop A's FIN, and forget the connection after two minutes. So A waits for the card.
- The injected SYN carries the options that A's kernel will use, since the SYN-ACK mirrors them; no timestamps, which
  cannot be known beforehand.
- With the roles reversed the responder is the sender; that takes one card more.

What this cannot do: an injector behind a NAT that drops inbound SYNs before it tracks them, a sender behind one that
rewrites sequence numbers. The other direction, with roles reversed, often can.
"""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import ClassVar

import trio

from punchd.errors import PunchError
from punchd.technique import Capability, Facts, Hole, Kit, Role, Sighted, TcpPort
from punchd.wire.tcp import Flags, Options, plus
from punchd.wire.token import Card
from punchd_techniques.aim import LAST_RESORT_S, LAST_RESORT_UNANSWERED_S
from punchd_techniques.handshake import Handshake

REPEAT_S = (0.05, 0.1, 0.2, 0.2, 0.2, 0.4, 0.4, 0.4)  # copies of SYN and SYN-ACK; the kernel's come after a second
LEAKED_S = 0.5  # from a SYN-ACK that leaked to connect(), without the injector's card
OPENINGS = 3  # low-TTL SYNs of the injector, in case one is lost in its own network
STAGGER_S = 0.25  # between two ports of the peer: sides that connect two pairs at once may end with different ones
_BODY = struct.Struct("!IHBB")
_SACK = 1
_NO_SCALE = 255


class TcpSyni:
    """The technique `tcp-syni`."""

    name: ClassVar[str] = "tcp-syni"
    number: ClassVar[int] = 1
    protocol: ClassVar[str] = "tcp"
    needs: ClassVar[Capability] = Capability.NET_RAW | Capability.NET_ADMIN
    is_reversible: ClassVar[bool] = True

    def plan(self, facts: Facts) -> Facts:
        return facts

    async def initiate(self, plan: Facts, kit: Kit) -> Hole:
        async with kit.tcp() as port:
            await port.learn()
            punch = _Injector(plan, kit, port) if plan.reversed_roles else _Sender(plan, kit, port)
            punch.aim.offer()
            return await punch.run()

    async def respond(self, plan: Facts, offer: Card, kit: Kit) -> Hole:
        async with kit.tcp() as port:
            punch = _Sender(plan, kit, port) if plan.reversed_roles else _Injector(plan, kit, port)
            punch.take(offer)
            return await punch.run()


def encode_syn(isn: int, options: Options) -> bytes:
    """What a sender's card adds: its SYN."""
    scale = _NO_SCALE if options.window_scale is None else options.window_scale
    return _BODY.pack(isn, options.mss or 0, scale, _SACK if options.sack_permitted else 0)


def decode_syn(body: bytes) -> tuple[int, Options]:
    """The SYN in a card's body: initial sequence number and options."""
    isn, mss, scale, bits = _BODY.unpack(body)
    return isn, Options(
        mss=mss or None, window_scale=min(scale, 14) if scale != _NO_SCALE else None, sack_permitted=bool(bits & _SACK)
    )


class _Sender(Handshake):
    """Sends the SYN: with a low TTL first, by connect() once the injector is armed."""

    def __init__(self, plan: Facts, kit: Kit, port: TcpPort) -> None:
        self._isn = port.isn()
        self._armed = trio.Event()
        self._has_leaked = False
        super().__init__(plan, kit, port, encode_syn(self._isn, port.syn_options))

    def fire(self) -> None:
        """Opens our NAT. Not once connect() is due: the ICMP time-exceeded about this very SYN would end it."""
        for port in self.aim.targets:
            if not self._armed.is_set() and port not in self.connecting and self.aim.spend(port):
                self.port.send(Flags.SYN, port, seq=self._isn, ttl=self.plan.ttl)

    def take(self, card: Card) -> None:
        """A card of the injector: as the responder the offer, which waits for our SYN; else it is armed."""
        if self.aim.targets:
            self._armed.set()
        super().take(card)

    def see(self, sighted: Sighted) -> None:
        segment = sighted.segment
        if sighted.is_outgoing or segment.flags & (Flags.SYN | Flags.ACK | Flags.RST) != Flags.SYN | Flags.ACK:
            return
        if segment.ack == plus(self._isn, 1):
            self.hear(sighted)
            self.aim.add(sighted.port)
            if not self._has_leaked:
                self._has_leaked = True
                self.nursery.start_soon(self._do_without_card)

    async def act(self) -> None:
        with trio.move_on_after(LAST_RESORT_UNANSWERED_S if self.plan.role is Role.INITIATOR else LAST_RESORT_S):
            sent = 0
            while not self._armed.is_set():
                with trio.move_on_after(REPEAT_S[min(sent, len(REPEAT_S) - 1)]):
                    await self._armed.wait()
                sent += 1
                self.fire()
        await self.connect_each(self._connect, lambda: STAGGER_S)

    async def _do_without_card(self) -> None:
        """The side channel may be slow, or relay nothing."""
        await trio.sleep(LEAKED_S)
        self._armed.set()

    async def _connect(self, port: int) -> None:
        await self.connect(port, self._isn, self._repeat)

    async def _repeat(self, port: int) -> None:
        for pause_s in REPEAT_S:
            await trio.sleep(pause_s)
            self.port.repeat(port)


class _Injector(Handshake):
    """Lets its own stack see the sender's SYN, and gets the SYN-ACK through its own NAT."""

    def __init__(self, plan: Facts, kit: Kit, port: TcpPort) -> None:
        self._answered: dict[int, int] = {}  # the sender's port -> sequence number of our stack's SYN-ACK
        self._injected: dict[int, int] = {}  # the sender's port -> the SYN's sequence number
        super().__init__(plan, kit, port, bytes(_BODY.size))

    def fire(self) -> None:
        """Nothing opens our NAT before our stack's sequence number is known."""

    def take(self, card: Card) -> None:
        isn, options = decode_syn(card.body)
        self.aim.take(card)
        if isn == 0:
            return
        self.port.listen()
        for port in card.ports:
            if port not in self._answered and self.aim.spend(port):  # our stack's SYN-ACK goes there
                self.port.inject(Flags.SYN, port, seq=isn, options=options)
                self._injected[port] = isn

    def see(self, sighted: Sighted) -> None:
        segment = sighted.segment
        if not sighted.is_outgoing and not segment.flags & Flags.RST:
            self.hear(sighted)
        if not sighted.is_outgoing or segment.flags & (Flags.SYN | Flags.ACK) != Flags.SYN | Flags.ACK:
            return
        if sighted.port not in self._answered:
            self._answered[sighted.port] = segment.seq
            self._open(sighted.port)
            self.aim.tell(again=True)  # we are armed
            self.nursery.start_soon(self._repeat, sighted.port)

    def _open(self, port: int) -> None:
        if self.aim.spend(port):
            self.port.send(Flags.SYN, port, seq=plus(self._answered[port], -1), ttl=self.plan.ttl)

    async def act(self) -> None:
        try:
            await self.accept()
        finally:
            self._withdraw()

    def _withdraw(self) -> None:
        """RST to what is half open: our stack would repeat its SYN-ACK for a minute, and a later round that connects
        from this port to one of those could not (EADDRNOTAVAIL).

        The sender may believe that it is connected, if only its ACK was lost. The initiator's next round has another
        port, so that a RST to the sender spoils nothing then.
        """
        for port, isn in self._injected.items():
            if self._won is not None and port == self._won.port:
                continue
            with suppress(PunchError):  # what the round came to is known; this is tidying up
                self.port.inject(Flags.RST, port, seq=plus(isn, 1), options=Options())
                if self.plan.role is Role.INITIATOR and port in self._answered:
                    self.port.send(Flags.RST, port, seq=plus(self._answered[port], 1))

    async def _repeat(self, port: int) -> None:
        """The SYN-ACK passes our NAT once the sender's SYN has reached it; until then copies are dropped there."""
        sent = 0
        while True:
            await trio.sleep(REPEAT_S[min(sent, len(REPEAT_S) - 1)])
            sent += 1
            if sent <= OPENINGS:
                self._open(port)
            self.port.repeat(port)
