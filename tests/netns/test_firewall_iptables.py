"""The legacy tables in a namespace: other writers, other people's rules, the lock."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from punchd.kernel.firewall import lock
from tests.natlab import Laboratory, Node, Site
from tests.netns.firewall_process import NEEDS_IPTC, Daemon, daemon

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="builds network namespaces: run the tests as root"),
    NEEDS_IPTC,
]

LEGACY = ("iptables-legacy", "ip6tables-legacy")
COUNT = 60


@pytest.fixture
def host() -> Iterator[Node]:
    with Laboratory([Site("a")], stun=False) as lab:
        yield lab.site("a").host


def iptables(host: Node, *words: str, version: int = 4) -> list[str]:
    """What iptables prints, as lines."""
    command = [LEGACY[version == 6], "-w", *words]
    return str(host.run(command, capture_output=True, text=True, check=True).stdout).splitlines()


def hold_all(running: Daemon, ports: range) -> None:
    for port in ports:
        running.hold(port)


def test_only_rules_of_dead_daemons_are_removed(host: Node) -> None:
    with daemon(host, "iptables") as dead, daemon(host, "iptables") as alive:
        dead.hold(40001)
        dead.hold(40001, 6)
        alive.hold(40002)
        dead.kill()
        (line,) = (line for line in iptables(host, "-S", "INPUT") if f"punchd:{dead.pid}:" in line)
        tag = line.split('"punchd:')[1].split('"')[0]
        foreign = [
            ["-s", "192.0.2.1/32", "-m", "comment", "--comment", "punchd:1:1:1:1:00"],
            ["-s", "192.0.2.2/32", "-m", "comment", "--comment", f"punchd:{tag}"],
            ["-p", "icmp", "-m", "icmp", "--icmp-type", "11", "-m", "comment", "--comment", f"punchd:{tag}"],
            ["-m", "comment", "--comment", "a rule for punchd"],
            ["-m", "comment", "--comment", f"not punchd:{tag}"],
        ]
        for words in foreign:
            iptables(host, "-A", "INPUT", *words, "-j", "DROP")
            iptables(host, "-I", "INPUT", *words, "-j", "ACCEPT")
        before = iptables(host, "-S")
        with daemon(host, "iptables") as heir:
            after = iptables(host, "-S")
            assert after == [one for one in before if one != line]
            assert not any("punchd" in one for one in iptables(host, "-S", version=6))
            assert f"process {dead.pid} left behind" in heir.end()
        assert len(before) == len(after) + 1
        assert f"punchd:{alive.pid}:" in "".join(after)


def test_the_rule_stands_before_those_that_accept_related_errors(host: Node) -> None:
    iptables(host, "-A", "INPUT", "-m", "conntrack", "--ctstate", "RELATED", "-j", "ACCEPT")
    with daemon(host, "iptables") as running:
        running.hold(40001)
        assert "punchd:" in iptables(host, "-S", "INPUT")[1]
        running.leave(40001)


def test_two_writers_lose_no_rule(host: Node) -> None:
    """Making and undoing, beside adding and deleting: the kernel only notices when the number of rules changed."""

    def write() -> None:
        for number in range(COUNT):
            iptables(host, "-A", "FORWARD", "-s", f"192.0.2.{number}", "-j", "ACCEPT")
            iptables(host, "-A", "OUTPUT", "-s", f"192.0.2.{number}", "-j", "ACCEPT")
            iptables(host, "-D", "OUTPUT", "-s", f"192.0.2.{number}", "-j", "ACCEPT")

    with daemon(host, "iptables") as running:
        other = threading.Thread(target=write)
        other.start()
        for number in range(COUNT):
            running.hold(1000 + number)
            running.hold(2000 + number)
            running.leave(2000 + number)
        other.join()
        lines = iptables(host, "-S")
        assert sum("punchd:" in line for line in lines) == COUNT
        assert sum(line.startswith("-A FORWARD") for line in lines) == COUNT
        assert sum(line.startswith("-A OUTPUT") for line in lines) == 0
        for number in range(COUNT):
            running.leave(1000 + number)
    assert not any("punchd" in line for line in iptables(host, "-S"))


def test_a_writer_who_ignores_the_lock_costs_another_try_but_no_rule(host: Node, tmp_path: Path) -> None:
    """Two daemons that were given different lock files, each adding only: the kernel refuses one, which tries again."""
    with daemon(host, f"iptables@{tmp_path}/a") as one, daemon(host, f"iptables@{tmp_path}/b") as two:
        with ThreadPoolExecutor(2) as pool:
            ports = [range(1000, 1000 + COUNT), range(2000, 2000 + COUNT)]
            list(pool.map(hold_all, [one, two], ports))
        assert sum("punchd:" in line for line in iptables(host, "-S")) == 2 * COUNT


def test_a_held_lock_is_waited_for(host: Node, tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with daemon(host, f"iptables@{path}") as running, open(path, encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        threading.Timer(0.5, fcntl.flock, (file, fcntl.LOCK_UN)).start()
        start = time.monotonic()
        running.hold(40001)
        assert 0.4 < time.monotonic() - start < 2
        running.leave(40001)


def test_a_lock_that_is_never_free_is_said_and_what_could_not_be_undone_is_undone_later(
    host: Node, tmp_path: Path
) -> None:
    path = tmp_path / "lock"
    with daemon(host, f"iptables@{path}") as running, open(path, encoding="ascii") as file:
        running.hold(40001)
        fcntl.flock(file, fcntl.LOCK_EX)
        answer = running.ask("hold 40002 4")
        assert answer == "error firewall iptables: another program has held its lock for 5 s"
        start = time.monotonic()
        running.leave(40001, "cancel")
        assert 0.9 < time.monotonic() - start < 2
        assert ":40001:" in "".join(iptables(host, "-S"))
        fcntl.flock(file, fcntl.LOCK_UN)
        running.hold(40003)
        assert ":40001:" not in "".join(iptables(host, "-S"))
        running.leave(40003)


def test_an_administrator_who_flushes_the_rules_is_no_error(host: Node) -> None:
    with daemon(host, "iptables") as running:
        running.hold(40001)
        iptables(host, "-F")
        running.leave(40001)
        running.hold(40001)
        running.leave(40001)
        assert running.end() == ""


def test_the_lock_is_the_one_that_iptables_takes(host: Node) -> None:
    """While this process holds the file, iptables does not write."""
    holder = lock.XtablesLock()
    while not holder.acquire():
        time.sleep(0.01)
    try:
        done = host.run(["iptables-legacy", "-w", "1", "-A", "INPUT"], capture_output=True, text=True)
        assert done.returncode != 0
        assert "Another app is currently holding the xtables lock" in done.stderr
    finally:
        holder.close()


def test_a_lock_file_that_cannot_be_opened_is_a_clear_error(host: Node, tmp_path: Path) -> None:
    (tmp_path / "target").touch()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    refused = Daemon(host, f"iptables@{tmp_path}/link")
    assert refused.greeting.startswith("error firewall iptables: open the lock ")
    refused.end()
