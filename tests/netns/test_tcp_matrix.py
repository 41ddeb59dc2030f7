"""TCP between kinds of NAT, with the sequences of techniques that `auto` and `all` have for it."""

from __future__ import annotations

import pytest

from tests.matrix.expected import LIMITS, MATRICES, UNKNOWABLE, obstacle
from tests.matrix.play import play, rounds
from tests.netns.assert_matrix import assert_as_expected

pytestmark = [pytest.mark.netns]

# How far B's kind is after A's in the list of kinds: twenty pairs each, and each kind in both roles. Against itself; a
# counting NAT and one that drops SYNs; one whose mappings die of an RST and one that answers with RST; the same with
# one that answers with ICMP, and random ports and a full cone.
SAMPLES = {"all-tcp": (0, 3, 6, 8), "auto-tcp": (0, 8)}
SAMPLE_LATE_S = 0.15


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", SAMPLES)
async def test_a_sample_of_pairs_connects_over_tcp_but_those_with_a_known_obstacle(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = rounds((SAMPLE_LATE_S,), shifts=SAMPLES[name])

    cells = await play(MATRICES[name].techniques, plan)

    assert_as_expected(MATRICES[name], plan, cells, capsys)


def test_the_sample_holds_a_pair_for_every_limit_of_every_technique() -> None:
    pairs = [pair for turn in rounds((SAMPLE_LATE_S,), shifts=SAMPLES["all-tcp"]) for pair in turn.pairs]
    techniques = MATRICES["all-tcp"].techniques
    obstacles = [why for pair in pairs for name in techniques if (why := obstacle((name,), *pair)) is not None]

    assert len(pairs) >= 60
    assert {pair for why in obstacles for pair in why.limits} == {
        (name, limit) for name in techniques for limit in (UNKNOWABLE, *LIMITS[name])
    }


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["all-tcp", "auto-tcp", "tcp-nutss", "tcp-syni", "tcp-repair"])
async def test_every_pair_connects_over_tcp_but_those_with_a_known_obstacle(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = rounds(MATRICES[name].late_s)

    cells = await play(MATRICES[name].techniques, plan)

    assert len(cells) == len(MATRICES[name].late_s) * 400
    assert_as_expected(MATRICES[name], plan, cells, capsys)
