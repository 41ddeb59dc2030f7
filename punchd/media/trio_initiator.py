"""Receiving media on a UDP socket, for trio programs: the side that asks for the stream.

    async with Initiator.open(connected.socket) as initiator:      # connected: what punchd handed over
        async for delivery in initiator:                           # logical sends, each once
            file.write(delivery.payload)                           # a view; good until the next one is asked for

Whoever asks for deliveries reads the socket: nothing is queued but what one call brought, so a slow program lets the
kernel's buffer overflow, which `statistics().kernel_drops` tells. Timers (repetitions, keep-alive) run in the
background. Payloads are copied once, from the socket's buffer to where they are put together, and not at all if they
came in one datagram.

Takes no timeouts: cancel. Cancelled or not, leaving the block ends the session without a word (the wire has none) and
leaves the socket open, in its mode, with its options, but for a larger receive buffer.

Source: seed 004; media specification C17, C24, C27, C37-C39, C46, D6, D22, D25, D27.
"""

from __future__ import annotations

import math
import secrets
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Self

import trio

from punchd.media.buffers import Delivery, Memory
from punchd.media.bulk import Bulk
from punchd.media.counters import Count, Counters
from punchd.media.datagrams import canonical_id
from punchd.media.ends import Incoming
from punchd.media.fast import ALL, Fast
from punchd.media.horizon import Horizon
from punchd.media.initiator import Initiator as Machine
from punchd.media.mmsg import is_same_source, raw_name
from punchd.media.moves import Action, Ended, Established, Identified, Send
from punchd.media.naps import NAP_S, Naps
from punchd.media.options import NO_OPTIONS, Options
from punchd.media.receiving import Receiver
from punchd.media.settings import ReceiverSettings, Timing
from punchd.media.sockets import Alarm, HasFileno, SessionEndedError, Turns, beside, borrowed
from punchd.media.statistics import Received
from punchd.media.udp_in import Inlet
from punchd.media.udp_out import Address

DEFAULT_MEMORY = 512 << 20  # bytes of a receiver that shares with none; a claim only, the kernel gives what is touched


