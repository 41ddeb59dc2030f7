"""Several servers on one Redis: what one is told, the others know at once; what they leave behind is nothing."""

from __future__ import annotations

import statistics
from dataclasses import replace
from ipaddress import ip_address
from time import perf_counter

import pytest
import trio

from punchd.rendezvous import identity, pulse
from punchd.rendezvous.pulse import ACCEPTED, UNKNOWN
from punchd.rendezvous.redis_store import RedisStore
from punchd.rendezvous.settings import Limits
from punchd.rendezvous.signals import Posted
from punchd.rendezvous.store import Ended, Registered
from punchd.rendezvous.views import Timing
from tests.unit.rendezvous.parts import origin
from tests.unit.rendezvous.redis_parts import PATIENCE_S, redis_stores, registered, shared_settings, until
from tests.unit.rendezvous.redis_server import RedisServer, needs_redis, redis_server
from tests.unit.rendezvous.running import Pulser, running

pytestmark = needs_redis


@pytest.fixture(autouse=True)
def empty(redis: RedisServer) -> None:
    redis.ask("FLUSHALL")


async def wait(store: RedisStore, who: Registered, found: list[object]) -> None:
    found.append(await store.take_signals(who.client_id, PATIENCE_S))


async def is_waiting(store: RedisStore, who: Registered) -> None:
    """The wait has looked, found nothing, and sleeps."""
    await until(lambda: who.client_id in store._waits and store._waits[who.client_id].number is not None)


async def test_a_pulse_at_one_a_look_up_at_another_a_signal_from_a_third(redis: RedisServer) -> None:
    settings = shared_settings(redis)
    async with running(settings) as one, running(settings) as two, running(settings) as three:
        caller, callee = await three.register(), await one.register()
        with Pulser(one.udp) as pulser:
            assert await pulser.pulse(callee.raw_key) == 1020
            status, told = await two.ask("GET", f"/peer/{callee.id}/udp", caller)
            assert (status, told["port"]) == (200, pulser.port)
        heard: list[tuple[int, dict[str, object]]] = []

        async def listen() -> None:
            heard.append(await one.ask("GET", "/signals?wait=20", callee))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            await is_waiting(one.store, Registered(bytes.fromhex(callee.id), b""))
            status, _ = await three.ask("POST", f"/peer/{callee.id}/signal", caller, b"come")
            assert status == 202
        [(status, answer)] = heard
        assert status == 200
        assert answer["signals"] == [{"from": caller.id, "data": "come", "age": 0}]
        assert (await two.ask("POST", "/logout", callee))[0] == 200
        assert (await one.ask("GET", f"/peer/{callee.id}/udp", caller))[0] == 404
        assert (await three.ask("POST", "/verify", callee))[0] == 401


async def test_the_newest_wait_counts_wherever_it_is(redis: RedisServer) -> None:
    async with redis_stores(redis, 2) as [one, two]:
        who = await registered(one)
        found: list[object] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, one, who, found)
            await is_waiting(one, who)
            nursery.start_soon(wait, two, who, found)
            await is_waiting(two, who)
            await until(lambda: found == [Ended.REPLACED])
            assert await one.post_signal(who.client_id, who.client_id, "x") is Posted.SENT
        assert isinstance(found[1], list)
        assert [signal.data for signal in found[1]] == ["x"]


async def test_a_wait_ends_where_the_client_logs_out_elsewhere_or_expires(redis: RedisServer) -> None:
    async with redis_stores(redis, 2, timing=Timing(1, 0, 1)) as [one, two]:
        leaving, expiring = await registered(one), await registered(one)
        found: list[object] = []
        async with trio.open_nursery() as nursery:
            for who in (leaving, expiring):
                nursery.start_soon(wait, one, who, found)
                await is_waiting(one, who)
            assert await two.logout(leaving.key) == leaving.client_id
        assert found == [Ended.GONE, Ended.GONE]


