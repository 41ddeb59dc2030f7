"""`python -m tests.matrix [NAME ...]`: measures and writes docs/NAME-matrix.md. Root only: it builds a laboratory.

Stopped or killed, it goes on where it was when it is started again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import trio

from tests.matrix.checkpoint import Checkpoint, CheckpointError, fingerprint
from tests.matrix.document import document
from tests.matrix.expected import MATRICES, Matrix
from tests.matrix.play import Cell, complaints, play, retried, rounds, second_tries

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


async def generate(matrix: Matrix, checkpoint: Checkpoint, docs: Path) -> bool:
    """Plays what is left to play and writes the document; whether all is as expected."""
    plan = rounds(matrix.late_s)
    left = checkpoint.left(plan)
    print(f"{matrix.name}: {len(left)} of {len(plan)} rounds to play", flush=True)
    if left:
        attempts = sum(len(turn.pairs) for turn in plan)
        used = len(retried(checkpoint.of(plan)))
        played = len(plan) - len(left)

        def finished(cells: Sequence[Cell]) -> None:
            nonlocal played
            played += 1
            checkpoint.add(cells)
            print(f"{matrix.name}: round {played} of {len(plan)}", flush=True)

        await play(matrix.techniques, left, finished=finished, tries=second_tries(attempts) - used)
    cells = checkpoint.of(plan)
    target = docs / f"{matrix.name}-matrix.md"
    target.write_text(document(matrix, cells))
    wrong = complaints(matrix.techniques, cells)
    print("\n".join([*retried(cells), *wrong, f"{len(cells)} attempts, {len(wrong)} not as expected; {target.name}"]))
    return not wrong


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m tests.matrix", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MATRICES)}; all of them without any")
    parser.add_argument("--checkpoint", type=Path, default=ROOT / ".cache" / "matrix", metavar="DIRECTORY")
    parser.add_argument("--fresh", action="store_true", help="forget what was measured before")
    return parser


def main(words: Sequence[str] | None = None, docs: Path = DOCS) -> int:
    parser = arguments()
    options = parser.parse_args(words)
    unknown = [name for name in options.names if name not in MATRICES]
    if unknown:
        parser.error(f"no matrix is called {unknown[0]!r}; there are {', '.join(MATRICES)}")
    outcomes = []
    for name in options.names or MATRICES:
        matrix, stopped = MATRICES[name], False
        try:
            with Checkpoint(options.checkpoint, matrix, fingerprint(), fresh=options.fresh) as checkpoint:
                try:
                    outcomes.append(trio.run(generate, matrix, checkpoint, docs))
                except* KeyboardInterrupt:  # alone or in a nursery's group
                    stopped = True
        except CheckpointError as error:
            print(f"matrix: {error}", file=sys.stderr)
            return 2
        if stopped:
            print("matrix: stopped; started again, it goes on from here", file=sys.stderr)
            return 130
    return 0 if all(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
