"""The runner with techniques that behave badly: no descriptor leaks, no error is swallowed, one verdict each."""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import pytest
import trio
from trio.testing import MockClock

from punchd.attempt.kit import AttemptPorts, RoundKit
from punchd.attempt.machine import Plan
from punchd.attempt.moves import Arrived, Cancelled
from punchd.attempt.port import LearningPort
from punchd.attempt.runner import Attempt
from punchd.endpoint import PortSet
from punchd.errors import Code, KernelError, PunchError
from punchd.events import AttemptEnded, Event, Explained
from punchd.technique import Capability, Facts, Hole, Kit, Role, Technique, Unsuitable
from punchd.wire.token import Card, Kind, Token
from tests.unit.machine_parts import LOCAL, NONCE, REMOTE, A, B, card, token

Half = Callable[[Kit], Awaitable[Hole]]


def open_hole() -> Hole:
    return Hole(os.open(os.devnull, os.O_RDONLY), LOCAL, REMOTE)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@dataclass
class Scripted:
    """A technique whose rounds are functions, one after the other; both halves run the same."""

    rounds: list[Half]
    name: str = "udp"
    number: ClassVar[int] = 3
    protocol: ClassVar[str] = "udp"
    needs: ClassVar[Capability] = Capability.NONE
    is_reversible: ClassVar[bool] = False
    unsuitable: Unsuitable | None = None
    facts: list[Facts] = field(default_factory=list)
    started_s: list[float] = field(default_factory=list)

    def plan(self, facts: Facts) -> Half | Unsuitable:
        self.facts.append(facts)
        return self.unsuitable or self.rounds.pop(0)

    async def initiate(self, plan: Half, kit: Kit) -> Hole:
        self.started_s.append(trio.current_time())
        return await plan(kit)

    async def respond(self, plan: Half, offer: Card, kit: Kit) -> Hole:
        return await self.initiate(plan, kit)


