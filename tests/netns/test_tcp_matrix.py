"""TCP between kinds of NAT, with the three TCP techniques of `all` in sequence."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.matrix import LATENESS_S, Cell, obstacle, run
from tests.natlab import MATRIX

pytestmark = [pytest.mark.netns]

SEQUENCE = "tcp-nutss,tcp-syni,tcp-repair"
# Eight kinds that differ most, 64 pairs: those that some technique cannot do are all among them.
SAMPLE = (
    "full-cone",
    "no-filter",
    "eim-no-preserve",
    "symmetric-sequential",
    "symmetric-random",
    "nosyn-before",
    "seq-rewrite",
    "killed-by-rst",
)


def complaint(cells: Sequence[Cell]) -> str:
    """What is not as expected, a line each."""
    wrong = [cell for cell in cells if cell.connected != (obstacle(cell.a, cell.b) is None)]
    return "\n".join(f"{cell.a} -> {cell.b}, {cell.late_s:g} s late: {cell.explanation}" for cell in wrong)


@pytest.mark.timeout(600)
async def test_a_sample_of_pairs_connects_over_tcp_but_those_with_an_unknowable_port() -> None:
    cells = await run((0.15,), SAMPLE, SEQUENCE)

    assert len(cells) == 64
    assert all("tcp-" in cell.explanation for cell in cells)
    assert not complaint(cells), complaint(cells)


@pytest.mark.long
@pytest.mark.timeout(1800)
async def test_every_pair_connects_over_tcp_at_every_lateness_but_those_with_an_unknowable_port() -> None:
    cells = await run(LATENESS_S, MATRIX, SEQUENCE)

    assert len(cells) == len(LATENESS_S) * len(MATRIX) ** 2
    assert not complaint(cells), complaint(cells)
