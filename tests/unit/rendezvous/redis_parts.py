"""Stores and servers on a Redis that a test started."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_address

import trio

from punchd.redis import url as redis_url
from punchd.rendezvous.redis_store import RedisStore
from punchd.rendezvous.settings import Limits, Settings
from punchd.rendezvous.store import Registered, Store
from punchd.rendezvous.views import Policy, Timing
from tests.unit.rendezvous.redis_server import RedisServer
from tests.unit.rendezvous.running import GENEROUS_SETTINGS

PATIENCE_S = 30.0
IP = ip_address("192.0.2.1")


def shared_settings(redis: RedisServer) -> Settings:
    return replace(GENEROUS_SETTINGS, store=redis.url)


async def until(is_so: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE_S):
        while not is_so():  # noqa: ASYNC110 (nobody tells)
            await trio.sleep(0.01)


async def is_up(store: RedisStore) -> None:
    await until(lambda: store._link.is_up)


async def is_down(store: RedisStore) -> None:
    await until(lambda: not store._link.is_up)


async def registered(store: Store) -> Registered:
    new = await store.register(IP)
    assert new is not None
    return new


@asynccontextmanager
async def redis_stores(
    redis: RedisServer,
    count: int = 1,
    *,
    timing: Timing | None = None,
    policy: Policy | None = None,
    limits: Limits | None = None,
    clock: Callable[[], float] | None = None,
) -> AsyncIterator[list[RedisStore]]:
    """As many stores as servers would have, which run."""
    place = redis_url.parse(redis.url, "store")
    stores = [
        RedisStore(place, timing or Timing(), policy or Policy(), limits or Limits(), clock=clock) for _ in range(count)
    ]
    async with trio.open_nursery() as nursery:
        for store in stores:
            nursery.start_soon(store.run)
        for store in stores:
            await is_up(store)
        yield stores
        nursery.cancel_scope.cancel()
