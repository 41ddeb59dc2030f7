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

from dataclasses import dataclass, field
from typing import ClassVar

import trio

from punchd.endpoint import Endpoint, IPAddress, PortSet
from punchd.errors import PunchError
from punchd.events import Explained, Heard
from punchd.technique import (
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

# Copies of a SYN, seconds between them: the kernel's own second is too long where packets get lost.
REPEAT_S = (0.05, 0.1, 0.2, 0.4, 0.5)
# A SYN that was answered by RST or ICMP: the NAT on the way was not open yet, or closed again.
RETRY_S = 0.1
# Between the first port to try and the next: two pairs that connect at once would leave the sides with different ones.
STAGGER_RTT, STAGGER_S = 2.5, 0.05


@dataclass(frozen=True, slots=True)
class NutssPlan:
    """Which ports to aim at, and how low the low TTL is."""

    role: Role
    peer: IPAddress
    targets: PortSet
    ttl: int


class TcpNutss:
    """The technique `tcp-nutss`."""

    name: ClassVar[str] = "tcp-nutss"
    number: ClassVar[int] = 2
    protocol: ClassVar[str] = "tcp"
    needs: ClassVar[Capability] = Capability.NET_RAW | Capability.NET_ADMIN
    is_reversible: ClassVar[bool] = False

    def plan(self, facts: Facts) -> NutssPlan | Unsuitable:
        return NutssPlan(facts.role, facts.peer, facts.peer_ports, facts.ttl)

    async def initiate(self, plan: NutssPlan, kit: Kit) -> Hole:
        async with kit.tcp() as port:
            await port.learn()
            punch = _Punch(plan, kit, port)
            punch.aim.open(plan.targets)
            punch.aim.tell()
            return await punch.run()

    async def respond(self, plan: NutssPlan, offer: Card, kit: Kit) -> Hole:
        async with kit.tcp() as port:
            punch = _Punch(plan, kit, port)
            punch.aim.take(offer)
            punch.aim.tell()
            return await punch.run()


@dataclass(slots=True)
class _Target:
    """One port of the peer."""

    isn: int
    connection: Connection | None = None
    seen: list[str] = field(default_factory=list)


class _Punch:
    """One side of one round."""

    def __init__(self, plan: NutssPlan, kit: Kit, port: TcpPort) -> None:
        self._plan = plan
        self._kit = kit
        self._port = port
        self._targets: dict[int, _Target] = {}
        self._heard = False
        self._rtt_s = 0.0
        self._nursery: trio.Nursery
        self._won: Connection | None = None
        self.aim = Aim(kit, port, ttl=plan.ttl, body=b"", fire=self._open_all, is_initiator=plan.role is Role.INITIATOR)

    async def run(self) -> Hole:
        self._explain()
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self._keep_aiming)
            self._nursery.start_soon(self._hear_cards)
            self._nursery.start_soon(self._watch)
        if self._won is None:
            raise AssertionError("the round ended without a winner")
        return self._port.hand_over(self._won)

    def _win(self, connection: Connection) -> None:
        if self._won is None:
            self._won = connection
            self._nursery.cancel_scope.cancel()

    # --- opening ---------------------------------------------------------------------------------------------------

    def _open_all(self) -> None:
        """A raw low-TTL SYN to each port that is not being connected to."""
        for port in self.aim.targets:
            target = self._target(port)
            if target.connection is None:
                self._port.send(Flags.SYN, port, seq=plus(target.isn, -1), ttl=self._plan.ttl)

    def _target(self, port: int) -> _Target:
        if port not in self._targets:
            self._targets[port] = _Target(int.from_bytes(self._kit.random(4), "big"))
        return self._targets[port]

    async def _keep_aiming(self) -> None:
        """Low until there is a reason to go up; then connect, port by port."""
        sent = 0
        while not self.aim.full_ttl:
            with trio.move_on_after(REPEAT_S[min(sent, len(REPEAT_S) - 1)]):
                await self.aim.changed.wait()
                self.aim.changed = trio.Event()
                sent = 0
                continue
            sent += 1
            self.aim.judge_by_time()
            self._open_all()
        self._nursery.start_soon(self._accept)
        started: set[int] = set()
        while True:
            self._port.listen(deaf_to=self.aim.opened)
            for port in list(self.aim.targets):
                if port not in started:
                    started.add(port)
                    self._nursery.start_soon(self._connect, port)
                    await self._stagger()
                    break
            else:
                await self.aim.changed.wait()
                self.aim.changed = trio.Event()

    async def _stagger(self) -> None:
        rtt_s = max(self._rtt_s, self._port.outlook.rtt_ms / 1000) + self._port.outlook.rtt_ms / 1000
        await trio.sleep(STAGGER_RTT * rtt_s + STAGGER_S)

    # --- connecting ------------------------------------------------------------------------------------------------

    async def _connect(self, port: int) -> None:
        """Connect until it works: an error only says that a NAT was not ready.

        The kernel refuses at once where the listener has just taken a connection from that very port: that one wins.
        """
        target = self._target(port)
        while True:
            try:
                target.connection = self._port.connect(port, target.isn)
            except PunchError as error:
                self._note(port, str(error))
                await trio.sleep(RETRY_S)
                continue
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._repeat, port)
                number = await target.connection.result()
                nursery.cancel_scope.cancel()
            if number == 0:
                self._win(target.connection)
                return
            target.connection.drop()
            await trio.sleep(RETRY_S)

    async def _repeat(self, port: int) -> None:
        for pause_s in REPEAT_S:
            await trio.sleep(pause_s)
            self._port.repeat(port)

    async def _accept(self) -> None:
        self._win(await self._port.accept())

    # --- what comes in ---------------------------------------------------------------------------------------------

    async def _hear_cards(self) -> None:
        while True:
            card = await self._kit.hear_peer()
            self._rtt_s = max(self._rtt_s, card.rtt_ms / 1000)
            self.aim.take(card)
            self.aim.tell()

    async def _watch(self) -> None:
        while True:
            match await self._port.sight():
                case Sighted(segment, port, False, _):
                    self._see(segment.flags, port)
                case Sighted():
                    continue
                case Complaint(kind, router, port):
                    self._note(port, f"{kind.name.lower().replace('_', ' ')} from {router}")
                case _:
                    self.aim.judge()
                    self.aim.tell()

    def _see(self, flags: Flags, port: int) -> None:
        if flags & Flags.RST:
            self._note(port, "RST")
            return
        if not self._heard:
            self._heard = True
            self._kit.emit(Heard(Endpoint(self._plan.peer, port), "SYN-ACK" if flags & Flags.ACK else "SYN"))
        self._note(port, "SYN-ACK" if flags & Flags.ACK else "SYN")
        self.aim.go_full("the peer was heard")

    def _note(self, port: int, what: str) -> None:
        if port in self._targets and what not in self._targets[port].seen:
            self._targets[port].seen.append(what)
            self._explain()

    def _explain(self) -> None:
        seen = {what for target in self._targets.values() for what in target.seen}
        if not seen:
            text = f"no answer at all from {self._plan.peer}"
        else:
            text = f"{', '.join(sorted(seen))} came from {self._plan.peer}'s side, but no handshake was completed"
        if self._port.outlook.behaviour == "random":
            text += "; the own NAT picks a random port for each destination, so the peer cannot know ours"
        self._kit.emit(Explained(text))
