"""docs/NAME-matrix.md, from the cells of a run."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill

from tests.matrix.expected import Matrix, Obstacle, obstacle
from tests.matrix.play import Cell, complaints
from tests.natlab import MATRIX

NAMED = 12  # a class of at most so many pairs is listed pair by pair
WIDTH = 120
Pairs = dict[tuple[str, str], list[Cell]]


def document(matrix: Matrix, cells: Sequence[Cell]) -> str:
    """What connects, what does not and why, how it was measured, and the table."""
    pairs: Pairs = {}
    for cell in sorted(cells, key=_place):
        pairs.setdefault((cell.a, cell.b), []).append(cell)
    sequence = ", then ".join(f"`{technique}`" for technique in matrix.techniques)
    every = sum(all(cell.technique for cell in found) for found in pairs.values())
    late = ", ".join(f"{value:g}" for value in sorted({cell.late_s for cell in cells}))
    again = sum(bool(cell.first_failure) for cell in cells)
    parts = [
        f"# {matrix.protocol} between all kinds of NAT: {sequence}",
        _text(
            f"Written by `.venv/bin/python -m tests.matrix {matrix.name}` from a run in the laboratory (tests/natlab). "
            f"tests/netns/test_{matrix.protocol.lower()}_matrix.py asserts the same. A initiates, B responds {late} s "
            "late. A pair counts as connected when bytes went each way. "
            f"{again} of {len(cells)} attempts needed a second try."
        ),
        _text(f"{every} of {len(pairs)} ordered pairs connect{' at each lateness' if ',' in late else ''}."),
        *_failures(matrix, pairs),
        _text(_legend(matrix, late)),
        _table(matrix, pairs),
    ]
    return "\n\n".join(parts) + "\n"


def _place(cell: Cell) -> tuple[int, int, float]:
    kinds = list(MATRIX)
    return kinds.index(cell.a), kinds.index(cell.b), cell.late_s


def _text(text: str, first: str = "") -> str:
    return fill(text, WIDTH, initial_indent=first, subsequent_indent=" " * len(first), break_on_hyphens=False)


def _failures(matrix: Matrix, pairs: Pairs) -> list[str]:
    """A point for each obstacle; and what nobody expected, which is a defect."""
    classes: dict[Obstacle, list[tuple[str, str]]] = {}
    for pair in pairs:
        if (blocked := obstacle(matrix.techniques, *pair)) is not None:
            classes.setdefault(blocked, []).append(pair)
    parts = []
    for always, title in ((True, "These do not connect:"), (False, "These connect sometimes:")):
        points = [_point(blocked, stopped) for blocked, stopped in classes.items() if blocked.always is always]
        parts += [title, "\n".join(points)] if points else []
    wrong = complaints(matrix.techniques, [cell for found in pairs.values() for cell in found])
    return [*parts, "Not as expected:", "\n".join(_text(line, "- ") for line in wrong)] if wrong else parts


def _point(blocked: Obstacle, stopped: Sequence[tuple[str, str]]) -> str:
    count = f"{len(stopped)} pair{'s' * (len(stopped) > 1)}"
    named = f" ({', '.join(f'{a} → {b}' for a, b in stopped)})" if len(stopped) <= NAMED else ""
    limits = [limit for _, limit in blocked.limits]
    if len(set(limits)) == 1:
        return _text(f"{count}{named}: {limits[0].pairs}: {limits[0].reason}.", "- ")
    lines = [_text(f"{count}{named}, where every technique has a limit:", "- ")]
    lines += [_text(f"`{name}`: {limit.pairs}: {limit.reason}.", "  - ") for name, limit in blocked.limits]
    return "\n".join(lines)


def _legend(matrix: Matrix, late: str) -> str:
    if len(matrix.techniques) == 1:
        text = "`.`: connected"
    else:
        text = ", ".join(f"`{_letter(technique)}`: connected by {technique}" for technique in matrix.techniques)
    return f"{text}{', `1/3`: once in three' if ',' in late else ''}, `-`: not connected."


def _letter(technique: str) -> str:
    return technique.removeprefix("tcp-")[0]


def _table(matrix: Matrix, pairs: Pairs) -> str:
    kinds = [kind for kind in MATRIX if any(kind in pair for pair in pairs)]
    lines = ["| A \\ B | " + " | ".join(str(number) for number in range(1, len(kinds) + 1)) + " |"]
    lines.append("|---|" + "---|" * len(kinds))
    for number, a in enumerate(kinds, 1):
        marks = [_mark(matrix, pairs.get((a, b), [])) for b in kinds]
        lines.append(f"| {number} {a} | " + " | ".join(marks) + " |")
    return "\n".join(lines)


def _mark(matrix: Matrix, found: Sequence[Cell]) -> str:
    """Of one pair: the techniques that connected it, or how often it connected; nothing if it was not tried."""
    if not found:
        return ""
    connected = [cell.technique for cell in found if cell.technique]
    if not connected:
        return "-"
    if len(connected) < len(found):
        return f"{len(connected)}/{len(found)}"
    if len(matrix.techniques) == 1:
        return "."
    return "".join(_letter(technique) for technique in matrix.techniques if technique in connected)
