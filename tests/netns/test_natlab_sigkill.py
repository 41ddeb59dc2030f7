"""A laboratory whose owner is killed at any moment: its programs die, the next run removes the rest, others stay."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.natlab import KINDS, Laboratory, Site
from tests.natlab.leftovers import sweep
from tests.natlab.namespace import DIRECTORY

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="builds network namespaces: run the tests as root"),
]

ROOT = Path(__file__).parents[2]
PATIENCE_S = 5.0

OWNER = """
import sys, time
from tests.natlab import KINDS, Laboratory, Link, Site

sites = [Site("a", KINDS["any-opens"], wan=Link(delay_s=0.01)), Site("b", KINDS["carrier"])]
print("begin", flush=True)
with Laboratory(sites) as lab:
    lab.site("a").host.popen(["sh", "-c", "setsid sleep 1000 & exec sleep 1000"])
    lab.trace(sys.argv[1], ["core"])
    print("up", flush=True)
    time.sleep(1000)
"""


def namespaces_of(pid: int) -> list[Path]:
    return list(DIRECTORY.glob(f"natlab-{pid}-*"))


def inhabitants(namespaces: set[int]) -> list[int]:
    """Processes that live in one of the namespaces, those whose exit status nobody has read not counted."""
    found: list[int] = []
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and Path("/proc", entry, "ns/net").stat().st_ino in namespaces:
                found.append(int(entry))
        except OSError:
            continue
    return found


def wait_for(condition: Callable[[], bool], what: str) -> None:
    limit = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < limit, f"expected in {PATIENCE_S} s: {what}"
        time.sleep(0.002)


@pytest.fixture
def owner(tmp_path: Path) -> subprocess.Popen[str]:
    # Not a context manager: the test kills it, and reaps it at once.
    process = subprocess.Popen([sys.executable, "-c", OWNER, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begin\n"
    return process


def kill(owner: subprocess.Popen[str]) -> None:
    owner.send_signal(signal.SIGKILL)
    assert owner.stdout is not None
    owner.stdout.close()
    owner.wait()


@pytest.mark.parametrize("delay_s", [0.0, 0.01, 0.02, 0.04, 0.06, 0.08, 0.12])
def test_a_kill_in_the_middle_of_set_up_leaves_nothing_after_the_next_sweep(
    owner: subprocess.Popen[str], delay_s: float
) -> None:
    wait_for(lambda: bool(namespaces_of(owner.pid)), "the first namespace")
    time.sleep(delay_s)
    homes = {path.stat().st_ino for path in namespaces_of(owner.pid)}
    kill(owner)
    sweep()
    wait_for(lambda: not inhabitants(homes), "no process in the dead laboratory")
    assert namespaces_of(owner.pid) == []
    assert f"natlab-{owner.pid}-" not in Path("/proc/self/mountinfo").read_text()


def test_programs_die_at_once_with_the_owner_and_only_grandchildren_wait_for_the_sweep(
    owner: subprocess.Popen[str],
) -> None:
    assert owner.stdout is not None
    assert owner.stdout.readline() == "up\n"
    homes = {path.stat().st_ino for path in namespaces_of(owner.pid)}
    # coturn, two stand-ins for the kernel, tcpdump, two sleepers
    wait_for(lambda: len(inhabitants(homes)) == 6, "six programs")
    kill(owner)
    wait_for(lambda: len(inhabitants(homes)) == 1, "all but the grandchild dead, before any sweep")
    assert namespaces_of(owner.pid)
    sweep()
    wait_for(lambda: not inhabitants(homes), "no process in the dead laboratory")
    assert namespaces_of(owner.pid) == []


def test_a_living_laboratory_is_not_touched_when_a_dead_one_is_removed(owner: subprocess.Popen[str]) -> None:
    with Laboratory([Site("a", KINDS["any-opens"])], stun=False) as living:
        child = living.site("a").host.popen(["sleep", "1000"])
        assert owner.stdout is not None
        assert owner.stdout.readline() == "up\n"
        kill(owner)
        before = namespaces_of(os.getpid())
        with Laboratory([Site("a")], stun=False):  # the next run is what sweeps
            assert namespaces_of(owner.pid) == []
        assert namespaces_of(os.getpid()) == before
        assert child.poll() is None
        assert living.site("a").host.run(["ip", "link", "show", "eth0"], capture_output=True).returncode == 0


def test_two_owners_that_live_do_not_sweep_each_other(owner: subprocess.Popen[str]) -> None:
    assert owner.stdout is not None
    assert owner.stdout.readline() == "up\n"
    theirs = namespaces_of(owner.pid)
    assert not [name for name in sweep() if name.startswith(f"natlab-{owner.pid}-")]
    assert namespaces_of(owner.pid) == theirs
    kill(owner)
    sweep()
