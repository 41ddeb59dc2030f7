"""Where to aim and how high: what every technique that opens its NAT first has in common.

A NAT that gets a packet which it does not expect may take offence (see `udp`). So a packet goes to the peer at full
TTL only when the peer's NAT has been opened for the port that it will come from. Each card lists the receiver's ports
that its sender has opened its NAT for; a side goes to full TTL

- when its own port is among them,
- when it cannot know its own port (a NAT that picks ports at random: then only a peer that does not filter by port can
  be reached, and waiting gains nothing),
- when it has heard the peer,
- or, as a last resort, when time passes and no card comes: tokens need not be relayed back.

When a card names other ports than those opened so far, the NAT is opened for the new ones, and a note says so. A
sequential NAT gives each of these a new port of its own; the note carries the new predictions.

Source: line protocol §13.2, §13.3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import trio

from punchd.endpoint import Endpoint, PortSet
from punchd.events import Aimed, Opened
from punchd.technique import Kit, Outlook
from punchd.wire.token import MAX_COUNTER, Card, openable

# No card has come for so long after the last one that none may be relayed.
LAST_RESORT_S = 1.5
# As the initiator with an answer: nothing more is to come but a note, and the round may last just a second.
LAST_RESORT_ANSWERED_S = 0.5
# As the initiator without an answer: the responder may be late; a packet too early can spoil its NAT's mapping.
LAST_RESORT_UNANSWERED_S = 4.0


class OwnPort(Protocol):
    """The technique's port, as far as aiming is concerned."""

    @property
    def local(self) -> Endpoint: ...

    @property
    def outlook(self) -> Outlook: ...


class Aim:
    """One side's view of one round.

    Args:
        kit, port: the technique's.
        ttl: the low one.
        body: what the technique adds to its cards.
        fire: sends something to all targets; called when there is a new target or the aim goes up.
        is_initiator: which side this is.
        reversed_roles: the technique's two sides are swapped in this round; goes into the cards.
    """

    def __init__(
        self,
        kit: Kit,
        port: OwnPort,
        *,
        ttl: int,
        body: bytes,
        fire: Callable[[], None],
        is_initiator: bool,
        reversed_roles: bool = False,
    ) -> None:
        self._kit = kit
        self._port = port
        self._ttl = ttl
        self._body = body
        self._fire = fire
        self._is_initiator = is_initiator
        self._reversed_roles = reversed_roles
        self.targets: list[int] = []  # the peer's ports, those that it named last first
        self.opened: set[int] = set()  # the ports that our NAT is open for
        self.full_ttl = False
        self.changed = trio.Event()
        self._earlier = 0  # destinations that our NAT had already mapped when the last card came
        self._opened_by_peer: tuple[int, ...] = ()
        self._told: tuple[PortSet, tuple[int, ...]] | None = None
        self._cards_told = 0
        wait_s = LAST_RESORT_UNANSWERED_S if is_initiator else LAST_RESORT_S
        self._last_resort_at = kit.now() + wait_s

    def take(self, card: Card) -> None:
        """Aim where the peer's card says, at the TTL that it allows."""
        wait_s = LAST_RESORT_ANSWERED_S if self._is_initiator else LAST_RESORT_S
        self._last_resort_at = self._kit.now() + wait_s
        self._opened_by_peer = card.opened
        self.judge()
        self.open(card.ports)

    def open(self, ports: PortSet) -> None:
        """Aim at these ports first, and open our NAT for those that are new."""
        fresh = [port for port in ports if port not in self.opened]
        if fresh:
            self._earlier = len(self.opened)
        self.targets = [*ports, *(port for port in self.targets if port not in ports)]
        self.opened.update(fresh)
        if fresh and not self.full_ttl:
            self._kit.emit(Opened(self._port.local, str(PortSet.of(fresh)), self._ttl))
        self.changed.set()
        self._fire()

    def add(self, port: int) -> None:
        """The peer was heard from a port: aim at it first."""
        if port not in self.targets:
            self.targets.insert(0, port)
            self.opened.add(port)

    def tell(self, *, again: bool = False) -> None:
        """A card for the peer, unless it would say what the last one said; `again` if that is news by itself."""
        outlook = self._port.outlook
        news = (self.own_ports(), openable(port for port in self.targets if port in self.opened))
        if (news == self._told and not again) or self._cards_told > MAX_COUNTER:
            return
        self._told = news
        self._cards_told += 1
        ports, opened = news
        self._kit.tell_peer(
            Card(
                address=outlook.address,
                ports=ports,
                opened=opened,
                predicted=outlook.is_predicted,
                ttl=self._ttl,
                rtt_ms=outlook.rtt_ms,
                body=self._body,
                reversed_roles=self._reversed_roles,
            )
        )

    def own_ports(self) -> PortSet:
        return self._port.outlook.ports(self._earlier)

    def judge(self) -> None:
        """Go up if what is known allows it."""
        if self._port.outlook.behaviour == "random":
            self.go_full("our own port is random")
        elif any(port in self._opened_by_peer for port in self.own_ports()):
            self.go_full("the peer has opened its NAT for our port")

    def judge_by_time(self) -> None:
        """Go up if no card came in time."""
        if self._kit.now() >= self._last_resort_at:
            self.go_full("no card came in time")

    def go_full(self, why: str) -> None:
        if self.full_ttl:
            return
        self.full_ttl = True
        self.changed.set()
        if self.targets:
            self._kit.emit(Aimed(str(PortSet.of(self.targets)), why))
            self._fire()
