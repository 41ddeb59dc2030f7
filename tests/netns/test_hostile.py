"""A hostile member of the group: nothing leaves that must not, no limit is passed, and others are served as before."""

from __future__ import annotations

import time
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

import pytest
import trio

from tests.crowd import Usage
from tests.hostile import PACKETS, Fares, Scene, measure, scene, summary, watch
from tests.netns.daemons import until
from tests.wire_watch import findings

pytestmark = [pytest.mark.netns, pytest.mark.timeout(900)]

SEED = 13
ALLOWED = ["203.0.113.0/25"]  # what the policy leaves
MOST_DESCRIPTORS = 16 + 32 * 12  # connections; attempts, each with a port and a round's sockets
MOST_GROWTH_BYTES = 32 << 20
ANSWERED_S = 2.0  # on a busy machine
CODES = {
    *("bad-message", "too-long", "bad-address", "bad-option", "bad-port", "bad-token", "not-permitted", "busy"),
    *("unknown-id", "cancelled"),
}


async def responsive(scene: Scene, ended: Callable[[], bool]) -> tuple[int, float]:
    """Until that is so: the most descriptors the daemon had, and how long it took to greet at worst."""
    descriptors, worst_s = 0, 0.0
    while not ended():
        began = time.perf_counter()
        with scene.near.talk() as talk:
            talk.send("hello|1")
            assert talk.line().startswith("ok|-|hello|")
        worst_s = max(worst_s, time.perf_counter() - began)
        descriptors = max(descriptors, Usage.of(scene.near.pid).descriptors)
        await trio.sleep(0.1)
    return descriptors, worst_s


@pytest.mark.parametrize("count", [3000, pytest.param(100_000, marks=pytest.mark.long)])
async def test_of_hostile_requests_no_packet_leaves_outside_policy_and_no_limit_is_passed(
    tmp_path: Path, count: int
) -> None:
    """Without the daemon's pace, which would make the same take ten times as long."""
    with scene(paced=False) as found:
        servers = {ip_address(server.rpartition(":")[0]) for server in found.laboratory.stun}
        idle = Usage.of(found.near.pid)
        with found.laboratory.trace(tmp_path / "trace", ["a"]) as trace:
            hostile = found.hostile(SEED, count)
            descriptors, worst_s = await responsive(found, lambda: hostile.poll() is not None)
            said = summary(hostile)
            await trio.sleep(2.5)  # what was begun has a timeout of two seconds at most

        print(
            {name: said[name] for name in ("requests", "answers", "made", "codes")}, f"greeted within {worst_s:.3f} s"
        )
        assert said["requests"] >= count
        assert set(said["codes"]) >= CODES
        assert "internal" not in said["codes"], found.near.output
        assert "rror" not in found.near.output

        seen = findings(trace.files["a"], {ip_address(address) for address in found.own}, ALLOWED, servers)
        assert not seen.wrong
        rounds = {int(port): number for port, number in said["rounds"].items()}
        for port, packets in seen.by_port.items():
            assert packets <= PACKETS * rounds.get(port, rounds[0]), f"port {port}"
        assert sum(seen.by_port.values()) > count / 10, "a capture of nothing proves nothing"

        assert descriptors <= idle.descriptors + MOST_DESCRIPTORS
        assert worst_s < ANSWERED_S
        until(lambda: Usage.of(found.near.pid).descriptors <= idle.descriptors, "all of it is closed again")
        assert Usage.of(found.near.pid).resident_bytes < idle.resident_bytes + MOST_GROWTH_BYTES
        fares = Fares()
        await watch(found, fares, 1)
        assert fares.waits["attempt"], "and attempts succeed"
        assert not fares.lost


@pytest.mark.parametrize(
    ("seconds", "most"), [(3.0, 5.0), pytest.param(120.0, 1.1, marks=pytest.mark.long)], ids=["short", "long"]
)
async def test_other_users_probes_and_attempts_take_hardly_longer_meanwhile(seconds: float, most: float) -> None:
    """With the default limits, and peers and servers 20 ms away. A short run says little about percentiles."""
    with scene(paced=True, delay_s=0.02) as found:
        quiet, busy = await measure(found, seconds, SEED)
        assert not busy.lost
        for kind in ("probe", "attempt"):
            before, after = quiet.quantile(kind, 0.99), busy.quantile(kind, 0.99)
            assert after < most * before, f"{kind}: {before * 1000:.1f} ms without, {after * 1000:.1f} ms with"
