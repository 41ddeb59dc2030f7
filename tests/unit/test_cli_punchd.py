"""The daemon's command line: what wins, what is refused with which exit code, and always in one line."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from punchd import __version__
from punchd.cli import punchd as cli
from punchd.cli import users
from punchd.config import Config
from punchd.errors import ConfigError


@pytest.fixture(autouse=True)
def tame(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing here may start a daemon, which would drop this process's capabilities; logging stays as it was."""
    monkeypatch.setattr(cli, "_sockets", lambda *_: pytest.fail("the daemon would have started"))
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def settings(*argv: str) -> Config:
    return cli.settings(cli.arguments().parse_args(argv))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "punchd.toml"
    path.write_text("ttl = 7\nlog-level = 'debug'\nstun = ['192.0.2.1:1', '192.0.2.2:2']\nallow-private = true\n")
    return path


def test_without_anything_the_defaults_hold() -> None:
    assert settings() == Config()


def test_the_command_line_wins_over_the_file_and_leaves_the_rest_of_it(file: Path) -> None:
    found = settings("--config", str(file), "--ttl", "9", "--stun", "a.example:3", "--stun", "[2001:db8::1]:4")
    assert found.ttl == 9
    assert found.stun == (("a.example", 3), ("2001:db8::1", 4))
    assert found.log_level == "debug"
    assert found.allow_private is True


@pytest.mark.parametrize(
    ("argv", "attribute", "value"),
    [
        (("--socket", "/x"), "socket", "/x"),
        (("--group", "adm"), "group", "adm"),
        (("--group", "4"), "group", "4"),
        (("--user", "nobody"), "user", "nobody"),
        (("--mode", "0600"), "mode", 0o600),
        (("--ttl", "1"), "ttl", 1),
        (("--techniques", "udp,tcp-syni"), "techniques", ("udp", "tcp-syni")),
        (("--firewall", "none"), "firewall", "none"),
        (("--log-level", "error"), "log_level", "error"),
        (("--log-format", "json"), "log_format", "json"),
        (("--trace", "/y"), "trace", "/y"),
        (("--stun", "192.0.2.1:3478"), "stun", (("192.0.2.1", 3478),)),
    ],
)
def test_every_option_sets_its_knob(argv: tuple[str, ...], attribute: str, value: object, file: Path) -> None:
    for found in (settings(*argv), settings("--config", str(file), *argv)):
        assert getattr(found, attribute) == value


