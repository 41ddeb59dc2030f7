"""Several servers on one Redis: one session, one order, one set of limits."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import trio

from punchd.broker import redis_scripts, tokens
from punchd.broker.creation import Creation
from punchd.broker.redis_rates import RedisRates
from punchd.broker.settings import Limits
from punchd.broker.store import Created, NotCreated
from punchd.broker.windows import Deed
from punchd.errors import StoreError
from punchd.redis.connection import Word
from punchd.redis.script import Script
from tests.unit.broker.redis_parts import SOURCE, Ear, Server, created, join, key_of, pair, servers, until
from tests.unit.broker.running import settings
from tests.unit.rendezvous.redis_server import RedisServer, needs_redis, redis_server

pytestmark = needs_redis


@pytest.fixture(autouse=True)
def _empty(redis: RedisServer) -> None:
    redis.ask("FLUSHALL")


async def test_b_055_b_056_b_058_peers_of_one_session_may_be_at_different_servers(redis: RedisServer) -> None:
    async with servers(redis, 3) as [one, two, three]:
        made = await created(three)
        admin = await join(three, made)
        first, second = await join(one, made, "cam", "192.0.2.11"), await join(two, made, "cam", "192.0.2.12")
        await first.say("register", port=5000, meta={"camera": 1})
        await second.say("register", port=6000)
        await until(lambda: first.kinds == second.kinds == ["session", "peer", "session"])
        [_, mine, _], [_, others, told] = first.frames, second.frames
        first.frames, second.frames = [], []
        assert (mine["ip"], mine["port"], mine["localPort"]) == ("192.0.2.12", 6000, 5000)
        assert (others["ip"], others["meta"], told["state"]) == ("192.0.2.11", {"camera": 1}, "READY")
        assert mine["passphrase"] == others["passphrase"]
        await until(lambda: first.is_registered and second.is_registered)
        await first.say("ready")
        await second.say("ready")
        await first.say("status", srt="connected")
        await second.say("health", rtt=30, retransmit=0, bitrate=1e6)
        await admin.say("tally", state="program")
        for peer in (first, second):
            heard = await peer.has_heard("start", "session", "health_report", "tally")
            assert [frame["type"] for frame in heard] == ["start", "session", "health_report", "tally"]
        match = await one.store.match("show", "cam")
        assert match is not None
        assert match.passphrase == mine["passphrase"]
        assert await two.store.close("show")
        for ear in (first, second, admin):
            assert await ear.is_closed() == 1000
            assert ear.kinds[-2:] == ["session", "session_closed"]
        assert await one.store.issued("show") is None
        assert not await one.store.close("show")


async def test_b_064_all_hear_of_events_in_one_order_whoever_caused_them(redis: RedisServer) -> None:
    async with servers(redis, 3, chosen=settings({"messages_per_second": 10**6, "message_burst": 10**6})) as all_three:
        streams = tuple(f"cam{number}" for number in range(6))
        made = await created(all_three[0], "show", *streams)
        admins = [await join(server, made) for server in all_three]
        for admin in admins:
            await admin.has_heard("session")
        pairs = [
            await pair(all_three[number % 3], all_three[(number + 1) % 3], made, stream)
            for number, stream in enumerate(streams)
        ]
        for admin in admins:
            await until(lambda admin=admin: admin.kinds.count("session") == 12)  # type: ignore[misc]
            admin.frames.clear()
        told = 15

        async def talk(ear: Ear, offset: int) -> None:
            for number in range(told):
                await ear.say("health", rtt=offset + number, retransmit=0, bitrate=1)

        async def set_lights(ear: Ear) -> None:
            for number in range(told):
                await ear.say("tally", stream=streams[number % 6], state=("preview", "program", "off")[number % 3])

        async with trio.open_nursery() as nursery:
            for number, (one, two) in enumerate(pairs):
                nursery.start_soon(talk, one, 1000 * number)
                nursery.start_soon(talk, two, 1000 * number)
            for admin in admins:
                nursery.start_soon(set_lights, admin)
        wanted = told * (2 * len(pairs) + len(admins))
        for admin in admins:
            await until(lambda admin=admin: len(admin.frames) >= wanted)  # type: ignore[misc]
        assert admins[0].frames == admins[1].frames == admins[2].frames
        assert len(admins[0].frames) == wanted
        for number, stream in enumerate(streams):
            for ear in pairs[number]:
                own = [frame for frame in admins[0].frames if stream in frame.get("streams", ())]
                heard = [frame["streams"][stream]["rtt"] for frame in ear.frames if frame["type"] == "health_report"]
                assert len(heard) == 2 * told
                assert heard == _changes(own, stream, heard)


def _changes(frames: list[dict[str, Any]], stream: str, heard: list[float]) -> list[float]:
    """What admins heard of a stream, without what was repeated with reports about others."""
    found = iter(frame["streams"][stream]["rtt"] for frame in frames)
    return [next(one for one in found if one == value) for value in heard]


async def test_b_037_of_thirty_at_once_at_three_servers_exactly_one_gets_the_name(redis: RedisServer) -> None:
    async with servers(redis, 3) as all_three:
        for name in ("a", "b", "c"):
            found: list[object] = []

            async def create(server: Server, name: str = name, found: list[object] = found) -> None:
                found.append(await server.store.create(Creation(name), SOURCE))

            async with trio.open_nursery() as nursery:
                for number in range(30):
                    nursery.start_soon(create, all_three[number % 3])
            assert Counter(isinstance(one, Created) for one in found) == {True: 1, False: 29}
            assert {one for one in found if not isinstance(one, Created)} == {NotCreated.EXISTS}


async def test_sessions_are_limited_over_all_servers_and_free_their_place(redis: RedisServer) -> None:
    async with servers(redis, chosen=settings({"sessions": 3, "sessions_per_source": 2})) as [one, two]:
        await created(one, "a")
        await created(two, "b")
        assert await one.store.create(Creation("c"), SOURCE) is NotCreated.SOURCE_FULL
        assert isinstance(await one.store.create(Creation("c"), b"other"), Created)
        assert await two.store.create(Creation("d"), b"other") is NotCreated.FULL
        assert await two.store.close("a")
        await created(two, "d")
        await until(lambda: len(one.store) == len(two.store) == 3)


async def test_b_033_b_116_deeds_are_counted_over_all_servers(redis: RedisServer) -> None:
    limits = Limits(creations_per_minute=3)
    async with servers(redis) as both:
        rates = [RedisRates(one.store.instance, one.store.changes, limits) for one in both]
        allowed = [await rates[number % 2].allow(Deed.CREATE, SOURCE, trio.current_time()) for number in range(5)]
        assert allowed[:3] == [0, 0, 0]
        assert all(50 < one <= 60 for one in allowed[3:])
        before = redis.number("LLEN", redis_scripts.PREFIX + "x")
        assert before == 0
        assert await rates[0].allow(Deed.CREATE, b"other", trio.current_time()) == 0
        assert await rates[0].allow(Deed.UPGRADE, SOURCE, trio.current_time()) == 0
        redis.ask("FLUSHALL")
        assert await rates[1].allow(Deed.CREATE, SOURCE, trio.current_time()) > 50  # without asking
        assert await rates[1].allow(Deed.CREATE, SOURCE, trio.current_time() + 61) == 0


async def test_b_109_a_tokens_messages_are_counted_over_all_servers(redis: RedisServer) -> None:
    async with servers(redis, chosen=settings({"messages_per_second": 1, "message_burst": 4})) as [one, two]:
        made = await created(one)
        first, second = await join(one, made, "cam", "192.0.2.11"), await join(two, made, "cam", "192.0.2.12")
        said = [await ear.say("register", port=port) for port, ear in ((5000, first), (6000, second))]
        said += [await ear.say("ready") for ear in (first, second, first, second)]
        assert said == [True] * 4 + [False] * 2


async def test_c_32_c_35_c_57_a_name_lives_again_and_tokens_of_its_former_life_do_not(redis: RedisServer) -> None:
    now_s = 1_777_810_000.0
    async with servers(redis, wall=lambda: now_s) as [one, two]:
        first = await created(one)
        assert await two.store.close("show")
        second = await created(two)
        third_open = await one.store.issued("show")
        assert third_open is not None
        assert first.admin_token != second.admin_token
        assert tokens.digest(second.admin_token) in third_open
        assert tokens.digest(first.admin_token) not in third_open
        minted = await one.store.mint("show", "cam", tokens.expiry(second.plan.expires_ms))
        assert minted is not None
        assert minted[0] not in (first.peer_tokens["cam"], second.peer_tokens["cam"])
        ear = await join(two, second, "cam")
        latest = await one.store.mint("show", "cam", tokens.expiry(second.plan.expires_ms))
        assert latest is not None
        assert await two.store.revoke("show", tokens.digest(latest[0]))  # of which `two` has not heard yet
        assert await one.store.revoke("show", tokens.digest(second.peer_tokens["cam"]))
        assert await ear.is_closed() == 1000
        assert not await one.store.revoke("show", tokens.digest(second.peer_tokens["cam"]))


async def test_b_016_b_020_its_time_is_over_at_all_servers_and_for_those_without_connections(
    redis: RedisServer,
) -> None:
    async with servers(redis) as [one, two]:
        made = await created(one, "seen", ttl_s=1)
        await created(one, "unseen", ttl_s=1)
        ears = [await join(server, made, "cam", f"192.0.2.{number}") for number, server in enumerate((one, two), 1)]
        assert [await ear.is_closed() for ear in ears] == [1000, 1000]
        assert [ear.frames[-1] for ear in ears] == [{"type": "session_closed", "reason": "ttl_expired"}] * 2
        assert await two.store.issued("unseen") is None
        await created(two, "unseen")
        assert not one.store.lines._locals
        assert not one.store.lines._homes


async def test_an_account_with_the_rights_that_the_manual_names_is_enough() -> None:
    manual = (Path(__file__).parents[3] / "docs" / "broker.md").read_text()
    [rights] = re.findall(r"An account needs `([^`]*)`", manual)
    with redis_server() as redis:
        assert redis.ask("ACL", "SETUSER", "broker", "on", ">canary-0", *rights.split()) == b"+OK\r\n"
        async with servers(redis, url=f"unix://broker:canary-0@{redis.path}") as [one, two]:
            made = await created(one)
            first, second = await pair(one, two, made)
            rates = RedisRates(one.store.instance, one.store.changes, Limits())
            assert await rates.allow(Deed.CREATE, SOURCE, trio.current_time()) == 0
            one.hang()
            redis.ask("SET", f"{redis_scripts.PREFIX}calm", "0")
            redis.ask("ZADD", f"{redis_scripts.PREFIX}live", "0", one.store.instance.id)
            assert (await second.has_heard("session"))[-1]["connected"] == 1
            assert await two.store.close("show")
            await two.store.finish()
            assert first.close_code is None


async def test_a_change_whose_answer_was_lost_takes_place_once(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with servers(redis) as [one, two]:
        made = await created(one)
        admin = await join(two, made)
        peer = await join(one, made, "cam")
        real, lost = one.store.instance._link.call, [True]

        async def call(script: Script, *arguments: Word) -> object:
            answer = await real(script, *arguments)
            if script is redis_scripts.COMMIT and lost:
                lost.clear()
                raise StoreError("lost")
            return answer

        monkeypatch.setattr(one.store.instance._link, "call", call)
        await admin.has_heard("session")
        before = redis.ask("HGET", key_of("show"), "v")
        await peer.say("register", port=5000)
        assert (await peer.has_heard("session"))[0]["connected"] == 1
        assert not lost
        assert redis.ask("HGET", key_of("show"), "v") != before
        await trio.sleep(0.1)
        assert [frame["connected"] for frame in admin.frames] == [1]
        assert not one.store.instance._own
        assert peer.frames == []


async def test_a_session_whose_creator_heard_of_a_failure_does_not_stay(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with servers(redis) as [one, two]:
        real, lost = one.store.instance._link.call, [True]

        async def call(script: Script, *arguments: Word) -> object:
            answer = await real(script, *arguments)
            if script is redis_scripts.CREATE and lost:
                lost.clear()
                raise StoreError("lost")
            return answer

        monkeypatch.setattr(one.store.instance._link, "call", call)
        with pytest.raises(StoreError):
            await one.store.create(Creation("show"), SOURCE)
        await until(lambda: one.store.lines.is_idle)
        assert not lost
        assert await two.store.issued("show") is None
        await created(two)
        lost.append(True)
        with pytest.raises(StoreError):  # it was not created, since the name is taken
            await one.store.create(Creation("show"), SOURCE)
        await until(lambda: one.store.lines.is_idle)
        assert await two.store.issued("show") is not None
