"""Two attempt machines against each other, under a virtual clock, over a side channel that does what it likes.

Whatever happens, each side ends within its time with one verdict, and two sockets that both believe in are the ends of
one round. The one case in which sockets part is race rule 1: the responder's earlier socket is declared dead by a
later offer before its application gets another.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from functools import partial

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from punchd.attempt.moves import Broke, Cancelled, Event, Fail, ShutDown, Vanished
from punchd.errors import Code
from punchd.wire.token import Farewell, Kind, encode
from tests.unit.machine_pair import Side, World
from tests.unit.machine_parts import FOREIGN, NUMBERS, token

TECHNIQUES = tuple(NUMBERS)
FOREIGN_TOKENS = tuple(
    encode(token(kind, number, 3, nonce=FOREIGN, counter=int(kind is Kind.NOTE), farewell=Farewell.CANCELLED))
    for kind in Kind
    for number in (1, 2)
)
seconds = st.floats(0, 12, allow_nan=False).map(lambda value: round(value, 3))
short = st.floats(0, 1.5, allow_nan=False).map(lambda value: round(value, 3))


# --- scripts -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Half:
    """One run of a technique on one side: when it speaks, whether it breaks, what it adds later."""

    told_after_s: float
    breaks_after_s: float | None
    notes_after_s: list[float]
    rtt_ms: int


@dataclass(frozen=True)
class Fate:
    """What a path does for one round: whether a hole opens, how soon, and whether the last leg arrives."""

    works: bool
    after_s: float
    leg_s: float
    last_leg_lost: bool


@dataclass(frozen=True)
class Script:
    techniques: list[str]
    leader_timeout_s: float
    follower_timeout_s: float
    relays: list[list[float]]  # each token's deliveries, by delay; none: lost, two: doubled. Used in turn.
    halves: list[Half]
    fates: list[Fate]
    foreign: list[tuple[float, bool, int]] = field(default_factory=list)
    ends: list[tuple[float, bool, Event]] = field(default_factory=list)


rtts = st.sampled_from([0, 1, 20, 150, 700])
halves = st.builds(
    Half,
    told_after_s=st.one_of(st.just(0.0), st.just(0.1), short),
    breaks_after_s=st.one_of(st.none(), st.none(), st.none(), seconds),
    notes_after_s=st.lists(short, max_size=2),
    rtt_ms=rtts,
)
fates = st.builds(
    Fate,
    works=st.sampled_from([True, True, False]),
    after_s=st.one_of(short, seconds),
    leg_s=short,
    last_leg_lost=st.sampled_from([False, False, True]),
)
in_time = st.lists(st.sampled_from([0.0, 0.06, 0.3]), min_size=1, max_size=1)
deliveries = st.one_of(in_time, in_time, st.lists(st.one_of(short, seconds), max_size=3))
scripts = st.builds(
    Script,
    techniques=st.lists(st.sampled_from(TECHNIQUES), min_size=1, max_size=4),
    leader_timeout_s=st.sampled_from([30.0, 1.0, 8.0, 120.0]),
    follower_timeout_s=st.sampled_from([45.0, 1.0, 8.0, 120.0]),
    relays=st.lists(deliveries, min_size=1, max_size=8),
    halves=st.lists(halves, min_size=1, max_size=6),
    fates=st.lists(fates, min_size=1, max_size=4),
    foreign=st.lists(st.tuples(seconds, st.booleans(), st.integers(0, len(FOREIGN_TOKENS) - 1)), max_size=4),
    ends=st.lists(
        st.tuples(seconds, st.booleans(), st.sampled_from([Cancelled(), Vanished(), ShutDown()])), max_size=1
    ),
)


def play(script: Script) -> World:
    """The script from beginning to end; its lists are used in turn, again and again."""
    world = World(tuple(script.techniques), script.leader_timeout_s, script.follower_timeout_s)
    relays = itertools.cycle(script.relays)
    halves_of = itertools.cycle(script.halves)
    fates_of = itertools.cycle(script.fates)
    tried: set[tuple[int | None, int | None]] = set()

    def relay(receiver: str, text: str) -> None:
        for delay_s in next(relays):
            world.at(delay_s, partial(world.deliver, receiver, text))

    def start(side: Side) -> None:
        half, run = next(halves_of), side.run
        assert run is not None
        world.at(half.told_after_s, lambda: say_and_punch(side, run, half.rtt_ms))
        for note_s in half.notes_after_s:
            world.at(half.told_after_s + note_s, partial(world.say, side, run, half.rtt_ms, 6000))
        if half.breaks_after_s is not None:
            world.at(half.breaks_after_s, lambda: give_up(side, run))

    def say_and_punch(side: Side, run: int, rtt_ms: int) -> None:
        world.say(side, run, rtt_ms)
        follower = world.follower
        if not world.in_one_round() or follower is None or (world.leader.run, follower.run) in tried:
            return
        runs = (world.leader.run, follower.run)
        tried.add(runs)
        fate = next(fates_of)
        if fate.works:
            world.at(fate.after_s, lambda: open_hole(follower, runs, fate))

    def open_hole(follower: Side, runs: tuple[int | None, int | None], fate: Fate) -> None:
        leader_run, follower_run = runs
        assert leader_run is not None
        assert follower_run is not None
        if world.hole(follower, follower_run) and not fate.last_leg_lost:
            world.at(fate.leg_s, lambda: world.hole(world.leader, leader_run))

    def give_up(side: Side, run: int) -> None:
        if side.run == run:
            side.run = None
            world.give(side, Broke(Code.NETWORK, "no route"))

    def end(leads: bool, how: Event) -> None:
        side = world.leader if leads else world.follower
        if side is not None:
            world.give(side, how)

    world.on_relay, world.on_start = relay, start
    for at_s, leads, which in script.foreign:
        receiver = "leader" if leads else "follower"
        world.at(at_s, partial(world.deliver, receiver, FOREIGN_TOKENS[which]))
    for at_s, leads, how in script.ends:
        world.at(at_s, partial(end, leads, how))
    world.begin()
    world.run_out()
    world.check_end()
    return world


def outcome(world: World) -> str:
    sockets = [side.name.split()[0] for side in world.sides if side.has_socket]
    return " and ".join(sockets) or "none"


@given(script=scripts)
@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_script_ends_with_one_verdict_a_side_and_sockets_of_one_round(script: Script) -> None:
    event(f"sockets: {outcome(play(script))}")


@pytest.mark.long
@pytest.mark.timeout(1200)
@given(script=scripts)
@settings(max_examples=10_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_script_ends_with_one_verdict_a_side_and_sockets_of_one_round_many_times(script: Script) -> None:
    play(script)


# --- the scripts that matter, by name ------------------------------------------------------------------------------

QUICK = Half(0.0, None, [], 20)
OPENS = Fate(works=True, after_s=0.1, leg_s=0.04, last_leg_lost=False)
LOSES_THE_LAST_LEG = Fate(works=True, after_s=0.1, leg_s=0.04, last_leg_lost=True)
SHUT = Fate(works=False, after_s=0, leg_s=0, last_leg_lost=False)
BY_MAIL = [0.06]


def script(*fates: Fate, relays: list[list[float]] | None = None, techniques: int = 2, **more: object) -> Script:
    names = ["udp", "tcp-syni", "tcp-nutss"][:techniques]
    return Script(names, 30, 45, relays or [BY_MAIL], [QUICK], list(fates), **more)  # type: ignore[arg-type]


def verdicts(world: World) -> list[str]:
    return [f"{type(side.verdict).__name__} {getattr(side.verdict, 'code', '')}".strip() for side in world.sides]


def test_a_hole_gives_both_sides_their_socket() -> None:
    world = play(script(OPENS))
    assert verdicts(world) == ["Succeed", "Succeed"]
    assert outcome(world) == "leader and follower"


def test_the_two_generals_end_with_race_rule_1() -> None:
    """The responder has its socket, the initiator's round runs out: the next offer declares the socket dead."""
    world = play(script(LOSES_THE_LAST_LEG, OPENS))
    assert verdicts(world) == ["Succeed", "Succeed", "Succeed"]
    assert [side.dead for side in world.followers] == [True, False]
    assert [side.machine.round for side in world.sides] == [2, 1, 2]


