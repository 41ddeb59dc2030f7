"""UDP between all 400 ordered pairs of the 20 kinds of NAT, with the responder on time and late."""

from __future__ import annotations

import pytest

from tests.matrix.expected import MATRICES
from tests.matrix.play import play, rounds
from tests.netns.assert_matrix import assert_as_expected

pytestmark = [pytest.mark.netns, pytest.mark.timeout(900)]


async def test_every_pair_connects_at_every_lateness_but_those_with_an_unknowable_port(
    capsys: pytest.CaptureFixture[str],
) -> None:
    udp = MATRICES["udp"]
    plan = rounds(udp.late_s)

    cells = await play(udp.techniques, plan)

    assert len(cells) == 1200
    assert_as_expected(udp, plan, cells, capsys)
