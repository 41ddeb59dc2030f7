"""Both sides of a call, two daemons that are simple, signals that misbehave as they are told, and a clock to turn.

A signal's fate is a list of the seconds after which a copy of it arrives; none: it is lost.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address

from punchd.control.requests import Protocol
from punchd.endpoint import PortSet
from punchd.punch import calls, moves
from punchd.punch.calls import Side
from punchd.punch.messages import Call, Message
from punchd.punch.moves import Action, Event, State

TCP_CALL = Call(Protocol.TCP, IPv4Address("192.0.2.1"), PortSet((40000,)), b"certificate")
PLAIN_CALL = Call(Protocol.TCP, IPv4Address("192.0.2.1"), PortSet((40000,)))
HORIZON_S = 200.0
MOST_STEPS = 5000

Fate = Sequence[float]
GOOD: Fate = (0.05,)


def token(word: str) -> str:
    return f"{word}-".ljust(20, "0")


class Daemon:
    """One side's attempt. Rounds are offers 1, 2, …; the last one works, the ones before do not.

    The initiator gives a round up after a second without an answer and goes on; the responder has its socket half a
    second after an offer of a working round.
    """

    def __init__(self, world: World, side: str, rounds: int, *, fails: bool) -> None:
        self.world, self.side, self.rounds, self.fails = world, side, rounds, fails
        self.offer = 0
        self.is_over = False

    def initiate(self) -> None:
        self.offer += 1
        if self.offer > self.rounds + 3:
            self._say(moves.Failed("no hole"))
            return
        self._say(moves.Relayed(token(f"offer{self.offer}")))
        number = self.offer
        self.world.later(1.0, lambda: None if self.is_over or self.offer != number else self.initiate())

    def respond(self, text: str) -> None:
        if not text.startswith("offer") or int(text[5]) <= self.offer:  # no offer, or a stale one
            self.world.later(0.01, lambda: self._say(moves.NoOffer()))
            return
        self.world.later(0.01, lambda: self._say(moves.Taken()))
        self.world.later(0.02, lambda: self.deliver(text))

    def deliver(self, text: str) -> None:
        if self.is_over:
            return
        if text.startswith("offer") and self.side == "connector" and int(text[5]) > self.offer:
            self.offer = int(text[5])
            self._say(moves.Relayed(token(f"answer{self.offer}")))
            if self.offer >= self.rounds:
                self.world.later(0.5, self._verdict)
        elif text == token(f"answer{self.offer}") and self.side == "listener" and self.offer >= self.rounds:
            self.world.later(0.5, self._verdict)

    def _verdict(self) -> None:
        self._say(moves.Failed("no hole") if self.fails else moves.Punched())
        self.is_over = True

    def _say(self, event: Event) -> None:
        if not self.is_over:
            self.world.tell(self.side, event)


class World:
    """See above.

    Attributes:
        ends: the last actions of each side, `Done` or `GiveUp`.
        sockets: sides that hold a socket.
    """

    def __init__(
        self,
        call: Call = TCP_CALL,
        *,
        fate: Callable[[str, Message], Fate] = lambda side, message: GOOD,
        rounds: int = 1,
        fails: bool = False,
        secures: bool = True,
        forged: Sequence[tuple[float, str, Message]] = (),
    ) -> None:
        self.now = 0.0
        self.fate, self.rounds, self.fails, self.secures = fate, rounds, fails, secures
        self.call = call
        self.sides: dict[str, Side] = {"connector": calls.Connector(call, 0.0, 45.0)}
        self.daemons: dict[str, Daemon] = {}
        self.ends: dict[str, list[Action]] = {"connector": [], "listener": []}
        self.sent: list[tuple[str, Message]] = []
        self.sockets: set[str] = set()
        self.ended_at: dict[str, float] = {}
        self._queue: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        for at, side, message in forged:
            self.later(at, lambda side=side, message=message: self._arrive(side, message))  # type: ignore[misc]

    def later(self, delay_s: float, what: Callable[[], object]) -> None:
        heapq.heappush(self._queue, (self.now + delay_s, next(self._numbers), what))

    def run(self) -> World:
        connector = self.sides["connector"]
        assert isinstance(connector, calls.Connector)
        self._do("connector", connector.begin(0.0))
        for _ in range(MOST_STEPS):
            at = min(
                (one.next_timeout for one in self.sides.values() if one.state is not State.OVER), default=HORIZON_S
            )
            if self._queue and self._queue[0][0] <= at:
                self.now, _, what = heapq.heappop(self._queue)
                what()
            elif at >= HORIZON_S:
                return self
            else:
                self.now = max(self.now, at)
                for side, machine in list(self.sides.items()):
                    if machine.state is not State.OVER and machine.next_timeout <= self.now:
                        self._do(side, machine.handle_timeout(self.now))
        raise AssertionError("it does not end")

    def tell(self, side: str, event: Event) -> None:
        if side in self.sides:
            self._do(side, self.sides[side].handle(event, self.now))

    def _do(self, side: str, actions: list[Action]) -> None:
        for action in actions:
            assert not self.ends[side] or action == moves.Drop(), f"{side} does {action} after its end"
            match action:
                case moves.Send():
                    self.sent.append((side, action.message))
                    self._carry(side, action.message)
                case moves.Initiate():
                    self.daemons[side] = Daemon(self, side, self.rounds, fails=self.fails)
                    self.later(0.05, self.daemons[side].initiate)
                case moves.Respond():
                    if side not in self.daemons or self.daemons[side].is_over:
                        before = self.daemons.get(side)
                        self.daemons[side] = Daemon(self, side, self.rounds, fails=self.fails)
                        self.daemons[side].offer = before.offer if before else 0
                    self.daemons[side].respond(action.token)
                case moves.Deliver():
                    self.daemons[side].deliver(action.token)
                case moves.Secure():
                    self.sockets.add(side)
                    self.later(0.1, lambda side=side: self._secure(side))  # type: ignore[misc]
                case moves.Drop():
                    self.sockets.discard(side)
                case moves.Done() | moves.GiveUp():
                    self.ends[side].append(action)
                    self.ended_at[side] = self.now
                    if isinstance(action, moves.GiveUp):
                        self.sockets.discard(side)

    def _carry(self, side: str, message: Message) -> None:
        other = "listener" if side == "connector" else "connector"
        for delay_s in self.fate(side, message):
            self.later(delay_s, lambda: self._arrive(other, message))

    def _secure(self, side: str) -> None:
        """TLS needs both; a plain call needs nobody."""
        if side not in self.sockets:
            return
        if self.call.is_plain or self.sockets == {"connector", "listener"}:
            self.tell(side, moves.Secured() if self.secures else moves.Unsecured("wrong key"))
        else:
            self.later(0.1, lambda: self._secure(side))

    def _arrive(self, side: str, message: Message) -> None:
        if isinstance(message, Call) and side == "listener" and side not in self.sides:
            listener = calls.Listener(message, self.now, 35.0)
            self.sides[side] = listener
            self._do(side, listener.begin())
        else:
            self.tell(side, moves.Heard(message))
