"""Two brokers that share a Redis, one peer of each pair at either, beside one that keeps its sessions in memory.

Processor time is that of both brokers together; Redis' own is told apart. Latency is measured at a rate that two cores
are to hold, and at the goal. Nothing is pinned: brokers, Redis and the client share all cores, as they do where
somebody runs them on one machine. Everything else is as in `broker_speed`.

PUNCHD_BENCH_STORE is the URL of a Redis to use; without it, one is started, and ends with the bench.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
from collections import defaultdict
from contextlib import ExitStack
from functools import partial
from itertools import cycle
from pathlib import Path

import trio

from tests.bench.broker_servers import Broking, server
from tests.bench.broker_speed import (
    LATENCY_GOAL_MS,
    PAIRS,
    RATE,
    RATE_S,
    SESSIONS,
    TALKERS,
    allow_files,
    joined,
    joined_in_turn,
    latencies,
    messages,
    pairs,
    sessions,
)
from tests.bench.pulse_speed import hurry
from tests.crowd import Usage
from tests.unit.rendezvous.redis_server import REDIS_SERVER, RedisServer, redis_server

ROUNDS = 3
IDLE = 1000
PAIRS_PER_S = 100  # held by two cores
GOAL_PAIRS_PER_S = RATE  # what one broker in memory holds on one core


class Couple(Broking):
    """Two servers as one: clients go to them in turn."""

    def __init__(self, one: Broking, other: Broking) -> None:
        super().__init__(one.process, one.address)
        self._servers = (one, other)
        self._turn = cycle(self._servers)

    def place(self) -> tuple[str, int]:
        return next(self._turn).address

    def cpu_s(self) -> float:
        return sum(one.cpu_s() for one in self._servers)

    def resident_kib(self) -> float:
        return sum(one.resident_kib() for one in self._servers)


async def main() -> None:
    """Print it all."""
    url = os.environ.get("PUNCHD_BENCH_STORE")
    if url is None and REDIS_SERVER is None:
        print("broker-redis: no redis-server (apt-get install redis-server), nothing measured")
        return
    await trio.to_thread.run_sync(measure, url)


def measure(url: str | None) -> None:
    """Blocking, since the client is."""
    allow_files(10_000)
    cores = sorted(os.sched_getaffinity(0))
    priority = os.getpriority(os.PRIO_PROCESS, 0)
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server()) if url is None else None
        secret = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="punchd-bench-"))) / "secret"
        secret.touch(mode=0o600)
        secret.write_text("punchd-bench-secret-0123456789abcdef0123456789abcdef\n")
        shared = ("--secret-file", str(secret), "--store", redis.url if redis else url or "")
        ours = [stack.enter_context(server("ours", cores[-1], words=words)) for words in (shared, shared, ())]
        for one in ours:
            os.sched_setaffinity(one.process.pid, cores)
        couple, alone = Couple(*ours[:2]), ours[2]
        hurry()
        if (
            redis is not None and redis._process is not None
        ):  # else it waits for brokers and client, who run before others
            with contextlib.suppress(PermissionError):
                os.setpriority(os.PRIO_PROCESS, redis._process.pid, os.getpriority(os.PRIO_PROCESS, 0))
        stack.callback(os.setpriority, os.PRIO_PROCESS, 0, priority)
        report({"memory": alone, "redis": couple}, redis)


def report(servers: dict[str, Broking], redis: RedisServer | None) -> None:
    for name, target in servers.items():
        idle(name, target)
    cost_us: dict[tuple[str, str], list[float]] = defaultdict(list)
    of_redis_us: dict[str, list[float]] = defaultdict(list)
    made = {name: sessions(target, "s", SESSIONS) for name, target in servers.items()}
    talkers = {name: joined(target, sessions(target, "t", TALKERS)) for name, target in servers.items()}
    for _ in range(ROUNDS):
        for name, target in servers.items():
            for what, act in (
                ("pair", partial(pairs, target, made[name], PAIRS // 2)),
                ("message", partial(messages, talkers[name])),
            ):
                before_s, redis_before_s = target.cpu_s(), _cpu_s(redis)
                operations = act()
                cost_us[name, what].append((target.cpu_s() - before_s) / operations * 1e6)
                if name == "redis":
                    of_redis_us[what].append((_cpu_s(redis) - redis_before_s) / operations * 1e6)
    cost = {key: statistics.median(values) for key, values in cost_us.items()}
    print(f"broker-redis: two brokers, processor time of both, median of {ROUNDS} rounds")
    for what in ("pair", "message"):
        mine, shared, extra = cost["memory", what], cost["redis", what], statistics.median(of_redis_us[what])
        words = f"{shared:7.1f} us and {extra:.1f} us of Redis' own, in memory {mine:.1f} us"
        print(f"  {what:11} {words}  ratio {shared / mine:.2f}")
    for rate in (PAIRS_PER_S, GOAL_PAIRS_PER_S):
        for name, target in servers.items():
            print(f"  register to peer at {rate} pairs/s: {name:10} {at_rate(target, rate)}")


def at_rate(target: Broking, rate: int) -> str:
    made, seconds = sessions(target, f"l{rate}-", int(rate * RATE_S)), list[float]()
    try:
        seconds = latencies(target, made, rate)
    except* (OSError, trio.TooSlowError):  # too slow for its clients
        pass
    if not seconds:
        return "not held: connections were lost"
    p50, p99 = statistics.median(seconds), statistics.quantiles(seconds, n=100)[98]
    words = f"p50 {p50 * 1e3:.1f} ms, p99 {p99 * 1e3:.1f} ms (goal: {LATENCY_GOAL_MS} or less)"
    return f"{words}, {len(seconds)} pairs"


def idle(name: str, target: Broking) -> None:
    """Of processes that have done little else, since memory that was used once is used again."""
    warm = joined_in_turn(target, sessions(target, "warm", IDLE // 20))
    before = target.resident_kib()
    peers = joined_in_turn(target, sessions(target, "idle", IDLE // 2))
    size_kb = (target.resident_kib() - before) * 1.024 / IDLE
    print(f"broker-redis: idle {name:10} {size_kb:.1f} KB a connection with half a session")
    for peer in (*warm, *peers):
        peer.sock.close()


def _cpu_s(redis: RedisServer | None) -> float:
    return 0.0 if redis is None or redis._process is None else Usage.of(redis._process.pid).cpu_s
