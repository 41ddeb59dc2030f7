"""Stores for the tests of what every store does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from punchd.rendezvous.aliases import Aliases
from punchd.rendezvous.clients import Clients
from punchd.rendezvous.memory import MemoryStore
from punchd.rendezvous.settings import Limits
from punchd.rendezvous.signals import Signals
from punchd.rendezvous.store import Store
from punchd.rendezvous.views import Policy, Timing
from tests.unit.rendezvous.redis_parts import redis_stores
from tests.unit.rendezvous.redis_server import RedisServer, needs_redis, redis_server
from tests.unit.rendezvous.store_bench import Bench, Clock


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture(params=["memory", pytest.param("redis", marks=needs_redis)])
def bench(request: pytest.FixtureRequest) -> Bench:
    clock = Clock()

    @asynccontextmanager
    async def in_memory(policy: Policy, limits: Limits) -> AsyncIterator[Store]:
        yield MemoryStore(
            Clients(limits.clients, Timing(), policy),
            Signals(limits.signal_queue, limits.signal_memory, float(limits.signal_seconds)),
            Aliases(limits.aliases_per_client),
            clock=clock,
            unix_clock=clock,
        )

    @asynccontextmanager
    async def in_redis(policy: Policy, limits: Limits) -> AsyncIterator[Store]:
        server: RedisServer = request.getfixturevalue("redis")
        server.ask("FLUSHALL")
        async with redis_stores(server, policy=policy, limits=limits, clock=clock) as [store]:
            yield store

    return Bench(clock, in_memory if request.param == "memory" else in_redis)
