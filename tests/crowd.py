"""Many attempts at once through one pair of daemons: for a test and for the bench."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from punchd.client.trio_client import Daemon
from tests.natlab import KINDS, Laboratory, Site
from tests.pair import Outcome, RunningDaemon, applications, attempt, daemons, exchange, stun_arguments

# Ten times the defaults: what an operator of a busy host would write into the configuration.
LIMITS = """
[limits]
attempts-per-connection = 1000
attempts-per-user = 1000
attempts = 1000
requests-per-second = 10000
request-burst = 10000
user-requests-per-second = 10000
user-request-burst = 10000
user-attempts-per-second = 10000
user-attempt-burst = 10000
unread-bytes = 1000000
"""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process has used so far: CPU seconds, resident bytes, open descriptors."""

    cpu_s: float
    resident_bytes: int
    descriptors: int

    @classmethod
    def of(cls, pid: int) -> Usage:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return cls(
            ticks / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir(f"/proc/{pid}/fd"))
        )


@asynccontextmanager
async def busy_pair(
    directory: Path, techniques: str = "udp"
) -> AsyncIterator[tuple[list[RunningDaemon], Daemon, Daemon]]:
    """Two daemons with raised limits behind two port-restricted NATs, and a connection to each."""
    settings = directory / "punchd.toml"
    settings.write_text(LIMITS)
    with Laboratory([Site("a", KINDS["apdf"]), Site("b", KINDS["apdf"])]) as laboratory:
        words = [*stun_arguments(laboratory.stun), "--config", str(settings), "--techniques", techniques]
        with daemons([(laboratory.site(name).host, words) for name in "ab"]) as running:
            for daemon in running:
                await daemon.until_ready()
            async with applications(running[0].path, running[1].path) as (a, b):
                yield running, a, b


async def crowd(a: Daemon, b: Daemon, count: int, techniques: str = "udp") -> list[Outcome]:
    """`count` attempts at once, each with a port of its own; every socket carries a datagram's worth each way."""
    outcomes: list[Outcome] = []

    async def one() -> None:
        outcome = await attempt(a, b, timeout_ms=30_000, techniques=techniques)
        outcomes.append(outcome)
        if outcome.connected and await exchange(outcome) != (1, 1):
            raise AssertionError(f"a socket that does not carry: {outcome.explain()}")

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(one)
    return outcomes