def test_in_the_last_round_the_two_generals_leave_the_responder_with_a_socket_to_nobody() -> None:
    world = play(script(LOSES_THE_LAST_LEG, techniques=1))
    assert verdicts(world) == ["Fail exhausted", "Succeed"]


def test_a_doubled_offer_after_the_verdict_does_not_kill_the_socket() -> None:
    world = play(script(OPENS, relays=[[0.06, 0.5, 9.0]]))
    assert verdicts(world) == ["Succeed", "Succeed"]
    assert outcome(world) == "leader and follower"


def test_doubled_tokens_are_stale_on_both_sides() -> None:
    assert play(script(SHUT, relays=[[0.06, 0.07]])).stale_ignored == 4


def test_foreign_tokens_are_refused_and_nothing_else_happens() -> None:
    foreign = [(0.1, leads, which) for leads in (True, False) for which in range(len(FOREIGN_TOKENS))]
    world = play(script(OPENS, foreign=foreign))
    assert world.foreign_ignored == len(foreign)
    assert verdicts(world) == ["Succeed", "Succeed"]


def test_a_side_channel_that_relays_nothing_back_costs_time_only() -> None:
    world = play(script(SHUT, OPENS, relays=[BY_MAIL, []]))
    assert verdicts(world) == ["Succeed", "Succeed"]
    assert [side.machine.round for side in world.sides] == [2, 2]


