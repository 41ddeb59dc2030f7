"""docs/punch.md says what the code does."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from punchd.cli import punch as cli
from punchd.punch import admission, calls, datagrams, forward, holes, messages, settings
from punchd.punch.outcomes import Exit

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "docs" / "punch.md").read_text()


def section(title: str) -> str:
    match = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE)
    assert match is not None
    return match[1]


def first_cells(text: str) -> list[str]:
    return [line.split("|")[1].strip() for line in text.splitlines() if re.match(r"\| [`0-9a-z]", line)]


def test_every_option_of_the_tool_is_explained_with_the_command_that_has_it_and_no_other() -> None:
    commands = next(
        action.choices for action in cli.arguments()._actions if isinstance(action, argparse._SubParsersAction)
    )
    found = {
        (name, option)
        for name in ("listen", "connect")
        for action in commands[name]._actions
        for option in action.option_strings
        if option not in ("-h", "--help")
    }
    explained = set()
    for line in section("Options").splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 3 and cells[1] in ("listen", "connect", "both"):
            names = ("listen", "connect") if cells[1] == "both" else (cells[1],)
            options = re.findall(r"`(--?[a-z]+)", cells[0])
            explained |= {(name, option) for name in names for option in options}
    assert explained == found


def test_every_exit_code_is_explained() -> None:
    cells = [int(cell) for cell in first_cells(section("Exit codes")) if cell.isdecimal()]
    assert {*cells, Exit.TERMINATED, Exit.HUNG_UP} == set(Exit)
    assert f"{Exit.HUNG_UP:d}: by SIGHUP" in TEXT
    assert f"{Exit.TERMINATED:d}: by SIGTERM" in TEXT


def test_every_event_is_explained() -> None:
    source = "".join(path.read_text() for path in (ROOT / "punchd").glob("punch/*.py"))
    source += (ROOT / "punchd" / "cli" / "punch.py").read_text()
    said = set(re.findall(r'\.say\(\s*"([a-z-]+)"', source)) | {"warning", "error"}
    explained = {name for cell in first_cells(section("News")) for name in re.findall(r"`([a-z-]+)`", cell)}
    assert explained - {"event"} == said


def test_kinds_of_signals_and_reasons_are_explained() -> None:
    text = section("The signals of a call")
    kinds = re.findall(r"^\| `([a-z]+)`", text, re.MULTILINE)
    assert kinds == ["call", "token", "ready", "reject", "bye"]
    for code in messages.Code:
        assert f"`{code}`" in text
    assert f"{messages.MAX_BYTES:,} bytes" in text


def test_the_knobs_of_the_file_are_named_and_its_example_is_right() -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    assert settings.parse(example.encode(), "docs").timeout == 30
    for name in settings.Settings.__dataclass_fields__:
        assert f"`{name}`" in section("Files")


def test_the_numbers_are_those_of_the_code() -> None:
    for said in (
        f"{settings.LEAST_TIMEOUT_S} to {settings.MOST_TIMEOUT_S}; {settings.Settings().timeout} by default",
        f"Up to {holes.MOST_AT_ONCE} are punched at a time and {forward.MOST_CONNECTIONS} are open; "
        f"a listener has up to {admission.MOST_CALLS}",
        f"{datagrams.MAX_DATAGRAM:,} bytes at most",
        f"every {datagrams.KEEP_S:.0f} seconds",
        f"after {datagrams.SILENCE_S:.0f} seconds of silence",
    ):
        assert said in TEXT.replace("\n", " ")
    first = calls.FIRST_REPEAT_S
    assert f"again after {first:.0f}, {3 * first:.0f} and {7 * first:.0f} seconds" in TEXT
