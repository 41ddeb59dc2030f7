"""One side of one TCP round: what `tcp-nutss`, `tcp-syni` and `tcp-repair` share beside their aim.

Cards and sightings come in, and a connection that stands on both sides ends the round. What is sent, and what a segment
means, each technique says itself.

Both sides. Whoever's ACK completes a handshake does not know whether it arrives: a NAT that let the SYNs pass may drop
it, and then the socket is one that only this side believes in. So the responder, which is the first to finish, lets its
stack say that it is established, and the initiator finishes when it has heard that. The word is an ACK one below the
next sequence number (a keepalive's, RFC 9293 §3.8.4), since the bare ACK that a half-open socket sends in answer to
copies of a SYN is not. If all copies are lost, the first data of the responder's application means the same.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import NoReturn

import trio

from punchd.endpoint import Endpoint, is_private
from punchd.errors import PunchError
from punchd.events import Complained, Event, Explained, Heard, MappingLearned, Passed, Tried
from punchd.technique import Complaint, Connection, Facts, Hole, Kit, Role, Sighted, TcpPort
from punchd.wire.tcp import Flags, Segment, describe, plus
from punchd.wire.token import Card
from punchd_techniques.aim import Aim
from punchd_techniques.diagnosis import Seen, words_of

WORDS = 4  # copies; 5 % loss takes all of them once in 160,000 times
RETRY_S = 0.1  # after an RST or ICMP error: a NAT on the way was not open yet, or closed again


class Handshake(ABC):
    """Args: what the technique was called with, and what it adds to its cards."""

    def __init__(self, plan: Facts, kit: Kit, port: TcpPort, body: bytes) -> None:
        self.plan = plan
        self.kit = kit
        self.port = port
        self.aim = Aim(plan, kit, port, body=body, fire=self.fire)
        self.nursery: trio.Nursery
        self.connecting: set[int] = set()  # the peer's ports that `connect_each` has begun with
        self._heard = False
        self._seen = Seen(plan.peer, plan.ttl)
        self._learned: Event | None = None
        self._explained = ""
        self._won: Connection | None = None
        self._peer_isns: dict[int, int] = {}  # by the peer's port: the sequence number of its last SYN
        self._acknowledged: dict[int, int] = {}  # by the peer's port: what its word acknowledged
        self._word = trio.Event()  # set when there is another one; replaced by whoever waits

    async def run(self) -> Hole:
        """Until a connection stands."""
        self._tell_mapping()
        self._explain()
        async with trio.open_nursery() as self.nursery:
            self.nursery.start_soon(self._hear_cards)
            self.nursery.start_soon(self._watch)
            self.nursery.start_soon(self.act)
        if self._won is None:
            raise AssertionError("the round ended without a winner")
        return self.port.hand_over(self._won)

    # --- what a technique says -------------------------------------------------------------------------------------

    @abstractmethod
    def fire(self) -> None:
        """Send something to each target; see `Aim`."""

    @abstractmethod
    async def act(self) -> None:
        """Whatever is not the answer to a card or a segment."""

    @abstractmethod
    def see(self, sighted: Sighted) -> None:
        """A segment went by, in either direction."""

    def take(self, card: Card) -> None:
        """A card of the peer."""
        self.aim.take(card)
        self.aim.tell()

    # --- what it may use -------------------------------------------------------------------------------------------

    def win(self, connection: Connection) -> None:
        """This one stands: the round is over."""
        if self._won is None:
            self.kit.emit(Tried(connection.port, "connected"))
            self._won = connection
            self.nursery.cancel_scope.cancel()

    def tried(self, port: int, why: str) -> None:
        """A connection to that port of the peer failed: an errno's name, or a message."""
        self.kit.emit(Tried(port, why))
        if why == "ECONNREFUSED":
            self._seen.came("RST", port)
        else:
            self._seen.failed(why)
        self._explain()

    def hear(self, sighted: Sighted) -> None:
        """This segment is the peer's."""
        if not self._heard:
            self._heard = True
            self.kit.emit(Heard(Endpoint(self.plan.peer, sighted.port), kind(sighted.segment.flags)))

    async def connect_each(self, connect: Callable[[int], Awaitable[None]], stagger_s: Callable[[], float]) -> NoReturn:
        """Connect to the targets, one after the other, each in a task of its own, and to new ones when there are any.

        Between two of them `stagger_s()` seconds pass: sides that connect two pairs at once may end with different
        ones.
        """
        while True:
            port = next((port for port in self.aim.targets if port not in self.connecting), None)
            if port is None:
                await self.aim.changed.wait()
                self.aim.changed = trio.Event()
                continue
            self.connecting.add(port)
            self.nursery.start_soon(connect, port)
            await trio.sleep(stagger_s())

    async def connect(self, port: int, isn: int, repeat: Callable[[int], Awaitable[None]]) -> None:
        """Connect until it works: an error only says that a NAT was not ready. `repeat` runs beside each try.

        The first time-exceeded is about a low-TTL SYN of our own that went before: no reason to wait. The kernel
        refuses at once where the listener has just taken a connection from that very port: that one wins.
        """
        is_first = True
        while True:
            try:
                connection = self.port.connect(port, isn)
            except PunchError as error:
                self.tried(port, str(error))
                await trio.sleep(RETRY_S)
                continue
            async with trio.open_nursery() as nursery:
                nursery.start_soon(repeat, port)
                number = await connection.result()
                nursery.cancel_scope.cancel()
            if number == 0:
                await self.prove(connection, isn)
                return
            self.kit.emit(Tried(port, errno.errorcode.get(number, str(number))))
            connection.drop()
            await trio.sleep(0 if is_first and number == errno.EHOSTUNREACH else RETRY_S)
            is_first = False

    async def accept(self) -> None:
        await self.prove(await self.port.accept())

    async def prove(self, connection: Connection, isn: int | None = None) -> None:
        """Win with a connection that stands here, once it stands there.

        Args:
            isn: of our SYN. None if the peer's ACK has completed the handshake, which proves as much as its word.
        """
        if self.plan.role is Role.RESPONDER:
            for _ in range(WORDS):
                connection.announce()
        elif isn is not None and self.port.can_send_raw:  # else there is nobody to hear it
            while self._acknowledged.get(connection.port) != plus(isn, 1):
                await self._word.wait()
                self._word = trio.Event()
        self.win(connection)

    # --- what comes in ---------------------------------------------------------------------------------------------

    async def _hear_cards(self) -> None:
        while True:
            card = await self.kit.hear_peer()
            self.take(card)
            self._explain()

    async def _watch(self) -> None:
        while True:
            match await self.port.sight():
                case Sighted() as sighted:
                    self._note(sighted)
                    if not sighted.is_outgoing:
                        self._hear_word(sighted.port, sighted.segment)
                    self.see(sighted)
                case Complaint(what, router, port) as complaint:
                    self.kit.emit(Complained(words_of(what), router, port))
                    self._seen.complained(complaint)
                    self._explain()
                case _:
                    self._tell_mapping()
                    self.aim.learned()

    def _hear_word(self, port: int, segment: Segment) -> None:
        if segment.flags & Flags.RST:
            return
        if segment.flags & Flags.SYN:
            self._peer_isns[port] = segment.seq
        elif segment.payload or (segment.seq == self._peer_isns.get(port) and segment.length == 0):
            self._acknowledged[port] = segment.ack
            self._word.set()

    def _note(self, sighted: Sighted) -> None:
        segment = sighted.segment
        what = kind(segment.flags)
        if sighted.is_injected:
            way = "injected"
        elif sighted.is_outgoing:
            way = "sent"
            self._seen.sent(what, sighted.port, sighted.ttl, segment.seq)
        else:
            way = "came"
            self._seen.came(what, sighted.port, sighted.ttl)
        self.kit.emit(Passed(way, describe(segment), sighted.port, sighted.ttl))
        self._explain()

    def _tell_mapping(self) -> None:
        known = self.port.outlook
        learned = MappingLearned(self.port.local, f"{known.address}:{known.ports()}", known.behaviour, known.rtt_ms)
        if learned != self._learned and not known.address.is_unspecified:
            self._learned = learned
            self.kit.emit(learned)

    def _explain(self) -> None:
        """What to say if this ends without a connection."""
        text = self._seen.explain(
            self.aim.named,
            own_is_random=self.port.outlook.behaviour == "random",
            peer_guesses=self.aim.peer_guesses,
            is_private_here=is_private(self.port.local.ip),
        )
        if text != self._explained:
            self._explained = text
            self.kit.emit(Explained(text))


def kind(flags: Flags) -> str:
    """What people call such a segment."""
    if flags & Flags.RST:
        return "RST"
    if flags & Flags.SYN:
        return "SYN-ACK" if flags & Flags.ACK else "SYN"
    return "ACK"