def test_a_side_channel_that_is_dead_ends_with_every_round_tried() -> None:
    world = play(script(OPENS, relays=[[]], techniques=3))
    assert verdicts(world) == ["Fail exhausted"]
    assert isinstance(world.leader.verdict, Fail)
    assert world.leader.verdict.text == "no technique succeeded: udp timeout, tcp-syni timeout, tcp-nutss timeout"


def test_a_cancelled_initiator_frees_the_responder_at_once() -> None:
    world = play(script(SHUT, ends=[(0.5, True, Cancelled())]))
    assert verdicts(world) == ["Fail cancelled", "Fail peer-abort"]


def test_a_responder_that_is_cancelled_before_its_answer_still_tells_the_initiator() -> None:
    slow = Half(1.5, None, [], 20)
    world = play(Script(["udp"], 30, 45, [BY_MAIL], [QUICK, slow], [SHUT], ends=[(0.5, False, Cancelled())]))
    assert verdicts(world) == ["Fail peer-abort", "Fail cancelled"]


@pytest.mark.parametrize("answer_way_s", [0.5, 1.9])
def test_an_initiator_without_round_trip_times_finds_the_responder_armed_to_the_end(answer_way_s: float) -> None:
    """Preparation on the responder's side and the answer's way are within what the responder waits."""
    unknown = Half(0.0, None, [], 0)
    slow = Half(2.0, None, [], 0)
    late = Fate(works=True, after_s=answer_way_s + 5.9, leg_s=0.04, last_leg_lost=False)
    world = play(Script(["udp"], 30, 45, [BY_MAIL, [answer_way_s]], [unknown, slow], [late]))
    assert verdicts(world) == ["Succeed", "Succeed"]


# --- rule by rule --------------------------------------------------------------------------------------------------


