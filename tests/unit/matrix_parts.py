"""Cells for the tests of the matrix."""

from __future__ import annotations

from tests.matrix.play import Cell


def cell(a: str, b: str, technique: str, late_s: float = 0.15) -> Cell:
    return Cell(a, b, late_s, technique, "said so")
