"""All 400 ordered pairs of the 20 kinds of NAT, with the responder on time and late."""

from __future__ import annotations

import pytest

from tests.matrix import LATENESS_S, document, obstacle, run
from tests.natlab import MATRIX

pytestmark = [pytest.mark.netns, pytest.mark.timeout(900)]


def test_only_pairs_with_an_unknowable_port_have_an_obstacle() -> None:
    blocked = [(a, b) for a in MATRIX for b in MATRIX if obstacle(a, b)]

    assert len(MATRIX) == 20
    assert len(blocked) == 35
    assert all("symmetric-random" in pair for pair in blocked)


async def test_every_pair_connects_at_every_lateness_but_those_with_an_unknowable_port() -> None:
    cells = await run()

    assert len(cells) == len(LATENESS_S) * len(MATRIX) ** 2
    wrong = [cell for cell in cells if cell.connected != (obstacle(cell.a, cell.b) is None)]
    report = "\n".join(f"{cell.a} -> {cell.b}, {cell.late_s:g} s late: {cell.explanation}" for cell in wrong)
    assert not wrong, f"not as expected:\n{report}\n{document(cells)}"
