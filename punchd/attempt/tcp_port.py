"""A TCP port that punches: held by a deaf listener, asked about at STUN servers, watched by a sniffer.

`LearningTcpPort` is what lasts: the port, its STUN connections, what is known of its public side. It is made before an
attempt (`probe`) or with it. `RoundTcpPort` is one round's use of it, for one peer: raw segments, injections,
connections, what the sniffer sees. Policy stands here: no address can be named, so that whatever a technique does,
packets go from this port to the attempt's peer, and into the own stack only towards this port while it listens.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import trio

from punchd.attempt.outlook import KnownSide
from punchd.endpoint import Endpoint, IPAddress
from punchd.errors import Code, DecodeError, PunchError
from punchd.kernel import tcp as sockets
from punchd.kernel.raw import RawSender
from punchd.kernel.sniffer import Captured, Sniffer
from punchd.nat.discover import Discovered
from punchd.nat.tcp_stun import TcpStun
from punchd.technique import Agreed, Complaint, Connection, Hole, Outlook, Sighted
from punchd.wire import icmp, ip, tcp
from punchd.wire.tcp import Flags, Options, Segment

SIGHTINGS = 256  # that a technique has not asked for yet; more are dropped, it would not know the newest any more
CONNECTIONS = 64  # of one round that are open at once: each of 16 ports that a card can name, and retries
TTL = 64  # of raw segments that are to arrive; RFC 1700
WINDOW = 64_240  # bytes, what Linux offers in a SYN over Ethernet
# What a Linux SYN says over Ethernet, without timestamps: those cannot be made up for a stack that has its own clock.
SYN_OPTIONS = Options(mss=1460, window_scale=7, sack_permitted=True)
SYN_OPTIONS_6 = Options(mss=1440, window_scale=7, sack_permitted=True)
_TCP_INFO_WSCALE = 6  # offset in struct tcp_info: snd_wscale:4, rcv_wscale:4
_TCP_INFO_ADVMSS = struct.Struct("I")
_ADVMSS_OFFSET = 84  # tcpi_advmss


def syn_options(version: int) -> Options:
    return SYN_OPTIONS_6 if version == 6 else SYN_OPTIONS


class LearningTcpPort:
    """A TCP port and what is known of its public side. Owns its sockets: `close` it."""

    def __init__(self, placeholder: sockets.Placeholder, known: KnownSide) -> None:
        self.placeholder = placeholder
        self.local = placeholder.local
        self.outlook = known
        self._stun: TcpStun | None = None
        self._asking = False
        self._raw: RawSender | None = None
        self.failure = ""

    def ask(self, servers: Sequence[Endpoint]) -> bool:
        """Send the SYNs to STUN servers, unless that was done or could add nothing; whether `finish` is due."""
        if self.outlook.is_complete or self._stun is not None:
            return self._asking
        self._raw = RawSender(self.local.ip.version)
        self._stun = TcpStun(self.local, self._nudge)
        self._stun.begin(servers)
        self._asking = True
        return True

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

    def _nudge(self, connecting: socket.socket, remote: Endpoint, isn: int) -> None:
        """A copy of a connecting socket's SYN, with the options that the kernel chose for it."""
        if self._raw is None:
            return
        info = connecting.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
        (mss,) = _TCP_INFO_ADVMSS.unpack_from(info, _ADVMSS_OFFSET)
        options = Options(mss=mss, window_scale=info[_TCP_INFO_WSCALE] >> 4, sack_permitted=True)
        copy = Segment(self.local.port, remote.port, isn, 0, Flags.SYN, WINDOW, options)
        self._raw.send(_packet(copy, self.local.ip, remote.ip, TTL), remote.ip)


@dataclass(eq=False, slots=True)
class RoundConnection:
    """Implements `punchd.technique.Connection`."""

    socket: socket.socket
    port: int

    async def result(self) -> int:
        return await sockets.established(self.socket)

    def drop(self) -> None:
        if self.socket.fileno() < 0:
            return
        if not sockets.is_synchronized(self.socket):
            sockets.close_silently(self.socket)  # a RST of ours would spoil the NATs for a later round
            return
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


