"""Every row of the specification's checklist (V-001 to V-022) and of its decisions (D-01 to D-26) has a test.

A test belongs to a row if its name holds the row's number: `..._v_013_d_07_...`.
"""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[2]


def test_every_row_has_a_test() -> None:
    files = [*Path(__file__).parent.glob("test_*.py"), TESTS / "netns" / "test_rendezvous.py"]
    names = [
        name for file in files for name in re.findall(r"^(?:async )?def (test_\w+)", file.read_text(), re.MULTILINE)
    ]
    told = {row for name in names for row in re.findall(r"(?<=_)[vd]_\d{2,3}(?=_|$)", name)}
    wanted = {f"v_{number:03}" for number in range(1, 23)} | {f"d_{number:02}" for number in range(1, 27)}
    assert sorted(wanted - told) == []
    assert told <= wanted
