"""Where keys are kept."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from punchd.errors import ConfigError
from punchd.punch import keys


def test_a_key_is_made_at_first_use_for_its_owner_alone_and_stays(tmp_path: Path) -> None:
    file = keys.path("default", tmp_path / "punch")
    first = keys.load_or_make(file)
    assert file == tmp_path / "punch" / "keys" / "default.pem"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert [path.name for path in file.parent.iterdir()] == ["default.pem"]
    assert keys.load_or_make(file).address == first.address
    assert keys.load_or_make(keys.path("other", tmp_path / "punch")).address != first.address


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    file = keys.path("default", tmp_path)
    keys.load_or_make(file)
    file.chmod(mode)
    with pytest.raises(ConfigError, match="expected mode 0600"):
        keys.load_or_make(file)


def test_of_two_processes_that_make_a_key_at_once_one_wins_and_both_have_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = keys.path("default", tmp_path)
    winner = keys.load_or_make(file)
    answers = iter([False, True])  # it was not there when we looked, and it was when we wrote
    monkeypatch.setattr(os.path, "exists", lambda path: next(answers))
    assert keys.load_or_make(file).address == winner.address


def test_a_place_that_cannot_be_written_to_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a file")
    with pytest.raises(ConfigError, match=r"keys: (File exists|Not a directory)"):
        keys.load_or_make(keys.path("default", tmp_path))


def test_a_place_that_cannot_be_looked_at_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="File name too long"):
        keys.load_or_make(keys.path("default", tmp_path / ("x" * 300)))


def test_nobody_else_can_put_a_key_in_place_whatever_the_umask_is(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        file = keys.path("default", tmp_path / "punch")
        keys.load_or_make(file)
    finally:
        os.umask(before)
    assert [stat.S_IMODE(place.stat().st_mode) for place in (file, *file.parents[:2])] == [0o600, 0o700, 0o700]


@pytest.mark.parametrize("name", ["", ".", "..", ".x", "a/b", "../x", "a b", "ä", "x" * 65])
def test_a_name_cannot_lead_elsewhere(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected 1 to 64 letters"):
        keys.path(name, tmp_path)


def test_the_directory_is_what_the_xdg_specification_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert keys.directory({"XDG_CONFIG_HOME": "/etc/xdg"}) == Path("/etc/xdg/punch")
    for value in ("", "relative"):
        assert keys.directory({"XDG_CONFIG_HOME": value}) == Path("/home/someone/.config/punch")
