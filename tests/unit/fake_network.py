"""Two hosts behind NATs, a path and a side channel, all virtual: the world that a technique sees through its kit.

    host A ── NAT A ──────── rtt_s / 2 each way, loss ──────── NAT B ── host B
       └───────────────── side channel, side_s each way ────────────────┘

A NAT is a mapping key times a filter key (RFC 4787 §4, §5) and two habits that punching has to live with: it may keep
an entry for a packet that nobody asked for, and then a later mapping to that peer loses its port; it may forget a
mapping when an ICMP error comes in. Time is trio's, so under `autojump_clock` every delay is exact and free.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from typing import Any

import trio

from punchd.attempt.outlook import KnownSide
from punchd.endpoint import Endpoint, PortSet
from punchd.events import Event
from punchd.nat.mapping import judge
from punchd.technique import Datagram, Facts, Hole, Role, Technique
from punchd.wire import probe
from punchd.wire.token import Card

HOPS = 8  # from one host to the other
HOPS_TO_OWN_NAT = 1
NONCE = bytes(range(8))
STUN_SERVERS = tuple(Endpoint(ip_address(f"192.0.2.{number}"), 3478) for number in (1, 2))


@dataclass(frozen=True, slots=True)
class NatKind:
    """mapping: eim, sequential or random; filtering: eif, adf or apdf."""

    mapping: str = "eim"
    filtering: str = "apdf"
    keeps_strays: bool = False  # an unsolicited packet makes an entry, as on a Linux router without a filter
    dies_of_icmp: bool = False
    strangers: int = 0  # mappings that others make between STUN's answers and the punch; for sequential


FULL_CONE = NatKind(filtering="eif")
ADF = NatKind(filtering="adf")
APDF = NatKind()
NO_FILTER = NatKind(keeps_strays=True)
SEQUENTIAL = NatKind("sequential")
RANDOM = NatKind("random")


class Nat:
    """One NAT in front of one host."""

    def __init__(self, kind: NatKind, public: str, first_port: int) -> None:
        self.kind = kind
        self.public = ip_address(public)
        self.unasked: list[tuple[int, Endpoint]] = []  # packets that were not let in: our port, and where from
        self._next_port = first_port
        self._ports: dict[Endpoint, int] = {}  # destination -> our port
        self._strays: set[tuple[int, Endpoint]] = set()
        self._random = random.Random(first_port)

    def out(self, inside_port: int, to: Endpoint) -> Endpoint:
        """The public source of a packet on its way out."""
        if to not in self._ports:
            self._ports[to] = self._new_port(inside_port, to)
        return Endpoint(self.public, self._ports[to])

    def lets_in(self, port: int, source: Endpoint) -> bool:
        """Whether a packet that arrives at `port` reaches the host."""
        known = [to for to, mapped in self._ports.items() if mapped == port]
        match self.kind.filtering:
            case "eif":
                passes = bool(known)
            case "adf":
                passes = any(to.ip == source.ip for to in known)
            case _:
                passes = source in known
        if not passes:
            self.unasked.append((port, source))
            if self.kind.keeps_strays:
                self._strays.add((port, source))
        return passes

    def hear_icmp(self, to: Endpoint) -> None:
        """A packet towards `to` died on the way, and somebody says so."""
        if self.kind.dies_of_icmp:
            self._ports.pop(to, None)

    def pass_strangers(self) -> None:
        self._next_port += self.kind.strangers

    def _new_port(self, inside_port: int, to: Endpoint) -> int:
        if self.kind.mapping == "sequential":
            self._next_port += 1
            return self._next_port
        if self.kind.mapping == "random":
            return self._random.randrange(20000, 60000)
        if (inside_port, to) in self._strays:
            return inside_port + 5000  # the clash: this destination sees another port
        return inside_port


@dataclass(frozen=True, slots=True)
class Sent:
    at_s: float
    what: probe.Type
    port: int
    ttl: int | None


@dataclass(slots=True)
class Host:
    """One side, and afterwards what it did."""

    nat: Nat
    local: Endpoint
    outlook: KnownSide
    begun_s: float | None = None
    ok_s: float | None = None
    hole: Hole | None = None
    explanation: str = ""
    sent: list[Sent] = field(default_factory=list)
    told: list[tuple[float, Card]] = field(default_factory=list)
    heard: list[tuple[float, Card]] = field(default_factory=list)
    arrived: list[float] = field(default_factory=list)
    queue: deque[Datagram] = field(default_factory=deque)
    stirred: trio.Event = field(default_factory=trio.Event)

    def receive(self, datagram: Datagram) -> None:
        self.arrived.append(trio.current_time())
        self.queue.append(datagram)
        self.stirred.set()

    @property
    def seen_as(self) -> Endpoint | None:
        """The hole's own end as the peer sees it."""
        return None if self.hole is None else self.nat.out(self.local.port, self.hole.remote)

    @property
    def for_application(self) -> list[bytes]:
        """What lies in the socket's queue at the end, its filter considered."""
        return [datagram.data for datagram in self.queue if not probe.is_probe(datagram.data)]


