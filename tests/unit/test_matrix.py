"""Which pairs a matrix expects to connect, what it plays, and what its document says."""

from __future__ import annotations

import pytest

from tests.matrix import play as playing
from tests.matrix.document import document
from tests.matrix.expected import LIMITS, MATRICES, Matrix, obstacle
from tests.matrix.play import Cell, Round, complaints, retried, rounds, second_tries
from tests.natlab import MATRIX
from tests.unit.matrix_parts import cell

PAIRS = [(a, b) for a in MATRIX for b in MATRIX]


def blocked(name: str, *, always: bool = True) -> set[tuple[str, str]]:
    """Pairs with an obstacle, without those that hold random ports."""
    found = {pair: obstacle(MATRICES[name].techniques, *pair) for pair in PAIRS}
    return {
        pair
        for pair, why in found.items()
        if why is not None and why.always is always and "symmetric-random" not in pair
    }


# --- what is expected ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MATRICES)
def test_random_ports_stop_every_sequence_but_towards_a_nat_that_does_not_filter_by_port(name: str) -> None:
    random = {pair for pair in PAIRS if "symmetric-random" in pair}
    stopped = {pair for pair in random if obstacle(MATRICES[name].techniques, *pair) is not None}

    assert len(stopped) == 35
    assert random - stopped == {
        ("symmetric-random", "full-cone"),
        ("symmetric-random", "adf"),
        ("full-cone", "symmetric-random"),
        ("adf", "symmetric-random"),
    }


@pytest.mark.parametrize("name", ["udp", "all-tcp"])
def test_nothing_else_stops_udp_or_all_tcp_techniques_together(name: str) -> None:
    assert blocked(name) == blocked(name, always=False) == set()


def test_the_default_tcp_techniques_do_not_connect_two_nats_that_drop_syns_before_tracking() -> None:
    assert blocked("auto-tcp") == {("nosyn-before", "nosyn-before")}
    assert blocked("auto-tcp", always=False) == set()


def test_a_single_technique_has_the_limits_of_its_paper() -> None:
    nosyn = {"nosyn-after", "nosyn-before", "nosyn-userspace"}
    strict = {"strict-conntrack", "strict-tcp", "seq-rewrite"}
    answering = {"rst", "no-filter", "icmp-prohibited"}

    assert blocked("tcp-nutss") == {(a, b) for a in nosyn for b in nosyn}
    assert blocked("tcp-nutss", always=False) == {("killed-by-rst", b) for b in answering}
    assert blocked("tcp-syni") == {("nosyn-before", "nosyn-before")}
    assert blocked("tcp-repair") == {
        pair for pair in PAIRS if strict.intersection(pair) and "symmetric-random" not in pair
    }


def test_every_technique_of_a_matrix_has_its_limits_written_down() -> None:
    assert {technique for matrix in MATRICES.values() for technique in matrix.techniques} == set(LIMITS)


def test_a_pair_that_must_connect_and_does_not_is_complained_about_and_so_is_the_opposite() -> None:
    nutss = MATRICES["tcp-nutss"].techniques
    race = ("killed-by-rst", "rst")
    cells = [
        cell("apdf", "apdf", ""),
        cell("apdf", "adf", "tcp-nutss"),
        cell("nosyn-after", "nosyn-before", ""),
        cell("nosyn-after", "nosyn-after", "tcp-nutss"),
        cell(*race, ""),
        cell(*race, "tcp-nutss"),
    ]

    first, second = complaints(nutss, cells)

    assert first == "apdf -> apdf, 0.15 s late: said so"
    assert second.startswith("nosyn-after -> nosyn-after, 0.15 s late: connected although both NATs drop inbound SYNs")


# --- what is played --------------------------------------------------------------------------------------------------


def test_the_rounds_hold_every_pair_once_at_each_lateness_and_no_host_twice_at_a_time() -> None:
    plan = rounds((0.0, 0.3))

    played = [(turn.late_s, *pair) for turn in plan for pair in turn.pairs]
    assert len(played) == len(set(played)) == 800
    for turn in plan:
        assert {a for a, _ in turn.pairs} == {b for _, b in turn.pairs} == set(MATRIX)


def test_a_sample_is_those_rounds_that_are_asked_for() -> None:
    assert [turn.pairs for turn in rounds((0.0,), ("a", "b", "c"), shifts=(0, 2))] == [
        (("a", "a"), ("b", "b"), ("c", "c")),
        (("a", "c"), ("b", "a"), ("c", "b")),
    ]


@pytest.mark.parametrize(("attempts", "tries"), [(1, 1), (80, 1), (400, 1), (1200, 2)])
def test_few_attempts_may_be_tried_again(attempts: int, tries: int) -> None:
    assert second_tries(attempts) == tries


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """All attempts fail, until this many are over; no laboratory is built. Returns how many were made, and that."""
    count = [0, 3]

    async def fake(techniques: tuple[str, ...], a: object, b: object, late_s: float) -> tuple[str, str]:
        count[0] += 1
        return ("udp", "fine") if count[0] > count[1] else ("", f"failure {count[0]}")

    monkeypatch.setattr(playing, "_try", fake)
    return count


