"""STUN over TCP from the very port that will punch: each server gets a connection of its own from there.

The order in which the SYNs leave is the order in which the NAT makes its mappings, so all connections are begun before
any is waited for. They stay open until the attempt is over: a FIN makes several NATs forget the mapping of the port.

TCP repeats lost data itself, but its first SYN only after a second, half of what a preparation may take; so copies of
it are sent beside the kernel's (`Nudge`), made from what the kernel says of its own.

Source: RFC 8489 §6.2.2 (framing, no retransmission by STUN itself over TCP).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import trio

from punchd.endpoint import Endpoint
from punchd.errors import DecodeError, PunchError
from punchd.kernel import tcp
from punchd.nat.discover import DEADLINE_S, MAX_SERVERS, PATIENCE_S, Discovered, Failure
from punchd.nat.mapping import judge
from punchd.wire import stun

NUDGE_S = (0.1, 0.2, 0.4, 0.8)

Nudge = Callable[[socket.socket, Endpoint, int], None]
"""Sends a copy of a connecting socket's SYN: the socket, where it connects to, its initial sequence number."""


@dataclass(slots=True)
class _Question:
    server: Endpoint
    connection: socket.socket | None = None
    isn: int = 0
    mapped: Endpoint | None = None
    rtt_s: float = 0.0
    failure: str = "no answer"


@dataclass(slots=True)
class TcpStun:
    """Asks STUN servers over TCP from one local port. Owns its connections: `close` them.

    Attributes:
        local: the port, held by others as well (`kernel.tcp.shared`).
        nudge: sends a copy of a SYN; None where nothing can (no CAP_NET_RAW).
    """

    local: Endpoint
    nudge: Nudge | None
    _questions: list[_Question] = field(default_factory=list)
    _streams: list[trio.SocketStream] = field(default_factory=list)

    def begin(self, servers: Sequence[Endpoint]) -> None:
        """Send the SYNs, in this order."""
        for server in dict.fromkeys(servers):
            if server.ip.version != self.local.ip.version or len(self._questions) == MAX_SERVERS:
                continue
            question = _Question(server, isn=int.from_bytes(os.urandom(4), "big"))
            self._questions.append(question)
            try:
                chosen = question.isn if self.nudge is not None else None
                question.connection = tcp.begin_connect(self.local, server, chosen)
            except PunchError as error:
                question.failure = str(error)

    async def finish(self) -> Discovered:
        """What the servers say, once all have answered, or nobody else will in time."""
        with trio.move_on_after(DEADLINE_S) as patience:
            async with trio.open_nursery() as nursery:
                for question in self._questions:
                    if question.connection is not None:
                        nursery.start_soon(self._ask, question, question.connection, patience)
        return self._judge()

    async def _ask(self, question: _Question, connection: socket.socket, patience: trio.CancelScope) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._repeat_syn, question, connection)
            number = await tcp.established(connection)
            nursery.cancel_scope.cancel()
        if number:
            question.failure = os.strerror(number)
            return
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(connection))
        question.connection = None  # the stream's now; it is closed as silently
        self._streams.append(stream)
        try:
            await self._converse(question, stream)
        except DecodeError as error:
            question.failure = str(error)
        except trio.BrokenResourceError:
            question.failure = "the connection broke"
        else:
            patience.deadline = min(patience.deadline, trio.current_time() + PATIENCE_S)

    async def _converse(self, question: _Question, stream: trio.SocketStream) -> None:
        transaction_id = os.urandom(stun.TRANSACTION_ID_SIZE)
        asked_at = trio.current_time()
        await stream.send_all(stun.encode_request(transaction_id))
        head = await _exactly(stream, stun.HEADER_SIZE)
        answer = stun.decode_response(head + await _exactly(stream, stun.frame_size(head) - len(head)))
        if answer.transaction_id != transaction_id:
            raise DecodeError("STUN response: the transaction id is not ours")
        if isinstance(answer, stun.BindingError):
            raise DecodeError(f"error {answer.code} {answer.reason}")
        if (
            answer.mapped.ip.version != self.local.ip.version
            or answer.mapped.port == 0
            or answer.mapped.ip.is_unspecified
        ):
            raise DecodeError(f"says that we are {answer.mapped}")
        question.mapped = answer.mapped
        question.rtt_s = trio.current_time() - asked_at

    async def _repeat_syn(self, question: _Question, connection: socket.socket) -> None:
        for pause_s in NUDGE_S:
            await trio.sleep(pause_s)
            if self.nudge is not None:
                self.nudge(connection, question.server, question.isn)

    def _judge(self) -> Discovered:
        answered = [question for question in self._questions if question.mapped is not None]
        failures = tuple(
            Failure(question.server, question.failure) for question in self._questions if not question.mapped
        )
        observed = [question.mapped for question in answered if question.mapped is not None]
        mapping = None
        if observed:
            one_address = len({question.server.ip for question in answered}) == 1
            mapping = judge(self.local, observed, one_address=one_address)
        return Discovered(mapping, min((question.rtt_s for question in answered), default=None), failures)

    def close(self) -> None:
        """Close the connections without a FIN, where the kernel lets us."""
        for question in self._questions:
            if question.connection is not None:
                tcp.close_silently(question.connection)
                question.connection = None
        for stream in self._streams:
            tcp.close_silently(stream.socket)
        self._streams.clear()


async def _exactly(stream: trio.SocketStream, size: int) -> bytes:
    """The next `size` bytes.

    Raises:
        DecodeError: the connection ends before.
    """
    data = b""
    while len(data) < size:
        chunk = await stream.receive_some(size - len(data))
        if not chunk:
            raise DecodeError(f"STUN response: cut off after {len(data)} of {size} bytes")
        data += chunk
    return data