@dataclass
class RecordingVoice:
    news: list[tuple[float, str]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    holes: list[Hole] = field(default_factory=list)

    def relay(self, round_number: int, technique: str, told: Token) -> None:
        self.tokens.append(told)

    def trying(self, round_number: int, technique: str) -> None:
        self._note(f"trying {round_number}")

    def failed(self, round_number: int, technique: str, reason: Code, text: str) -> None:
        self._note(f"failed {round_number} {reason}")
        self.texts.append(text)

    def ignored(self, round_number: int, technique: str, reason: Code) -> None:
        self._note(f"ignored {reason}")

    def succeeded(self, technique: Technique[Any], hole: Hole) -> None:
        self._note("ok")
        self.holes.append(hole)

    def ended(self, code: Code, text: str) -> None:
        self._note(f"error {code}")
        self.texts.append(text)

    def _note(self, what: str) -> None:
        self.news.append((round(trio.current_time(), 6), what))

    @property
    def words(self) -> list[str]:
        return [what for _, what in self.news]


@dataclass
class ClosablePort:
    closed: bool = False

    def close(self) -> None:
        self.closed = True


@dataclass
class Stage:
    technique: Scripted
    attempt: Attempt
    voice: RecordingVoice
    port: ClosablePort
    events: list[Event]


def stage(*rounds: Half, leads: bool = True, timeout_s: float = 30.0) -> Stage:
    technique, voice, port, events = Scripted(list(rounds)), RecordingVoice(), ClosablePort(), list[Event]()
    plan = (
        Plan(NONCE, B, timeout_s, techniques=(("udp", 3),) * len(rounds))
        if leads
        else Plan(NONCE, A, timeout_s, known={3: "udp"}, first_offer=token(Kind.OFFER))
    )
    attempt = Attempt(
        plan=plan,
        techniques={"udp": cast(Technique[Any], technique)},
        ports=AttemptPorts(cast(LearningPort, port), ()),
        peer_ports=PortSet((5002,)) if leads else None,
        ttl=lambda: 4,
        packets_per_port=64,
        packets=512,
        voice=voice,
        emit=events.append,
    )
    return Stage(technique, attempt, voice, port, events)


async def runs_dry(kit: Kit) -> Hole:
    kit.tell_peer(card())
    await trio.sleep_forever()
    raise AssertionError


async def succeeds(kit: Kit) -> Hole:
    kit.tell_peer(card())
    return open_hole()


def stubborn(seconds: float) -> Half:
    """Does not let go when it is cancelled, and comes with a hole in the end."""

    async def half(kit: Kit) -> Hole:
        kit.tell_peer(card())
        with trio.CancelScope(shield=True):
            await trio.sleep(seconds)
        return open_hole()

    return half


def raises(error: BaseException) -> Half:
    async def half(kit: Kit) -> Hole:
        await trio.lowlevel.checkpoint()
        raise error

    return half


# --- descriptors ---------------------------------------------------------------------------------------------------


async def test_a_hole_goes_to_the_application_and_stays_open(autojump_clock: MockClock) -> None:
    play = stage(succeeds)
    await play.attempt.run()
    assert play.voice.news == [(0, "trying 1"), (0, "ok")]
    os.fstat(play.voice.holes[0].fd)
    os.close(play.voice.holes[0].fd)
    assert play.port.closed
    assert [event.verdict for event in play.events if isinstance(event, AttemptEnded)] == ["ok"]


async def test_a_hole_that_comes_after_a_cancel_is_closed(autojump_clock: MockClock) -> None:
    before = open_descriptors()
    play = stage(stubborn(5))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(play.attempt.run)
        await trio.sleep(1)
        play.attempt.feed(Cancelled())
    assert trio.current_time() == pytest.approx(5)
    assert play.voice.words == ["trying 1", "error cancelled"]
    assert open_descriptors() == before


async def test_a_hole_that_comes_after_the_round_is_closed_and_the_next_round_waits_for_it(
    autojump_clock: MockClock,
) -> None:
    """The technique of the next round uses the same port, so the one before must be gone, cancelled or not."""
    before = open_descriptors()
    play = stage(stubborn(7.5), succeeds)
    await play.attempt.run()
    assert play.voice.news == [(0, "trying 1"), (6, "failed 1 timeout"), (6, "trying 2"), (7.5, "ok")]
    assert play.technique.started_s == [0, 7.5]
    os.close(play.voice.holes[0].fd)
    assert open_descriptors() == before


async def test_a_hole_that_comes_before_anything_was_told_is_closed(autojump_clock: MockClock) -> None:
    async def silent(kit: Kit) -> Hole:
        return open_hole()

    before = open_descriptors()
    play = stage(silent)
    await play.attempt.run()
    assert play.voice.news == [(0, "trying 1"), (2, "failed 1 timeout"), (2, "error exhausted")]
    assert open_descriptors() == before


async def test_a_hole_that_a_cancelled_technique_loses_on_its_way_out_is_closed(autojump_clock: MockClock) -> None:
    async def loses_it(kit: Kit) -> Hole:
        kit.tell_peer(card())
        cast(RoundKit, kit).keep(open_hole())  # as `hand_over` does
        return await trio.sleep_forever()

    before = open_descriptors()
    play = stage(loses_it)
    await play.attempt.run()
    assert play.voice.words == ["trying 1", "failed 1 timeout", "error exhausted"]
    assert open_descriptors() == before


@pytest.mark.parametrize("at_s", [5.999, 6.0, 6.001])
async def test_a_hole_at_the_end_of_the_round_is_either_handed_over_or_closed(
    at_s: float, autojump_clock: MockClock
) -> None:
    before = open_descriptors()
    play = stage(stubborn(at_s))
    await play.attempt.run()
    assert len([word for word in play.voice.words if word.startswith(("ok", "error"))]) == 1
    assert open_descriptors() == before + len(play.voice.holes)
    for hole in play.voice.holes:
        os.close(hole.fd)


@pytest.mark.parametrize("half", [runs_dry, stubborn(5)], ids=["obedient", "stubborn"])
async def test_cancelling_the_runner_leaves_nothing_behind(half: Half, autojump_clock: MockClock) -> None:
    """A technique that was not to be stopped may still succeed; its hole is the voice's then, as always."""
    before = open_descriptors()
    play = stage(half)
    with trio.move_on_after(1):
        await play.attempt.run()
    assert play.port.closed
    assert open_descriptors() == before + len(play.voice.holes)
    for hole in play.voice.holes:
        os.close(hole.fd)
    assert half is not runs_dry or play.voice.words == ["trying 1"]


async def test_an_attempt_that_is_cancelled_before_it_runs_starts_no_technique(autojump_clock: MockClock) -> None:
    play = stage(succeeds)
    play.attempt.feed(Cancelled())
    await play.attempt.run()
    assert play.voice.words == ["error cancelled"]
    assert play.technique.started_s == []
    assert play.port.closed


# --- errors --------------------------------------------------------------------------------------------------------

REFUSED = PunchError(Code.REFUSED, "the peer said no")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (REFUSED, Code.REFUSED),
        (ExceptionGroup("nursery", [REFUSED]), Code.REFUSED),
        (ExceptionGroup("outer", [ExceptionGroup("inner", [REFUSED])]), Code.REFUSED),
        (ExceptionGroup("nursery", [RuntimeError("a consequence"), REFUSED]), Code.REFUSED),
        (KernelError("setsockopt: EPERM"), Code.NETWORK),
        (RuntimeError("a bug"), Code.INTERNAL),
        (ExceptionGroup("nursery", [ExceptionGroup("inner", [ValueError("a bug")])]), Code.INTERNAL),
    ],
    ids=["plain", "group", "nested", "among others", "kernel", "bug", "bug in nested groups"],
)
async def test_an_error_of_a_technique_ends_its_round_and_the_next_one_runs(
    error: Exception, reason: Code, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    play = stage(raises(error), succeeds)
    with caplog.at_level(logging.ERROR):
        await play.attempt.run()
    assert play.voice.words == ["trying 1", f"failed 1 {reason}", "trying 2", "ok"]
    os.close(play.voice.holes[0].fd)
    is_bug = reason is Code.INTERNAL
    assert bool(caplog.records) == is_bug
    assert (NONCE.hex() in play.voice.texts[0]) == is_bug
    assert all(record.exc_info is not None and NONCE.hex() in record.getMessage() for record in caplog.records)


async def test_an_unsuitable_plan_ends_its_round_with_its_reason(autojump_clock: MockClock) -> None:
    play = stage(succeeds)
    play.technique.unsuitable = Unsuitable(Code.UNSUPPORTED, "not for IPv6")
    await play.attempt.run()
    assert play.voice.words == ["trying 1", "failed 1 unsupported", "error exhausted"]
    assert play.voice.texts[0] == "not for IPv6"


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        BaseExceptionGroup("nursery", [KeyboardInterrupt()]),
        BaseExceptionGroup("nursery", [ExceptionGroup("inner", [RuntimeError()]), KeyboardInterrupt()]),
        BaseExceptionGroup("nursery", [REFUSED, KeyboardInterrupt()]),
    ],
    ids=["plain", "group", "beside a bug", "beside a PunchError"],
)
async def test_an_interrupt_is_never_swallowed(error: BaseException, autojump_clock: MockClock) -> None:
    play = stage(raises(error), succeeds)
    with pytest.raises(BaseException, check=has_interrupt):  # noqa: B017 (`check` looks inside)
        await play.attempt.run()
    assert play.port.closed