async def test_many_waits_and_signals_across_servers_each_is_delivered_once(redis: RedisServer) -> None:
    count, each = 20, 10
    async with redis_stores(redis, 3) as stores:
        members = [await registered(stores[number % 3]) for number in range(count)]
        heard: dict[int, list[str]] = {number: [] for number in range(count)}

        async def listen(number: int) -> None:
            place = number
            while len(heard[number]) < each:
                place += 1  # moves on to the next server each time
                found = await stores[place % 3].take_signals(members[number].client_id, PATIENCE_S)
                assert not isinstance(found, Ended)
                heard[number] += [signal.data for signal in found]

        async def post(number: int) -> None:
            for part in range(each):
                sent = await stores[part % 3].post_signal(members[0].client_id, members[number].client_id, str(part))
                assert sent is Posted.SENT

        with trio.fail_after(2 * PATIENCE_S):
            async with trio.open_nursery() as nursery:
                for number in range(count):
                    nursery.start_soon(listen, number)
                    nursery.start_soon(post, number)
        assert all(texts == [str(part) for part in range(each)] for texts in heard.values())


async def test_how_long_a_signal_takes_from_one_server_to_another(redis: RedisServer) -> None:
    async with redis_stores(redis, 2) as [one, two]:
        who = await registered(one)
        taken_s: list[float] = []
        for _ in range(50):
            found: list[object] = []
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait, one, who, found)
                await is_waiting(one, who)
                start = perf_counter()
                assert await two.post_signal(who.client_id, who.client_id, "x") is Posted.SENT
            taken_s.append(perf_counter() - start)
            assert isinstance(found[0], list)
    print(f"\nsignal to another server: median {statistics.median(taken_s) * 1e3:.1f} ms of {len(taken_s)}")


async def test_a_burst_of_pulses_is_one_command(redis: RedisServer) -> None:
    async with redis_stores(redis) as [store]:
        members = [await registered(store) for _ in range(64)]
        assert await store.pulses([(members[0].key, origin())]) == [ACCEPTED]  # the script is there
        redis.ask("CONFIG", "RESETSTAT")
        assert await store.pulses([(one.key, origin()) for one in members]) == [ACCEPTED] * 64
        calls = redis.ask("INFO", "commandstats").decode()
    asked = {
        line.split(":")[0]: int(line.split("calls=")[1].split(",")[0]) for line in calls.splitlines() if "=" in line
    }
    assert 1 <= asked["cmdstat_evalsha"] <= 3  # and the sweep's, each second


async def test_clients_online_are_counted_over_all_servers(redis: RedisServer) -> None:
    async with redis_stores(redis, 2) as [one, two]:
        members = [await registered(one) for _ in range(5)]
        assert await two.pulses([(member.key, origin()) for member in members[:3]]) == [ACCEPTED] * 3
        await until(lambda: one._online == two._online == 3)
        assert await one.count_online() == 3


async def test_v_020_what_expired_leaves_nothing_behind(redis: RedisServer) -> None:
    limits = replace(Limits(), signal_seconds=1)
    async with redis_stores(redis, timing=Timing(1, 0, 1), limits=limits) as [store]:
        for number in range(100):
            one = await registered(store)
            if number % 2:
                assert await store.pulses([(one.key, origin())]) == [ACCEPTED]
                assert await store.post_signal(one.client_id, one.client_id, "x" * 1000) is Posted.SENT
                await store.bind_alias(identity.generate().bind(one.client_id, 1))
        assert redis.number("DBSIZE") > 250
        await until(lambda: redis.number("ZCARD", "punchd:1:all") == 0)
        assert redis.number("EXISTS", "punchd:1:cost", "punchd:1:until", "punchd:1:new") == 0
        one = await registered(store)  # and what nobody sweeps, since all servers are gone
        assert await store.post_signal(one.client_id, one.client_id, "x") is Posted.SENT
    await until(lambda: redis.number("DBSIZE") == 0)


async def test_no_key_is_ever_written_to_redis() -> None:
    with redis_server(is_durable=True) as redis:
        async with redis_stores(redis) as [store]:
            one = await registered(store)
            assert await store.authenticate(one.key) == one.client_id
            assert await store.verify(one.key, ip_address("192.0.2.1")) == one.client_id
            signed = pulse.sign(one.key, one.client_id, 1)
            replies = await store.pulses([(one.key, origin()), (signed, origin()), (b"x" * 32, origin())])
            assert replies == [ACCEPTED, pulse.VERIFY, UNKNOWN]
            assert await store.logout(one.key) == one.client_id
        redis.kill()
        written = b"".join(file.read_bytes() for file in redis.directory.rglob("*") if file.is_file())
    assert pulse.key_digest(one.key) in written
    assert one.key not in written
    assert one.key.hex().encode() not in written.lower()
