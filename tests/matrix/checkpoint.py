"""What has been measured so far, in a file of JSON lines: a header, then a line for each round that is over.

A line is written in one go when its round is over, so a generator that is killed loses at most the rounds that were
running; a line that was cut is dropped when the file is opened again. The header names what the results depend upon:
the daemon, its techniques, the laboratory. A file of other code is refused, not mixed with.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import punchd
import punchd_techniques
from tests import matrix, natlab, pair
from tests.matrix.expected import Matrix
from tests.matrix.play import Cell, Round

FORMAT = 1


class CheckpointError(Exception):
    """The file cannot be gone on with; the message says why, and what to do."""


def fingerprint() -> str:
    """Of the source of everything that a result depends upon, as it would be imported now."""
    places = [Path(package.__path__[0]) for package in (punchd, punchd_techniques, natlab)]
    files = [file for place in places for file in sorted(place.rglob("*.py"))]
    files += [Path(pair.__file__), Path(matrix.__path__[0]) / "play.py"]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


class Checkpoint:
    """The file of one matrix, for the length of a `with` block.

    Args:
        directory: where it is; made if need be.
        code: `fingerprint()`.
        fresh: begin anew, whatever is there.

    Raises:
        CheckpointError: on entering: it is of something else, broken, or in use.
    """

    def __init__(self, directory: Path, matrix: Matrix, code: str, *, fresh: bool = False) -> None:
        self.path = directory / f"{matrix.name}.jsonl"
        self.cells: list[Cell] = []
        self._header = {"format": FORMAT, "techniques": list(matrix.techniques), "code": code}
        self._fresh = fresh

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            self._lock()
            if self._fresh:
                os.ftruncate(self._fd, 0)
            self._read()
        except BaseException:
            os.close(self._fd)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def add(self, cells: Sequence[Cell]) -> None:
        """A round is over."""
        self._write([asdict(cell) for cell in cells])
        self.cells += cells

    def left(self, plan: Iterable[Round]) -> list[Round]:
        """The rounds that are still to be played."""
        done = {(cell.late_s, cell.a, cell.b) for cell in self.cells}
        return [turn for turn in plan if any((turn.late_s, *pair) not in done for pair in turn.pairs)]

    def of(self, plan: Iterable[Round]) -> list[Cell]:
        """The cells that belong to these rounds."""
        wanted = {(turn.late_s, *pair) for turn in plan for pair in turn.pairs}
        return [cell for cell in self.cells if (cell.late_s, cell.a, cell.b) in wanted]

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(f"{self.path} is in use by another generator") from None

    def _read(self) -> None:
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.ftruncate(self._fd, len(whole))
        header, *lines = whole.splitlines() or [b""]
        if not header:
            os.ftruncate(self._fd, 0)
            self._write(self._header)
            return
        found = self._parse(1, header)
        if found != self._header:
            raise CheckpointError(
                f"{self.path} was begun with {json.dumps(found)}, now it is {json.dumps(self._header)}: "
                "begin anew with --fresh"
            )
        for number, line in enumerate(lines, 2):
            try:
                self.cells += [Cell(**fields) for fields in self._parse(number, line)]
            except TypeError:
                raise self._broken(number) from None

    def _parse(self, number: int, line: bytes) -> Any:
        try:
            return json.loads(line)
        except ValueError:
            raise self._broken(number) from None

    def _broken(self, number: int) -> CheckpointError:
        return CheckpointError(f"{self.path}, line {number}, is none of a checkpoint: begin anew with --fresh")

    def _write(self, value: object) -> None:
        line = memoryview(json.dumps(value).encode() + b"\n")
        while line:
            line = line[os.write(self._fd, line) :]
