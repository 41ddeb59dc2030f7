"""The STUN server's shell: UDP and TCP around `punchd.rendezvous.stun_responder`.

    listening = listen([Endpoint(...), ...])          # binds; ConfigError, KernelError
    nursery.start_soon(serve, listening, stop)        # serves until the event `stop` is set or it is cancelled

Both close the sockets in the end. `counters` of `serve` are for whoever shows metrics. STUN needs no port below 1024
and no privilege.

**UDP.** Each socket is read until it is empty, BATCH datagrams at most, and then other tasks have their turn: a
checkpoint costs as much as several answers. Garbage costs one comparison, and is not answered; neither is a source that
asks faster than Limits.rate (one IPv6 customer, a /64, counts as one). Whoever forges requests from a victim's address
spends the victim's share here: it is a choice between that and helping to flood it. A datagram that the kernel does not
take is lost, as on any network: clients repeat.

**TCP** (RFC 8489 §6.2.2). A connection may carry several requests, also at once, and stays open when they are answered:
punchd keeps its own open for a whole attempt, since a FIN makes some NATs forget the mapping of the port. It is closed
Limits.idle_s after its last *whole* request, after MAX_BYTES, or at the first byte that is not STUN. The table of
connections is bounded, in all and for each source, and who comes to a full one is closed at once.

Source: RFC 8489 §6.2.2, §6.3; RFC 5780 §6.
"""

from __future__ import annotations

import functools
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import trio

from punchd.errors import DecodeError
from punchd.rendezvous.stun_responder import Responder
from punchd.rendezvous.stun_sockets import Listening, UdpPort, listen
from punchd.web.rate import Limiter
from punchd.wire import stun, stun_server

__all__ = ["Counters", "Limits", "Listening", "listen", "serve"]

BATCH = 64  # datagrams of one socket before other tasks have their turn: half a millisecond
MAX_BYTES = 65_536  # of one connection: 3,276 bare requests
_READ_SIZE = 4096


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of the server one source, and all of them, may have.

    Attributes:
        rate: answered datagrams, and new connections, per second and source. RFC 5780 §5 lets a client begin ten
            transactions a second; several live behind one address.
        burst: as many at once. 128 attempts of one daemon ask two servers each, and repeat.
        sources: whose rate is remembered; 100 bytes each.
        connections: in all; each holds a descriptor, so RLIMIT_NOFILE has to leave room for as many.
        connections_per_source: 128 attempts of one daemon, two places each.
        idle_s: an attempt takes 120 s at most, and its preparation 2 s.
    """

    rate: float = 100.0
    burst: int = 500
    sources: int = 65_536
    connections: int = 1024
    connections_per_source: int = 256
    idle_s: float = 150.0


@dataclass(slots=True)
class Counters:
    """What was done since the start. Datagrams and connections; `refused` ones met a full table or the rate."""

    answered: int = 0
    ignored: int = 0
    limited: int = 0
    lost: int = 0
    accepted: int = 0
    refused: int = 0


async def serve(
    listening: Listening, stop: trio.Event, *, limits: Limits | None = None, counters: Counters | None = None
) -> None:
    """Answer on these sockets until `stop` is set. They are closed when this returns or is cancelled."""
    server = _Server(listening, limits or Limits(), counters if counters is not None else Counters())
    listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(owned)) for owned in listening.tcp]
    try:
        async with trio.open_nursery() as nursery:
            for place, (port, listener) in enumerate(zip(listening.udp, listeners, strict=True)):
                nursery.start_soon(server.answer_datagrams, place, port)
                nursery.start_soon(trio.serve_listeners, functools.partial(server.converse, place), [listener])
            await stop.wait()
            nursery.cancel_scope.cancel()
    finally:
        listening.close()


class _Server:
    """What all sockets share: the responder, the limiter and the count of connections."""

    def __init__(self, listening: Listening, limits: Limits, counters: Counters) -> None:
        self._udp = listening.udp
        self._limits = limits
        self._counters = counters
        self._responder = Responder(listening.places)
        self._limiter = Limiter(limits.rate, limits.burst, limits.sources)
        self._connections: Counter[bytes] = Counter()
        self._connection_count = 0

    async def answer_datagrams(self, place: int, port: UdpPort) -> None:
        while True:
            await trio.lowlevel.wait_readable(port.socket)
            self._answer_batch(place, port, trio.current_time())

    def _answer_batch(self, place: int, port: UdpPort, now: float) -> None:
        counters = self._counters
        family = port.socket.family
        for _ in range(BATCH):
            try:
                data, source, control = port.receive()
            except BlockingIOError:
                return
            except OSError:
                continue
            seen = socket.inet_pton(family, source[0]), source[1]
            answer = self._responder.answer_datagram(data, seen, place)
            if answer is None:
                counters.ignored += 1
            elif self._limiter.allow(_key(seen[0]), now):
                counters.limited += 1
            else:
                try:
                    self._udp[answer.place].send(answer.payload, control, (source[0], answer.port, *source[2:]))
                    counters.answered += 1
                except OSError:  # also for a forged source of port 0
                    counters.lost += 1

    async def converse(self, place: int, stream: trio.SocketStream) -> None:
        """One connection, from its beginning to its end."""
        async with stream:
            try:
                peer = stream.socket.getpeername()
            except OSError:  # gone already
                return
            seen = socket.inet_pton(stream.socket.family, peer[0]), peer[1]
            with self._admitted(_key(seen[0])) as is_admitted:
                if is_admitted:
                    await self._answer_requests(place, stream, seen)

    @contextmanager
    def _admitted(self, key: bytes) -> Iterator[bool]:
        """Whether a source may have one more connection; it has it for the length of the block."""
        is_full = (
            self._connection_count >= self._limits.connections
            or self._connections[key] >= self._limits.connections_per_source
        )
        if is_full or self._limiter.allow(key, trio.current_time()):
            self._counters.refused += 1
            yield False
            return
        self._counters.accepted += 1
        self._connection_count += 1
        self._connections[key] += 1
        try:
            yield True
        finally:
            self._connection_count -= 1
            self._connections[key] -= 1
            if not self._connections[key]:
                del self._connections[key]

    async def _answer_requests(self, place: int, stream: trio.SocketStream, seen: stun_server.Address) -> None:
        pending = bytearray()
        total = 0
        with trio.move_on_after(self._limits.idle_s) as idle:
            try:
                while total < MAX_BYTES and (chunk := await stream.receive_some(_READ_SIZE)):
                    total += len(chunk)
                    pending += chunk
                    answers = b"".join(self._answers(place, pending, seen))
                    if answers:
                        idle.deadline = trio.current_time() + self._limits.idle_s
                        await stream.send_all(answers)
            except (DecodeError, trio.BrokenResourceError):
                return

    def _answers(self, place: int, pending: bytearray, seen: stun_server.Address) -> list[bytes]:
        """Takes the whole messages from the front of `pending`.

        Raises:
            DecodeError: what is there is not STUN.
        """
        answers: list[bytes] = []
        while len(pending) >= stun.HEADER_SIZE:
            size = stun.frame_size(bytes(pending[: stun.HEADER_SIZE]))
            if len(pending) < size:
                break
            answer = self._responder.answer_frame(bytes(pending[:size]), seen, place)
            del pending[:size]
            if answer is not None:
                answers.append(answer)
        return answers


def _key(ip: bytes) -> bytes:
    """Who counts as one source: an IPv4 address, or the /64 of an IPv6 address."""
    return ip if len(ip) == 4 else ip[:8]
