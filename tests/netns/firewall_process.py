"""A process that holds exemptions as the daemon does: asked on standard input, and killed in the middle.

`python -m tests.netns.firewall_process SETTING` is that process. It must be one: python-iptables works in the namespace
of whatever thread it runs in.
"""

from __future__ import annotations

import itertools
import logging
import socket
import subprocess
import sys
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
from tests.natlab import Node

NEEDS_IPTC = pytest.mark.skipif(
    find_spec("iptc") is None, reason="python-iptables is missing: .venv/bin/pip install -e '.[iptables]'"
)
BACKENDS = ["nft", pytest.param("iptables", marks=NEEDS_IPTC)]
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


class Daemon:
    """The process, and questions to it."""

    def __init__(self, host: Node, setting: str, *, wrapper: list[str] | None = None) -> None:
        self.process: subprocess.Popen[Any] = host.popen(
            [*(wrapper or []), sys.executable, "-m", "tests.netns.firewall_process", setting],
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
