"""What the tests of the matrices have in common: how a run is judged and what is told of it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.matrix.expected import Matrix
from tests.matrix.play import Cell, Round, complaints, retried


def assert_as_expected(
    matrix: Matrix, plan: Sequence[Round], cells: Sequence[Cell], capsys: pytest.CaptureFixture[str]
) -> None:
    """Every pair was played and came out as it must. Second tries, which `play` bounds, are told even so."""
    with capsys.disabled():
        print("".join(f"\n{matrix.name}: {line}" for line in retried(cells)), end="")
    played = [(cell.late_s, cell.a, cell.b) for cell in cells]
    assert sorted(played) == sorted((turn.late_s, *pair) for turn in plan for pair in turn.pairs)
    assert {cell.technique for cell in cells} <= {"", *matrix.techniques}
    wrong = complaints(matrix.techniques, cells)
    assert not wrong, f"{len(wrong)} of {len(cells)} not as expected:\n" + "\n".join(wrong)
