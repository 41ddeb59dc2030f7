"""What a technique may do to the world: the real kit, where policy stands.

Every effect of a technique goes through here, and here it is checked, not in the technique: packets leave only from
the attempt's own port and only to the attempt's peer, no more of them than a round may send; what a technique tells
its other half becomes a token.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import trio

from punchd.attempt.outlook import KnownSide
from punchd.attempt.passed_tcp import PassedTcpPort
from punchd.attempt.port import LearningPort, UdpRecording
from punchd.attempt.tcp_port import LearningTcpPort, RoundTcpPort
from punchd.endpoint import Endpoint, IPAddress
from punchd.errors import Code, PunchError
from punchd.events import Event, MappingLearned, Unrecorded
from punchd.kernel.firewall import Firewall, NoFirewall
from punchd.kernel.passed import PassedSocket
from punchd.kernel.udp import Complained
from punchd.technique import Complaint, Datagram, Hole
from punchd.wire.token import Card

UNHEARD_CARDS = 16  # cards of the peer that a technique has not yet asked for; more are dropped


class AttemptPorts:
    """The ports of one attempt, bound before it starts, the STUN servers to ask for them, and the host's firewall.

    Owns the ports: `close` closes what was not handed over. With a socket that the application has passed in there is
    no other: a technique that would need one does not run.
    """

    def __init__(
        self,
        udp: LearningPort | None,
        stun: Sequence[Endpoint],
        tcp: LearningTcpPort | None = None,
        firewall: Firewall | None = None,
        passed: PassedSocket | None = None,
    ) -> None:
        self.firewall = firewall or NoFirewall()
        self.passed = passed
        self.udp = udp
        self.tcp = tcp
        self.stun = stun
        self.renew_tcp: Callable[[], LearningTcpPort] | None = None
        self._tcp_was_used = False

    def tcp_of_round(self) -> LearningTcpPort:
        """The TCP port of the round that begins.

        A round leaves states behind, in both NATs and in both stacks, that the next one would trip over; they belong
        to a pair of endpoints. So the initiator, whose offer names its ports anyway, takes a fresh port for each
        later round, where `renew_tcp` can make one; the responder keeps the port that the initiator knows of.

        Raises:
            PunchError: there is no TCP port, or no other one can be had.
        """
        if self.tcp is None:
            raise PunchError(Code.NETWORK, "the attempt has no TCP port")
        if self._tcp_was_used and self.renew_tcp is not None:
            used, self.tcp = self.tcp, self.renew_tcp()
            used.close()
        self._tcp_was_used = True
        return self.tcp

    def close(self) -> None:
        if self.udp is not None:
            self.udp.close()
            self.udp = None
        if self.tcp is not None:
            self.tcp.close()
            self.tcp = None
        if self.passed is not None:
            self.passed.restore()
            self.passed = None

    def check(self, protocol: str) -> None:
        """Raises PunchError (unsupported) if the application has passed in a socket of another protocol."""
        if self.passed is not None and self.passed.protocol != protocol:
            text = f"the application passed a {self.passed.protocol.upper()} socket in"
            raise PunchError(Code.UNSUPPORTED, text)


class RoundKit:
    """The kit of one round. Implements `punchd.technique.Kit`."""

    def __init__(
        self,
        *,
        nonce: bytes,
        peer: IPAddress,
        packets: int,
        ports: AttemptPorts,
        tell: Callable[[Card], None],
        emit: Callable[[Event], None],
        record: Callable[[bytes], None] | None = None,
    ) -> None:
        self.nonce = nonce
        self._peer = peer
        self._packets = packets
        self._ports = ports
        self._tell = tell
        self._emit = emit
        self._record = record
        self._is_retired = False
        self.hole: Hole | None = None  # what was handed over; whoever runs the technique closes it if nobody gets it
        self._cards_in, self._cards = trio.open_memory_channel[Card](UNHEARD_CARDS)

    def now(self) -> float:
        return trio.current_time()

    def random(self, size: int) -> bytes:
        return os.urandom(size)

    @asynccontextmanager
    async def udp(self) -> AsyncIterator[RoundUdpPort]:
        """The attempt's port; it stays bound for a later round unless it is handed over."""
        self._ports.check("udp")
        if self._ports.udp is None:
            raise PunchError(Code.NETWORK, "the attempt has no UDP port")
        async with self._recording(self._ports.udp):
            self._ports.udp.ask(self._ports.stun)
            yield RoundUdpPort(self._ports, self._ports.udp, self._peer, self._packets, self)

    @asynccontextmanager
    async def _recording(self, port: LearningPort) -> AsyncIterator[None]:
        """Record a UDP port's packets, if anybody wants them and the daemon may."""
        if self._record is None:
            yield
            return
        try:
            recording = UdpRecording(port.local, self._record)
        except PunchError as error:
            self.emit(Unrecorded(str(error)))
            yield
            return
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(recording.run)
                yield
                nursery.cancel_scope.cancel()
        finally:
            recording.close()

    @asynccontextmanager
    async def tcp(self) -> AsyncIterator[RoundTcpPort]:
        """The round's port; it stays held, and its STUN connections open, until the attempt ends or renews it."""
        self._ports.check("tcp")
        own = self._ports.tcp_of_round()
        firewall, nonce = self._ports.firewall, self.nonce
        around = (own, self._peer, self._packets, self.keep, self._record)
        if self._ports.passed is None:
            port = RoundTcpPort(*around, firewall=firewall, nonce=nonce)
        else:
            port = PassedTcpPort(*around, firewall=firewall, nonce=nonce, passed=self._ports.passed)
        if self._record is not None and not port.is_sniffing:
            self.emit(Unrecorded("sniffing needs CAP_NET_RAW"))
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(port.watch)
                if own.ask(self._ports.stun):
                    nursery.start_soon(port.ask)
                yield port
                nursery.cancel_scope.cancel()
        finally:
            port.close()

    def tell_peer(self, card: Card) -> None:
        if not self._is_retired:
            self._tell(card)

    def emit(self, event: Event) -> None:
        if not self._is_retired:
            self._emit(event)

    def keep(self, hole: Hole) -> Hole:
        """Remember a hole, so that its descriptor is not lost with a technique that is cancelled on its way out."""
        self.hole = hole
        return hole

    def retire(self) -> None:
        """The round is over: what a technique still says while it is being cancelled is not heard."""
        self._is_retired = True

    async def hear_peer(self) -> Card:
        return await self._cards.receive()

    def deliver(self, card: Card) -> None:
        """The peer's half said this; a technique that does not listen loses it, as if the side channel had."""
        try:
            self._cards_in.send_nowait(card)
        except trio.WouldBlock:
            return


