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

The classic form. Where raw segments cannot be sent (no CAP_NET_RAW, or the host's own firewall refuses them), the SYN
that opens the NAT is the paper's: that of a connect() with a low TTL. Then the ICMP error is about the connection
itself, and only a rule in the host's firewall that drops it keeps the socket in SYN-SENT (`TcpPort.exempt`). The
socket is kept, not given up as in the paper: its sequence number is the one that the NAT knows.

    A                                                       B, raw or classic
    connect(), low TTL: SYN(x); the TTL goes up at once
    offer ─────────────────── side channel ───────────────▶ its NAT opens towards A
                       ◀────────────── SYN(y) ───────────── connect()
    SYN-RECEIVED ────────────────── SYN-ACK(x) ───────────▶ ESTABLISHED
    (or the answer token comes first: SYN(x) again, at full TTL)

- The peer's SYN is met by the socket itself, without our seeing it; nothing needs to be sniffed.
- The kernel would repeat the low-TTL SYN after a second, and at full TTL: too early for the peer's NAT. So each copy,
  low or full, is a fresh socket with the same sequence number in place of the one before, well within that second.

What this cannot do: two NATs that both drop every inbound SYN (see `tcp-syni`, `tcp-repair`).
"""

from __future__ import annotations

import errno
import math
from collections.abc import Callable
from typing import ClassVar

import trio

from punchd.errors import Code, PunchError
from punchd.technique import Capability, Connection, Facts, Hole, Kit, Sighted, TcpPort
from punchd.wire.tcp import Flags, plus
from punchd.wire.token import Card
from punchd_techniques.handshake import RETRY_S, Handshake

# Copies of a SYN, seconds between them: the kernel's own second is too long where packets get lost.
REPEAT_S = (0.05, 0.1, 0.2, 0.4, 0.5)
# Between the first port to try and the next: two pairs that connect at once would leave the sides with different ones.
STAGGER_RTT, STAGGER_S = 2.5, 0.05


class TcpNutss:
    """The technique `tcp-nutss`."""

    name: ClassVar[str] = "tcp-nutss"
    number: ClassVar[int] = 2
    protocol: ClassVar[str] = "tcp"
    needs: ClassVar[Capability] = Capability.NET_ADMIN | Capability.LOW_TTL_SYN
    is_reversible: ClassVar[bool] = False

    def plan(self, facts: Facts) -> Facts:
        return facts

    async def initiate(self, plan: Facts, kit: Kit) -> Hole:
        async with kit.tcp() as port:
            await port.learn()
            return await _punch(plan, kit, port, lambda side: side.aim.offer())

    async def respond(self, plan: Facts, offer: Card, kit: Kit) -> Hole:
        async with kit.tcp() as port:
            return await _punch(plan, kit, port, lambda side: side.take(offer))


async def _punch(plan: Facts, kit: Kit, port: TcpPort, begin: Callable[[_Punch], None]) -> Hole:
    """With raw SYNs if they can be sent, which the first one shows; else in the classic form."""
    if port.can_send_raw:
        side = _Punch(plan, kit, port)
        try:
            begin(side)
        except PunchError as error:
            if error.reason is not Code.REFUSED or not port.can_exempt:
                raise
        else:
            return await side.run()
    async with port.exempt():
        classic = _Classic(plan, kit, port)
        begin(classic)
        return await classic.run()


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
            self._isns[port] = self.port.isn()
        return self._isns[port]


class _Classic(_Punch):
    """One side of one round in the classic form, inside an exemption."""

    def __init__(self, plan: Facts, kit: Kit, port: TcpPort) -> None:
        self._kept: dict[int, Connection] = {}  # by the peer's port
        self._begun, self._to_keep = trio.open_memory_channel[int](math.inf)  # ports of connections that are new
        super().__init__(plan, kit, port)
        if not port.can_send_raw:
            self._seen.failed("without CAP_NET_RAW nobody saw what came")

    def fire(self) -> None:
        """A low-TTL SYN to each port that is not being connected to at full TTL."""
        for port in self.aim.targets:
            if port not in self.connecting and self.aim.spend(port):
                self._send_syn(port, self.plan.ttl)

    async def act(self) -> None:
        self.nursery.start_soon(self._keep_each)
        await super().act()

    async def _connect(self, port: int) -> None:
        self.port.listen(deaf_to=self.aim.opened)
        for pause_s in (0, *REPEAT_S):
            await trio.sleep(pause_s)
            self._send_syn(port, None)

    async def _keep_each(self) -> None:
        async for port in self._to_keep:
            self.nursery.start_soon(self._keep, port)

    async def _keep(self, port: int) -> None:
        """Wait for the connection, from its first SYN on; an error only says that a NAT was not ready."""
        while number := await self._kept[port].result():
            self.tried(port, errno.errorcode.get(number, str(number)))
            await trio.sleep(RETRY_S)
            self._send_syn(port, None if port in self.connecting else self.plan.ttl)
        await self.prove(self._kept[port], self._isn(port))

    def _send_syn(self, port: int, ttl: int | None) -> None:
        """Always with the same sequence number, and not where the peer's SYN has come already."""
        try:
            if port in self._kept:
                self.port.reconnect(self._kept[port], self._isn(port), ttl)
            else:
                self._kept[port] = self.port.connect(port, self._isn(port), ttl)
                self._begun.send_nowait(port)
        except PunchError as error:
            self.tried(port, str(error))
