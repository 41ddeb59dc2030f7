"""TCP without any SYN: both sides put a socket straight into ESTABLISHED.

For two NATs that both drop inbound SYNs, where neither a simultaneous open nor SYN injection gets through. A
connection-tracking NAT that sees a bare ACK of a connection that it does not know takes it for one that began before
it was watching, and lets the answers in (Linux: nf_conntrack_tcp_loose, on by default).

    A                                                       B
    holds its port; raw low-TTL ACK(x-1, y): A's NAT opens
    card with x ────────────── side channel ──────────────▶ raw low-TTL ACK(y-1, x): B's NAT opens
                                                            forges the connection: sends from y on, expects x
               ◀────────────── side channel ────────────── card: armed
    forges the connection: sends from x on, expects y
    both: raw ACK(own - 1, other) until the peer's stack answers with an ACK of its own

- y is x + 2^31: a NAT's window tracking wants to see both numbers in the very first segment, when only A has spoken.
- The probe is a keepalive's (RFC 9293 §3.8.4): one below the next sequence number, so that an established peer must
  answer, and nobody else does: a deaf listener holds the port until the connection is forged.
- Both sides assume the same options: SACK, no timestamps, a window scale of 7; the MSS is that of the own way out.

It is not in the default sequence: nothing of TCP's handshake protects it, and a NAT that is strict about states, or
rewrites sequence numbers, does not let it through.

Source: tcp(7) TCP_REPAIR; measured on Linux 6.18 with 20 MB through each of the NATs that let it pass.
"""

from __future__ import annotations

import struct
from typing import ClassVar

from punchd.technique import Agreed, Capability, Connection, Facts, Hole, Kit, Role, Sighted, TcpPort
from punchd.wire.tcp import Flags, plus
from punchd.wire.token import Card
from punchd_techniques.handshake import Handshake

REPEAT_S = (0.05, 0.05, 0.1, 0.1, 0.2, 0.2, 0.2, 0.4)
DISTANCE = 1 << 31  # from the initiator's first sequence number to the responder's
LAST_WORDS = 4  # answers on winning; 5 % loss takes all of them once in 160,000 times
WINDOW_SCALE = 7  # windows of up to 8 MiB, whatever the kernels would have chosen
FIRST_WINDOW = 64_240  # bytes both may send before the first window update; ten segments and more fit
_BODY = struct.Struct("!I")


class TcpRepair:
    """The technique `tcp-repair`."""

    name: ClassVar[str] = "tcp-repair"
    number: ClassVar[int] = 4
    protocol: ClassVar[str] = "tcp"
    needs: ClassVar[Capability] = Capability.NET_RAW | Capability.NET_ADMIN
    is_reversible: ClassVar[bool] = False

    def plan(self, facts: Facts) -> Facts:
        return facts

    async def initiate(self, plan: Facts, kit: Kit) -> Hole:
        async with kit.tcp() as port:
            await port.learn()
            first = port.isn()
            punch = _Punch(plan, kit, port, first, plus(first, DISTANCE))
            punch.aim.offer()
            return await punch.run()

    async def respond(self, plan: Facts, offer: Card, kit: Kit) -> Hole:
        (first,) = _BODY.unpack(offer.body)
        async with kit.tcp() as port:
            punch = _Punch(plan, kit, port, plus(first, DISTANCE), first)
            punch.take(offer)
            return await punch.run()


class _Punch(Handshake):
    """One side of one round."""

    def __init__(self, plan: Facts, kit: Kit, port: TcpPort, own: int, other: int) -> None:
        self._own = own
        self._other = other
        self._connections: dict[int, Connection] = {}
        super().__init__(plan, kit, port, _BODY.pack(own if plan.role is Role.INITIATOR else other))

    async def act(self) -> None:
        await self.aim.keep_firing(REPEAT_S, REPEAT_S)

    def fire(self) -> None:
        """Low: an ACK that opens our NAT. Full: the connection, and a probe that the peer's stack must answer."""
        for port in self.aim.targets:
            if port not in self._connections:
                self._send(port, self.plan.ttl)
            if not self.aim.full_ttl:
                continue
            if port not in self._connections:
                options = self.port.syn_options
                agreed = Agreed(self._own, self._other, options.mss or 536, WINDOW_SCALE, FIRST_WINDOW)
                self._connections[port] = self.port.forge(port, agreed)
            self._send(port)

    def _send(self, port: int, ttl: int | None = None) -> None:
        if self.aim.spend(port):
            self.port.send(Flags.ACK, port, seq=plus(self._own, -1), ack=self._other, ttl=ttl)

    def see(self, sighted: Sighted) -> None:
        segment, port = sighted.segment, sighted.port
        is_ack = segment.flags & (Flags.SYN | Flags.RST | Flags.FIN | Flags.ACK) == Flags.ACK
        if sighted.is_outgoing or not is_ack or segment.ack != self._own:
            return
        self.hear(sighted)
        self.aim.add(port)
        if not self.aim.full_ttl:
            self.aim.go_full("the peer was heard")
            self.fire()
        if segment.seq == self._other and port in self._connections:
            # Only an established stack answers with the next number. The peer may still wait for ours, and our stack
            # answers its probes no more than twice a second (tcp_invalid_ratelimit): say it a few times.
            for _ in range(LAST_WORDS):
                self.port.send(Flags.ACK, port, seq=self._own, ack=self._other)
            self.win(self._connections[port])
