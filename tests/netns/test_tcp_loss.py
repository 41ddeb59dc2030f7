"""TCP over lossy paths: so many percent per direction, end to end, between the hosts and to the STUN servers alike.

An attempt counts when both sides have their socket and a kilobyte crosses it each way. Several attempts run at once,
on ports of their own; without --long there are fewer of them.
"""

from __future__ import annotations

import math

import pytest
import trio

from punchd.client import AttemptError
from tests.natlab import Link
from tests.netns.tcp_pair import DELAY_S, SEQUENCE, TECHNIQUES, Pair, assert_usable, pair
from tests.pair import applications, attempt

pytestmark = [pytest.mark.netns, pytest.mark.timeout(900)]

AUTO = "tcp-syni,tcp-nutss,udp"
AT_ONCE = 8
DEFAULT_TIMEOUT_MS = 30_000
LOSSY_HANG_S = 90.0  # a kernel repeats a segment after 0.2, 0.4, 0.8 s: ten losses in a row take that long
LONG = pytest.mark.long


async def failures_of(loss: float, techniques: str, count: int) -> list[str]:
    """`count` attempts, probe and all; what went wrong with those that failed."""
    part = 1 - math.sqrt(1 - loss)  # any two of three cables are between the hosts, or between a host and the server
    links = [Link(delay_s=DELAY_S, loss=part, seed=seed) for seed in range(3)]
    failures: list[str] = []
    room = trio.CapacityLimiter(AT_ONCE)
    async with (
        pair("apdf", "apdf", "--techniques", techniques, links=links, server_link=links[2]) as both,
        trio.open_nursery() as nursery,
    ):
        for number in range(count):
            nursery.start_soon(_note_failure, both, techniques, number, failures, room)
    return failures


async def _note_failure(
    both: Pair, techniques: str, number: int, failures: list[str], room: trio.CapacityLimiter
) -> None:
    async with room, applications(both.daemons[0].path, both.daemons[1].path) as (a, b):
        try:
            own = await a.probe("tcp"), await b.probe("tcp")
            outcome = await attempt(a, b, own=own, techniques=techniques, timeout_ms=DEFAULT_TIMEOUT_MS)
        except AttemptError as error:
            failures.append(f"{number}: probe: {error}")
            return
        try:
            if not outcome.connected:
                failures.append(f"{number}: {outcome.explain()}")
            elif "udp" not in outcome.explain():
                await assert_usable(outcome, hang_s=LOSSY_HANG_S)
        except (AssertionError, trio.BrokenResourceError) as error:
            failures.append(f"{number}: {error!r} {outcome.explain()}")
        finally:
            outcome.close()


@pytest.mark.parametrize(
    ("techniques", "count"),
    [
        *((technique, 20) for technique in TECHNIQUES),
        (SEQUENCE, 20),
        *(pytest.param(techniques, 100, marks=LONG) for techniques in (*TECHNIQUES, SEQUENCE, AUTO)),
    ],
)
async def test_at_five_percent_loss_every_attempt_connects_and_carries_data(techniques: str, count: int) -> None:
    failures = await failures_of(0.05, techniques, count)
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize(
    ("techniques", "count"),
    [(SEQUENCE, 40), *(pytest.param(techniques, 100, marks=LONG) for techniques in (SEQUENCE, AUTO))],
)
async def test_at_twenty_percent_loss_95_of_100_attempts_connect_and_carry_data(techniques: str, count: int) -> None:
    failures = await failures_of(0.20, techniques, count)
    assert len(failures) <= count // 20, "\n".join(failures)