def host(kind: NatKind, public: str, private: str, first_port: int, port: int) -> Host:
    """A host whose port was probed before the attempt."""
    nat = Nat(kind, public, first_port)
    local = Endpoint(ip_address(private), port)
    observed = [nat.out(local.port, server) for server in STUN_SERVERS]
    nat.pass_strangers()
    return Host(nat, local, KnownSide(local, mapping=judge(local, observed), rtt_ms=20))


@dataclass(frozen=True, slots=True)
class Path:
    """What lies between the hosts.

    Attributes:
        late_s: so much later than the offer's arrival does the responder start.
        answers_s: what the responder tells takes so long; None: it is never relayed back.
        loses: asked for each datagram that left its NAT, with the sender; also sees what `loss` would take.
    """

    rtt_s: float = 0.08
    side_s: float = 0.06
    late_s: float = 0.0
    answers_s: float | None = 0.06
    loss: float = 0.0
    seed: int = 0
    loses: Callable[[str, bytes], bool] = lambda sender, data: False


class Network:
    """Carries datagrams and cards between "a" and "b", in the order in which they left, while `run` runs."""

    def __init__(self, path: Path, a: Host, b: Host, on_hand_over: Callable[[], None]) -> None:
        self.hosts = {"a": a, "b": b}
        self.on_hand_over = on_hand_over
        self.path = path
        self._random = {name: random.Random(f"{name} {path.seed}") for name in self.hosts}
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._changed = trio.Event()

    def later(self, delay_s: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._due, (trio.current_time() + delay_s, next(self._numbers), act))
        self._changed.set()

    async def run(self) -> None:
        while True:
            self._changed = trio.Event()
            with trio.move_on_at(self._due[0][0] if self._due else float("inf")):
                await self._changed.wait()
            while self._due and self._due[0][0] <= trio.current_time():
                heapq.heappop(self._due)[2]()

    def send(self, name: str, data: bytes, to: Endpoint, ttl: int | None = None) -> None:
        sender, receiver = self.hosts[name], self.hosts["b" if name == "a" else "a"]
        if ttl is not None and ttl <= HOPS_TO_OWN_NAT:
            return
        source = sender.nat.out(sender.local.port, to)
        if ttl is not None and ttl < HOPS:
            self.later(self.path.rtt_s / 4, lambda: sender.nat.hear_icmp(to))
            return
        if self._random[name].random() < self.path.loss or self.path.loses(name, data) or to.ip != receiver.nat.public:
            return
        self.later(self.path.rtt_s / 2, lambda: self._arrive(receiver, data, source, to.port))

    def _arrive(self, receiver: Host, data: bytes, source: Endpoint, port: int) -> None:
        if receiver.nat.lets_in(port, source):
            receiver.receive(Datagram(data, source))


class FakeKit:
    """Implements `punchd.technique.Kit` for one host."""

    nonce = NONCE

    def __init__(self, network: Network, name: str, stun_s: float | None) -> None:
        self.network = network
        self.name = name
        self.host = network.hosts[name]
        self.tell: Callable[[Card], None] = lambda card: None
        self.on_event: Callable[[Event], None] = lambda event: None
        self._stun_s = stun_s
        self._cards_in, self._cards = trio.open_memory_channel[Card](100)

    def now(self) -> float:
        return trio.current_time()

    def random(self, size: int) -> bytes:
        return bytes(range(100, 100 + size))

    @asynccontextmanager
    async def udp(self) -> AsyncIterator[FakeUdpPort]:
        yield FakeUdpPort(self.network, self.name, self._stun_s)

    def tcp(self) -> AbstractAsyncContextManager[Any]:
        raise NotImplementedError("this world carries datagrams only")

    def tell_peer(self, card: Card) -> None:
        self.host.told.append((self.now(), card))
        self.tell(card)

    async def hear_peer(self) -> Card:
        return await self._cards.receive()

    def deliver(self, card: Card) -> None:
        self.host.heard.append((self.now(), card))
        self._cards_in.send_nowait(card)

    def emit(self, event: Event) -> None:
        self.on_event(event)
        self.host.explanation = getattr(event, "text", self.host.explanation)


