"""One side of one TCP round: what `tcp-nutss`, `tcp-syni` and `tcp-repair` share beside their aim.

Cards and sightings come in, and a connection that stands ends the round. What is sent, and what a segment means, each
technique says itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import NoReturn

import trio

from punchd.endpoint import Endpoint
from punchd.errors import PunchError
from punchd.events import Explained, Heard
from punchd.technique import Complaint, Connection, Facts, Hole, Kit, Sighted, TcpPort
from punchd.wire.tcp import Flags
from punchd.wire.token import Card
from punchd_techniques.aim import Aim

RETRY_S = 0.1  # after an RST or ICMP error: a NAT on the way was not open yet, or closed again
MOST_SEEN = 8  # different things that an explanation names; strangers can forge ICMP errors of any router


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
        self._seen: list[str] = []
        self._won: Connection | None = None

    async def run(self) -> Hole:
        """Until a connection stands."""
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
            self._won = connection
            self.nursery.cancel_scope.cancel()

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

        The kernel refuses at once where the listener has just taken a connection from that very port: that one wins.
        """
        while True:
            try:
                connection = self.port.connect(port, isn)
            except PunchError as error:
                self._note(str(error))
                await trio.sleep(RETRY_S)
                continue
            async with trio.open_nursery() as nursery:
                nursery.start_soon(repeat, port)
                number = await connection.result()
                nursery.cancel_scope.cancel()
            if number == 0:
                self.win(connection)
                return
            connection.drop()
            await trio.sleep(RETRY_S)

    async def accept(self) -> None:
        self.win(await self.port.accept())

    # --- what comes in ---------------------------------------------------------------------------------------------

    async def _hear_cards(self) -> None:
        while True:
            self.take(await self.kit.hear_peer())

    async def _watch(self) -> None:
        while True:
            match await self.port.sight():
                case Sighted() as sighted:
                    if not sighted.is_outgoing:
                        self._note(kind(sighted.segment.flags))
                    self.see(sighted)
                case Complaint(what, router, _):
                    self._note(f"{what.name.lower().replace('_', ' ')} from {router}")
                case _:
                    self.aim.learned()

    def _note(self, what: str) -> None:
        if what not in self._seen and len(self._seen) < MOST_SEEN:
            self._seen.append(what)
            self._explain()

    def _explain(self) -> None:
        """What to say if this ends without a connection."""
        if self._seen:
            text = f"{', '.join(sorted(self._seen))} came from {self.plan.peer}'s side, but no handshake was completed"
        else:
            text = f"no answer at all from {self.plan.peer}"
        if self.port.outlook.behaviour == "random":
            text += "; the own NAT picks a random port for each destination, so the peer cannot know ours"
        self.kit.emit(Explained(text))


def kind(flags: Flags) -> str:
    """What people call such a segment."""
    if flags & Flags.RST:
        return "RST"
    if flags & Flags.SYN:
        return "SYN-ACK" if flags & Flags.ACK else "SYN"
    return "ACK"
