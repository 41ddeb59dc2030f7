"""`python -m tests.natlab` as a person types it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.natlab import KINDS
from tests.natlab.namespace import DIRECTORY

ROOT = Path(__file__).parents[2]
PATIENCE_S = 20.0

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="builds network namespaces: run the tests as root")
pytestmark = pytest.mark.netns


def natlab(*words: str, text: str = "", shell: str = "/bin/sh") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.natlab", *words],
        cwd=ROOT,
        input=text,
        env={**os.environ, "SHELL": shell},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )


def test_the_list_names_every_kind_with_its_summary() -> None:
    listing = natlab("--list").stdout
    for name, nat in KINDS.items():
        assert f"{name} " in listing
        assert nat.summary in listing


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["apfd", "full-cone"], "natlab: no kind of NAT is called 'apfd'; the nearest is 'apdf' (--list shows all)\n"),
        (["apdf"], "natlab: expected two kinds of NAT, or --list to see them\n"),
    ],
)
@needs_root
def test_a_mistake_is_answered_in_one_line(words: list[str], message: str) -> None:
    done = natlab(*words)
    assert (done.returncode, done.stderr) == (2, message)


@needs_root
def test_a_shell_opens_in_host_a_and_reads_commands_from_a_pipe() -> None:
    done = natlab("apdf", "carrier", text="ip -o -4 addr show eth0; echo stun $STUN; echo peer $PEER; exit 7\n")
    assert done.returncode == 7
    assert "100.100.1.2/24" in done.stdout
    assert "stun 192.0.2.10:3478 192.0.2.20:3478" in done.stdout
    assert "peer 203.0.113.1" in done.stdout
    assert "isp-left" in done.stdout


@needs_root
def test_kinds_can_be_proven_from_the_command_line() -> None:
    done = natlab("--prove", "apdf", "seq-rewrite")
    assert done.returncode == 0
    assert "sequence_kept: no" in done.stdout
    assert "NOT AS DESCRIBED" not in done.stdout


@needs_root
def test_cleaning_says_what_it_did() -> None:
    assert natlab("--clean").stdout.endswith("namespaces of dead laboratories removed\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@needs_root
def test_interrupted_it_goes_without_a_trace(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.natlab", "apdf", "apdf"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "SHELL": "/bin/sh"},
        process_group=0,
        text=True,
    ) as process:
        assert process.stdout is not None
        while "b-box" not in process.stdout.readline():
            pass
        time.sleep(0.1)  # the shell reads
        os.killpg(process.pid, number)  # as a terminal does
        _, complaint = process.communicate(timeout=PATIENCE_S)
    assert "Traceback" not in complaint
    assert process.returncode == 128 + number
    assert not list(DIRECTORY.glob(f"natlab-{process.pid}-*"))
