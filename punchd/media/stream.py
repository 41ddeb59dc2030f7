"""One stream that a `Responder` sends: logical sends to paced batches of datagrams."""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Callable

import trio

from punchd.media.datagrams import FRAGMENT_HEADER_SIZE, HEADER_SIZE
from punchd.media.fast import Fast
from punchd.media.options import Options
from punchd.media.responder import Responder as Machine
from punchd.media.sending import Pacer, Sequences, plan
from punchd.media.settings import MAX_BATCH_BYTES, MAX_BATCH_DATAGRAMS
from punchd.media.sockets import SessionEndedError, Turns
from punchd.media.statistics import Sent
from punchd.media.udp_out import Address, Outlet, TooLongError

# epoll sleeps whole milliseconds: what comes due in two of them may leave at once.
BURST_S = 0.002
_U64 = 2**64 - 1

Buffer = bytes | bytearray | memoryview


class Stream:
    """Made by `Responder.accept`. One task at a time sends.

    Attributes:
        peer: where it goes to.
        id: the session's, which either side may change.
        options: the other side's limits.
    """

    def __init__(
        self,
        sock: socket.socket,
        peer: Address,
        *,
        is_connected: bool,
        id_: bytes,
        options: Options,
        machine: Machine,
        rate_bps: float | None,
        datagram_size: int,
        fast: Fast,
        reidentify: Callable[[bytes], None],
        close: Callable[[], None],
    ) -> None:
        self.peer = peer
        self.id = id_
        self.options = options
        self._socket = sock
        self._machine = machine
        self._reidentify = reidentify
        self._close = close
        strides = fast.strides()
        self._writer = strides.writer(MAX_BATCH_BYTES)
        self._outlet = Outlet(sock, self._writer.buffer, None if is_connected else peer, fast, size=datagram_size)
        self._path = strides.name
        self._rate_bps = rate_bps
        self._pacer: Pacer | None = None
        self._sequences = Sequences(secrets.token_bytes(6))
        self._epoch = 0
        self._ended: SessionEndedError | None = None
        self._changed = trio.Event()
        self._turns = Turns()
        self._began_at = trio.current_time()
        self._bytes = self._sends = self._datagrams = 0
        self.take_options(options)

    async def send(self, payload: Buffer) -> None:
        """One logical send, of contiguous bytes that do not change before this returns.

        Raises:
            SessionEndedError: the session is over.
            SequenceExhaustedError: after 2^64 of them; see `reidentify`.
            ValueError: longer than the other side takes.
            OSError: the socket cannot be used.
        """
        view = memoryview(payload).cast("B")
        cut = plan(len(view), self._outlet.size, self.options.max_total)
        if not cut.is_fragmented:
            await self._send_wholes(view, max(len(view), 1))
        else:
            await self._send_fragments(view)
        self._bytes += len(view)

    async def send_pieces(self, data: Buffer, size: int) -> None:
        """Logical sends of `size` bytes each, the last maybe shorter. Those that fit into datagrams share batches.

        Raises:
            As `send`.
        """
        view = memoryview(data).cast("B")
        if size > self._outlet.size - HEADER_SIZE:
            for at in range(0, len(view), size):
                await self.send(view[at : at + size])
            return
        plan(size, self._outlet.size, self.options.max_total)
        await self._send_wholes(view, size)
        self._bytes += len(view)

    def reidentify(self, new: bytes) -> None:
        """Name the session anew: 1 to 36 bytes without NUL. Sequence numbers go on elsewhere.

        What is under way would be taken for the new session's: wait until it has arrived. A session may be named
        four times at once and then once a second; beyond that nothing happens.

        Raises:
            ValueError: not an id.
        """
        self._reidentify(new)

    def close(self) -> None:
        """Ends the session, without a word to the other side."""
        self._close()

    def statistics(self) -> Sent:
        """What was sent so far."""
        return Sent(
            seconds=trio.current_time() - self._began_at,
            bytes=self._bytes,
            datagrams=self._datagrams,
            logical_sends=self._sends,
            unsent=self._outlet.unsent,
            rate_bps=self._rate_bps,
            datagram_size=self._outlet.size,
            path=f"{self._outlet.way}+{self._path}",
        )

    async def wait_for_change(self) -> None:
        """Until the other side has said something: another id, other limits; or the session is over.

        Raises:
            SessionEndedError: it is.
        """
        if self._ended is None:
            await self._changed.wait()
        if self._ended is not None:
            raise self._ended

    @property
    def ended(self) -> SessionEndedError | None:
        """Why the session is over, once it is."""
        return self._ended

    # --- what the responder tells ------------------------------------------------------------------------------------

    def take_options(self, options: Options) -> None:
        """The other side's limits."""
        self.options = options
        if options.rate:
            self._rate_bps = min(self._rate_bps or float(options.rate), float(options.rate))
        if options.max_datagram:
            self._outlet.size = min(self._outlet.size, max(options.max_datagram, FRAGMENT_HEADER_SIZE + 1))
        if self._rate_bps is not None:
            self._pacer = Pacer(self._rate_bps, max(MAX_BATCH_BYTES, int(self._rate_bps / 8 * BURST_S)))

    def take_id(self, new: bytes) -> None:
        """Media belong to another session from now on."""
        self.id = new
        self._epoch += 1
        self._sequences.renew(secrets.token_bytes(6))

    def end(self, why: SessionEndedError) -> None:
        """It is over."""
        self._ended = why
        self.look_again()

    def look_again(self) -> None:
        """Something has changed that a send may wait for."""
        self._changed.set()
        self._changed = trio.Event()

    # --- sending -----------------------------------------------------------------------------------------------------

    async def _send_wholes(self, pieces: memoryview, size: int) -> None:
        at = 0
        segment = size + HEADER_SIZE
        while True:
            await self._wait_for_turn()
            if segment > self._outlet.size:  # the path turned out to take less
                await self._send_fragments(pieces[at : at + size])
                at += size
            else:
                count = min(MAX_BATCH_BYTES // segment, MAX_BATCH_DATAGRAMS, -(-(len(pieces) - at) // size) or 1)
                first = self._take_numbers(count)
                length = self._writer.wholes(first, _clock(), pieces[at:], size, count)
                sent = await self._transmit(length, segment)
                self._sends += sent
                at += sent * size
            if at >= len(pieces):
                return

    def _take_numbers(self, count: int) -> int:
        first = self._sequences.next()
        for _ in range(count - 1):
            self._sequences.next()
        return first

    async def _send_fragments(self, payload: memoryview) -> None:
        total, offset, epoch = len(payload), 0, -1
        sequence = 0
        while offset < total:
            await self._wait_for_turn()
            if epoch != self._epoch:  # what was sent of it is forgotten on the other side
                epoch, offset, sequence = self._epoch, 0, self._sequences.next()
            segment = self._outlet.size
            step = segment - FRAGMENT_HEADER_SIZE
            count = min(MAX_BATCH_BYTES // segment, MAX_BATCH_DATAGRAMS, -(-(total - offset) // step))
            length = self._writer.fragments(sequence, _clock(), payload, offset=offset, step=step, count=count)
            offset += await self._transmit(length, segment) * step
        self._sends += 1

    async def _transmit(self, length: int, segment: int) -> int:
        """Sends what is in the buffer; how many datagrams, fewer than all if the rest has to be cut anew."""
        sent = 0
        while sent < length:
            if self._ended is not None:
                raise self._ended
            allowance = self._machine.allowance(self.peer)
            if allowance is not None and allowance < length - sent:
                await self._changed.wait()
                continue
            before = sent
            try:
                sent = self._outlet.send(sent, length, segment)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._socket)
                self._turns.waited()
                continue
            except TooLongError:
                break
            now = trio.current_time()
            self._machine.count_sent(self.peer, sent - before, now)
            if self._pacer is not None:
                self._pacer.spend(sent - before, now)
        datagrams = -(-sent // segment)
        self._datagrams += datagrams
        return datagrams

    async def _wait_for_turn(self) -> None:
        """Before the clock is read for a batch."""
        await self._turns.checkpoint()
        if self._pacer is not None:
            delay_s = self._pacer.delay_s(trio.current_time())
            if delay_s > 0:
                await trio.sleep(delay_s)
                self._turns.waited()


def _clock() -> int:
    """QPC: nanoseconds, of a clock that only goes forward."""
    return time.perf_counter_ns() & _U64
