"""Many attempts at once through one pair of daemons."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.crowd import Usage, busy_pair, crowd

pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]

HANG_S = 10.0
TCP = ("tcp-nutss", "tcp-syni", "tcp-repair", "tcp-syni,tcp-nutss,udp")


@pytest.mark.parametrize(
    ("techniques", "count"),
    [
        ("udp", 200),
        *[(techniques, 20) for techniques in TCP],
        # A hundred at once keep two cores busy for a second and more: on a machine that does something else as well the
        # rounds of the last ones run out of time.
        *[pytest.param(techniques, 100, marks=pytest.mark.long) for techniques in TCP],
    ],
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
            await closed_down(daemon.process.pid, before)
        for outcome in outcomes:
            outcome.close()


async def closed_down(pid: int, before: int) -> None:
    """The verdict comes a moment before the attempt's last sockets are closed."""
    with trio.fail_after(HANG_S):
        while Usage.of(pid).descriptors > before:  # noqa: ASYNC110 (another process does not tell)
            await trio.sleep(0.01)