class FakeUdpPort:
    """Implements `punchd.technique.UdpPort`. With `stun_s` the public side is known only after that time."""

    def __init__(self, network: Network, name: str, stun_s: float | None) -> None:
        self._network = network
        self._name = name
        self._host = network.hosts[name]
        self.local = self._host.local
        self.outlook = self._host.outlook if stun_s is None else KnownSide(self.local)
        self._news_due = stun_s is not None
        self._news_at = trio.current_time() + (stun_s or 0)

    async def learn(self) -> KnownSide:
        await trio.sleep_until(self._news_at)
        self._news_due = False
        self.outlook = self._host.outlook
        return self.outlook

    def send(self, data: bytes, port: int, ttl: int | None = None) -> None:
        peer = self._network.hosts["b" if self._name == "a" else "a"].nat.public
        self._host.sent.append(Sent(trio.current_time(), probe.Type(data[4]), port, ttl))
        self._network.send(self._name, data, Endpoint(peer, port), ttl)

    async def peek(self) -> Datagram | KnownSide:
        await trio.lowlevel.checkpoint()
        while True:
            if self._news_due and trio.current_time() >= self._news_at:
                return await self.learn()
            if self._host.queue:
                return self._host.queue[0]
            self._host.stirred = trio.Event()
            with trio.move_on_at(self._news_at if self._news_due else float("inf")):
                await self._host.stirred.wait()

    def discard(self) -> None:
        self._host.queue.popleft()

    def hand_over(self, port: int) -> Hole:
        peer = self._network.hosts["b" if self._name == "a" else "a"].nat.public
        self._network.on_hand_over()
        return Hole(-1, self.local, Endpoint(peer, port))


def pair(a: NatKind, b: NatKind) -> tuple[Host, Host]:
    """Host A, which will initiate, and host B."""
    return (
        host(a, "203.0.113.1", "10.0.0.2", first_port=41000, port=5001),
        host(b, "198.51.100.9", "10.9.0.2", first_port=43000, port=5002),
    )


@dataclass(slots=True)
class Punch:
    """One round of a technique between two hosts, and how it is set up.

    Attributes:
        hint: the responder's ports that the initiator's application was told; None: those that were probed.
        a_stun_s, b_stun_s: that side asks STUN in the round, and gets its answers after so long; None: probed before.
        b_says: what the responder's application sends as soon as it has the socket.
        patience_s: for everything; then both sides are cancelled.
        uninvited: (time, host's name, datagram): put into that host's queue.
        ttl: the low one; from 8 on it reaches the peer.
        on_hand_over: called when a technique takes its socket.
        on_event: told of the initiator's and the responder's events.
    """

    a: Host
    b: Host
    path: Path = Path()
    hint: PortSet | None = None
    a_stun_s: float | None = None
    b_stun_s: float | None = None
    b_says: bytes | None = None
    patience_s: float = 6.0
    packets_per_port: int = 64
    packets: int = 512
    uninvited: Sequence[tuple[float, str, Datagram]] = ()
    ttl: int = 4
    on_hand_over: Callable[[], None] = lambda: None
    on_event: Callable[[Event], None] = lambda event: None
    began_s: float = 0.0

    async def run(self, technique: Technique[Any]) -> None:
        self.began_s = trio.current_time()
        async with trio.open_nursery() as nursery:
            network = Network(self.path, self.a, self.b, self.on_hand_over)
            nursery.start_soon(network.run)
            a, b = FakeKit(network, "a", self.a_stun_s), FakeKit(network, "b", self.b_stun_s)
            offers_in, offers = trio.open_memory_channel[Card](1)

            def carry_to_b(card: Card) -> None:
                if len(self.a.told) == 1:
                    network.later(self.path.side_s + self.path.late_s, lambda: offers_in.send_nowait(card))
                else:
                    network.later(self.path.side_s, lambda: b.deliver(card))

            def carry_to_a(card: Card) -> None:
                if self.path.answers_s is not None:
                    network.later(self.path.answers_s, lambda: a.deliver(card))

            a.tell, b.tell = carry_to_b, carry_to_a
            a.on_event = b.on_event = self.on_event
            for at_s, name, datagram in self.uninvited:
                network.later(at_s, partial(network.hosts[name].receive, datagram))
            with trio.move_on_after(self.patience_s):
                async with trio.open_nursery() as both:
                    both.start_soon(self._initiate, technique, a)
                    both.start_soon(self._respond, technique, b, offers)
            nursery.cancel_scope.cancel()

    async def _initiate(self, technique: Technique[Any], kit: FakeKit) -> None:
        plan = technique.plan(self._facts(Role.INITIATOR, self.b, self.hint or self.b.outlook.ports()))
        self.a.begun_s = trio.current_time()
        self.a.hole = await technique.initiate(plan, kit)
        self.a.ok_s = trio.current_time()

    async def _respond(self, technique: Technique[Any], kit: FakeKit, offers: trio.MemoryReceiveChannel[Card]) -> None:
        offer = await offers.receive()
        plan = technique.plan(self._facts(Role.RESPONDER, self.a, offer.ports))
        self.b.begun_s = trio.current_time()
        self.b.hole = await technique.respond(plan, offer, kit)
        self.b.ok_s = trio.current_time()
        if self.b_says is not None:
            kit.network.send("b", self.b_says, self.b.hole.remote)

    def _facts(self, role: Role, peer: Host, ports: PortSet) -> Facts:
        return Facts(role, peer.nat.public, ports, self.ttl, self.packets_per_port, self.packets)
