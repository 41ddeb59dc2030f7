"""Redis' clock is set back by an hour: clients go on, those that are gone are forgotten, nobody is locked out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from punchd.rendezvous import pulse
from punchd.rendezvous.pulse import ACCEPTED, UNKNOWN
from punchd.rendezvous.redis_scripts import PREFIX, SWEEP
from punchd.rendezvous.redis_store import SWEPT, RedisStore
from punchd.rendezvous.signals import Posted
from punchd.rendezvous.views import State
from tests.unit.rendezvous.parts import origin
from tests.unit.rendezvous.redis_parts import redis_stores, registered
from tests.unit.rendezvous.redis_server import RedisServer, needs_redis
from tests.unit.rendezvous.store_bench import Clock

pytestmark = needs_redis

BACK = -3600.0


@asynccontextmanager
async def a_store(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[RedisStore, Clock]]:
    """One that sweeps only when a test asks."""
    monkeypatch.setattr("punchd.rendezvous.redis_store.SWEEP_S", 3600.0)
    redis.ask("FLUSHALL")
    clock = Clock()
    async with redis_stores(redis, clock=clock) as [store]:
        yield store, clock


async def test_a_client_that_pulses_stays_and_one_that_does_not_is_gone_in_time(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_store(redis, monkeypatch) as (store, clock):
        here, gone = await registered(store), await registered(store)
        assert await store.pulses([(one.key, origin()) for one in (here, gone)]) == [ACCEPTED] * 2
        for seconds in (0, 30, 60):
            clock.at(BACK + seconds)
            assert await store.pulses([(here.key, origin())]) == [ACCEPTED]
            if not seconds:
                view = await store.lookup(gone.client_id)
                assert view is not None
                assert (view.state, view.last_online, view.addresses[0].age) == (State.ONLINE, 0, 0)
        views = [await store.lookup(one.client_id) for one in (here, gone)]
        assert [view and view.state for view in views] == [State.ONLINE, State.PENDING]
        clock.at(BACK + 220)
        assert await store.lookup(gone.client_id) is None
        assert await store.pulses([(gone.key, origin())]) == [UNKNOWN]


async def test_who_is_met_by_nobody_is_swept_in_time_and_counted_online_no_longer(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_store(redis, monkeypatch) as (store, clock):
        clients = [await registered(store) for _ in range(5)]
        assert await store.pulses([(one.key, origin()) for one in clients]) == [ACCEPTED] * 5
        found = []
        for seconds in (0, 60, 220, 221):
            clock.at(BACK + seconds)
            found.append(await store._call(SWEEP, SWEPT))
        assert found == [[5, 5], [0, 0], [5, 0], [0, 0]]
        assert redis.number("DBSIZE") <= 1  # the probe


async def test_signals_of_the_time_that_the_clock_left_are_dropped_and_new_ones_arrive(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_store(redis, monkeypatch) as (store, clock):
        who, idle = await registered(store), await registered(store)
        for one in (who, idle):
            assert await store.post_signal(who.client_id, one.client_id, "old") is Posted.SENT
        clock.at(BACK)
        assert await store.post_signal(who.client_id, who.client_id, "new") is Posted.SENT
        taken = await store.take_signals(who.client_id, 0)
        assert isinstance(taken, list)
        assert [signal.data for signal in taken] == ["new"]
        await store._call(SWEEP, SWEPT)
        assert redis.number("EXISTS", f"{PREFIX}until", f"{PREFIX}cost") == 0


async def test_signals_survive_a_small_step(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_store(redis, monkeypatch) as (store, clock):
        who = await registered(store)
        assert await store.post_signal(who.client_id, who.client_id, "kept") is Posted.SENT
        clock.at(-2)
        assert (await store._call(SWEEP, SWEPT))[0] == 1
        assert (await store._call(SWEEP, SWEPT))[0] == 0
        taken = await store.take_signals(who.client_id, 0)
        assert isinstance(taken, list)
        assert [signal.data for signal in taken] == ["kept"]


async def test_a_client_whose_clock_was_set_back_as_well_is_not_locked_out(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_store(redis, monkeypatch) as (store, clock):
        who = await registered(store)

        async def send(cookie: bytes = pulse.NO_COOKIE) -> bytes:
            signed = pulse.sign(who.key, who.client_id, int(clock.now * 1000), cookie)
            [reply] = await store.pulses([(signed, origin())])
            return reply

        for seconds in (0, BACK):
            clock.at(seconds)
            reply = pulse.read_reply(await send())
            assert reply.cookie is not None
            clock.at(seconds + 1)
            assert await send(reply.cookie) == ACCEPTED