class Anybody(dict[str, object]):
    def __missing__(self, name: str) -> object:
        return name


async def played(pairs: tuple[tuple[str, str], ...], tries: int) -> list[Cell]:
    return await playing._round(("udp",), Round(0.0, pairs), Anybody(), playing._Tries(tries))  # type: ignore[arg-type]


async def test_a_failure_is_tried_again_once_and_told(flaky: list[int]) -> None:
    flaky[1] = 1
    cells = await played((("apdf", "apdf"),), tries=1)

    assert flaky[0] == 2
    assert [cell.technique for cell in cells] == ["udp"]
    assert retried(cells) == ["apdf -> apdf, 0 s late: tried again after: failure 1"]


async def test_a_failure_of_a_second_try_stays_one(flaky: list[int]) -> None:
    cells = await played((("apdf", "apdf"),), tries=5)

    assert flaky[0] == 2
    assert complaints(("udp",), cells) == ["apdf -> apdf, 0 s late: failure 2"]


async def test_no_more_are_tried_again_than_may_be(flaky: list[int]) -> None:
    flaky[1] = 100
    cells = await played((("apdf", "apdf"), ("adf", "adf"), ("rst", "rst")), tries=1)

    assert flaky[0] == 4
    assert len(retried(cells)) == 1
    assert len(complaints(("udp",), cells)) == 3


async def test_what_must_not_connect_is_not_tried_again(flaky: list[int]) -> None:
    await played((("symmetric-random", "apdf"),), tries=1)

    assert flaky[0] == 1


# --- the document ----------------------------------------------------------------------------------------------------

ALL = MATRICES["all-tcp"]
NUTSS = Matrix("tcp-nutss", ("tcp-nutss",), (0.15,))


def test_a_document_says_how_many_connect_who_not_and_why() -> None:
    text = document(
        NUTSS,
        [
            cell("apdf", "apdf", "tcp-nutss"),
            cell("apdf", "nosyn-after", "tcp-nutss"),
            cell("nosyn-after", "apdf", "tcp-nutss"),
            cell("nosyn-after", "nosyn-after", ""),
        ],
    )

    assert text.startswith("# TCP between all kinds of NAT: `tcp-nutss`\n")
    assert "3 of 4 ordered pairs connect." in text
    assert "- 1 pair (nosyn-after → nosyn-after): both NATs drop inbound SYNs: a simultaneous open needs" in text
    assert "0 of 4 attempts needed a second try." in text.replace("\n", " ")
    assert "Not as expected" not in text
    assert text.endswith(
        "| A \\ B | 1 | 2 |\n|---|---|---|\n| 1 apdf | . | . |\n| 2 nosyn-after | . | - |\n"  # in the order of MATRIX
    )


def test_a_document_of_a_sequence_shows_which_technique_connected_and_how_often() -> None:
    text = document(
        ALL,
        [
            cell("apdf", "apdf", "tcp-syni", 0.3),
            cell("apdf", "apdf", "tcp-nutss", 0.0),
            cell("apdf", "rst", "tcp-repair", 0.0),
            cell("apdf", "rst", "", 0.3),
        ],
    )

    assert "`n`: connected by tcp-nutss, `s`: connected by tcp-syni, `r`: connected by tcp-repair" in text
    assert "B responds 0, 0.3 s late" in text.replace("\n", " ")
    assert "1 of 2 ordered pairs connect at each lateness." in text
    assert "| 1 apdf | ns | 1/2 |" in text


def test_a_document_of_a_sequence_gives_each_technique_s_reason() -> None:
    text = document(MATRICES["auto-tcp"], [cell("nosyn-before", "nosyn-before", "")])

    assert "- 1 pair (nosyn-before → nosyn-before), where every technique has a limit:\n  - `tcp-syni`: both" in text
    assert "\n  - `tcp-nutss`: both NATs drop inbound SYNs: a simultaneous open needs" in text


def test_a_document_names_races_whatever_came_of_them() -> None:
    for technique in ("", "tcp-nutss"):
        text = document(NUTSS, [cell("killed-by-rst", "rst", technique)])

        assert "These connect sometimes:\n\n- 1 pair (killed-by-rst → rst): the initiator's mapping dies" in text
        assert "These do not connect" not in text


def test_a_document_hides_neither_second_tries_nor_what_nobody_expected() -> None:
    text = document(
        NUTSS,
        [
            cell("apdf", "apdf", ""),
            Cell("apdf", "rst", 0.15, "tcp-nutss", "fine", "lost a race"),
        ],
    )

    assert "1 of 2 attempts needed a second try." in text.replace("\n", " ")
    assert "Not as expected:\n\n- apdf -> apdf, 0.15 s late: said so" in text


def test_a_document_does_not_depend_on_who_was_done_first() -> None:
    cells = [cell(a, b, "", late_s) for a in MATRIX for b in MATRIX for late_s in (0.0, 0.3)]

    assert document(ALL, cells) == document(ALL, cells[::-1])


def test_long_classes_are_counted_not_listed() -> None:
    text = document(MATRICES["udp"], [cell("symmetric-random", b, "") for b in MATRIX if b not in ("full-cone", "adf")])

    assert "- 18 pairs: one NAT picks a random port" in text
    assert "→" not in text
