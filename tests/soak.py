"""Attempts without end between two daemons, of every kind and every outcome, and what the daemons hold afterwards.

Outcomes: a socket, nobody there, cancelled by either side, an application that is gone in the middle. What is counted
is counted when nothing runs, so that it can be compared.
"""

from __future__ import annotations

import json
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import trio

from punchd.client import AttemptError
from punchd.client.trio_client import Daemon
from tests.crowd import LIMITS, Usage
from tests.natlab import KINDS, Host, Laboratory, Site
from tests.netns.daemons import Punchd, punchd, until
from tests.pair import attempt, exchange, stun_arguments

TECHNIQUES = ("udp", "tcp-nutss", "tcp-syni")
NOBODY = "203.0.113.77"
SETTLE_S = 20.0  # a kept port, a responder that waits for another offer: until the longest of them is over
AT_ONCE = 4
SHORT_MS = 1000
LISTS = ("udp", "udp6", "tcp", "tcp6", "raw", "raw6", "packet", "icmp")  # /proc/net
KEPT_PORT_S = 2


@dataclass(frozen=True, slots=True)
class Census:
    """What one daemon holds, and its host on its account, while no attempt runs."""

    resident_kib: int
    descriptors: int
    threads: int
    tasks: int
    blocks: int  # of memory that Python has in use: a leak of one small value an attempt shows
    rules: int  # lines of the host's rulesets
    sockets: int  # of the host, without its TIME-WAIT

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in asdict(self).items())


@dataclass(slots=True)
class Soak:
    """Two daemons and what became of the attempts between them."""

    hosts: list[Host]
    running: list[Punchd]
    rng: random.Random
    outcomes: Counter[str] = field(default_factory=Counter)

    @property
    def attempts(self) -> int:
        return self.outcomes.total()

    async def run(self, attempts: int, seconds: float) -> None:
        """So many attempts, or for so long, whichever comes first."""
        last, deadline = self.attempts + attempts, trio.current_time() + seconds

        async def work() -> None:
            near, far = (str(daemon.path) for daemon in self.running)
            async with Daemon.connect(near) as a, Daemon.connect(far) as b:
                while self.attempts < last and trio.current_time() < deadline:
                    await self._one(a, b)

        async with trio.open_nursery() as nursery:
            for _ in range(AT_ONCE):
                nursery.start_soon(work)

    async def _one(self, a: Daemon, b: Daemon) -> None:
        technique = self.rng.choice(TECHNIQUES)
        kinds = {"won": 10, "nobody": 1, "cancelled": 2, "killed": 2}
        (kind,) = self.rng.choices(list(kinds), list(kinds.values()))
        match kind:
            case "won":
                outcome = await attempt(a, b, techniques=technique, timeout_ms=10_000)
                if outcome.connected and await exchange(outcome) != (1, 1):
                    kind = "deaf"
                elif not outcome.connected:
                    kind = f"lost {technique}: {outcome.explain()}"
                outcome.close()
            case "nobody":
                with suppress(AttemptError):
                    async with a.initiate(NOBODY, [40000], techniques=technique, timeout_ms=SHORT_MS) as running:
                        await running.connect(_drop, _silence())
            case "cancelled":
                with trio.move_on_after(self.rng.uniform(0, 0.08)):
                    (await attempt(a, b, techniques=technique)).close()
            case _:
                await trio.to_thread.run_sync(self._vanish, technique, self.rng.uniform(0, 0.05))
        self.outcomes[kind] += 1

    def _vanish(self, technique: str, after_s: float) -> None:
        """An application that ends without a word, as SIGKILL would have it: its socket is closed, answers unread."""
        with self.running[0].talk() as talk:
            talk.send("probe|p|udp", f"initiate|x|{technique}|{self.hosts[1].public_ipv4}|40000", "probe|q|tcp")
            time.sleep(after_s)

    async def census(self) -> list[Census]:
        """Of both daemons, once what ran is undone."""
        await trio.sleep(KEPT_PORT_S + 0.5)
        return [await self._settled(host, daemon) for host, daemon in zip(self.hosts, self.running, strict=True)]

    async def _settled(self, host: Host, daemon: Punchd) -> Census:
        """The least of several looks: the undoing of the last attempts goes on for a while."""
        best = _census(host, daemon)
        with trio.move_on_after(SETTLE_S):
            for _ in range(5):
                await trio.sleep(0.3)
                best = min(best, _census(host, daemon), key=lambda one: (one.tasks, one.descriptors, one.sockets))
        return best


async def _drop(token: str) -> None:
    """Nobody takes tokens to nobody."""


def _silence() -> trio.MemoryReceiveChannel[str]:
    return trio.open_memory_channel[str](0)[1]


def _census(host: Host, daemon: Punchd) -> Census:
    seen = daemon.output.count("census ")
    daemon.send(signal.SIGUSR1)
    until(lambda: daemon.output.count("census ") > seen and daemon.output.endswith("\n"), "it counts")
    counted = json.loads(daemon.output.rpartition("census ")[2].partition("\n")[0])
    rules = host.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout
    legacy = host.run(["iptables-legacy-save"], capture_output=True, text=True, check=False).stdout
    usage = Usage.of(daemon.pid)
    return Census(
        usage.resident_bytes // 1024,
        usage.descriptors,
        int(daemon.status()["Threads"]),
        counted["tasks"],
        counted["blocks"],
        sum("counter packets" not in line for text in (rules, legacy) for line in text.splitlines() if line[:1] != "#"),
        _sockets(host),
    )


def _sockets(host: Host) -> int:
    with host.entered():
        lists = [Path(f"/proc/thread-self/net/{name}").read_text().splitlines()[1:] for name in LISTS]
    time_wait = "06"
    return sum(line.split()[3] != time_wait for lines in lists for line in lines)


@contextmanager
def soak(directory: Path, seed: int = 1) -> Iterator[Soak]:
    """Two daemons behind two port-restricted NATs, with raised limits."""
    settings = directory / "punchd.toml"
    settings.write_text(f"{LIMITS}kept-port-seconds = {KEPT_PORT_S}\n")
    with Laboratory([Site("a", KINDS["apdf"]), Site("b", KINDS["apdf"])]) as laboratory:
        words = [*stun_arguments(laboratory.stun), "--config", str(settings), "--techniques", ",".join(TECHNIQUES)]
        hosts = [laboratory.site(name).host for name in "ab"]
        command = (sys.executable, "-m", "tests.counting_daemon")
        quiet = ("--log-level", "error")
        with (
            punchd(directory, *words, *quiet, starter=hosts[0].popen, command=command, name="near") as near,
            punchd(directory, *words, *quiet, starter=hosts[1].popen, command=command, name="far") as far,
        ):
            yield Soak(hosts, [near.ready(), far.ready()], random.Random(seed))
