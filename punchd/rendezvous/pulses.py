"""The UDP side: datagrams in, one reply each out, from the very address that was asked.

Theory of operation. Datagrams are read until there are no more, or a batch is full, then answered together, and after
some batches the other tasks have their turn: a checkpoint for each datagram would cost more than its answer. Between
two turns the kernel keeps what comes in its receive buffer, which is made as large as the host allows.

Whoever asks with keys that nobody has gets 20 replies a second and source. Good clients are not counted: there may be
thousands of them behind one carrier's NAT.

A flood fills the receive buffer, and then good pulses wait behind it or are lost. So as long as batches are full, it is
counted who fills them: one address and port, whatever it sends, for that is one client; and a source as a whole, if it
sends what is no pulse of anybody. Who passes a bound is left to the kernel for a while, see `punchd.web.shun`.

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

from punchd.errors import StoreError
from punchd.rendezvous import packet_info, pulse, source
from punchd.rendezvous.packet_info import Control
from punchd.rendezvous.pulse import NO_REPLY, UNKNOWN
from punchd.rendezvous.store import Store
from punchd.web.rate import Limiter
from punchd.web.shun import Census, Shunned

BATCH = 64  # datagrams answered together
BATCHES = 2  # of them between two turns of the other tasks: some 1.5 ms; with 8, HTTP waits four times as long
RECEIVE_BUFFER = 32 << 20  # bytes; a pulse takes 768 of them, so this is a second of pulses of a million clients

NETWORK_SHARE = 4  # a source may send as many unknown keys as so many of its ports may send pulses

_LONGEST = pulse.SIGNED_SIZE + 1  # one byte more than any pulse tells what is too long
_MOST_ADDRESSES = 4096  # of this host that are remembered at one time
_SO_RCVBUFFORCE = 33  # <asm-generic/socket.h>; the socket module has no name for it

_Address = tuple[str, int] | tuple[str, int, int, int]
_Batch = list[tuple[bytes, bytes]]  # datagrams with their packed sources
_Returns = list[tuple[Control, _Address]]


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
    shunned: int = 0  # sources that sent too much
    unheard: int = 0  # datagrams of theirs that were in the buffer already


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
        most: datagrams a second of one address and port.
        notice_shunned: told of each source that sends too much.
    """

    def __init__(
        self,
        sock: socket.socket,
        store: Store,
        limiter: Limiter,
        counts: Counts,
        clock: Callable[[], float] = trio.current_time,
        *,
        most: int = 1000,
        notice_shunned: Callable[[bytes], None] = lambda _source: None,
    ) -> None:
        self._socket = sock
        self._store = store
        self._limiter = limiter
        self._counts = counts
        self._clock = clock
        self._family = sock.family
        self._controls: dict[bytes, Control] = {}
        self._ports = Census(most)
        self._networks = Census(NETWORK_SHARE * most)
        self._notice_shunned = notice_shunned
        self._shunned = Shunned([sock], clock, self._notice)

    async def run(self) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._shunned.run)
            await self._serve()

    async def _serve(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            for _ in range(BATCHES):
                batch, returns = self._receive()
                received = len(batch)
                if received == BATCH:
                    self._shun(self._ports, [origin for _, origin in batch])
                if self._shunned:
                    batch, returns = self._heard(batch, returns)
                if batch:
                    try:
                        replies = await self._store.pulses(batch)
                    except StoreError:
                        self._counts.unanswered += len(batch)
                        break
                    self._count(batch, replies)
                    self._send(replies, returns)
                if received < BATCH:
                    break

    def _shun(self, census: Census, sources: list[bytes]) -> None:
        for source_of_many in census.count(sources, self._clock()):
            self._shunned.add(source_of_many)

    def _notice(self, source_of_many: bytes) -> None:
        self._counts.shunned += 1
        self._notice_shunned(source_of_many)

    def _heard(self, batch: _Batch, returns: _Returns) -> tuple[_Batch, _Returns]:
        """Without what shunned sources sent before the filter was there."""
        shunned, network_of = self._shunned, source.network_of
        heard = [
            place
            for place, (_, origin) in enumerate(batch)
            if origin not in shunned and network_of(origin) not in shunned
        ]
        self._counts.unheard += len(batch) - len(heard)
        return [batch[place] for place in heard], [returns[place] for place in heard]

    def _receive(self) -> tuple[_Batch, _Returns]:
        """At most BATCH datagrams with their sources, and for each how its reply is to be sent."""
        batch: _Batch = []
        returns: _Returns = []
        receive = self._socket.recvmsg
        pack = _packed4 if self._family == socket.AF_INET else _packed6
        with contextlib.suppress(OSError):  # EAGAIN, mostly; whatever else it is, the next turn tries again
            for _ in range(BATCH):
                datagram, control, _flags, address = receive(_LONGEST, packet_info.SPACE)
                batch.append((datagram, pack(address)))
                returns.append((self._control(control), address))
        return batch, returns

    def _send(self, replies: list[bytes], returns: _Returns) -> None:
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

    def _count(self, batch: _Batch, replies: list[bytes]) -> None:
        """Count, and take back the replies that a source gets no more of."""
        counts = self._counts
        accepted = replies.count(pulse.ACCEPTED)
        counts.accepted += accepted
        if accepted == len(replies):
            return
        strangers: list[bytes] = []
        for place, reply in enumerate(replies):
            if reply == UNKNOWN:
                counts.unknown += 1
                strangers.append(source.network_of(batch[place][1]))
                if self._limiter.allow(strangers[-1], self._clock()):
                    counts.limited += 1
                    replies[place] = NO_REPLY
            elif reply == NO_REPLY:
                counts.malformed += 1
                strangers.append(source.network_of(batch[place][1]))
            elif reply == pulse.VERIFY:
                counts.verify += 1
            elif reply != pulse.ACCEPTED:
                counts.cookies += 1
        if len(batch) == BATCH:
            self._shun(self._networks, strangers)


def _packed4(address: _Address) -> bytes:
    return socket.inet_aton(address[0]) + address[1].to_bytes(2, "big")


def _packed6(address: _Address) -> bytes:
    return socket.inet_pton(socket.AF_INET6, address[0].partition("%")[0]) + address[1].to_bytes(2, "big")
