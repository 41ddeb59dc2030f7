"""A bound UDP port that learns what it looks like from outside while it is used.

One socket serves both: STUN's answers and the peer's datagrams come to the same port, since the mapping of that very
port is what counts. Whoever waits for the next datagram drives the STUN machine along; there is no second reader, so
nothing is read ahead (`punchd.kernel.udp` says why that matters).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import trio

from punchd.attempt.outlook import KnownSide
from punchd.endpoint import Endpoint
from punchd.errors import Code, DecodeError, PunchError
from punchd.kernel.sniffer import Captured, Sniffer
from punchd.kernel.udp import Complained, UdpSocket
from punchd.nat.discover import Datagram as Question
from punchd.nat.discover import Discovered, Discovery
from punchd.technique import Datagram
from punchd.wire import icmp, ip, stun

KEEPALIVE_S = 15.0  # RFC 8489 §12 and RFC 8445 §11: NATs may forget a UDP mapping after 30 s

# An application can make its own socket look readable for ever: shutdown, SO_PEEK_OFF. Then it is looked at less often.
FRUITLESS, FRUITLESS_S = 16, 0.02


class LearningPort:
    """A UDP socket and what is known of its public side. Owns the socket: `close` it, unless it was handed over."""

    def __init__(self, socket: UdpSocket, known: KnownSide) -> None:
        self._socket = socket
        self._discovery: Discovery | None = None
        self._reported = False
        self._failure = ""
        self._servers: tuple[Endpoint, ...] = ()
        self.outlook = known
        self.local = known.local
        self.on_discovered: Callable[[KnownSide], None] = lambda known: None  # told what STUN said; must not block

    def ask(self, servers: Sequence[Endpoint]) -> None:
        """Ask STUN servers, unless that was done or could add nothing. Returns at once."""
        if self._discovery is not None or self.outlook.is_complete:
            return
        self._servers = tuple(servers)
        ids = [os.urandom(stun.TRANSACTION_ID_SIZE) for _ in servers]
        self._discovery = Discovery(servers, self.local, ids)
        self._send_questions(self._discovery.start(trio.current_time()))

    async def learn(self) -> KnownSide:
        """What is known once STUN has answered; datagrams that come before are dropped.

        Raises:
            PunchError: no-address, if nothing tells the public address.
        """
        while self._discovery is not None and not self._reported:
            if isinstance(await self.peek(), Datagram):
                self.discard()
        if self.outlook.address.is_unspecified:
            raise PunchError(
                Code.NO_ADDRESS, self._failure or "no STUN server is known: use --stun or the configuration"
            )
        return self.outlook

    async def peek(self) -> Datagram | Complained | KnownSide:
        """The next datagram that is not STUN's, left in the queue; or an ICMP error; or, once, what STUN's answers are.

        Datagrams come before errors, so that nobody's errors keep the peer waiting.
        """
        fruitless = 0
        while True:
            if self._discovery is not None and not self._reported and (found := self._discovery.result()) is not None:
                return self._conclude(found)
            waiting = None if self._discovery is None else self._discovery.next_timeout()
            with trio.move_on_at(float("inf") if waiting is None else waiting) as patience:
                await self._socket.readable()
            if self._discovery is not None and patience.cancelled_caught:
                self._send_questions(self._discovery.handle_timeout(trio.current_time()))
                continue
            first = self._socket.peek()
            if first is None:
                if (complained := self._socket.complained()) is not None:
                    return complained
                fruitless += 1
                if fruitless > FRUITLESS:
                    await trio.sleep(FRUITLESS_S)
                continue
            fruitless = 0
            data, source = first
            if self._discovery is None or not self._discovery.handle_datagram(data, source, trio.current_time()):
                return Datagram(data, source)
            self._socket.discard()

    def discard(self) -> None:
        self._socket.discard()

    def send(self, data: bytes, to: Endpoint, ttl: int | None = None) -> None:
        self._socket.send(data, to, ttl)

    async def keep_alive(self) -> None:
        """Keep the NAT's mapping for as long as this runs; what comes in is dropped."""
        while True:
            with trio.move_on_after(KEEPALIVE_S):
                while True:
                    if isinstance(await self.peek(), Datagram):
                        self.discard()
            for server in self._servers:
                try:
                    self.send(stun.encode_indication(os.urandom(stun.TRANSACTION_ID_SIZE)), server)
                except PunchError:
                    continue  # no route at the moment; the attempt that uses the port will say so

    def part(self, remote: Endpoint) -> int:
        """Connect and give the descriptor away; the caller owns it. Errors as in `UdpSocket.part`."""
        return self._socket.part(remote)

    def close(self) -> None:
        self._socket.close()

    def _send_questions(self, questions: Sequence[Question]) -> None:
        for question in questions:
            try:
                self._socket.send(question.payload, question.destination)
            except PunchError as error:
                if self._discovery is not None:
                    self._discovery.handle_unreachable(question.destination, str(error))

    def _conclude(self, found: Discovered) -> KnownSide:
        self._reported = True
        self._failure = found.reason
        self.outlook = self.outlook.with_discovered(found)
        self.on_discovered(self.outlook)
        return self.outlook


class UdpRecording:
    """Copies of a UDP port's packets, and of ICMP errors about them, for a trace. Whoever made it closes it."""

    def __init__(self, local: Endpoint, record: Callable[[bytes], None]) -> None:
        """Start to look.

        Raises:
            PunchError: no-privilege, without CAP_NET_RAW.
        """
        self._local = local
        self._record = record
        self._sniffer = Sniffer(local.ip.version, local.port, ip.UDP)

    async def run(self) -> None:
        while True:
            self._take(await self._sniffer.capture())

    def close(self) -> None:
        while (captured := self._sniffer.take()) is not None:
            self._take(captured)
        self._sniffer.close()

    def _take(self, captured: Captured) -> None:
        if self._is_ours(captured) and not (captured.is_loopback and captured.is_outgoing):
            self._record(captured.data)

    def _is_ours(self, captured: Captured) -> bool:
        try:
            packet = ip.decode(captured.data, truncated=True)
            if packet.protocol not in (ip.UDP, ip.ICMP, ip.ICMPV6):  # came before the sniffer's filter
                return False
            if packet.protocol != ip.UDP:
                error = icmp.decode(packet.payload, packet.protocol)
                return error is not None and error.quoted.is_from(ip.UDP, self._local.port)
        except DecodeError:
            return False
        ports = packet.payload[:4]
        own = ports[2:] if packet.destination == self._local.ip else ports[:2]
        return int.from_bytes(own, "big") == self._local.port
