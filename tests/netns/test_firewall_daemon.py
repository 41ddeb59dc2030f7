"""A process that holds exemptions as the daemon does: asked on standard input, and killed in the middle.

`python -m tests.netns.test_firewall_daemon SETTING` is that process; the other firewall tests run it in hosts of a
laboratory, too. It must be a process: python-iptables works in the namespace of whatever thread it runs in.
"""

from __future__ import annotations

import itertools
import logging
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import pytest
import trio

from punchd.errors import KernelError
from punchd.kernel.firewall import Exemptions, Firewall, choose
from punchd.kernel.firewall.iptables import IptablesRules
from tests.natlab import Laboratory, Node, Site

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="builds network namespaces: run the tests as root"),
]

NEEDS_IPTC = pytest.mark.skipif(
    find_spec("iptc") is None, reason="python-iptables is missing: .venv/bin/pip install -e '.[iptables]'"
)
BACKENDS = ["nft", pytest.param("iptables", marks=NEEDS_IPTC)]
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
KILLS = 30
WITHOUT_NET_ADMIN = ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"]
OTHER_USER_NAMESPACE = ["unshare", "--user", "--map-root-user"]  # all capabilities, none over the network


class Daemon:
    """The process, and questions to it."""

    def __init__(self, host: Node, setting: str, *, wrapper: list[str] | None = None) -> None:
        self.process: subprocess.Popen[Any] = host.popen(
            [*(wrapper or []), sys.executable, "-m", "tests.netns.test_firewall_daemon", setting],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pid = self.process.pid

    @cached_property
    def greeting(self) -> str:
        """Its first line; several daemons start side by side until they are asked."""
        return self._answer()

    def ask(self, line: str) -> str:
        assert self.process.stdin
        assert self.greeting.startswith("firewall "), self.greeting
        print(line, file=self.process.stdin, flush=True)
        return self._answer()

    def hold(self, port: int, version: int = 4) -> None:
        assert self.ask(f"hold {port} {version}") == "held"

    def leave(self, port: int, how: str = "return", version: int = 4) -> None:
        assert self.ask(f"{how} {port} {version}") == "left"

    def kill(self) -> None:
        self.process.kill()
        self.end()

    def end(self) -> str:
        """Ends it in good order; what it logged."""
        _, errors = self.process.communicate()
        return str(errors)

    def _answer(self) -> str:
        assert self.process.stdout
        return str(self.process.stdout.readline()).rstrip("\n")


@contextmanager
def daemon(host: Node, setting: str, *, wrapper: list[str] | None = None) -> Iterator[Daemon]:
    """The process, in good order until the end of the block."""
    running = Daemon(host, setting, wrapper=wrapper)
    try:
        assert running.greeting.startswith("firewall "), running.greeting + running.end()
        yield running
        running.process.communicate()
        assert running.process.returncode in {0, -9}
    finally:
        running.kill()


def rules(host: Node) -> str:
    """Everything of ours in the host's firewall, and everything else."""
    commands = (["nft", "list", "ruleset"], ["iptables-legacy", "-S"], ["ip6tables-legacy", "-S"])
    text = ""
    for command in commands:
        done = host.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        text += done.stdout
    return text


def has_exemption(host: Node, port: int) -> bool:
    text = rules(host)
    return f" {port} timeout " in text or f":{port}:" in text


@pytest.fixture(scope="module")
def host() -> Iterator[Node]:
    with Laboratory([Site("a")], stun=False) as lab:
        yield lab.site("a").host


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_exemption_ends_with_its_scope_however_that_ends(host: Node, backend: str) -> None:
    before = rules(host)
    with daemon(host, backend) as running:
        for how, version in itertools.product(["return", "cancel", "raise"], FAMILIES):
            running.hold(40001, version)
            assert has_exemption(host, 40001)
            running.leave(40001, how, version)
            assert not has_exemption(host, 40001)
    assert rules(host) == before
    assert "punchd" not in before


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_daemons_in_one_namespace_do_not_disturb_each_other(host: Node, backend: str) -> None:
    with daemon(host, backend) as one, daemon(host, backend) as two:
        one.hold(40001)
        two.hold(40002)
        two.hold(40001)
        one.leave(40001)
        assert has_exemption(host, 40002)
        assert "40001" in rules(host)
        one.kill()
        assert "40001" in rules(host)
        two.leave(40001)
        two.leave(40002)
        assert not has_exemption(host, 40001)


def test_none_changes_nothing(host: Node) -> None:
    before = rules(host)
    with daemon(host, "none") as running:
        assert running.greeting == "firewall none for"
        running.hold(40001)
        assert rules(host) == before


def test_auto_takes_nft(host: Node) -> None:
    with daemon(host, "auto") as running:
        assert running.greeting == "firewall nft for 4 6"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("wrapper", "reason"),
    [(WITHOUT_NET_ADMIN, "CAP_NET_ADMIN"), (OTHER_USER_NAMESPACE, "ermi")],  # permitted, Permission
    ids=["no capability", "capability elsewhere"],
)
def test_without_privilege_a_backend_says_so_and_does_not_hang(
    host: Node, backend: str, wrapper: list[str], reason: str
) -> None:
    start = time.monotonic()
    running = Daemon(host, backend, wrapper=wrapper)
    print(running.greeting)
    running.end()
    assert running.greeting.startswith(f"error firewall {backend}: ")
    assert reason in running.greeting
    assert time.monotonic() - start < 10  # starting Python takes half a second, on a busy machine more


