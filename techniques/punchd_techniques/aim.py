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
sequential NAT gives each of these a new port of its own; the note carries the new predictions, and it is by these that
a side judges whether the peer expects it: first aim, then judge, then send.

A port that a packet of the peer really came from becomes a target, too: behind a NAT with random ports no card can
name it.

Source: line protocol §13.2, §13.3.
"""

from __future__ import annotations

from collections.abc import Callable, KeysView, Sequence
from typing import Protocol

import trio

from punchd.endpoint import Endpoint, PortSet
from punchd.events import Aimed, Opened
from punchd.technique import Facts, Kit, Outlook, Role
from punchd.wire.token import MAX_COUNTER, Card, openable

# Full TTL although no card allows it. The responder: no note has come for so long that none may be relayed.
LAST_RESORT_S = 1.5
# The initiator without an answer: the responder may be late; a packet too early can spoil its NAT's mapping.
LAST_RESORT_UNANSWERED_S = 4.0
# The initiator after a card: on short paths its round ends one second after the answer, and half of that must be left.
LAST_RESORT_ANSWERED_S = 0.5


class OwnPort(Protocol):
    """The technique's port, as far as aiming is concerned."""

    @property
    def local(self) -> Endpoint: ...

    @property
    def outlook(self) -> Outlook: ...


class Aim:
    """One side's view of one round.

    Args:
        plan: what is known of the peer, and how many packets each port and all together may get.
        kit, port: the technique's.
        body: what the technique adds to its cards.
        fire: sends something to each target, as far as `spend` allows.
    """

    def __init__(self, plan: Facts, kit: Kit, port: OwnPort, *, body: bytes, fire: Callable[[], None]) -> None:
        self._plan = plan
        self._kit = kit
        self._port = port
        self._body = body
        self._fire = fire
        self._is_initiator = plan.role is Role.INITIATOR
        self.targets: list[int] = []  # the peer's ports, those that it named last first
        self.named: set[int] = set()  # the peer's ports that the application or a card named
        self.peer_guesses = False  # the ports that the peer's last card named are predictions
        self.full_ttl = False
        self.changed = trio.Event()  # set when there are new targets or the TTL goes up; replaced by whoever waits
        self._sent: dict[int, int] = {}  # port -> packets
        self._sent_in_all = 0
        self._earlier = 0  # destinations that our NAT had already mapped when the last card came
        self._opened_by_peer: tuple[int, ...] = ()
        self._told: tuple[PortSet, tuple[int, ...]] | None = None  # own ports and opened ports in our last card
        self._cards_told = 0
        self._last_resort_at = kit.now() + (LAST_RESORT_UNANSWERED_S if self._is_initiator else LAST_RESORT_S)

    @property
    def opened(self) -> KeysView[int]:
        """The peer's ports that our NAT is open for: those that packets went to."""
        return self._sent.keys()

    @property
    def ttl(self) -> int | None:
        """What packets go out with now; None is the system's."""
        return None if self.full_ttl else self._plan.ttl

    # --- cards -----------------------------------------------------------------------------------------------------

    def offer(self) -> None:
        """The initiator's first step: aim at what is known, and tell the peer."""
        self._point_at(self._plan.peer_ports)
        self._open()
        self.tell()

    def take(self, card: Card) -> None:
        """Aim where the peer's card says, at the TTL that it allows."""
        self._last_resort_at = self._kit.now() + (LAST_RESORT_ANSWERED_S if self._is_initiator else LAST_RESORT_S)
        self._opened_by_peer = card.opened
        self.peer_guesses = card.predicted
        self._point_at(card.ports)
        self._judge()
        self._open()

    def tell(self, *, again: bool = False) -> None:
        """A card for the peer, unless it would say what the last one said; `again` if that is news by itself."""
        outlook = self._port.outlook
        news = (self._own_ports(), openable(port for port in self.targets if port in self.opened))
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
                ttl=self._plan.ttl,
                rtt_ms=outlook.rtt_ms,
                body=self._body,
                reversed_roles=self._plan.reversed_roles,
            )
        )

    def learned(self) -> None:
        """STUN said what our port looks like from outside: the peer may have to know, and we may have to aim higher."""
        self._judge()
        self.tell()

    def add(self, port: int) -> None:
        """The peer was heard from a port: aim at it first, whether a card named it or not."""
        if port not in self.targets:
            self.changed.set()
        self.targets = [port, *(other for other in self.targets if other != port)]

    def _point_at(self, ports: PortSet) -> None:
        """Put the peer's ports first. A NAT with a port for each destination will use later ones for the new ones."""
        if any(port not in self.opened for port in ports):
            self._earlier = len(self.opened)
        self.named.update(ports)
        self.targets = [*ports, *(port for port in self.targets if port not in ports)]

    def _open(self) -> None:
        """Send to all targets at once; at a low TTL that opens our NAT and does no more."""
        fresh = [port for port in self.targets if port not in self.opened]
        if fresh and not self.full_ttl:
            self._kit.emit(Opened(self._port.local, str(PortSet.of(fresh)), self._plan.ttl))
        self.changed.set()
        self._fire()

    def _own_ports(self) -> PortSet:
        return self._port.outlook.ports(self._earlier)

    # --- how high --------------------------------------------------------------------------------------------------

    def _judge(self) -> None:
        """Go up if what is known allows it."""
        if self._port.outlook.behaviour == "random":
            self.go_full("our own port is random")
        elif any(port in self._opened_by_peer for port in self._own_ports()):
            self.go_full("the peer has opened its NAT for our port")

    def go_full(self, why: str) -> None:
        """From now on at full TTL. Nothing is sent by this."""
        if self.full_ttl:
            return
        self.full_ttl = True
        self.changed.set()
        if self.targets:
            self._kit.emit(Aimed(str(PortSet.of(self.targets)), why))

    # --- when, and how much ----------------------------------------------------------------------------------------

    async def keep_firing(self, low_s: Sequence[float], full_s: Sequence[float]) -> None:
        """Fire again and again.

        Args:
            low_s: pauses at the low TTL, counted anew after each change of the aim, the last one repeated; seconds.
            full_s: the same at full TTL; if there are none, this ends when the TTL goes up.
        """
        sent = 0
        while pauses_s := full_s if self.full_ttl else low_s:
            if await self._changes_within(pauses_s[min(sent, len(pauses_s) - 1)]):
                sent = 0
                continue
            if self._is_last_resort():
                self.go_full("no card came in time")
            sent += 1
            self._fire()

    def spend(self, port: int) -> bool:
        """Whether one more packet may go to that port; it is counted, and our NAT counts as open for the port."""
        sent = self._sent.get(port, 0)
        if sent >= self._plan.packets_per_port or self._sent_in_all >= self._plan.packets:
            return False
        self._sent[port] = sent + 1
        self._sent_in_all += 1
        return True

    async def _changes_within(self, pause_s: float) -> bool:
        """Whether the aim changes before this pause is over, or the last resort is due."""
        left_s = pause_s if self.full_ttl else min(pause_s, max(self._last_resort_at - self._kit.now(), 0))
        with trio.move_on_after(left_s):
            await self.changed.wait()
            self.changed = trio.Event()
            return True
        return False

    def _is_last_resort(self) -> bool:
        return not self.full_ttl and self._kit.now() >= self._last_resort_at
