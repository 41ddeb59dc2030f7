"""What an attempt costs the daemons: CPU and memory, alone and among many, with each technique."""

from __future__ import annotations

import tempfile
from pathlib import Path

import trio

from tests.crowd import Usage, busy_pair, crowd
from tests.pair import RunningDaemon, attempt

ALONE = 50
TOGETHER = {"udp": 200, "tcp-nutss": 100, "tcp-syni": 100, "tcp-repair": 100}


async def main() -> None:
    for technique, together in TOGETHER.items():
        await measure(technique, together)


async def measure(technique: str, together: int) -> None:
    """Prints the figures of one technique."""
    with tempfile.TemporaryDirectory() as directory:
        async with busy_pair(Path(directory), technique) as (running, a, b):
            (await attempt(a, b, techniques=technique)).close()  # what is imported and allocated once

            before = [_usage(daemon) for daemon in running]
            for _ in range(ALONE):
                (await attempt(a, b, techniques=technique)).close()
            alone = _report("one by one", ALONE, before, [_usage(daemon) for daemon in running])

            before = [_usage(daemon) for daemon in running]
            began = trio.current_time()
            outcomes = await crowd(a, b, together, technique)
            seconds = trio.current_time() - began
            crowded = _report(f"{together} at once", together, before, [_usage(daemon) for daemon in running])

            connected = sum(outcome.connected for outcome in outcomes)
            for outcome in outcomes:
                outcome.close()
            print(f"crowd: {technique}, {connected} of {together} connected in {seconds:.2f} s")
            print(f"  ratio       {crowded / alone:.2f} of the CPU an attempt takes alone")


def _usage(daemon: RunningDaemon) -> Usage:
    return Usage.of(daemon.process.pid)


def _report(title: str, count: int, before: list[Usage], after: list[Usage]) -> float:
    cpu_ms = [(late.cpu_s - early.cpu_s) / count * 1000 for early, late in zip(before, after, strict=True)]
    grown_kib = [
        (late.resident_bytes - early.resident_bytes) / count / 1024 for early, late in zip(before, after, strict=True)
    ]
    print(
        f"  {title:14} initiator's daemon {cpu_ms[0]:.1f} ms CPU an attempt, responder's {cpu_ms[1]:.1f} ms; "
        f"resident {grown_kib[0]:+.1f} and {grown_kib[1]:+.1f} KiB an attempt"
    )
    return sum(cpu_ms)
