"""Sending media on a UDP socket, for trio programs: the side that is asked for the stream.

    async with Responder.open(connected.socket, rate_bps=8e6) as responder:    # connected: what punchd handed over
        stream = await responder.accept()                                      # somebody has asked
        await stream.send(payload)                                             # one logical send

The protocol has no congestion control: `rate_bps` has to be said, and is kept to by waiting. `None` sends as fast as
the socket takes, which is for loopback and for measuring. A socket that is connected has one stream; one that is only
bound may have many, each with its rate.

Takes no timeouts: cancel. A send that is cancelled leaves a part of it sent, which the other side gives up. Leaving the
block ends all streams without a word (the wire has none); the socket stays open, in its mode, with its options.

Source: seed 004; media specification C16-C26, C39, D5, D22, D25, D28, D30, D31.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Self

import trio

from punchd.media.counters import Counters
from punchd.media.ends import Outgoing
from punchd.media.fast import ALL, Fast
from punchd.media.links import Link
from punchd.media.moves import Action, Ended, Established, Identified, MediaMayFlow, PacketTuple, Send, Why
from punchd.media.responder import Admission
from punchd.media.responder import Responder as Machine
from punchd.media.settings import DEFAULT_DATAGRAM_SIZE, ResponderSettings
from punchd.media.sockets import Alarm, HasFileno, SessionEndedError, beside, borrowed
from punchd.media.stream import Stream
from punchd.media.udp_out import Address

_MOST_AT_ONCE = 64  # datagrams between two turns of other tasks
_BUFFER = 65_536


def _admit_all(peer: PacketTuple, syn: object) -> bytes | None:
    return None


class Responder:
    """Answers on one socket. Made by `open`.

    Attributes:
        counters: what happened; docs/media.md lists it.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        rate_bps: float | None,
        machine: Machine,
        counters: Counters,
        datagram_size: int,
        fast: Fast,
    ) -> None:
        self.counters = counters
        self._socket = sock
        self._rate_bps = rate_bps
        self._machine = machine
        self._outgoing = Outgoing(machine, counters)
        self._datagram_size = datagram_size
        self._fast = fast
        self._connected: Address | None = _peer_of(sock)
        self._streams: dict[PacketTuple, Stream] = {}
        self._waiting: dict[Address, Link] = {}  # in order; a stream is made when it is accepted: it has a buffer
        self._news = trio.Event()
        self._alarm = Alarm()

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        sock: HasFileno,
        *,
        rate_bps: float | None,
        settings: ResponderSettings | None = None,
        datagram_size: int = DEFAULT_DATAGRAM_SIZE,
        admit: Admission = _admit_all,
        counters: Counters | None = None,
        fast: Fast = ALL,
    ) -> AsyncIterator[Self]:
        """Answer whoever asks.

        Args:
            sock: UDP, connected or bound. Nobody else reads it meanwhile. It stays the caller's.
            rate_bps: of each stream, headers included, bit/s; less if the other side asks for less; None: no limit.
            settings: `path_validated` for sockets that were punched or whose peer is authenticated.
            datagram_size: of the longest datagram, bytes of UDP payload; less where the path's MTU is known to be less.
            admit: asked about each SYN that would begin a session: None, or why not, in at most 36 bytes.

        Raises:
            ValueError: no UDP socket, or a rate or size that cannot be.
            OSError: the socket cannot be used.
        """
        counted = counters or Counters()
        with borrowed(sock) as own:
            machine = Machine(settings or ResponderSettings(), counted, secrets.token_bytes(32), admit)
            made = cls(
                own, rate_bps=rate_bps, machine=machine, counters=counted, datagram_size=datagram_size, fast=fast
            )
            try:
                async with beside(made._hear, made._keep_time):
                    yield made
            finally:
                made._end()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Stream:
        return await self.accept()

    async def accept(self) -> Stream:
        """The next stream that somebody has asked for, once media may flow."""
        await trio.lowlevel.checkpoint()
        while not self._waiting:
            await self._news.wait()
        peer = next(iter(self._waiting))
        stream = self._streams[peer] = self._make(peer, self._waiting.pop(peer))
        return stream

    # --- what streams want -------------------------------------------------------------------------------------------

    def _reidentify(self, peer: PacketTuple, new: bytes) -> None:
        self._act(self._machine.reidentify(peer, new, trio.current_time()))

    def _close(self, peer: PacketTuple) -> None:
        self._act(self._machine.close(peer, trio.current_time()))

    # --- the socket --------------------------------------------------------------------------------------------------

    async def _hear(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            now = trio.current_time()
            for _ in range(_MOST_AT_ONCE):
                try:
                    data, address = self._socket.recvfrom(_BUFFER, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    break
                except OSError:  # an ICMP error, which anybody can forge; silence tells
                    continue
                self._act(self._outgoing.take(_key(address), data, now))
            await trio.lowlevel.checkpoint()

    async def _keep_time(self) -> None:
        while True:
            if await self._alarm.wait(self._machine.next_timeout()):
                self._act(self._machine.handle_timeout(trio.current_time()))

    def _act(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Send():
                    self._say(action)
                case Established() if action.peer in self._streams:
                    self._streams[action.peer].take_options(action.options)
                case Identified() if action.peer in self._streams:
                    self._streams[action.peer].take_id(action.id)
                case MediaMayFlow():
                    self._begin(action.peer)
                case Ended() if action.peer in self._streams:
                    self._streams.pop(action.peer).end(SessionEndedError(action.why, action.text))
                case Ended() if isinstance(action.peer, tuple):
                    self._waiting.pop(action.peer, None)
                case _:
                    pass
        for peer in {action.peer for action in actions} & self._streams.keys():
            self._streams[peer].look_again()
        self._alarm.move(self._machine.next_timeout())

    def _say(self, send: Send) -> None:
        with suppress(OSError):  # lost, as datagrams may be; what matters is repeated
            if self._connected is not None:
                self._socket.send(send.data, socket.MSG_DONTWAIT)
            elif isinstance(send.peer, tuple):
                self._socket.sendto(send.data, socket.MSG_DONTWAIT, send.peer)

    def _begin(self, peer: PacketTuple) -> None:
        link = self._machine.links.get(peer)
        if link is not None and isinstance(peer, tuple) and peer not in self._streams:
            self._waiting[peer] = link
            self._news.set()
            self._news = trio.Event()

    def _make(self, peer: Address, link: Link) -> Stream:
        return Stream(
            self._socket, peer, is_connected=self._connected is not None, id_=link.id, options=link.options,
            machine=self._machine, rate_bps=self._rate_bps, datagram_size=self._datagram_size, fast=self._fast,
            reidentify=lambda new: self._reidentify(peer, new), close=lambda: self._close(peer),
        )  # fmt: skip

    def _end(self) -> None:
        for stream in self._streams.values():
            stream.end(SessionEndedError(Why.CLOSED))
        self._streams.clear()


def _key(address: tuple[str | int, ...]) -> PacketTuple:
    """Without IPv6's flow label, which a sender may change."""
    return (*address[:2], 0, *address[3:]) if len(address) == 4 else address


def _peer_of(sock: socket.socket) -> Address | None:
    try:
        address: Address = sock.getpeername()
    except OSError:
        return None
    return address
