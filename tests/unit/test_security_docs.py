"""docs/security.md names a test for every attack: each of them is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "security.md").read_text()
ROWS = [line.split(" | ") for line in TEXT.splitlines() if line.startswith("| ") and not line.startswith("| who |")]


@pytest.mark.parametrize("row", ROWS, ids=[f"{row[0][2:]}-{number}" for number, row in enumerate(ROWS)])
def test_each_attack_is_tried_by_tests_that_exist(row: list[str]) -> None:
    assert len(row) == 4
    named = re.findall(r"(tests/[\w/]+\.py)|`(test_\w+)`", row[3])
    assert named
    file = ""
    for path, test in named:
        file = path or file
        source = (ROOT / file).read_text()
        assert not test or re.search(rf"^(async )?def {test}\(", source, re.MULTILINE), f"{file}: {test}"
    assert {kind for path, test in named for kind in ("file" if path else "test",)} == {"file", "test"}
