"""docs/session.md says what the code does; and the other commands pay nothing for this one."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

from punchd.broker.client_events import Event
from punchd.broker.client_values import Created
from punchd.cli import session as cli
from punchd.punch.outcomes import Exit
from punchd.session import report

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "docs" / "session.md").read_text()
PRODUCERS = ("create", "status", "tokens", "close", "tally", "watch")


def section(title: str) -> str:
    match = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE)
    assert match is not None
    return match[1]


def test_every_option_of_a_producers_command_is_explained_with_the_command_that_has_it() -> None:
    parsers = next(one.choices for one in cli.arguments()._actions if isinstance(one, argparse._SubParsersAction))
    found = {
        (name, option)
        for name in PRODUCERS
        for action in parsers[name]._actions
        for option in action.option_strings
        if option not in ("-h", "--help")
    }
    explained = set()
    for line in section("Commands for producers").splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 3 and cells[0].startswith("`-"):
            names = PRODUCERS if cells[1] == "all" else cells[1].split(", ")
            explained |= {(name, option) for name in names for option in re.findall(r"`(--?[a-z-]+)", cells[0])}
    assert explained == found
    for name in PRODUCERS:
        assert f"**`{name} " in section("Commands for producers")


def test_the_example_shows_what_create_prints() -> None:
    example = TEXT.partition("```\n")[2].partition("\n```")[0]
    for stream in ("cam-wide", "cam-close"):
        url = "https://broker.example/s/show"
        made = Created("show", "-", {stream: "p_…"}, url, (stream,), 200, 1800, 0)
        assert "\n".join(report.created(made, "show.token")[4:-2]) in example
    assert report.HINT in example


def test_every_event_of_watch_is_explained() -> None:
    source = (ROOT / "punchd" / "session" / "report.py").read_text()
    said = set(re.findall(r'\{"event": "([a-z_]+)"', source))
    explained = set(re.findall(r"^\| `([a-z_]+)` \|", section("For programs"), re.MULTILINE))
    assert explained - {"event"} == said - {"peer", "start"}  # which only peers hear
    assert len(said) == len(Event.__args__)


def test_every_exit_code_of_a_producers_command_is_one_of_the_tools() -> None:
    codes = {int(code) for code in re.findall(r"^\| ([0-9]+) \|", section("Exit codes"), re.MULTILINE)}
    assert codes <= set(Exit)
    assert {Exit.DONE, Exit.USAGE, Exit.RENDEZVOUS, Exit.NOT_ONLINE, Exit.REFUSED, Exit.BROKEN} <= codes


def loaded_by(*words: str) -> set[str]:
    program = (
        "import sys\nfrom punchd.cli import punch\n"
        f"try: punch.main({list(words)!r})\nexcept SystemExit: pass\nprint('\\n', *sys.modules)"
    )
    environment = {**os.environ, "XDG_CONFIG_HOME": "/nonexistent"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_the_other_commands_load_nothing_of_it() -> None:
    for words in (
        ("--help",),
        ("listen",),
        ("listen", "--rendezvous", "http://127.0.0.1:1", "--socket", "/nonexistent"),
    ):
        found = loaded_by(*words)
        assert not [name for name in found if name.startswith(("punchd.session", "punchd.broker", "websockets"))]


def test_what_goes_wrong_before_a_broker_is_asked_loads_neither_trio_nor_websockets() -> None:
    for words in (("--help",), ("watch", "show"), ("create", "_", "--broker", "https://x")):
        assert not loaded_by("session", *words) & {"trio", "websockets", "ssl", "h11"}


def test_what_needs_no_websocket_loads_none() -> None:
    found = loaded_by("session", "create", "x", "--broker", "https://127.0.0.1:1")
    assert "punchd.broker.client" in found
    assert not found & {"websockets", "h11", "asyncio", "prometheus_client", "httptools", "punchd.broker.service"}
