"""Every kind of NAT against every other, in both roles: who connects.

One laboratory holds each kind twice, left and right, with a daemon in every host. In round k the host behind kind i on
the left initiates towards the one behind kind i + k on the right, for all i at once: every host takes part in one
attempt at a time, so that sequential NATs stay predictable, and 400 pairs take 20 rounds.

`python -m tests.matrix` writes docs/udp-matrix.md from a run; tests/netns/test_udp_matrix.py asserts on one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import trio

from punchd.client.trio_client import Daemon
from tests.natlab import KINDS, MATRIX, Laboratory, Side, Site
from tests.pair import attempt, daemons, exchange, stun_arguments

LATENESS_S = (0.0, 0.15, 0.3)
TIMEOUT_MS = 12_000
RANDOM = "symmetric-random"
# A NAT that filters at most by address: the one kind of peer that a host with an unknowable port can reach.
LETS_ANY_PORT_IN = ("full-cone", "adf")
TABLE = Path(__file__).parent.parent / "docs" / "udp-matrix.md"


@dataclass(frozen=True, slots=True)
class Cell:
    """One pair at one lateness."""

    a: str
    b: str
    late_s: float
    connected: bool
    explanation: str


def obstacle(a: str, b: str) -> str | None:
    """Why neither UDP nor TCP can connect two kinds; None where they must."""
    if RANDOM not in (a, b):
        return None
    other = b if a == RANDOM else a
    if other in LETS_ANY_PORT_IN:
        return None
    return f"{RANDOM} picks a port that nobody can know, and {other} lets in only the port that it was told to expect"


async def run(
    late_s: Sequence[float] = LATENESS_S, kinds: Iterable[str] = MATRIX, technique: str = "udp"
) -> list[Cell]:
    """All ordered pairs of `kinds` at each lateness of the responder."""
    names = tuple(kinds)
    sites = [Site(f"{side.value}-{name}", KINDS[name], side=side) for side in (Side.LEFT, Side.RIGHT) for name in names]
    cells: list[Cell] = []
    with Laboratory(sites) as laboratory:
        arguments = [*stun_arguments(laboratory.stun), "--techniques", technique]
        hosts = [(laboratory.site(site.name).host, arguments) for site in sites]
        with daemons(hosts) as running:
            async with AsyncExitStack() as stack:
                applications: list[Daemon] = []
                for daemon in running:
                    await daemon.until_ready()
                    applications.append(await stack.enter_async_context(Daemon.connect(daemon.path)))
                left, right = applications[: len(names)], applications[len(names) :]
                for late in late_s:
                    for shift in range(len(names)):
                        async with trio.open_nursery() as nursery:
                            for i in range(len(names)):
                                j = (i + shift) % len(names)
                                planned = Cell(names[i], names[j], late, connected=False, explanation="")
                                nursery.start_soon(_cell, cells, planned, left[i], right[j], technique)
    return cells


async def _cell(cells: list[Cell], planned: Cell, a: Daemon, b: Daemon, technique: str) -> None:
    outcome = await attempt(a, b, late_s=planned.late_s, timeout_ms=TIMEOUT_MS, techniques=technique)
    usable = outcome.connected and await exchange(outcome) == (1, 1)
    cells.append(replace(planned, connected=usable, explanation=outcome.explain()))
    outcome.close()


def table(cells: Iterable[Cell]) -> str:
    """The run as a Markdown table: how many of the latenesses connected; `.` where all did."""
    found: dict[tuple[str, str], list[bool]] = {}
    for cell in cells:
        found.setdefault((cell.a, cell.b), []).append(cell.connected)
    names = list(dict.fromkeys(a for a, _ in found))
    names.sort(key=list(MATRIX).index)
    lines = ["| A \\ B | " + " | ".join(str(number) for number in range(1, len(names) + 1)) + " |"]
    lines.append("|---|" + "---|" * len(names))
    for number, a in enumerate(names, 1):
        marks = ["." if all(found[a, b]) else f"{sum(found[a, b])}/{len(found[a, b])}" for b in names]
        lines.append(f"| {number} {a} | " + " | ".join(marks) + " |")
    return "\n".join(lines)


def document(cells: Sequence[Cell]) -> str:
    """docs/udp-matrix.md."""
    pairs = {(cell.a, cell.b) for cell in cells}
    good = {pair for pair in pairs if all(cell.connected for cell in cells if (cell.a, cell.b) == pair)}
    late = ", ".join(f"{value:g}" for value in sorted({cell.late_s for cell in cells}))
    return f"""# UDP between all kinds of NAT

Written by `.venv/bin/python -m tests.matrix` from a run in the laboratory; `tests/netns/test_udp_matrix.py` asserts the
same. A initiates, B responds {late} s late. `.`: connected every time, and a datagram went each way.

{len(good)} of {len(pairs)} ordered pairs connect. The others hold a symmetric NAT with random ports: the peer cannot
know the port that such a NAT picks, so only a peer whose NAT does not filter by port (full cone, address-dependent
filtering) can be reached from behind one.

{table(cells)}
"""


def main() -> int:
    cells = trio.run(run)
    TABLE.write_text(document(cells))
    wrong = [cell for cell in cells if cell.connected != (obstacle(cell.a, cell.b) is None)]
    for cell in wrong:
        print(f"{cell.a} -> {cell.b}, {cell.late_s:g} s late: {cell.explanation}")
    print(f"{len(cells)} attempts, {len(wrong)} not as expected; {TABLE.name} written")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