class Pair(RuleBasedStateMachine):
    """Hypothesis decides what happens next; the world checks what must hold."""

    @initialize(
        techniques=st.lists(st.sampled_from(TECHNIQUES), min_size=1, max_size=4),
        leader_timeout_s=st.sampled_from([2.0, 30.0, 120.0]),
        follower_timeout_s=st.sampled_from([2.0, 45.0, 120.0]),
    )
    def start(self, techniques: list[str], leader_timeout_s: float, follower_timeout_s: float) -> None:
        self.world = World(tuple(techniques), leader_timeout_s, follower_timeout_s)
        self.letters: list[tuple[str, str]] = []
        self.done_on_its_way: list[int] = []
        self.world.on_relay = lambda receiver, text: self.letters.append((receiver, text))
        self.world.begin()

    def side(self, leads: bool) -> Side | None:
        return self.world.leader if leads else self.world.follower

    @rule(after_s=st.sampled_from([0.01, 0.01, 0.1, 0.5, 2.0, 7.0]))
    def wait(self, after_s: float) -> None:
        self.world.advance(self.world.now + after_s)

    @precondition(lambda self: self.letters)
    @rule(which=st.sampled_from([0, 0, 0, 1, 5]), how=st.sampled_from(["deliver"] * 3 + ["deliver twice", "lose"]))
    def carry(self, which: int, how: str) -> None:
        letter = self.letters[which % len(self.letters)]
        if how != "deliver twice":
            self.letters.remove(letter)
        if how != "lose":
            self.world.deliver(*letter)

    @rule(leads=st.booleans(), which=st.sampled_from(FOREIGN_TOKENS))
    def mix_up(self, leads: bool, which: str) -> None:
        self.world.deliver("leader" if leads else "follower", which)

    @rule(leads=st.booleans(), rtt_ms=rtts, port=st.integers(1, 65535))
    def speak(self, leads: bool, rtt_ms: int, port: int) -> None:
        side = self.side(leads)
        if side is not None and side.run is not None:
            self.world.say(side, side.run, rtt_ms, port)

    @precondition(lambda self: self.world.in_one_round())
    @rule()
    def open_hole(self) -> None:
        """The responder's side has its socket; the last leg to the initiator is on its way, perhaps for ever."""
        leader_run, follower = self.world.leader.run, self.world.follower
        assert follower is not None
        assert follower.run is not None
        assert leader_run is not None
        if self.world.hole(follower, follower.run):
            self.done_on_its_way.append(leader_run)

    @precondition(lambda self: self.done_on_its_way)
    @rule()
    def arrive(self) -> None:
        self.world.hole(self.world.leader, self.done_on_its_way.pop())

    @rule(leads=st.booleans(), reason=st.sampled_from([Code.NETWORK, Code.NO_PRIVILEGE]), chance=st.integers(0, 4))
    def give_up(self, leads: bool, reason: Code, chance: int) -> None:
        side = self.side(leads)
        if side is not None and side.run is not None and chance == 4:
            side.run = None
            self.world.give(side, Broke(reason, "it broke"))

    @rule(leads=st.booleans(), how=st.sampled_from([Cancelled(), Vanished(), ShutDown()]), chance=st.integers(0, 9))
    def end(self, leads: bool, how: Event, chance: int) -> None:
        """Seldom, for it ends what other rules would have gone on with."""
        side = self.side(leads)
        if side is not None and chance == 9:
            self.world.give(side, how)

    @invariant()
    def a_timer_is_never_in_the_past_of_a_world_that_kept_time(self) -> None:
        for side in self.world.sides:
            due_s = side.machine.next_timeout()
            assert due_s is None or due_s >= self.world.now or side.verdict is None

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.run_out()
            self.world.check_end()
            event(f"sockets: {outcome(self.world)}")


TestPair = Pair.TestCase
TestPair.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)


@pytest.mark.long
@pytest.mark.timeout(1800)
class TestPairManyTimes(Pair.TestCase):  # type: ignore[misc, valid-type]
    settings = settings(max_examples=5_000, stateful_step_count=80, deadline=None)
