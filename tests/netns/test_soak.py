"""Hundreds of attempts, or tens of thousands: the daemons hold afterwards what they held before.

PUNCHD_SOAK_MINUTES and PUNCHD_SOAK_ATTEMPTS say how long the long one is; whichever comes first.
"""

from __future__ import annotations

import gc
import os
import sys
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from statistics import linear_regression

import pytest

from punchd.errors import PunchdError
from punchd.kernel.routes import Routes
from tests.soak import Census, Soak, soak

MINUTES = float(os.environ.get("PUNCHD_SOAK_MINUTES", "30"))
ATTEMPTS = int(os.environ.get("PUNCHD_SOAK_ATTEMPTS", "20000"))

pytestmark = [pytest.mark.netns, pytest.mark.timeout(240 + int(MINUTES * 90))]

WARM_UP = 60  # attempts: what is imported, cached and allocated once
SLACK = 8  # descriptors, tasks, sockets: what the undoing of a last attempt may still hold
BLOCKS_AN_ATTEMPT = 12  # what is remembered on purpose, for two minutes or 2,048 ports; a task has over fifty
LOST = 0.05  # of the attempts, on a busy machine
LONG_BYTES_AN_ATTEMPT = 100  # of resident memory, over the second half of a long soak; noise of the allocator


def assert_nothing_is_left(before: list[Census], after: list[Census], attempts: int) -> None:
    for early, late in zip(before, after, strict=True):
        told = f"{attempts} attempts: before {early}; after {late}"
        assert late.descriptors <= early.descriptors + SLACK, told
        assert late.tasks <= early.tasks + SLACK, told
        assert late.sockets <= early.sockets + SLACK, told
        assert late.threads <= early.threads + SLACK, told
        assert late.rules == early.rules, told
        assert late.blocks <= early.blocks + BLOCKS_AN_ATTEMPT * attempts, told


def assert_as_meant(found: Soak) -> None:
    lost = {kind: number for kind, number in found.outcomes.items() if kind.startswith(("lost", "deaf"))}
    assert sum(lost.values()) <= LOST * found.attempts, lost
    assert {"won", "nobody", "cancelled", "killed"} <= set(found.outcomes)
    for daemon in found.running:
        assert "Traceback" not in daemon.output, daemon.output[-3000:]


async def test_a_few_hundred_attempts_of_all_outcomes_leave_nothing_in_the_daemons(tmp_path: Path) -> None:
    """A leak of one descriptor, task or rule an attempt is thirty times what is allowed."""
    with soak(tmp_path) as found:
        await found.run(WARM_UP, 60)
        before = await found.census()
        await found.run(250, 60)
        after = await found.census()
        assert_nothing_is_left(before, after, found.attempts - WARM_UP)
        assert_as_meant(found)


@pytest.mark.long
async def test_half_an_hour_of_attempts_leaves_nothing_and_memory_does_not_grow(tmp_path: Path) -> None:
    with soak(tmp_path) as found:
        await found.run(WARM_UP, 60)
        first = await found.census()
        seen = [(found.attempts, first)]
        for _ in range(20):
            await found.run(ATTEMPTS // 20, MINUTES * 60 / 20)
            seen.append((found.attempts, await found.census()))
            print(found.attempts, *seen[-1][1], sep="; ")
        later = seen[len(seen) // 2 :]
        for number in range(len(first)):
            counts, resident = zip(*((count, census[number].resident_kib) for count, census in later), strict=True)
            slope = linear_regression(counts, resident).slope * 1024
            print(f"daemon {number}: {slope:.0f} bytes an attempt")
            assert slope < LONG_BYTES_AN_ATTEMPT, seen
        assert_nothing_is_left(later[0][1], seen[-1][1], seen[-1][0] - later[0][0])
        assert_as_meant(found)


def test_a_thousand_questions_about_routes_leave_nothing_behind() -> None:
    def ask(routes: Routes) -> None:
        for target in ("127.0.0.1", "255.255.255.255", "2001:db8::9"):
            with suppress(PunchdError):
                routes.to(ip_address(target))

    with Routes() as routes:
        for _ in range(100):
            ask(routes)
        gc.collect()
        before = sys.getallocatedblocks()
        for _ in range(1000):
            ask(routes)
        gc.collect()
        assert sys.getallocatedblocks() < before + 1000
