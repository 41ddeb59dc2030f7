"""Every row of the specification's checklist (C01 to C48) and every decision (D1 to D32) has a test.

A test belongs to a row if its name holds the row's number: `test_msp_c32_d_13_...`. What no test of the pure core can
have stands in ELSEWHERE, with the reason.
"""

from __future__ import annotations

import re
from pathlib import Path

ELSEWHERE: dict[str, str] = {}
# Rows that ask something of the shell besides, which needs a test on real sockets as well.
SHELL_TOO = {"msp_c19", "d_28", "d_30", "d_31"}


def test_every_row_has_a_test_or_a_reason() -> None:
    names = [
        name
        for file in Path(__file__).parent.glob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", file.read_text(), re.MULTILINE)
    ]
    told = {row for name in names for row in re.findall(r"(?<=_)(?:msp_c\d{2}|d_\d{2})(?=_|$)", name)}
    wanted = {f"msp_c{number:02}" for number in range(1, 49)} | {f"d_{number:02}" for number in range(1, 33)}
    assert sorted(wanted - told - set(ELSEWHERE)) == []
    assert sorted(told - wanted) == []
    assert sorted(told & set(ELSEWHERE)) == []


def test_what_is_asked_of_the_shell_has_a_test_on_real_sockets() -> None:
    folder = Path(__file__).parent
    text = "".join((folder / name).read_text() for name in ("test_trio_ends.py", "test_udp_ways.py"))
    assert sorted(row for row in SHELL_TOO if not re.search(rf"def test_\w*{row}_", text)) == []
