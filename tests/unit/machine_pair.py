"""Both sides of one attempt, their applications and the side channel, as a world with a virtual clock.

The world does what daemons and applications do, and checks after each step what must always hold (`_check`). Who
decides what happens (a random script, or Hypothesis rule by rule) is not its business.

The applications are those of the line protocol: the responder's keeps one id for the remote attempt; after `ok` the id
is free, and an offer that comes then means that the socket is dead (race rule 1) and starts a new attempt, unless
`KnownAttempts`, the real one, knows that this round was won.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from punchd.attempt.machine import Machine, Plan, State
from punchd.attempt.moves import (
    Action,
    Arrived,
    Begin,
    Event,
    Fail,
    Failed,
    Holed,
    Ignored,
    Relay,
    Said,
    StartTechnique,
    StopTechnique,
    Succeed,
    Trying,
)
from punchd.control.state import KnownAttempts
from punchd.errors import Code, DeniedError
from punchd.wire.token import Kind, Token, decode, encode
from tests.unit.machine_parts import LOCAL, NONCE, NUMBERS, REMOTE, A, B, card, snapshot

KNOWN = {number: name for name, number in NUMBERS.items()}
IDLE_STEPS = 4  # a timeout may be asked for this often at one instant before it counts as a busy loop


@dataclass(slots=True)
class Side:
    """One machine and what became of it.

    Attributes:
        run: number of the technique's current run; None: none runs. Runs are never numbered twice.
        verdict: the Succeed or Fail; dead: race rule 1 took its socket.
        accepted: tokens that were not ignored.
    """

    name: str
    machine: Machine
    began_s: float
    run: int | None = None
    verdict: Succeed | Fail | None = None
    dead: bool = False
    tried: list[int] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)
    accepted: set[str] = field(default_factory=set)

    @property
    def has_socket(self) -> bool:
        return isinstance(self.verdict, Succeed) and not self.dead


class World:
    """Attributes:

    now: the virtual time.
    leader, follower: the initiator's side, and the responder's current one, if any; `followers` are all of those.
    on_relay: what becomes of a token that a side hands out: called with the receiver's name and the token's text.
    on_start: told that a technique started on that side.
    """

    def __init__(self, techniques: tuple[str, ...], leader_timeout_s: float, follower_timeout_s: float) -> None:
        self.now = 0.0
        self.follower_timeout_s = follower_timeout_s
        self.followers: list[Side] = []
        self.known = KnownAttempts()
        self.foreign_ignored = self.stale_ignored = 0
        self.on_relay: Callable[[str, str], None] = lambda receiver, text: None
        self.on_start: Callable[[Side], None] = lambda side: None
        self._runs = itertools.count()
        self._agenda: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        plan = Plan(NONCE, B, leader_timeout_s, techniques=tuple((name, NUMBERS[name]) for name in techniques))
        self.leader = Side("leader", Machine(plan), 0.0)

    @property
    def follower(self) -> Side | None:
        return self.followers[-1] if self.followers else None

    @property
    def sides(self) -> list[Side]:
        return [self.leader, *self.followers]

    # --- time ------------------------------------------------------------------------------------------------------

    def at(self, delay_s: float, act: Callable[[], object]) -> None:
        heapq.heappush(self._agenda, (self.now + delay_s, next(self._numbers), act))

    def advance(self, until_s: float) -> None:
        """Let everything happen that is due, in order; at one instant, timers come after what was planned."""
        while (due := self._next_due()) is not None and due[0] <= until_s:
            self.now = max(self.now, due[0])
            due[1]()
        self.now = max(self.now, until_s)

    def run_out(self) -> None:
        """Let time pass until nothing is left to happen."""
        while (due := self._next_due()) is not None:
            self.advance(due[0])

    def _next_due(self) -> tuple[float, Callable[[], None]] | None:
        timers = [(due_s, side) for side in self.sides if (due_s := side.machine.next_timeout()) is not None]
        first = min(timers, key=lambda timer: timer[0], default=None)
        if self._agenda and (first is None or self._agenda[0][0] <= first[0]):
            return self._agenda[0][0], self._do_next
        if first is None:
            return None
        return first[0], lambda: self._let_time_pass(first[1])

    def _do_next(self) -> None:
        heapq.heappop(self._agenda)[2]()

    def _let_time_pass(self, side: Side) -> None:
        """Call the timer until it asks for a later time; never doing so would be a busy loop."""
        for _ in range(IDLE_STEPS):
            due_s = side.machine.next_timeout()
            if due_s is None or due_s > self.now:
                return
            self._perform(side, side.machine.handle_timeout(self.now))
        raise AssertionError(f"{side.name} in {side.machine.state} asks for {due_s} again and again at {self.now}")

    # --- events ----------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        self.give(self.leader, Begin())

    def give(self, side: Side, event: Event) -> list[Action]:
        before = snapshot(side.machine)
        actions = side.machine.handle(event, self.now)
        if any(isinstance(action, Ignored) for action in actions) or before["state"] is State.ENDED:
            assert snapshot(side.machine) == before
            assert len(actions) == (0 if before["state"] is State.ENDED else 1)
        self._perform(side, actions)
        return actions

    def deliver(self, receiver: str, text: str) -> None:
        """The application of that side hands a token to its daemon."""
        token = decode(text)
        if receiver == "leader":
            self._hand_in(self.leader, text, token)
        elif self.follower is not None and self.follower.verdict is None:
            self._hand_in(self.follower, text, token)
        elif token.kind is Kind.OFFER and token.nonce == NONCE:  # another nonce is another attempt, with its own id
            self._start_follower(text, token)

    def _start_follower(self, text: str, offer: Token) -> None:
        try:
            self.known.begin(offer, self.now)
        except DeniedError:
            return
        if (before := self.follower) is not None:
            assert not isinstance(before.verdict, Succeed) or offer.round > before.verdict.round
            before.dead = True
        plan = Plan(offer.nonce, A, self.follower_timeout_s, known=KNOWN, first_offer=offer)
        side = Side(f"follower {len(self.followers) + 1}", Machine(plan), self.now)
        self.followers.append(side)
        side.accepted.add(text)
        self.give(side, Begin())

    def _hand_in(self, side: Side, text: str, token: Token) -> None:
        """Foreign and doubled tokens are ignored with their reason; `give` checks that they change nothing."""
        had_ended = side.verdict is not None
        actions = self.give(side, Arrived(token))
        reasons = [action.reason for action in actions if isinstance(action, Ignored)]
        if had_ended:
            assert actions == []
        elif token.nonce != NONCE:
            assert reasons == [Code.BAD_TOKEN]
            self.foreign_ignored += 1
        elif text in side.accepted:
            assert reasons == [Code.STALE]
            self.stale_ignored += 1
        elif not reasons:
            side.accepted.add(text)

    def say(self, side: Side, run: int, rtt_ms: int, port: int = 5000) -> None:
        """The technique of that run has a card for the peer."""
        if side.run == run:
            address = A if side is self.leader else B
            technique = NUMBERS[side.machine.technique]
            self.give(side, Said(card(address, rtt_ms=rtt_ms, technique=technique, port=port)))

    def hole(self, side: Side, run: int) -> bool:
        """The technique of that run holds a socket; false if it was stopped before."""
        if side.run != run:
            return False
        side.run = None
        self.give(side, Holed(LOCAL, REMOTE))
        return isinstance(side.verdict, Succeed)

    def in_one_round(self) -> bool:
        """Whether both techniques run, in the same round."""
        follower = self.follower
        return (
            follower is not None
            and self.leader.run is not None
            and follower.run is not None
            and self.leader.machine.state in (State.OFFERED, State.ANSWERED)
            and self.leader.machine.round == follower.machine.round
        )

    # --- actions ---------------------------------------------------------------------------------------------------

    def _perform(self, side: Side, actions: list[Action]) -> None:
        for action in actions:
            assert side.verdict is None, f"{side.name} says {action} after its verdict"
            match action:
                case Relay(round_number, technique, token):
                    assert (token.nonce, token.round, NUMBERS[technique]) == (NONCE, round_number, token.technique)
                    receiver = "follower" if side is self.leader else "leader"
                    self.on_relay(receiver, encode(token))
                case Trying(round_number):
                    assert round_number > max(side.tried, default=0)
                    side.tried.append(round_number)
                case StopTechnique():
                    side.run = None
                case StartTechnique(round_number):
                    assert side.run is None, "two techniques at once"
                    assert round_number == side.tried[-1]
                    side.run = next(self._runs)
                    self.on_start(side)
                case Failed(round_number):
                    assert round_number not in side.failed
                    side.failed.append(round_number)
                case Succeed() | Fail():
                    self._end(side, action)
                case _:
                    pass
        self._check()

    def _end(self, side: Side, verdict: Succeed | Fail) -> None:
        side.verdict = verdict
        assert side.machine.state is State.ENDED
        assert side.machine.next_timeout() is None
        assert self.now <= side.began_s + side.machine.plan.timeout_s
        if side is not self.leader:
            won = verdict.round if isinstance(verdict, Succeed) else None
            self.known.end(side.machine.plan.nonce, won, self.now)

    def _check(self) -> None:
        """Two sockets that both sides believe in are the two ends of one round."""
        verdicts = [side.verdict for side in self.sides if side.has_socket and isinstance(side.verdict, Succeed)]
        assert len(verdicts) <= 2
        assert len({(verdict.round, verdict.technique) for verdict in verdicts}) <= 1, f"two sockets: {verdicts}"
        for side in self.sides:
            assert (side.verdict is None) == (side.machine.state is not State.ENDED)

    def check_end(self) -> None:
        """Everything has been said: exactly one verdict a side, and none believes alone without a reason."""
        assert all(side.verdict is not None for side in self.sides)
        assert all(side.run is None for side in self.sides if isinstance(side.verdict, Fail))
