"""Lossy paths: so many percent per direction, end to end, between the hosts and to the STUN servers alike."""

from __future__ import annotations

import math

import pytest

from punchd.client import AttemptError
from punchd.client.trio_client import Daemon
from tests.natlab import KINDS, Laboratory, Link, Site
from tests.pair import applications, attempt, daemons, exchange, stun_arguments

pytestmark = [pytest.mark.netns, pytest.mark.timeout(600)]

RTT_S = 0.04
DEFAULT_TIMEOUT_MS = 30_000


def lossy(loss: float) -> Laboratory:
    """Three lossy cables, of which any two are between the hosts, or between a host and the server."""
    part = 1 - math.sqrt(1 - loss)
    links = [Link(loss=part, delay_s=RTT_S / 4, seed=seed) for seed in range(3)]
    sites = [Site(name, KINDS["apdf"], wan=link) for name, link in zip("ab", links, strict=False)]
    return Laboratory(sites, server_link=Link(loss=part, seed=2))


async def connected_of(loss: float, count: int) -> list[str]:
    """`count` attempts one after the other, probe and all; what went wrong with those that failed."""
    failures: list[str] = []
    with lossy(loss) as laboratory:
        words = stun_arguments(laboratory.stun)
        with daemons([(laboratory.site(name).host, words) for name in "ab"]) as running:
            for daemon in running:
                await daemon.until_ready()
            async with applications(running[0].path, running[1].path) as (a, b):
                for number in range(count):
                    failures.extend(await _failure(a, b, number))
    return failures


async def _failure(a: Daemon, b: Daemon, number: int) -> list[str]:
    try:
        outcome = await attempt(a, b, timeout_ms=DEFAULT_TIMEOUT_MS)
    except AttemptError as error:
        return [f"{number}: probe: {error}"]
    outcome.close()
    return [] if outcome.connected else [f"{number}: {outcome.explain()}"]


async def test_the_path_loses_what_it_is_said_to_lose() -> None:
    with lossy(0.2) as laboratory:
        words = stun_arguments(laboratory.stun)
        with daemons([(laboratory.site(name).host, words) for name in "ab"]) as running:
            for daemon in running:
                await daemon.until_ready()
            async with applications(running[0].path, running[1].path) as (a, b):
                outcome = await attempt(a, b)
                assert outcome.connected, outcome.explain()
                arrived = await exchange(outcome, count=2000)
                outcome.close()
    # 2,000 datagrams at 80 %: one run in ten thousand falls outside of four standard deviations
    spread = 4 * math.sqrt(2000 * 0.2 * 0.8)
    assert all(abs(number - 1600) < spread for number in arrived), arrived


async def test_at_five_percent_loss_a_hundred_of_a_hundred_attempts_connect() -> None:
    failures = await connected_of(0.05, 100)
    assert not failures, "\n".join(failures)


async def test_at_twenty_percent_loss_at_least_ninety_five_of_a_hundred_connect() -> None:
    failures = await connected_of(0.20, 100)
    assert len(failures) <= 5, "\n".join(failures)
