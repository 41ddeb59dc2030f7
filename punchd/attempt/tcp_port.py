"""A TCP port that punches: held by a deaf listener, asked about at STUN servers, watched by a sniffer.

`LearningTcpPort` is what lasts: the port, its STUN connections, what is known of its public side. It is made before an
attempt (`probe`) or with it. `RoundTcpPort` is one round's use of it, for one peer: raw segments, injections,
connections, what the sniffer sees. Policy stands here: no address can be named, so that whatever a technique does,
packets go from this port to the attempt's peer, and into the own stack only towards this port while it listens.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, suppress

import trio

from punchd.attempt.isns import InitialNumbers
from punchd.attempt.outlook import KnownSide
from punchd.attempt.tcp_connection import RoundConnection
from punchd.endpoint import Endpoint, IPAddress
from punchd.errors import Code, DecodeError, PunchError
from punchd.kernel import tcp as sockets
from punchd.kernel.firewall import Firewall
from punchd.kernel.raw import RawSender
from punchd.kernel.sniffer import Captured, Sniffer
from punchd.kernel.syn_options import syn_options
from punchd.nat.discover import Discovered
from punchd.nat.tcp_stun import TcpStun
from punchd.technique import Agreed, Complaint, Connection, Hole, Outlook, Sighted
from punchd.wire import icmp, ip, tcp
from punchd.wire.tcp import Flags, Options, Segment

SIGHTINGS = 256  # that a technique has not asked for yet; more are dropped, it would not know the newest any more
CONNECTIONS = 64  # of one round that are open at once: each of 16 ports that a card can name, and retries
TTL = 64  # of raw segments that are to arrive; RFC 1700
WINDOW = 64_240  # bytes, what Linux offers in a SYN over Ethernet


class LearningTcpPort:
    """A TCP port and what is known of its public side. Owns its sockets: `close` it."""

    def __init__(self, placeholder: sockets.Placeholder, known: KnownSide) -> None:
        self.placeholder = placeholder
        self.local = placeholder.local
        self.outlook = known
        self.on_discovered: Callable[[KnownSide], None] = lambda known: None  # told what STUN said; must not block
        self._stun: TcpStun | None = None
        self._asking = False
        self._raw: RawSender | None = None
        self.failure = ""
        self.isns = InitialNumbers()

    def ask(self, servers: Sequence[Endpoint]) -> bool:
        """Send the SYNs to STUN servers, unless that was done or could add nothing; whether `finish` is due."""
        if self.outlook.is_complete or self._stun is not None:
            return self._asking
        self._raw = _raw_sender(self.local.ip.version)
        self._stun = TcpStun(self.local, self._nudge if self._raw is not None else None)
        self._stun.begin(servers)
        self._asking = True
        return True

    @property
    def is_asking(self) -> bool:
        """STUN's answers are still awaited; if not, what is known is all that will be."""
        return self._asking

    async def finish(self) -> None:
        """Wait for STUN's answers, which become part of `outlook`. Cancelled, the next `ask` starts anew."""
        if self._stun is None:
            return
        try:
            found = await self._stun.finish()
        except BaseException:
            self._forget_stun()
            raise
        self._asking = False
        self._conclude(found)

    def check_address(self) -> KnownSide:
        """The outlook, if it has an address.

        Raises:
            PunchError: no-address.
        """
        if self.outlook.address.is_unspecified:
            raise PunchError(
                Code.NO_ADDRESS, self.failure or "no STUN server is known: use --stun or the configuration"
            )
        return self.outlook

    async def learn(self) -> KnownSide:
        """See STUN through, for a port that is probed and not yet used.

        Raises:
            PunchError: no-address.
        """
        await self.finish()
        return self.check_address()

    async def keep_alive(self) -> None:
        """NATs keep an established TCP mapping for two hours (RFC 5382 REQ-5): nothing has to be sent."""
        await trio.sleep_forever()

    def close(self) -> None:
        self._forget_stun()
        self.placeholder.close()

    def _forget_stun(self) -> None:
        if self._stun is not None:
            self._stun.close()
            self._stun = None
        if self._raw is not None:
            self._raw.close()
            self._raw = None
        self._asking = False

    def _conclude(self, found: Discovered) -> None:
        self.failure = found.reason
        self.outlook = self.outlook.with_discovered(found)
        self.on_discovered(self.outlook)

    def _nudge(self, connecting: socket.socket, remote: Endpoint, isn: int) -> None:
        """A copy of a connecting socket's SYN."""
        if self._raw is None:
            return
        options = syn_options(self.local.ip, remote.ip)
        copy = Segment(self.local.port, remote.port, isn, 0, Flags.SYN, WINDOW, options)
        with suppress(PunchError):  # a local firewall may forbid it; the kernel's own repetition comes later
            self._raw.send(_packet(copy, self.local.ip, remote.ip, TTL), remote.ip)