class RoundUdpPort:
    """The attempt's UDP port for one round: the peer and a number of packets. Implements `technique.UdpPort`."""

    def __init__(self, ports: AttemptPorts, port: LearningPort, peer: IPAddress, packets: int, kit: RoundKit) -> None:
        self._ports = ports
        self._port = port
        self._peer = peer
        self._packets_left = packets
        self._kit = kit
        self.local = port.local

    @property
    def outlook(self) -> KnownSide:
        return self._port.outlook

    async def learn(self) -> KnownSide:
        known = await self._port.learn()
        self._emit_learned(known)
        return known

    def send(self, data: bytes, port: int, ttl: int | None = None) -> None:
        if self._packets_left > 0:
            self._packets_left -= 1
            self._port.send(data, Endpoint(self._peer, port), ttl)

    async def peek(self) -> Datagram | Complaint | KnownSide:
        while True:
            match await self._port.peek():
                case Complained(complaint, about):
                    if about == self._peer:
                        return complaint
                case KnownSide() as known:
                    self._emit_learned(known)
                    return known
                case Datagram() as datagram:
                    return datagram

    def discard(self) -> None:
        self._port.discard()

    def hand_over(self, port: int) -> Hole:
        remote = Endpoint(self._peer, port)
        fd = self._port.part(remote)
        self._ports.udp = None
        if self._ports.passed is not None:
            self._ports.passed.restore()
        return self._kit.keep(Hole(fd, self.local, remote))

    def _emit_learned(self, known: KnownSide) -> None:
        public = f"{known.address}:{known.ports()}"
        self._kit.emit(MappingLearned(self.local, public, known.behaviour, known.rtt_ms))
