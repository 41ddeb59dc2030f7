"""All pairs in one laboratory: each kind of NAT twice, left and right, with a daemon in every host.

In round k the host behind kind i on the left initiates towards the one behind kind i + k on the right, for all i at
once: every host takes part in one attempt at a time, so that sequential NATs stay predictable, and 400 pairs take 20
rounds.

A pair that fails although it must connect is tried once more, as long as `second_tries` allow: on an overloaded
machine a race is lost now and then. It is recorded, and told by documents and tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

import trio

from punchd.client.trio_client import Daemon
from tests.matrix.expected import obstacle
from tests.natlab import KINDS, MATRIX, Laboratory, Side, Site
from tests.pair import attempt, daemons, exchange, stun_arguments

TIMEOUT_MS = 12_000
ATTEMPTS_A_SECOND_TRY = 600


@dataclass(frozen=True, slots=True)
class Round:
    """Attempts that run at the same time: each kind at most once on each side."""

    late_s: float
    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Cell:
    """What came of one pair at one lateness.

    Attributes:
        technique: that connected, or "".
        explanation: both verdicts, in words.
        first_failure: the verdicts of the first try, if there was a second one.
    """

    a: str
    b: str
    late_s: float
    technique: str
    explanation: str
    first_failure: str = ""

    def __str__(self) -> str:
        return f"{self.a} -> {self.b}, {self.late_s:g} s late"


def rounds(late_s: Iterable[float], kinds: Sequence[str] = tuple(MATRIX), shifts: Iterable[int] = ()) -> list[Round]:
    """All ordered pairs of `kinds` at each lateness; or only those rounds in which B's kind is `shift` after A's."""
    count = len(kinds)
    chosen = tuple(shifts) or range(count)
    return [
        Round(late, tuple((kinds[i], kinds[(i + shift) % count]) for i in range(count)))
        for late in late_s
        for shift in chosen
    ]


def second_tries(attempts: int) -> int:
    """How many of so many attempts may be tried again."""
    return max(1, attempts // ATTEMPTS_A_SECOND_TRY)


def complaints(techniques: tuple[str, ...], cells: Iterable[Cell]) -> list[str]:
    """What is not as expected, a line each."""
    found = []
    for cell in cells:
        blocked = obstacle(techniques, cell.a, cell.b)
        if blocked is None and not cell.technique:
            found.append(f"{cell}: {cell.explanation}")
        elif blocked is not None and blocked.always and cell.technique:
            found.append(f"{cell}: connected although {blocked.limits[0][1].pairs}: {cell.explanation}")
    return found


def retried(cells: Iterable[Cell]) -> list[str]:
    """What was tried twice, a line each."""
    return [f"{cell}: tried again after: {cell.first_failure}" for cell in cells if cell.first_failure]


class _Tries:
    """How many more second tries there are."""

    def __init__(self, left: int) -> None:
        self._left = left

    def take(self) -> bool:
        self._left -= 1
        return self._left >= 0


def ignore(cells: Sequence[Cell]) -> None:
    """For runs that nobody watches."""


async def play(
    techniques: tuple[str, ...],
    plan: Sequence[Round],
    *,
    finished: Callable[[Sequence[Cell]], None] = ignore,
    tries: int | None = None,
) -> list[Cell]:
    """Plays the rounds, in order.

    Args:
        finished: gets each round's cells when it is over.
        tries: how many attempts may be tried again; None: as many as `second_tries` says.
    """
    left, right = (list(dict.fromkeys(pair[i] for turn in plan for pair in turn.pairs)) for i in (0, 1))
    sites = [Site(f"left-{kind}", KINDS[kind], side=Side.LEFT) for kind in left]
    sites += [Site(f"right-{kind}", KINDS[kind], side=Side.RIGHT) for kind in right]
    again = _Tries(second_tries(sum(len(turn.pairs) for turn in plan)) if tries is None else tries)
    cells: list[Cell] = []
    with Laboratory(sites) as laboratory:
        arguments = [*stun_arguments(laboratory.stun), "--techniques", ",".join(techniques)]
        hosts = [(laboratory.site(site.name).host, arguments) for site in sites]
        with daemons(hosts) as running:
            async with AsyncExitStack() as stack:
                applications: dict[str, Daemon] = {}
                for site, daemon in zip(sites, running, strict=True):
                    await daemon.until_ready()
                    applications[site.name] = await stack.enter_async_context(Daemon.connect(daemon.path))
                for turn in plan:
                    cells += (done := await _round(techniques, turn, applications, again))
                    finished(done)
    return cells


async def _round(
    techniques: tuple[str, ...], turn: Round, applications: dict[str, Daemon], again: _Tries
) -> list[Cell]:
    done: list[Cell] = []

    async def cell(a: str, b: str) -> None:
        ends = applications[f"left-{a}"], applications[f"right-{b}"]
        technique, explanation = await _try(techniques, *ends, turn.late_s)
        first_failure = ""
        if not technique and obstacle(techniques, a, b) is None and again.take():
            first_failure = explanation
            technique, explanation = await _try(techniques, *ends, turn.late_s)
        done.append(Cell(a, b, turn.late_s, technique, explanation, first_failure))

    async with trio.open_nursery() as nursery:
        for pair in turn.pairs:
            nursery.start_soon(cell, *pair)
    return done


async def _try(techniques: tuple[str, ...], a: Daemon, b: Daemon, late_s: float) -> tuple[str, str]:
    """The technique that connected, with bytes both ways, or ""; and both verdicts."""
    outcome = await attempt(a, b, late_s=late_s, timeout_ms=TIMEOUT_MS, techniques=",".join(techniques))
    try:
        connected = outcome.initiator.connected
        usable = await exchange(outcome) == (1, 1)
        return (connected.technique if connected and usable else ""), outcome.explain()
    finally:
        outcome.close()
