"""Whether the process that left a rule still lives; no answer may take a rule from a daemon at work."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import pytest

from punchd.kernel.firewall import owner
from punchd.kernel.firewall.owner import Owner, is_dead, this_process

ME = this_process()


def other_process() -> tuple[subprocess.Popen[bytes], Owner]:
    """A process that waits for its standard input to end, and who it is."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with open(f"/proc/{process.pid}/stat", encoding="ascii") as file:
        start = int(file.read().rpartition(")")[2].split()[19])
    return process, Owner(process.pid, start, ME.namespace)


def test_this_process_lives() -> None:
    assert not is_dead(ME)


def test_another_process_is_dead_as_soon_as_it_is_killed_even_before_its_parent_notices() -> None:
    process, who = other_process()
    assert not is_dead(who)
    process.kill()
    with open(f"/proc/{process.pid}/stat", encoding="ascii") as file:
        while ") Z" not in file.read():
            file.seek(0)
    assert is_dead(who)
    process.communicate()
    assert is_dead(who)


def test_a_process_that_got_the_id_of_a_dead_one_is_another() -> None:
    assert is_dead(dataclasses.replace(ME, start=ME.start - 1))


def test_nothing_is_said_of_other_pid_namespaces() -> None:
    gone = dataclasses.replace(ME, start=ME.start - 1)
    assert not is_dead(dataclasses.replace(gone, namespace=ME.namespace + 1))


def test_a_process_of_another_user_lives_even_where_proc_hides_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, signal: int) -> None:
        raise PermissionError(pid, signal)

    def hide(pid: int) -> tuple[str, int]:
        raise FileNotFoundError(pid)

    who = dataclasses.replace(ME, pid=1)
    monkeypatch.setattr(os, "kill", refuse)
    monkeypatch.setattr(owner, "_state", hide)
    assert not is_dead(who)


def test_an_id_beyond_all_ids_is_dead() -> None:
    assert is_dead(dataclasses.replace(ME, pid=2**31 - 1))
    assert is_dead(dataclasses.replace(ME, pid=9_999_999_999))
