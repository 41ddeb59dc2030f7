"""Whose a namespace is, read from its name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.natlab import leftovers
from tests.natlab.leftovers import new_prefix, sweep


def test_prefixes_differ_and_name_their_owner() -> None:
    first, second = new_prefix(), new_prefix()
    assert first != second
    assert first.startswith(f"natlab-{os.getpid()}-")


@pytest.mark.parametrize(
    ("owner", "stays"),
    [
        ("self", True),
        ("dead", False),
        ("zombie", False),
        ("self, another start", False),
        ("stranger", True),
    ],
)
def test_only_the_namespaces_of_dead_owners_are_swept(
    owner: str, stays: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftovers, "DIRECTORY", tmp_path)
    child = subprocess.Popen([sys.executable, "-c", "print(open('/proc/self/stat').read())"], stdout=subprocess.PIPE)
    assert child.stdout is not None
    with child.stdout:
        start = child.stdout.read().rpartition(b")")[2].split()[19].decode()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, but its exit status is still there
    if owner != "zombie":
        child.wait()
    name = {
        "self": new_prefix() + "core",
        "dead": f"natlab-{child.pid}-{start}-0-core",
        "zombie": f"natlab-{child.pid}-{start}-0-core",
        "self, another start": f"natlab-{os.getpid()}-1-0-core",
        "stranger": "natlab-but-not-ours",
    }[owner]
    (tmp_path / name).touch()
    swept = sweep()
    child.wait()
    assert swept == ([] if stays else [name])
    assert (tmp_path / name).exists() is stays


def test_sweeping_without_any_namespaces_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "DIRECTORY", tmp_path / "absent")
    assert sweep() == []
