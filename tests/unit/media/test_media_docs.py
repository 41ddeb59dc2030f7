"""docs/media.md says what the code does."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest

from punchd.media import datagrams, options
from punchd.media.counters import VALIDATION_ERRORS, Count
from punchd.media.settings import ReceiverSettings, ResponderSettings, Timing
from tests.unit.media import oracle

PAGE = (Path(__file__).parents[3] / "docs" / "media.md").read_text()


def tables(head: str) -> list[list[list[str]]]:
    """The cells of all tables whose head begins with that word."""
    found = re.findall(rf"^\| {head} \|.*\n\|[-|]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    return [[[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in table.splitlines()] for table in found]


@pytest.mark.parametrize("settings", [Timing, ResponderSettings, ReceiverSettings])
def test_every_setting_is_told_with_its_default(settings: Any) -> None:
    [table] = tables(settings.__name__)
    defaults = {
        one.name: one.default for one in fields(settings) if isinstance(one.default, bool | int | float | tuple)
    }
    assert {one.name for one in fields(settings) if one.default is MISSING} <= {"timing"}
    assert table == [[name, str(value).strip("()")] for name, value in defaults.items()]


def test_every_counter_is_told() -> None:
    errors, others = tables("counter")
    assert [row[0] for row in errors] == [count.name.lower() for count in VALIDATION_ERRORS]
    assert [row[0] for row in errors + others] == [count.name.lower() for count in Count]


def test_the_tables_of_datagrams_are_those_of_the_code() -> None:
    [flags] = tables("flag")
    sizes = {
        datagrams.DATA: datagrams.HEADER_SIZE,
        datagrams.FRAGMENT: datagrams.FRAGMENT_HEADER_SIZE,
        datagrams.SYN: datagrams.CONTROL_SIZE,
        datagrams.SYN_ACK: datagrams.CONTROL_SIZE,
        datagrams.ACK: datagrams.CONTROL_SIZE,
        datagrams.CONNECTION_ID: datagrams.CONNECTION_ID_SIZE,
    }
    assert {int(row[0], 16): int(row[3]) for row in flags} == sizes
    [places] = tables("field")
    told = {(int(row[1]), int(row[2] or 0)) for row in places}
    known = [*oracle.HEADER, *oracle.FRAGMENT, *oracle.CONTROL, *oracle.CONNECTION_ID]
    assert told == {(offset, size) for _, offset, size in known} | {(26, 0), (42, 0), (28, 2), (67, 0)}
    [kinds] = tables("type")
    assert {int(row[0], 16): (row[1], int(row[2][0])) for row in kinds} == options._NAMES


def test_d_02_the_lost_sections_are_named_and_no_conformance_to_them_is_claimed() -> None:
    text = " ".join(PAGE.split())
    assert "sections 10 to 14 and Appendix A are missing. Nothing here claims to conform to them" in text
    for word in ("No encryption", "No congestion control", "no retransmission"):
        assert word in text
