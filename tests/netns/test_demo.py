"""`./dev demo` as a user runs it: what it shows, its exit code, and that nothing stays."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.demo import main

pytestmark = pytest.mark.netns


def demo(*kinds: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.demo", *kinds], capture_output=True, text=True, timeout=90, check=False
    )


def namespaces() -> set[str]:
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return {line.split()[0] for line in listed.splitlines()}


def test_two_chats_connect_and_hear_each_other_and_nothing_stays() -> None:
    before = namespaces()

    shown = demo("no-filter", "symmetric-sequential")

    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "a-box 198.51.100.1" in shown.stdout  # the topology
    assert "bob    round 1 udp: trying" in shown.stdout  # progress of both sides
    assert "alice  connected by udp to 203.0.113.1" in shown.stdout
    assert "round trips" in shown.stdout
    for listener in ("alice", "bob"):
        assert f"hears: Hello {listener}, this is" in shown.stdout
    assert namespaces() <= before


def test_a_pair_that_cannot_connect_says_plainly_why() -> None:
    shown = demo("symmetric-random", "apdf")

    assert shown.returncode == 1, shown.stdout + shown.stderr
    assert "NOT CONNECTED" in shown.stdout
    assert "picks a random port" in shown.stdout
    assert "alice: could not connect: peer-abort" in shown.stdout


@pytest.mark.parametrize("kinds", [["apdf"], ["apdf", "apfd"]], ids=["one kind", "a misspelt kind"])
def test_a_wrong_command_line_gives_one_line_and_exit_code_2(
    kinds: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(kinds) == 2
    assert capsys.readouterr().err.count("\n") == 1