def has_interrupt(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(has_interrupt(one) for one in error.exceptions)
    return isinstance(error, KeyboardInterrupt)


# --- words after the end -------------------------------------------------------------------------------------------


async def hears_and_tells(kit: Kit) -> Hole:
    """As every technique does: a card that comes in may be worth a note."""
    kit.tell_peer(card(B, port=1))
    await kit.hear_peer()
    kit.emit(Explained("of round 1"))
    kit.tell_peer(card(B, port=1))
    await trio.sleep_forever()
    raise AssertionError


async def answers_late(kit: Kit) -> Hole:
    await trio.sleep(1)
    kit.tell_peer(card(B, port=2))
    await trio.sleep_forever()
    raise AssertionError


async def superseded_while_it_hears() -> Stage:
    """A note and the next round's offer come in one read: the technique wakes up when its round is over."""
    play = stage(hears_and_tells, answers_late, leads=False, timeout_s=5)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(play.attempt.run)
        await trio.sleep(0.5)
        play.attempt.feed(Arrived(token(Kind.NOTE, counter=1, address=A)))
        play.attempt.feed(Arrived(token(Kind.OFFER, 2)))
    return play


async def test_what_a_technique_tells_after_its_round_is_not_the_next_rounds_word(autojump_clock: MockClock) -> None:
    play = await superseded_while_it_hears()
    answers = [told for told in play.voice.tokens if told.kind is Kind.ANSWER]
    assert [(told.round, told.card and told.card.ports) for told in answers] == [
        (1, PortSet((1,))),
        (2, PortSet((2,))),
    ]


async def test_what_a_technique_explains_after_its_round_is_not_the_next_rounds_reason(
    autojump_clock: MockClock,
) -> None:
    play = await superseded_while_it_hears()
    assert play.voice.words[-1] == "error timeout"
    assert "of round 1" not in play.voice.texts[-1]


async def test_after_the_verdict_nothing_is_said_whatever_comes_in(autojump_clock: MockClock) -> None:
    play = stage(succeeds)
    await play.attempt.run()
    said = list(play.voice.news)
    for event in (Cancelled(), Arrived(token(Kind.ANSWER)), Arrived(token(Kind.ABORT))):
        play.attempt.feed(event)
    assert play.voice.news == said
    os.close(play.voice.holes[0].fd)


# --- what a technique is given -------------------------------------------------------------------------------------


async def test_a_responder_aims_at_the_ports_of_the_offer_and_an_initiator_at_those_of_the_application(
    autojump_clock: MockClock,
) -> None:
    leader, follower = stage(succeeds), stage(succeeds, leads=False)
    for play in (leader, follower):
        await play.attempt.run()
        os.close(play.voice.holes[0].fd)
    assert leader.technique.facts == [Facts(Role.INITIATOR, B, PortSet((5002,)), 4, 64, 512)]
    assert follower.technique.facts == [Facts(Role.RESPONDER, A, PortSet((5000,)), 4, 64, 512)]
