"""Where textbook simultaneous open collapses: routers that answer the uninvited, on both sides of unequal links.

A SYN that comes before the other side has opened its NAT draws an RST or an ICMP error there, or takes the port of a
bare router; the shorter link makes sure that it does. `./dev bench tcp-time` prints the textbook's share beside ours.
"""

from __future__ import annotations

import pytest
import trio

from tests.natlab import Link
from tests.netns.tcp_pair import LATE_S, SEQUENCE, Pair, assert_usable, pair
from tests.pair import Channel, applications, attempt

pytestmark = [pytest.mark.netns, pytest.mark.timeout(600)]

LINKS = (Link(delay_s=0.012), Link(delay_s=0.028))
CHANNEL_S = 0.06
AT_ONCE = 5
SAMPLE, ALL = 15, 100


@pytest.mark.parametrize("count", [SAMPLE, pytest.param(ALL, marks=pytest.mark.long)])
@pytest.mark.parametrize("techniques", ["tcp-nutss", SEQUENCE])
@pytest.mark.parametrize("kind", ["rst", "icmp-prohibited", "no-filter"])
async def test_every_attempt_connects_between_two_routers_that_answer_the_uninvited(
    kind: str, techniques: str, count: int
) -> None:
    failures: list[str] = []
    room = trio.CapacityLimiter(AT_ONCE)
    async with pair(kind, kind, links=LINKS) as both, trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(_note_failure, both, techniques, failures, room)
    assert not failures, "\n".join(failures)


async def _note_failure(both: Pair, techniques: str, failures: list[str], room: trio.CapacityLimiter) -> None:
    async with room, applications(both.daemons[0].path, both.daemons[1].path) as (a, b):
        channel = Channel(delay_s=CHANNEL_S)
        outcome = await attempt(a, b, late_s=LATE_S, channel=channel, techniques=techniques, timeout_ms=30_000)
        try:
            await assert_usable(outcome)
        except (AssertionError, trio.BrokenResourceError) as error:
            failures.append(f"{error!r} {outcome.explain()}")
        finally:
            outcome.close()
