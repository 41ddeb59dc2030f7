"""A generator that is stopped goes on where it was, and only there."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.matrix import __main__ as generator
from tests.matrix.checkpoint import Checkpoint, CheckpointError, fingerprint
from tests.matrix.expected import MATRICES, Matrix, obstacle
from tests.matrix.play import Cell, Round, rounds
from tests.unit.matrix_parts import cell

MATRIX = Matrix("udp", ("udp",), (0.0,))
CODE = "0123456789abcdef"
PLAN = rounds((0.0,), ("apdf", "adf", "rst"))


def cells_of(turn: Round) -> list[Cell]:
    return [cell(a, b, "udp", turn.late_s) for a, b in turn.pairs]


def begun(directory: Path) -> Path:
    """A checkpoint with one round of `PLAN`."""
    with Checkpoint(directory, MATRIX, CODE) as checkpoint:
        checkpoint.add(cells_of(PLAN[0]))
    return directory / "udp.jsonl"


# --- the file --------------------------------------------------------------------------------------------------------


def test_rounds_that_are_over_are_not_left_when_it_is_opened_again(tmp_path: Path) -> None:
    begun(tmp_path)

    with Checkpoint(tmp_path, MATRIX, CODE) as checkpoint:
        assert checkpoint.cells == cells_of(PLAN[0])
        assert checkpoint.left(PLAN) == PLAN[1:]
        checkpoint.add(cells_of(PLAN[1]))
    with Checkpoint(tmp_path, MATRIX, CODE) as checkpoint:
        assert checkpoint.left(PLAN) == PLAN[2:]
        assert len(checkpoint.of(PLAN)) == 6


def test_cells_of_other_latenesses_and_pairs_are_kept_but_not_shown(tmp_path: Path) -> None:
    begun(tmp_path)
    other = rounds((0.3,), ("apdf", "adf", "rst"))

    with Checkpoint(tmp_path, MATRIX, CODE) as checkpoint:
        assert checkpoint.of(other) == []
        assert checkpoint.left(other) == other


@pytest.mark.parametrize("torn", ['[{"a": "adf", "b"', "[", "\x00\x00"])
def test_a_line_that_was_cut_is_dropped_and_its_round_played_again(tmp_path: Path, torn: str) -> None:
    file = begun(tmp_path)
    whole = file.read_text()
    file.write_text(whole + torn)

    with Checkpoint(tmp_path, MATRIX, CODE) as checkpoint:
        assert checkpoint.left(PLAN) == PLAN[1:]
        checkpoint.add(cells_of(PLAN[1]))
    assert file.read_text().startswith(whole + "[{")
    with Checkpoint(tmp_path, MATRIX, CODE) as checkpoint:
        assert checkpoint.left(PLAN) == PLAN[2:]


def test_a_header_that_was_cut_is_written_anew(tmp_path: Path) -> None:
    (tmp_path / "udp.jsonl").write_text('{"format"')

    with Checkpoint(tmp_path, MATRIX, CODE) as checkpoint:
        assert checkpoint.left(PLAN) == PLAN
    begun(tmp_path)


@pytest.mark.parametrize("line", ["nonsense", "[1]", "17", '[{"a": "adf"}]', '[{"surprise": 1}]'])
def test_a_line_that_is_none_of_a_checkpoint_is_refused_by_number(tmp_path: Path, line: str) -> None:
    file = begun(tmp_path)
    file.write_text(file.read_text() + line + "\n")

    with pytest.raises(CheckpointError, match=r"udp\.jsonl, line 3, is none of a checkpoint.*--fresh"):
        Checkpoint(tmp_path, MATRIX, CODE).__enter__()


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "udp.jsonl").write_text("my notes\n")

    with pytest.raises(CheckpointError, match="line 1, is none of a checkpoint"):
        Checkpoint(tmp_path, MATRIX, CODE).__enter__()
    assert (tmp_path / "udp.jsonl").read_text() == "my notes\n"


@pytest.mark.parametrize(
    ("matrix", "code"), [(MATRIX, "fedcba9876543210"), (Matrix("udp", ("tcp-syni", "udp"), (0.0,)), CODE)]
)
def test_a_checkpoint_of_other_code_or_techniques_is_refused_and_left_as_it_is(
    tmp_path: Path, matrix: Matrix, code: str
) -> None:
    before = begun(tmp_path).read_bytes()

    with pytest.raises(CheckpointError, match=r"was begun with .*, now it is .*: begin anew with --fresh"):
        Checkpoint(tmp_path, matrix, code).__enter__()
    assert (tmp_path / "udp.jsonl").read_bytes() == before


def test_fresh_forgets_whatever_was_there(tmp_path: Path) -> None:
    (tmp_path / "udp.jsonl").write_text("my notes\n")

    with Checkpoint(tmp_path, MATRIX, CODE, fresh=True) as checkpoint:
        assert checkpoint.left(PLAN) == PLAN
    assert json.loads((tmp_path / "udp.jsonl").read_text())["code"] == CODE


def test_two_generators_do_not_share_a_checkpoint(tmp_path: Path) -> None:
    with Checkpoint(tmp_path, MATRIX, CODE), pytest.raises(CheckpointError, match="in use by another generator"):
        Checkpoint(tmp_path, MATRIX, CODE, fresh=True).__enter__()
    begun(tmp_path)


def test_the_fingerprint_is_of_the_source_and_stays_the_same() -> None:
    assert fingerprint() == fingerprint()
    assert len(fingerprint()) == 16


def test_the_fingerprint_changes_with_the_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint()
    (tmp_path / "daemon.py").write_text("pass\n")
    monkeypatch.setattr("punchd.__path__", [str(tmp_path)])

    assert fingerprint() != before


# --- the generator ---------------------------------------------------------------------------------------------------

Finished = Callable[[Sequence[Cell]], None]


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[Round | None]:
    """The rounds that were played. At a None the generator is stopped, as by Ctrl-C; no laboratory is built."""
    turns: list[Round | None] = []

    async def fake(techniques: tuple[str, ...], plan: Sequence[Round], *, finished: Finished, tries: int) -> None:
        assert tries == 2
        for turn in plan:
            if len(turns) == 25 and None not in turns:
                turns.append(None)
                raise BaseExceptionGroup("a nursery", [KeyboardInterrupt()])
            turns.append(turn)
            finished([cell(*pair, "" if obstacle(techniques, *pair) else "udp", turn.late_s) for pair in turn.pairs])

    monkeypatch.setattr(generator, "play", fake)
    monkeypatch.setattr(generator, "fingerprint", lambda: "fedcba9876543210")
    return turns


def generate(directory: Path) -> int:
    return generator.main(["udp", "--checkpoint", str(directory / "checkpoint")], docs=directory)


def test_a_generator_that_is_stopped_goes_on_where_it_was(
    tmp_path: Path, played: list[Round | None], capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(tmp_path) == 130
    assert "goes on from here" in capsys.readouterr().err
    assert not (tmp_path / "udp-matrix.md").exists()

    assert generate(tmp_path) == 0
    assert [turn for turn in played if turn] == rounds(MATRICES["udp"].late_s)
    assert "365 of 400 ordered pairs connect" in (tmp_path / "udp-matrix.md").read_text()

    assert generate(tmp_path) == 0
    assert len(played) == 61, "nothing is played twice"


def test_a_foreign_checkpoint_is_one_line_and_nothing_is_played(
    tmp_path: Path, played: list[Round | None], capsys: pytest.CaptureFixture[str]
) -> None:
    begun(tmp_path / "checkpoint")

    assert generate(tmp_path) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert played == []


def test_an_unknown_matrix_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        generator.main(["tcp"])
    assert "no matrix is called 'tcp'; there are udp, all-tcp," in capsys.readouterr().err