@pytest.mark.parametrize("wrapper", [WITHOUT_NET_ADMIN, OTHER_USER_NAMESPACE], ids=["none", "elsewhere"])
def test_without_privilege_auto_does_without_and_logs_why(host: Node, wrapper: list[str]) -> None:
    running = Daemon(host, "auto", wrapper=wrapper)
    assert running.greeting == "firewall none for"
    log = running.end()
    assert "firewall nft: " in log
    assert "firewall iptables: " in log


def test_after_sigkill_at_any_moment_nothing_of_nft_stays(host: Node) -> None:
    """In quick succession, and always several at a time."""
    chance = random.Random(1)
    for _ in range(KILLS // 6):
        crowd = [Daemon(host, "nft") for _ in range(6)]
        assert [one.ask("storm") for one in crowd] == ["storming"] * 6
        before = rules(host)
        for one in crowd:
            assert f"punchd-{one.pid}-" in before
            time.sleep(chance.random() * 0.02)
            one.kill()
            assert f"punchd-{one.pid}-" not in rules(host)
    assert "punchd" not in rules(host)


@NEEDS_IPTC
def test_after_sigkill_at_any_moment_the_next_start_removes_what_iptables_kept(host: Node) -> None:
    chance = random.Random(2)
    with daemon(host, "iptables") as neighbour:
        neighbour.hold(50000)
        crowd = [Daemon(host, "iptables") for _ in range(6)]
        for number, one in enumerate(crowd):
            one.hold(50001 + number)
            assert one.ask("storm") == "storming"
        for one in crowd:
            time.sleep(chance.random() * 0.02)
            one.kill()
        left = rules(host)
        assert all(f"punchd:{one.pid}:" in left for one in crowd)
        with daemon(host, "iptables"):
            found = rules(host)
        assert [one.pid for one in crowd if f"punchd:{one.pid}:" in found] == []
        assert has_exemption(host, 50000)
    assert "punchd" not in rules(host)


# --- the process ------------------------------------------------------------------------------------------------------


class Held:
    """One scope in a task of its own, ended by order."""

    def __init__(self, firewall: Firewall, port: int, version: int) -> None:
        self._scope = firewall.exempt(port, FAMILIES[version], port.to_bytes(8, "big"))
        self._cancel = trio.CancelScope()
        self._order, self._orders = trio.open_memory_channel[str](1)
        self._gone = trio.Event()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with self._cancel, suppress(ZeroDivisionError):
            async with self._scope:
                task_status.started()
                if await self._orders.receive() == "raise":
                    raise ZeroDivisionError
        self._gone.set()

    async def end(self, how: str) -> None:
        if how == "cancel":
            self._cancel.cancel()
        else:
            self._order.send_nowait(how)
        await self._gone.wait()


async def _storm(firewall: Firewall) -> None:
    """Makes and undoes exemptions until it is killed."""
    for port in itertools.cycle(range(1, 1000)):
        async with firewall.exempt(port, socket.AF_INET, b"storm"):
            pass


async def _obey(firewall: Firewall) -> None:
    held: dict[tuple[int, int], Held] = {}
    async with trio.open_nursery() as nursery:
        while words := (await trio.to_thread.run_sync(sys.stdin.readline)).split():
            if words == ["storm"]:
                for _ in range(3):
                    nursery.start_soon(_storm, firewall)
                print("storming", flush=True)
                continue
            order, key = words[0], (int(words[1]), int(words[2]))
            if order == "hold":
                scope = Held(firewall, *key)
                try:
                    await nursery.start(scope.run)
                except KernelError as error:
                    print("error", error, flush=True)
                else:
                    held[key] = scope
                    print("held", flush=True)
            else:
                await held.pop(key).end(order)
                print("left", flush=True)
        nursery.cancel_scope.cancel()


def main(setting: str) -> None:
    logging.basicConfig(level=logging.INFO)
    backend, _, lock_path = setting.partition("@")
    try:
        firewall = Exemptions(IptablesRules(lock_path)) if lock_path else choose(backend)
    except KernelError as error:
        print("error", error)
        return
    versions = (str(version) for version, family in FAMILIES.items() if family in firewall.families)
    print("firewall", firewall.name, "for", *versions, flush=True)
    trio.run(_obey, firewall)
    firewall.close()


if __name__ == "__main__":
    main(sys.argv[1])