def complaint(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line on standard error; nothing else may come out."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.endswith("\n")
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("punchd: ")
    return lines[0]


REFUSED = [
    (("--ttl", "65"), "command line: ttl: expected a whole number from 1 to 64, got 65"),
    (("--mode", "rw"), "command line: mode: expected octal digits"),
    (("--mode", "0999"), "command line: mode: expected octal digits"),
    (("--socket", ""), "command line: socket: expected a path, got ''"),
    (("--group", ""), "command line: group: expected text"),
    (("--group", "-1"), "command line: group: expected a name or a number from 0 to 4294967294"),
    (("--group", "99999999999"), "command line: group: expected a name or a number"),
    (("--stun", "stun.example.net"), "command line: stun: expected HOST:PORT, got 'stun.example.net'"),
    (("--techniques", ""), "command line: techniques: expected text"),
    (("--techniques", "udp,udp"), "command line: techniques: udp stands twice"),
    (("--techniques", "auto"), "command line: techniques: expected technique names, got 'auto'"),
    (("--techniques", "upd"), "techniques: upd is not installed; did you mean udp?"),
    (("--techniques", "udp,udpp"), "techniques: udpp is not installed; did you mean udp?"),
    (("--techniques", "quantum"), "techniques: quantum is not installed; installed are "),
    (("--log-level", "loud"), "command line: log-level: expected one of debug, info, warning, error, got 'loud'"),
    (("--log-level", "two\nlines"), "command line: log-level: expected one of"),
    (("--log-format", "xml"), "command line: log-format: expected one of text, json, got 'xml'"),
    (("--trace", ""), "command line: trace: expected a path"),
    (("--config", "/nowhere/punchd.toml"), "/nowhere/punchd.toml: No such file or directory"),
    (("--config", "/nowhere/\n.toml"), "/nowhere/\\n.toml: No such file or directory"),
    (("--config", "/"), "/: Is a directory"),
]


@pytest.mark.parametrize(("argv", "text"), REFUSED, ids=[" ".join(argv) for argv, _ in REFUSED])
@pytest.mark.parametrize("checking", [True, False])
def test_wrong_settings_end_with_78_and_one_line(
    argv: tuple[str, ...], text: str, checking: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*argv, "--check-config"] if checking else argv) == 78
    assert complaint(capsys).startswith(f"punchd: {text}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ttl = 0", ": ttl: expected a whole number from 1 to 64, got 0"),
        ("tll = 4", ": unknown key tll; did you mean ttl?"),
        ("ttl =", ": not TOML: "),
        ("[limits]\nattempts = true", ": limits: attempts: expected a whole number from 1 to 100000, got True"),
        ("techniques = ['upd']", "techniques: upd is not installed; did you mean udp?"),
        ('"a\\nb\\u001b[2J" = 1', ": unknown key "),
        ("ttl = " + "9" * 5000, ": not TOML: "),
        ("ttl." + "a." * 5000 + "a = 1", ": ttl: expected a whole number"),
    ],
)
def test_a_wrong_file_ends_with_78_and_one_line(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "punchd.toml"
    path.write_text(text)
    assert cli.main(["--check-config", "--config", str(path)]) == 78
    line = complaint(capsys)
    assert said in line
    assert line.isprintable()


@pytest.mark.parametrize(
    "argv",
    [
        ("--ttl", "four"),
        ("--ttl", ""),
        ("--ttl",),
        ("--colour", "blue"),
        ("--sock", "/x"),  # no abbreviations: they would end with the next option
        ("serve",),
        ("--check-config=yes",),
        ("two\nlines",),
    ],
    ids=repr,
)
def test_a_wrong_command_line_ends_with_2_and_one_line(
    argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 2
    assert "--help" in complaint(capsys)


def test_right_settings_are_said_to_be_right(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--check-config", "--config", str(file), "--techniques", "udp"]) == 0
    assert capsys.readouterr() == ("punchd: the settings are right\n", "")


def test_techniques_of_the_default_that_are_not_installed_are_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--check-config"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_version_and_help_end_with_0(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([option])
    assert caught.value.code == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out == f"punchd {__version__}\n" or "--check-config" in captured.out


def test_users_and_groups_that_do_not_exist_are_named() -> None:
    assert users.uid_of("0") == 0
    assert users.uid_of("root") == 0
    assert users.gid_of("0") == 0
    with pytest.raises(ConfigError, match="allow-users: no user nobody-of-that-name"):
        users.uid_of("nobody-of-that-name")
    with pytest.raises(ConfigError, match="group: no group nobody-of-that-name"):
        users.gid_of("nobody-of-that-name")


@pytest.mark.parametrize(
    ("argv", "code", "text"),
    [
        (["--check-config"], 0, ""),
        (["--ttl", "65"], 78, "punchd: command line: ttl: expected a whole number from 1 to 64, got 65\n"),
        (["--techniques", "upd"], 78, "punchd: techniques: upd is not installed; did you mean udp?\n"),
        (["--ttl", "x"], 2, "punchd: argument --ttl: invalid int value: 'x'; see punchd --help\n"),
    ],
)
def test_a_real_process_ends_with_the_code_and_the_line(argv: list[str], code: int, text: str) -> None:
    command = [sys.executable, "-W", "error", "-m", "punchd.cli.punchd", *argv]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (code, text)


def test_an_argument_that_is_not_utf8_ends_in_one_line_too() -> None:
    command = [sys.executable.encode(), b"-m", b"punchd.cli.punchd", b"--log-level", b"\xff\x1b[2J"]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False, env={**os.environ, "LC_ALL": "C"})
    assert done.returncode == 78
    assert done.stderr.count(b"\n") == 1
    assert b"\x1b" not in done.stderr
