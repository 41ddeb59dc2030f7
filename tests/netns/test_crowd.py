"""Many attempts at once through one pair of daemons."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crowd import Usage, busy_pair, crowd

pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]


@pytest.mark.parametrize(
    ("techniques", "count"),
    [("udp", 200), ("tcp-nutss", 100), ("tcp-syni", 100), ("tcp-repair", 100), ("tcp-syni,tcp-nutss,udp", 100)],
)
async def test_a_crowd_of_attempts_at_once_all_succeed_and_leave_nothing_in_the_daemons(
    tmp_path: Path, techniques: str, count: int
) -> None:
    async with busy_pair(tmp_path, techniques) as (running, a, b):
        idle = [Usage.of(daemon.process.pid).descriptors for daemon in running]

        outcomes = await crowd(a, b, count, techniques)

        failed = [outcome.explain() for outcome in outcomes if not outcome.connected]
        assert len(outcomes) == count
        assert not failed, "\n".join(failed)
        for daemon, before in zip(running, idle, strict=True):
            assert Usage.of(daemon.process.pid).descriptors <= before
        for outcome in outcomes:
            outcome.close()
