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
- Both sides assume the same options: SACK, no timestamps, a window scale of 7, an MSS that fits Ethernet.

It is not in the default sequence: nothing of TCP's handshake protects it, and a NAT that is strict about states, or
rewrites sequence numbers, does not let it through.

Source: tcp(7) TCP_REPAIR; measured on Linux 6.18 with 20 MB through each of the NATs that let it pass.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar

import trio

from punchd.endpoint import Endpoint, IPAddress, PortSet
from punchd.events import Explained, Heard
from punchd.technique import (
    Agreed,
    Capability,
    Complaint,
    Connection,
    Facts,
    Hole,
    Kit,
    Role,
    Sighted,
    TcpPort,
    Unsuitable,
)
from punchd.wire.tcp import Flags, plus
from punchd.wire.token import Card
from punchd_techniques.aim import Aim

REPEAT_S = (0.05, 0.05, 0.1, 0.1, 0.2, 0.2, 0.2, 0.4)
DISTANCE = 1 << 31  # from the initiator's first sequence number to the responder's
FIRST_WINDOW = 64_240  # bytes both may send before the first window update; ten segments and more fit
_BODY = struct.Struct("!I")


@dataclass(frozen=True, slots=True)
class RepairPlan:
    """Which ports to aim at, and how low the low TTL is."""

    role: Role
    peer: IPAddress
    targets: PortSet
    ttl: int


class TcpRepair:
    """The technique `tcp-repair`."""

    name: ClassVar[str] = "tcp-repair"
    number: ClassVar[int] = 4
    protocol: ClassVar[str] = "tcp"
    needs: ClassVar[Capability] = Capability.NET_RAW | Capability.NET_ADMIN
    is_reversible: ClassVar[bool] = False

    def plan(self, facts: Facts) -> RepairPlan | Unsuitable:
        return RepairPlan(facts.role, facts.peer, facts.peer_ports, facts.ttl)

    async def initiate(self, plan: RepairPlan, kit: Kit) -> Hole:
        async with kit.tcp() as port:
            await port.learn()
            first = int.from_bytes(kit.random(4), "big")
            punch = _Punch(plan, kit, port, first, plus(first, DISTANCE))
            punch.aim.open(plan.targets)
            punch.aim.tell()
            return await punch.run()

    async def respond(self, plan: RepairPlan, offer: Card, kit: Kit) -> Hole:
        (first,) = _BODY.unpack(offer.body)
        async with kit.tcp() as port:
            punch = _Punch(plan, kit, port, plus(first, DISTANCE), first)
            punch.aim.take(offer)
            punch.aim.tell()
            return await punch.run()


class _Punch:
    """One side of one round."""

    def __init__(self, plan: RepairPlan, kit: Kit, port: TcpPort, own: int, other: int) -> None:
        self._plan = plan
        self._kit = kit
        self._port = port
        self._own = own
        self._other = other
        self._connections: dict[int, Connection] = {}
        self._won: Connection | None = None
        self._nursery: trio.Nursery
        initiator = plan.role is Role.INITIATOR
        body = _BODY.pack(own if initiator else other)
        self.aim = Aim(kit, port, ttl=plan.ttl, body=body, fire=self._fire, is_initiator=initiator)

    async def run(self) -> Hole:
        self._explain("no answer at all")
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self._keep_firing)
            self._nursery.start_soon(self._hear_cards)
            self._nursery.start_soon(self._watch)
        if self._won is None:
            raise AssertionError("the round ended without a winner")
        return self._port.hand_over(self._won)

    def _fire(self) -> None:
        """Low: an ACK that opens our NAT. Full: the connection, and a probe that the peer's stack must answer."""
        for port in self.aim.targets:
            if not self.aim.full_ttl:
                self._port.send(Flags.ACK, port, seq=plus(self._own, -1), ack=self._other, ttl=self._plan.ttl)
                continue
            if port not in self._connections:
                self._port.send(Flags.ACK, port, seq=plus(self._own, -1), ack=self._other, ttl=self._plan.ttl)
                options = self._port.syn_options
                agreed = Agreed(self._own, self._other, options.mss or 536, options.window_scale or 0, FIRST_WINDOW)
                self._connections[port] = self._port.forge(port, agreed)
            self._port.send(Flags.ACK, port, seq=plus(self._own, -1), ack=self._other)

    async def _keep_firing(self) -> None:
        sent = 0
        while True:
            with trio.move_on_after(REPEAT_S[min(sent, len(REPEAT_S) - 1)]):
                await self.aim.changed.wait()
                self.aim.changed = trio.Event()
                sent = 0
                continue
            sent += 1
            self.aim.judge_by_time()
            self._fire()

    async def _hear_cards(self) -> None:
        while True:
            self.aim.take(await self._kit.hear_peer())
            self.aim.tell()

    async def _watch(self) -> None:
        while True:
            match await self._port.sight():
                case Sighted(_, _, False, _) as sighted:
                    self._see(sighted)
                case Sighted():
                    continue
                case Complaint(kind, router, _):
                    self._explain(f"{kind.name.lower().replace('_', ' ')} from {router}")
                case _:
                    self.aim.judge()
                    self.aim.tell()

    def _see(self, sighted: Sighted) -> None:
        segment, port = sighted.segment, sighted.port
        if segment.flags & Flags.RST:
            self._explain("RST")
            return
        if segment.flags & (Flags.SYN | Flags.ACK) != Flags.ACK or segment.ack != self._own:
            return
        if not self.aim.full_ttl:
            self._kit.emit(Heard(Endpoint(self._plan.peer, port), "ACK"))
        self.aim.add(port)
        self.aim.go_full("the peer was heard")
        if segment.seq == self._other and port in self._connections:
            self._won = self._connections[port]  # only an established stack answers with the next number
            self._nursery.cancel_scope.cancel()

    def _explain(self, what: str) -> None:
        self._kit.emit(Explained(f"{what} from {self._plan.peer}'s side"))