def _raw_sender(version: int) -> RawSender | None:
    """None without CAP_NET_RAW."""
    try:
        return RawSender(version)
    except PunchError:
        return None


class RoundTcpPort:
    """One round's use of a port. Implements `punchd.technique.TcpPort`; `close` it.

    Without CAP_NET_RAW nothing is sniffed, and nothing but connections leaves.
    """

    def __init__(
        self,
        port: LearningTcpPort,
        peer: IPAddress,
        packets: int,
        keep: Callable[[Hole], Hole],
        record: Callable[[bytes], None] | None = None,
        *,
        firewall: Firewall,
        nonce: bytes,
    ) -> None:
        self._firewall = firewall
        self._nonce = nonce
        self._family = socket.AF_INET6 if peer.version == 6 else socket.AF_INET
        self._port = port
        self._keep = keep
        self._record = record
        self._peer = peer
        self._packets_left = packets
        self.local = port.local
        self._syn_options = syn_options(self.local.ip, peer)
        self._raw = _raw_sender(peer.version)
        self._sniffer = Sniffer(peer.version, self.local.port) if self._raw is not None else None
        self._connections: list[RoundConnection] = []
        self._last_out: dict[int, Segment] = {}
        self._is_listening = False
        self._is_closed = False
        self._learned = trio.Event()
        self._sightings_in, self._sightings = trio.open_memory_channel[Sighted | Complaint | Outlook](SIGHTINGS)

    @property
    def is_sniffing(self) -> bool:
        return self._sniffer is not None

    # --- tasks that the kit runs -----------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Bring what the sniffer sees to whoever asks."""
        while self._sniffer is not None:
            sighting = self._read(await self._sniffer.capture())
            if sighting is not None:
                self._bring(sighting)

    async def ask(self) -> None:
        """See STUN through; the answer is a sighting as well."""
        await self._port.finish()
        self._learned.set()
        self._bring(self.outlook)

    def close(self) -> None:
        """A technique that kept this object can do nothing more with it."""
        self._is_closed = True
        while self._record is not None and self._sniffer and (captured := self._sniffer.take()) is not None:
            self._read(captured)
        for connection in self._connections:
            connection.drop()
        if self._is_listening:
            self._port.placeholder.deafen()
        if self._raw is not None:
            self._raw.close()
        if self._sniffer is not None:
            self._sniffer.close()

    # --- technique.TcpPort -----------------------------------------------------------------------------------------

    @property
    def can_send_raw(self) -> bool:
        return self._raw is not None

    @property
    def can_exempt(self) -> bool:
        return self._family in self._firewall.families

    def exempt(self) -> AbstractAsyncContextManager[None]:
        self._check_open()
        return self._firewall.exempt(self.local.port, self._family, self._nonce)

    @property
    def outlook(self) -> KnownSide:
        return self._port.outlook

    @property
    def syn_options(self) -> Options:
        return self._syn_options

    async def learn(self) -> KnownSide:
        if self._port.is_asking:
            await self._learned.wait()
        return self._port.check_address()

    def isn(self) -> int:
        return self._port.isns.draw(secrets.randbits(32))

    def send(self, flags: Flags, port: int, *, seq: int, ack: int = 0, ttl: int | None = None) -> None:
        options = self._syn_options if flags & Flags.SYN else Options()
        self._send(Segment(self.local.port, port, seq, ack, flags, WINDOW, options), ttl or TTL)

    def inject(self, flags: Flags, port: int, *, seq: int, ack: int = 0, options: Options) -> None:
        self._check_open()
        if not self._is_listening:
            raise PunchError(Code.REFUSED, "nothing listens here")
        forged = Segment(port, self.local.port, seq, ack, flags, WINDOW, options)
        self._send_raw(_packet(forged, self._peer, self.local.ip, TTL), self.local.ip)

    async def sight(self) -> Sighted | Complaint | Outlook:
        return await self._sightings.receive()

    def listen(self, deaf_to: Iterable[int] = ()) -> None:
        self._check_open()
        self._port.placeholder.open(self._peer, deaf_to)
        self._is_listening = True

    async def accept(self) -> Connection:
        while True:
            accepted, source = await self._port.placeholder.accept()
            connection = RoundConnection(accepted, source.port)
            if source.ip == self._peer:
                self._connections.append(connection)
                return connection
            connection.drop()

    def connect(self, port: int, isn: int, ttl: int | None = None) -> Connection:
        self._check_room()
        made = RoundConnection(sockets.begin_connect(self.local, Endpoint(self._peer, port), isn, ttl), port)
        self._connections.append(made)
        return made

    def reconnect(self, connection: Connection, isn: int, ttl: int | None = None) -> None:
        chosen = next(own for own in self._connections if own is connection)
        if chosen.is_unanswered():
            self._check_room()
            chosen.drop()  # only one socket can have these two ends
            chosen.socket = sockets.begin_connect(self.local, Endpoint(self._peer, chosen.port), isn, ttl)

    def repeat(self, port: int) -> None:
        last = self._last_out.get(port)
        if last is not None and not any(own.port == port and own.is_synchronized() for own in self._connections):
            self._send(last, TTL)

    def forge(self, port: int, agreed: Agreed) -> Connection:
        self._check_room()
        made = RoundConnection(sockets.forge(self.local, Endpoint(self._peer, port), agreed), port)
        self._connections.append(made)
        return made

    def hand_over(self, connection: Connection) -> Hole:
        chosen = next(own for own in self._connections if own is connection)
        remote = Endpoint(self._peer, chosen.port)
        self._connections.remove(chosen)
        return self._keep(Hole(sockets.part(chosen.socket), self.local, remote))

    # --- inside ----------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._is_closed:
            raise PunchError(Code.REFUSED, "the round is over")

    def _check_room(self) -> None:
        """A connection counts as a packet of the round, though the kernel may repeat its SYN."""
        self._check_open()
        if self._packets_left <= 0:
            raise PunchError(Code.REFUSED, "the round has sent all the packets that it may")
        if sum(own.socket.fileno() >= 0 for own in self._connections) >= CONNECTIONS:
            raise PunchError(Code.REFUSED, f"{CONNECTIONS} connections of one round are open")
        self._packets_left -= 1

    def _send(self, segment: Segment, ttl: int) -> None:
        self._check_open()
        if self._packets_left > 0:
            self._packets_left -= 1
            self._send_raw(_packet(segment, self.local.ip, self._peer, ttl), self._peer)

    def _send_raw(self, packet: bytes, destination: IPAddress) -> None:
        if self._raw is None:
            raise PunchError(Code.NO_PRIVILEGE, "a raw socket needs CAP_NET_RAW")
        self._raw.send(packet, destination)

    def _bring(self, sighting: Sighted | Complaint | Outlook) -> None:
        try:
            self._sightings_in.send_nowait(sighting)
        except trio.WouldBlock:
            return

    def _read(self, captured: Captured) -> Sighted | Complaint | None:
        try:
            packet = ip.decode(captured.data, truncated=len(captured.data) >= 2048)
            if packet.protocol not in (ip.TCP, ip.ICMP, ip.ICMPV6):  # came before the sniffer's filter
                return None
            if packet.protocol != ip.TCP:
                error = icmp.decode(packet.payload, packet.protocol)
                if error is None or not error.quoted.is_from(ip.TCP, self.local.port):
                    return None
                self._keep_trace(captured)
                return self._complaint(error, packet.source)
            segment = tcp.decode(packet.payload)
        except DecodeError:
            return None
        own_port = segment.destination_port if packet.destination == self.local.ip else segment.source_port
        if own_port != self.local.port:
            return None
        self._keep_trace(captured)
        if captured.is_loopback:  # what was injected
            is_peers = packet.source == self._peer and not captured.is_outgoing
            return Sighted(segment, segment.source_port, True, packet.ttl, True) if is_peers else None
        if packet.source == self.local.ip and packet.destination == self._peer:
            if segment.flags & Flags.SYN:
                self._port.isns.note(segment.seq)
                if packet.ttl >= TTL:
                    self._last_out[segment.destination_port] = segment
            return Sighted(segment, segment.destination_port, True, packet.ttl)
        if packet.source == self._peer and packet.destination == self.local.ip and not captured.is_outgoing:
            return Sighted(segment, segment.source_port, False, packet.ttl)
        return None

    def _complaint(self, error: icmp.Error, router: IPAddress) -> Complaint | None:
        if error.quoted.destination.ip != self._peer:
            return None
        return Complaint(error.kind, router, error.quoted.destination.port, error.quoted.seq)

    def _keep_trace(self, captured: Captured) -> None:
        """For the trace; what stays in this host is seen twice."""
        if self._record is not None and not (captured.is_loopback and captured.is_outgoing):
            self._record(captured.data)


def _packet(segment: Segment, source: IPAddress, destination: IPAddress, ttl: int) -> bytes:
    payload = tcp.encode(segment, source, destination)
    return ip.encode(source, destination, socket.IPPROTO_TCP, payload, ttl)