class Initiator:
    """One session. Made by `open`; one task at a time receives.

    Attributes:
        options: the other side's, once it has accepted.
        counters: what happened; docs/media.md lists it.
    """

    def __init__(
        self,
        sock: socket.socket,
        peer: Address | None,
        *,
        machine: Machine,
        receiver: Receiver,
        counters: Counters,
        fast: Fast,
    ) -> None:
        self.options = NO_OPTIONS
        self.counters = counters
        self._socket = sock
        self._peer = peer
        self._tuple = b"" if peer is None else raw_name(sock.family, peer)
        self._machine = machine
        self._receiver = receiver
        self._incoming = Incoming(machine, receiver, counters)
        strides = fast.strides()
        self._strides_name = strides.name
        self._bulk = Bulk(self._incoming, strides)
        self._inlet = Inlet(sock, fast, with_names=peer is not None)
        self._began_at = trio.current_time()
        self._is_established = False
        self._ended: SessionEndedError | None = None
        self._is_renamed = False
        self._ready: list[Delivery] = []
        self._lent: Sequence[Delivery] = ()
        self._waiting = trio.CancelScope()
        self._turns = Turns()
        self._alarm = Alarm()
        self._naps = Naps(self._inlet.room, self._began_at)
        self._horizon = Horizon(self._inlet.room, self._began_at)
        self._bytes = self._sends = 0

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        sock: HasFileno,
        *,
        peer: Address | None = None,
        desired: bytes | None = None,
        options: Options = NO_OPTIONS,
        settings: ReceiverSettings | None = None,
        timing: Timing | None = None,
        memory: Memory | None = None,
        counters: Counters | None = None,
        fast: Fast = ALL,
    ) -> AsyncIterator[Self]:
        """Ask for a stream, and wait until the other side has accepted.

        Args:
            sock: UDP: connected, or bound and `peer` named. Nobody else reads it meanwhile. It stays the caller's.
            peer: where the responder is; None: where the socket is connected to.
            desired: connection id to ask for, at most 36 bytes; empty: the responder chooses; None: a random one.
            options: what this side can take; `max_total` is the settings' if it is not given.
            memory: shared by the receivers of a process.
            counters: they count for this session; give them a parent to count for the process as well.

        Raises:
            SessionEndedError: refused, or no answer for 31.5 s.
            ValueError: no UDP socket, neither connected nor a peer, an id that is none.
            OSError: the socket cannot be used.
        """
        limits, counted = settings or ReceiverSettings(), counters or Counters()
        wanted = canonical_id(secrets.token_bytes(16)) if desired is None else desired
        told = options if options.max_total is not None else replace(options, max_total=limits.max_total)
        with borrowed(sock) as own:
            if peer is None and not _is_connected(own):
                raise ValueError("socket: expected a connected one, or `peer`")
            key = b"" if peer is None else raw_name(own.family, peer)
            machine = Machine(key, wanted, counted, options=told, timing=timing)
            receiver = Receiver(limits, memory or Memory(DEFAULT_MEMORY), counted)
            made = cls(own, peer, machine=machine, receiver=receiver, counters=counted, fast=fast)
            try:
                async with beside(made._keep_time):
                    await made._establish()
                    yield made
            finally:
                made._end()

    @property
    def id(self) -> bytes:
        """Whose session media belong to. Opaque, chosen by strangers: no secret, no access right."""
        return self._machine.id

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delivery:
        return await self.receive()

    async def receive(self) -> Delivery:
        """The next logical send.

        Its payload is good until the next is asked for, which releases it; `Delivery.take` copies it.

        Raises:
            SessionEndedError: the session is over.
            OSError: the socket cannot be used.
        """
        self._release()
        while not self._ready:
            await self._read()
            self._is_renamed = False
        delivery = self._ready.pop(0)
        self._lend((delivery,))
        return delivery

    async def receive_some(self) -> Sequence[Delivery]:
        """All logical sends that are there, waiting for the first; the payloads are good until the next call.

        Returns:
            Nothing if the session was named anew.

        Raises:
            SessionEndedError, OSError: as `receive`.
        """
        self._release()
        while not self._ready and not self._is_renamed:
            await self._read()
        self._is_renamed = False
        found, self._ready = self._ready, []
        self._lend(found)
        return found

    def reidentify(self, new: bytes) -> None:
        """Name the session anew: 1 to 36 bytes without NUL. What is half received is forgotten.

        Raises:
            ValueError: not an id.
        """
        self._take(*self._incoming.reidentify(new, trio.current_time()))

    def statistics(self) -> Received:
        """What was received so far."""
        counters, path, lost = self.counters, self._receiver.path, self._receiver.telemetry.report().lost
        timeouts, evictions = counters[Count.TIMEOUTS], counters[Count.EVICTIONS]
        return Received(
            seconds=trio.current_time() - self._began_at,
            bytes=self._bytes,
            datagrams=counters[Count.DATAGRAMS],
            logical_sends=self._sends,
            lost=self._receiver.lost_earlier + lost + timeouts + evictions + counters[Count.LATE],
            duplicates=counters[Count.DUPLICATES] + counters[Count.DUPLICATE_FRAGMENTS],
            timeouts=timeouts,
            evictions=evictions,
            invalid=counters.validation_errors,
            kernel_drops=self._inlet.drops,
            jitter_s=path.jitter_s,
            queueing_s=path.queueing_s,
            trend=path.trend,
            path=f"{self._inlet.path}+{self._strides_name}",
        )

    # --- the session -------------------------------------------------------------------------------------------------

    async def _establish(self) -> None:
        self._act(self._machine.open(trio.current_time()))
        while not self._is_established:
            await self._read()
            for delivery in self._ready:  # in a slot that the next read fills again
                delivery.keep()

    def _end(self) -> None:
        self._release()
        for delivery in self._ready:
            delivery.release()
        self._ready = []
        self._receiver.reassembly.clear()
        self._inlet.close()

    async def _keep_time(self) -> None:
        while True:
            if await self._alarm.wait(self._incoming.next_timeout()):
                self._pass_time()

    def _act(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Send():
                    with suppress(OSError):  # lost, as datagrams may be; it is repeated
                        if self._peer is None:
                            self._socket.send(action.data, socket.MSG_DONTWAIT)
                        else:
                            self._socket.sendto(action.data, socket.MSG_DONTWAIT, self._peer)
                case Established():
                    self._is_established, self.options = True, action.options
                case Identified():
                    self._is_renamed = self._is_established
                case Ended():
                    self._ended = SessionEndedError(action.why, action.text)
                case _:
                    pass
        if actions:
            self._waiting.cancel()
        self._alarm.move(self._incoming.next_timeout())

    def _pass_time(self) -> None:
        self._take(*self._incoming.handle_timeout(trio.current_time(), self._horizon.until))

    # --- receiving ---------------------------------------------------------------------------------------------------

    def _lend(self, deliveries: Sequence[Delivery]) -> None:
        self._lent = deliveries
        self._sends += len(deliveries)
        self._bytes += sum(len(delivery.payload) for delivery in deliveries)

    def _release(self) -> None:
        for delivery in self._lent:
            delivery.release()
        self._lent = ()

    async def _read(self) -> None:
        """What has come, or waits until there is something to look at."""
        if self._ended is not None:
            raise self._ended
        await self._turns.checkpoint()
        try:
            arrivals = self._inlet.receive()
        except BlockingIOError:
            await self._wait()
            return
        now = trio.current_time()
        for arrival in arrivals:
            self._naps.note(arrival.size)
            self._horizon.note(arrival.size, now)
            is_ours = self._peer is None or is_same_source(arrival.source, self._tuple)
            peer = self._tuple if is_ours else arrival.source
            self._take(*self._bulk.take(peer, arrival.data, arrival.segment, now, distance=arrival.distance))
        if (due_at := self._receiver.next_gap_timeout()) is not None and due_at <= self._horizon.until:
            self._pass_time()
        self._alarm.move(self._incoming.next_timeout())

    async def _wait(self) -> None:
        """Everything was read. Until more comes, or something counts as lost."""
        now = trio.current_time()
        self._horizon.emptied(now)
        due_at = self._receiver.next_gap_timeout()
        if due_at is not None and due_at <= now:
            self._pass_time()
            return
        is_nap = self._naps.is_due(now)
        with trio.CancelScope(deadline=math.inf if due_at is None else due_at) as self._waiting:
            if is_nap:
                await trio.sleep(NAP_S)
            else:
                await trio.lowlevel.wait_readable(self._socket)
        self._turns.waited()

    def _take(self, actions: Sequence[Action], deliveries: Sequence[Delivery]) -> None:
        self._ready += deliveries
        if actions:
            self._act(actions)
        elif deliveries:
            self._waiting.cancel()


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True
