"""Log records as text and as JSON, and the explanation of an attempt in a file."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
import trio

from punchd import events
from punchd.attempt.trace import MAX_EVENTS, Recorder

PROGRAM = """
import logging, sys
from punchd import logs
logs.set_up(sys.argv[1], sys.argv[2])
logging.getLogger("punchd.x").debug("ours at debug")
logging.getLogger("punchd.x").info("two\\nlines | and %s", "\\u00fcml\\u00e4ut \\x1b[31m")
logging.getLogger("pyroute2").info("theirs at info")
logging.getLogger("pyroute2").warning("theirs at warning")
logging.getLogger("pyroute2.netlink.rtnl.tcmsg.common").warning("of no concern")
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("punchd").exception("failed")
"""


def written(level: str, form: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, level, form],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_json_is_one_object_a_line_whatever_the_message_holds() -> None:
    lines = [json.loads(line) for line in written("debug", "json")]
    assert [(line["level"], line["logger"]) for line in lines] == [
        ("debug", "punchd.x"),
        ("info", "punchd.x"),
        ("warning", "pyroute2"),
        ("error", "punchd"),
    ]
    assert lines[1]["message"] == "two\nlines | and ümläut \x1b[31m"
    assert "ZeroDivisionError" in lines[3]["error"]
    assert all("error" not in line for line in lines[:3])
    for line in lines:
        assert datetime.fromisoformat(line["time"]).utcoffset() is not None


def test_the_level_decides_what_is_written() -> None:
    assert len(written("error", "json")) == 1
    assert [json.loads(line)["level"] for line in written("warning", "json")] == ["warning", "error"]


def test_text_says_whose_it_is_and_how_bad() -> None:
    lines = written("info", "text")
    assert lines[0].startswith("punchd: INFO: two")
    assert "punchd: WARNING: theirs at warning" in lines
    assert not [line for line in lines if "theirs at info" in line]


def test_what_a_text_record_quotes_cannot_look_like_another_record() -> None:
    lines = written("info", "text")
    assert lines[0] == r"punchd: INFO: two\nlines | and ümläut \x1b[31m"


def test_a_log_that_nobody_takes_any_more_does_not_end_the_program() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run([sys.executable, "-c", PROGRAM, "debug", "json"], stderr=write_end, check=False)
    os.close(write_end)
    assert done.returncode in (0, 120), "120: Python could not flush at its end"


# --- traces -----------------------------------------------------------------------------------------------------------


def ended(recorder: Recorder, extra: int = 0) -> None:
    recorder.emit(events.AttemptStarted("00112233", "initiator", "203.0.113.7:40000"))
    for number in range(extra):
        recorder.emit(events.Told("note", number % 255))
    recorder.emit(events.AttemptEnded("ok", "udp"))


def lines_of(directory: Path) -> list[str]:
    """The lines of the one file there."""
    (file,) = directory.iterdir()
    assert file.name == "00112233-initiator.txt"
    return file.read_text().splitlines()


async def test_a_finished_attempt_is_one_file_with_its_events_in_order(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    recorder = Recorder(str(tmp_path))
    recorder.emit(events.AttemptStarted("00112233", "initiator", "203.0.113.7:40000"))
    assert not os.listdir(tmp_path)
    await trio.sleep(1.5)
    recorder.emit(events.AttemptEnded("ok", "udp"))
    assert lines_of(tmp_path) == [
        "   0.0000 s  AttemptStarted nonce=00112233 role=initiator peer=203.0.113.7:40000",
        "   1.5000 s  AttemptEnded verdict=ok text=udp",
    ]


async def test_a_trace_has_a_bound_says_when_it_was_cut_and_keeps_its_verdict(tmp_path: Path) -> None:
    ended(Recorder(str(tmp_path)), 10 * MAX_EVENTS)
    lines = lines_of(tmp_path)
    assert len(lines) == MAX_EVENTS + 2
    assert lines[-2] == "cut here: more events than are kept"
    assert lines[-1].endswith("AttemptEnded verdict=ok text=udp")


async def test_a_trace_of_exactly_the_bound_is_not_called_cut(tmp_path: Path) -> None:
    ended(Recorder(str(tmp_path)), MAX_EVENTS - 2)
    lines = lines_of(tmp_path)
    assert len(lines) == MAX_EVENTS
    assert lines[-1].endswith("AttemptEnded verdict=ok text=udp")


@pytest.mark.parametrize("why", ["No such file or directory", "Not a directory", "No space left on device"])
async def test_a_trace_that_cannot_be_written_is_a_warning(
    tmp_path: Path, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "traces"
    if why == "Not a directory":
        directory.touch()
    elif why == "No space left on device":
        directory.mkdir()
        (directory / "00112233-initiator.txt").symlink_to("/dev/full")
    ended(Recorder(str(directory)))
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [f"trace: {directory}/00112233-initiator.txt: {why}"]


async def test_without_a_directory_nothing_is_kept() -> None:
    recorder = Recorder(None)
    ended(recorder, 100)
    assert recorder._lines == []