class RoundTcpPort:
    """One round's use of a port. Implements `punchd.technique.TcpPort`; `close` it.

    Raises:
        PunchError: no-privilege, without CAP_NET_RAW.
    """

    def __init__(self, port: LearningTcpPort, peer: IPAddress, packets: int, keep: Callable[[Hole], Hole]) -> None:
        self._port = port
        self._keep = keep
        self._peer = peer
        self._packets_left = packets
        self.local = port.local
        self._raw = RawSender(peer.version)
        try:
            self._sniffer = Sniffer(peer.version, self.local.port)
        except PunchError:
            self._raw.close()
            raise
        self._connections: list[RoundConnection] = []
        self._last_out: dict[int, Segment] = {}
        self._is_listening = False
        self._is_closed = False
        self._learned = trio.Event()
        self._sightings_in, self._sightings = trio.open_memory_channel[Sighted | Complaint | Outlook](SIGHTINGS)

    # --- tasks that the kit runs -----------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Bring what the sniffer sees to whoever asks."""
        while True:
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
        for connection in self._connections:
            connection.drop()
        if self._is_listening:
            self._port.placeholder.deafen()
        self._raw.close()
        self._sniffer.close()

    # --- technique.TcpPort -----------------------------------------------------------------------------------------

    @property
    def outlook(self) -> KnownSide:
        return self._port.outlook

    @property
    def syn_options(self) -> Options:
        return syn_options(self._peer.version)

    async def learn(self) -> KnownSide:
        if not self.outlook.is_complete:
            await self._learned.wait()
        return self._port.check_address()

    def send(self, flags: Flags, port: int, *, seq: int, ack: int = 0, ttl: int | None = None) -> None:
        options = syn_options(self._peer.version) if flags & Flags.SYN else Options()
        self._send(Segment(self.local.port, port, seq, ack, flags, WINDOW, options), ttl or TTL)

    def inject(self, flags: Flags, port: int, *, seq: int, ack: int = 0, options: Options) -> None:
        self._check_open()
        if not self._is_listening and not any(own.port == port for own in self._connections):
            raise PunchError(Code.REFUSED, f"nothing here waits for port {port} of the peer")
        forged = Segment(port, self.local.port, seq, ack, flags, WINDOW, options)
        self._raw.send(_packet(forged, self._peer, self.local.ip, TTL), self.local.ip)

    async def sight(self) -> Sighted | Complaint | Outlook:
        return await self._sightings.receive()

    def listen(self, deaf_to: Iterable[int] = ()) -> None:
        self._check_open()
        self._port.placeholder.open(deaf_to)
        self._is_listening = True

    async def accept(self) -> Connection:
        while True:
            accepted, source = await self._port.placeholder.accept()
            connection = RoundConnection(accepted, source.port)
            if source.ip == self._peer:
                self._connections.append(connection)
                return connection
            connection.drop()

    def connect(self, port: int, isn: int) -> Connection:
        self._check_room()
        made = RoundConnection(sockets.begin_connect(self.local, Endpoint(self._peer, port), isn), port)
        self._connections.append(made)
        return made

    def repeat(self, port: int) -> None:
        last = self._last_out.get(port)
        if last is not None:
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
            self._raw.send(_packet(segment, self.local.ip, self._peer, ttl), self._peer)

    def _bring(self, sighting: Sighted | Complaint | Outlook) -> None:
        try:
            self._sightings_in.send_nowait(sighting)
        except trio.WouldBlock:
            return

    def _read(self, captured: Captured) -> Sighted | Complaint | None:
        try:
            packet = ip.decode(captured.data, truncated=len(captured.data) >= 2048)
            if packet.protocol != socket.IPPROTO_TCP:
                return self._complaint(icmp.decode(packet.payload, packet.protocol), packet.source)
            segment = tcp.decode(packet.payload)
        except DecodeError:
            return None
        if packet.source == self.local.ip and packet.destination == self._peer:
            if segment.flags & Flags.SYN and packet.ttl >= TTL and segment.source_port == self.local.port:
                self._last_out[segment.destination_port] = segment
            return Sighted(segment, segment.destination_port, True, packet.ttl)
        if packet.source == self._peer and packet.destination == self.local.ip and not captured.is_outgoing:
            return Sighted(segment, segment.source_port, False, packet.ttl)
        return None

    def _complaint(self, error: icmp.Error | None, router: IPAddress) -> Complaint | None:
        if error is None or error.quoted.source.port != self.local.port or error.quoted.destination.ip != self._peer:
            return None
        return Complaint(error.kind, router, error.quoted.destination.port)


def _packet(segment: Segment, source: IPAddress, destination: IPAddress, ttl: int) -> bytes:
    payload = tcp.encode(segment, source, destination)
    return ip.encode(source, destination, socket.IPPROTO_TCP, payload, ttl)
