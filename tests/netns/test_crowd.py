"""200 attempts at once through one pair of daemons."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crowd import Usage, busy_pair, crowd

pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]


async def test_two_hundred_attempts_at_once_all_succeed_and_leave_nothing_in_the_daemons(tmp_path: Path) -> None:
    async with busy_pair(tmp_path) as (running, a, b):
        idle = [Usage.of(daemon.process.pid).descriptors for daemon in running]

        outcomes = await crowd(a, b, 200)

        failed = [outcome.explain() for outcome in outcomes if not outcome.connected]
        assert len(outcomes) == 200
        assert not failed, "\n".join(failed)
        for daemon, before in zip(running, idle, strict=True):
            assert Usage.of(daemon.process.pid).descriptors <= before
        for outcome in outcomes:
            outcome.close()
