"""The UDP side: datagrams in, one reply each out, from the very address that was asked.

Theory of operation. Datagrams are read until there are no more, or a batch is full, then answered together, and after
some batches the other tasks have their turn: a checkpoint for each datagram would cost more than its answer. Between
two turns the kernel keeps what comes in its receive buffer, which is made as large as the host allows.

Whoever asks with keys that nobody has gets 20 replies a second and source. Good clients are not counted: there may be
thousands of them behind one carrier's NAT.

Nothing that comes from outside ends a loop here: what is no pulse is dropped, and a reply that the kernel does not
send is counted and forgotten.

Source: rendezvous specification V-003, V-018, V-021, §6, §8.1; socket(7).
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass

import trio

from punchd.rendezvous import packet_info, pulse, source
from punchd.rendezvous.packet_info import Control
from punchd.rendezvous.pulse import NO_REPLY, UNKNOWN
from punchd.rendezvous.store import Store, StoreError
from punchd.web.rate import Limiter

BATCH = 64  # datagrams answered together
BATCHES = 8  # of them between two turns of the other tasks: some 5 ms
RECEIVE_BUFFER = 32 << 20  # bytes; a pulse takes 768 of them, so this is a second of pulses of a million clients

_LONGEST = pulse.SIGNED_SIZE + 1  # one byte more than any pulse tells what is too long
_MOST_ADDRESSES = 4096  # of this host that are remembered at one time
_SO_RCVBUFFORCE = 33  # <asm-generic/socket.h>; the socket module has no name for it

_Address = tuple[str, int] | tuple[str, int, int, int]


@dataclass(slots=True)
class Counts:
    """What happened to datagrams; for the metrics."""

    unanswered: int = 0  # because the store did not answer
    malformed: int = 0
    accepted: int = 0
    verify: int = 0
    unknown: int = 0
    cookies: int = 0
    limited: int = 0  # replies to unknown keys that were not sent
    unsent: int = 0  # replies that the kernel did not take


def prepare(sock: socket.socket) -> int:
    """Make a bound UDP socket ready for `PulseServer`; how many bytes its receive buffer holds."""
    sock.setblocking(False)
    packet_info.ask(sock)
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER)
    except PermissionError:  # without CAP_NET_ADMIN, as much as net.core.rmem_max allows
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)


class PulseServer:
    """Answers pulses on one prepared socket, which stays the caller's.

    Args:
        limiter: how many replies a source gets to unknown keys.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        sock: socket.socket,
        store: Store,
        limiter: Limiter,
        counts: Counts,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        self._socket = sock
        self._store = store
        self._limiter = limiter
        self._counts = counts
        self._clock = clock
        self._family = sock.family
        self._controls: dict[bytes, Control] = {}

    async def run(self) -> None:
        """Serve until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            for _ in range(BATCHES):
                batch, returns = self._receive()
                if batch:
                    try:
                        replies = await self._store.pulses(batch)
                    except StoreError:
                        self._counts.unanswered += len(batch)
                        break
                    self._count(batch, replies)
                    self._send(replies, returns)
                if len(returns) < BATCH:
                    break

    def _receive(self) -> tuple[list[tuple[bytes, bytes]], list[tuple[Control, _Address]]]:
        """At most BATCH datagrams with their sources, and for each how its reply is to be sent."""
        batch: list[tuple[bytes, bytes]] = []
        returns: list[tuple[Control, _Address]] = []
        receive = self._socket.recvmsg
        pack = _packed4 if self._family == socket.AF_INET else _packed6
        with contextlib.suppress(OSError):  # EAGAIN, mostly; whatever else it is, the next turn tries again
            for _ in range(BATCH):
                datagram, control, _flags, address = receive(_LONGEST, packet_info.SPACE)
                batch.append((datagram, pack(address)))
                returns.append((self._control(control), address))
        return batch, returns

    def _send(self, replies: list[bytes], returns: list[tuple[Control, _Address]]) -> None:
        send = self._socket.sendmsg
        for reply, (control, address) in zip(replies, returns, strict=True):
            if reply:
                try:
                    send((reply,), control, socket.MSG_DONTWAIT, address)
                except OSError:
                    self._counts.unsent += 1

    def _control(self, received: Control) -> Control:
        """The control message that makes a reply leave from the address that `received` names."""
        if not received:
            return received
        info = received[0][2]
        known = self._controls.get(info)
        if known is None:
            if len(self._controls) >= _MOST_ADDRESSES:
                self._controls.clear()
            known = self._controls[info] = [packet_info.reply(*received[0])]
        return known

    def _count(self, batch: list[tuple[bytes, bytes]], replies: list[bytes]) -> None:
        """Count, and take back the replies that a source gets no more of."""
        counts = self._counts
        accepted = replies.count(pulse.ACCEPTED)
        counts.accepted += accepted
        if accepted == len(replies):
            return
        for place, reply in enumerate(replies):
            if reply == UNKNOWN:
                counts.unknown += 1
                if self._limiter.allow(source.network_of(batch[place][1]), self._clock()):
                    counts.limited += 1
                    replies[place] = NO_REPLY
            elif reply == NO_REPLY:
                counts.malformed += 1
            elif reply == pulse.VERIFY:
                counts.verify += 1
            elif reply != pulse.ACCEPTED:
                counts.cookies += 1


def _packed4(address: _Address) -> bytes:
    return socket.inet_aton(address[0]) + address[1].to_bytes(2, "big")


def _packed6(address: _Address) -> bytes:
    return socket.inet_pton(socket.AF_INET6, address[0].partition("%")[0]) + address[1].to_bytes(2, "big")
