"""What is lost: servers, connections to Redis, what Redis had, secrets. Sessions go on or end clearly, never half."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import trio

from punchd.broker import redis_codec, redis_instances, redis_scripts
from punchd.broker.creation import Creation
from punchd.broker.redis_scripts import PREFIX
from punchd.broker.secret import Secret
from punchd.broker.session import Session
from punchd.errors import StoreError
from punchd.redis.connection import Word
from punchd.redis.script import Script
from tests.unit.broker.redis_parts import SOURCE, Server, created, join, key_of, pair, servers, until
from tests.unit.broker.running import FixedSecret, secret_file
from tests.unit.rendezvous.redis_server import RedisServer, needs_redis, redis_server

pytestmark = needs_redis

OLD = "punch-test-secret-A-0123456789abcdef0123456789abcdef"
NEW = "punch-test-secret-B-fedcba9876543210fedcba9876543210"
ERROR = {"type": "session_closed", "reason": "error"}


@pytest.fixture(autouse=True)
def _empty(redis: RedisServer) -> None:
    redis.ask("FLUSHALL")


def cut(redis: RedisServer) -> None:
    """All connections to Redis break."""
    redis.ask("CLIENT", "KILL", "TYPE", "pubsub")


def silence(redis: RedisServer, server: Server) -> None:
    """A server that has hung was not heard of for long."""
    redis.ask("SET", f"{PREFIX}calm", "0")
    redis.ask("ZADD", f"{PREFIX}live", "0", server.store.instance.id)


async def test_a_dead_servers_peer_is_matched_again_elsewhere_and_nobody_else_notices(redis: RedisServer) -> None:
    async with servers(redis, 3) as [one, two, three]:
        made = await created(one)
        admin = await join(three, made)
        first, second = await pair(one, two, made)
        await admin.has_heard("peer_match")
        one.hang()
        again = await join(two, made, "cam", "192.0.2.11")
        await again.say("register", port=5000)
        [_, peer, *_] = [None, *(await again.has_heard("peer", "session"))]
        assert peer is not None
        assert (await second.has_heard("peer"))[0]["ip"] == "192.0.2.11"
        await admin.has_heard("peer_match", "session")
        silence(redis, one)
        await until(lambda: redis.number("EXISTS", f"{PREFIX}c:{one.store.instance.id}") == 0)
        view = await three.store.view("show")
        assert view is not None
        assert view.overview.connected == 2
        assert first.close_code is second.close_code is admin.close_code is again.close_code is None


async def test_a_dead_servers_connections_leave_their_sessions(redis: RedisServer) -> None:
    async with servers(redis, 2) as [one, two]:
        made = [await created(one, f"s{number}") for number in range(3)]
        stayed = [await join(two, session) for session in made]
        for session in made:
            for last in (11, 12):
                await (await join(one, session, "cam", f"192.0.2.{last}")).say("register", port=5000)
        for ear in stayed:
            await until(lambda ear=ear: ear.kinds.count("peer_match") == 1)  # type: ignore[misc]
            ear.frames.clear()
        one.hang()
        assert redis.number("HLEN", f"{PREFIX}c:{one.store.instance.id}") == 6
        silence(redis, one)
        for ear in stayed:
            await until(lambda ear=ear: bool(ear.frames) and ear.frames[-1]["connected"] == 0)  # type: ignore[misc]
        await until(lambda: redis.number("ZCARD", f"{PREFIX}dead") == 0)
        assert redis.number("EXISTS", f"{PREFIX}q:{one.store.instance.id}") == 0


async def test_a_server_that_was_given_up_closes_its_connections_and_goes_on_as_another(redis: RedisServer) -> None:
    async with servers(redis, 2) as [one, two]:
        made = await created(one)
        first, second = await pair(one, two, made)
        before = one.store.instance.id
        redis.ask("ZREM", f"{PREFIX}live", before)
        redis.ask("ZADD", f"{PREFIX}dead", "0", before)
        await first.say("health", rtt=1, retransmit=0, bitrate=1)
        assert await first.is_closed() == 1011
        assert first.frames[-1]["code"] == "SERVER_ERROR"
        assert one.store.instance.id != before
        assert (await second.has_heard("session"))[0]["connected"] == 1
        await pair(one, two, made)
        assert second.close_code == 1000  # the newer one of the same peer


async def test_a_goodbye_is_not_waited_for(redis: RedisServer) -> None:
    async with servers(redis, 2) as [one, two]:
        made = await created(one)
        first, second = await pair(one, two, made)
        one.store.leave("show", first.id)
        await one.store.finish()
        assert (await second.has_heard("session"))[0]["connected"] == 1
        assert redis.ask("ZSCORE", f"{PREFIX}live", one.store.instance.id) == b"$-1\r\n"


async def test_after_a_cut_nothing_that_others_said_is_missed(redis: RedisServer) -> None:
    async with servers(redis, 2) as [one, two]:
        made = await created(one)
        admin, speaker = await join(one, made), await join(two, made)
        for number in range(20):
            cut(redis)
            for state in ("program", "off"):
                await speaker.say("tally", state=state)
            await until(lambda number=number: admin.kinds.count("tally") == 2 * number + 2)  # type: ignore[misc]
        lights = [frame["state"] for frame in admin.frames if frame["type"] == "tally"]
        assert lights == ["program", "off"] * 20


async def test_a_session_that_is_gone_ends_clearly_at_all_servers(redis: RedisServer) -> None:
    async with servers(redis, 2) as [one, two]:
        made = await created(one)
        ears = [*(await pair(one, two, made)), await join(two, made)]
        redis.ask("FLUSHALL")
        await created(two)  # the name is free, and the new session is none of theirs
        cut(redis)
        for ear in ears:
            assert await ear.is_closed() == 1011
            assert ear.frames[-1] == ERROR
        assert await one.store.issued("show") is not None


async def test_c_35_who_enters_a_new_session_of_the_name_is_none_of_the_old_one(redis: RedisServer) -> None:
    async with servers(redis, 2) as [one, two]:
        old = await created(one)
        first, second = await pair(one, two, old)
        two.store.instance._link._hear = lambda _message: None  # so it hears of the end when it asks
        assert await one.store.close("show")
        admin = await join(two, await created(one))
        assert (await admin.has_heard("session"))[0]["connected"] == 0
        assert (first.close_code, second.close_code, admin.close_code) == (1000, 1000, None)
        redis.ask("DEL", key_of("show"))
        newest = await join(two, await created(one))
        assert await admin.is_closed() == 1011
        assert admin.frames == [ERROR]
        assert newest.close_code is None


async def test_a_session_that_redis_has_from_an_earlier_time_ends_clearly_at_all_servers(redis: RedisServer) -> None:
    async with servers(redis, 2) as [one, two]:
        made = await created(one)
        bystander = await join(two, made)
        await until(lambda: bystander.kinds == ["session"])
        redis.ask("COPY", key_of("show"), "backup")
        first = await join(one, made, "cam")
        await first.say("register", port=5000)
        redis.ask("COPY", "backup", key_of("show"), "REPLACE")
        cut(redis)
        assert await first.is_closed() == await bystander.is_closed() == 1011
        assert first.frames[-1] == bystander.frames[-1] == ERROR
        await created(two)


async def test_when_it_stays_away_connections_are_closed_in_time_and_http_fails_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(redis_instances, "OUTAGE_S", 1.0)
    with redis_server() as redis:
        async with servers(redis, 1) as [one]:
            made = await created(one)
            ear = await join(one, made, "cam")
            redis.kill()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: ear.say("register", port=5000))
                assert await ear.is_closed() == 1011
                nursery.cancel_scope.cancel()
            assert not one.store.lines._locals
            assert not one.store.is_healthy
            with pytest.raises(StoreError), trio.fail_after(5):
                await one.store.create(Creation("x"), SOURCE)
            with pytest.raises(StoreError), trio.fail_after(5):
                await one.store.close("show")
            redis.start()
            await until(lambda: one.store.is_healthy)
            made = await created(one)
            ear = await join(one, made, "cam")
            assert await ear.say("register", port=5000)
            await ear.has_heard("session")


async def test_b_020_a_session_ends_on_time_while_redis_is_away() -> None:
    with redis_server() as redis:
        async with servers(redis, 1) as [one]:
            made = await created(one, ttl_s=2)
            ear = await join(one, made, "cam")
            redis.kill()
            assert await ear.is_closed() == 1000
            assert ear.frames == [{"type": "session_closed", "reason": "ttl_expired"}]
            assert one.store.lines._clock.now_ms() < made.plan.expires_ms + 2000


async def test_b_087_secrets_are_rotated_while_sessions_live(redis: RedisServer, tmp_path: Path) -> None:
    path = secret_file(tmp_path, OLD)
    async with servers(redis, 2, secret=lambda: Secret(path)) as [one, two]:
        made = await created(one)
        first, second = await pair(one, two, made)
        secret_file(tmp_path, OLD, NEW)
        for server in (one, two):
            server.store.changes._secret.reload()
        secret_file(tmp_path, NEW, OLD)
        one.store.changes._secret.reload()
        await first.say("health", rtt=1, retransmit=0, bitrate=1)
        await second.say("health", rtt=2, retransmit=0, bitrate=1)
        assert (await second.has_heard("health_report"))[0]["streams"]["cam"]["rtt"] == 1
        two.store.changes._secret.reload()
        secret_file(tmp_path, NEW)
        await second.say("health", rtt=3, retransmit=0, bitrate=1)
        for server in (one, two):
            server.store.changes._secret.reload()
        await first.say("health", rtt=4, retransmit=0, bitrate=1)
        await until(lambda: second.kinds.count("health_report") >= 2)
        assert first.close_code is second.close_code is None


async def test_a_server_with_another_secret_says_so_and_harms_nobody(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    secrets = iter([FixedSecret(), FixedSecret(NEW)])
    async with servers(redis, 2, secret=lambda: next(secrets)) as [one, stranger]:
        made = await created(one)
        ear = await join(one, made, "cam")
        with pytest.raises(StoreError):
            await stranger.store.view("show")
        lost = await join(stranger, made)
        assert await lost.is_closed() == 1011
        assert await ear.say("register", port=5000)
        await ear.has_heard("session")
    assert "have all servers the same secret file" in caplog.text


async def test_what_another_server_says_and_cannot_be_read_closes_those_whom_it_was_for_and_no_others(
    redis: RedisServer,
) -> None:
    async with servers(redis, 2) as [one, two]:
        made, others = await created(one), await created(one, "others")
        first, _ = await pair(one, two, made)
        bystander = await join(one, others)
        entry = ["XADD", f"{PREFIX}q:{one.store.instance.id}", "*", "n", "show", "v", "9", "b", "nonsense"]
        redis.ask(*entry)
        admin = await join(two, made)
        await admin.has_heard("session")
        await admin.say("tally", state="program")
        assert await first.is_closed() == 1011
        assert (await admin.has_heard("session"))[-1]["connected"] == 1
        assert bystander.close_code is None


async def test_c_49_a_session_that_fails_at_one_server_is_closed_at_all(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with servers(redis, 2) as [one, two]:
        made = await created(one)
        first, second = await pair(one, two, made)
        monkeypatch.setattr(Session, "_hear", lambda *_: 1 / 0)
        await first.say("ready")
        assert await first.is_closed() == await second.is_closed() == 1011
        assert first.frames[-2]["code"] == "SERVER_ERROR"
        assert first.frames[-1] == second.frames[-1] == ERROR
    [record] = [one for one in caplog.records if one.levelno == logging.ERROR]
    assert "a session failed and is closed" in record.getMessage()


async def test_a_server_that_does_not_read_is_given_up_before_its_queue_grows_without_end(redis: RedisServer) -> None:
    async with servers(redis, 2) as [one, two]:
        made = await created(one)
        await pair(one, two, made)
        queue = f"{PREFIX}q:{one.store.instance.id}"
        one.hang()
        fill = f"for _ = 1, {redis_scripts.QUEUE} do redis.call('XADD', '{queue}', '*', 'n', 'x') end"
        redis.ask("EVAL", fill, "0")
        admin = await join(two, made)
        await admin.say("tally", state="program")
        await until(lambda: redis.number("EXISTS", queue) == 0)
        await until(lambda: redis.number("ZCARD", f"{PREFIX}dead") == 0)
        view = await two.store.view("show")
        assert view is not None
        assert view.overview.connected == 1


async def test_what_somebody_else_wrote_to_redis_costs_a_connection_and_no_endless_tries(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with servers(redis, 1) as [one]:
        ear = await join(one, await created(one), "cam")
        redis.ask("HSET", key_of("show"), "v", "nonsense")
        await ear.say("register", port=5000)
        assert await ear.is_closed() == 1011
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_a_session_that_cannot_even_be_ended_is_let_go(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with servers(redis, 1) as [one]:
        ear = await join(one, await created(one), "cam")
        monkeypatch.setattr(redis_codec, "deliveries", lambda *_: 1 / 0)
        await ear.say("register", port=5000)
        assert await ear.is_closed() == 1011
        assert not one.store.lines._locals
    assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == 2


async def test_b_020_a_session_that_cannot_be_read_any_more_ends_on_time_all_the_same(redis: RedisServer) -> None:
    async with servers(redis, 1) as [one]:
        ear = await join(one, await created(one, ttl_s=2), "cam")
        redis.ask("HSET", key_of("show"), "v", "99", "b", "nonsense")
        assert await ear.is_closed() == 1000
        assert ear.frames == [{"type": "session_closed", "reason": "ttl_expired"}]


async def test_what_a_server_says_itself_is_not_lost_behind_what_others_said_meanwhile(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with servers(redis, 1) as [one]:
        instance = one.store.instance
        ear = await join(one, await created(one), "cam")
        real, lost = instance._link.call, [True]
        queue = f"{PREFIX}q:{instance.id}"
        fill = f"for _ = 1, {redis_scripts.READ} do redis.call('XADD', '{queue}', '*', 'n', 'x', 'v', '1', 'b', '') end"

        async def call(script: Script, *arguments: Word) -> object:
            if script is not redis_scripts.COMMIT or not lost:
                return await real(script, *arguments)
            lost.clear()
            redis.ask("EVAL", fill, "0")
            await real(script, *arguments)
            for key, (since, told) in instance._own.items():
                instance._own[key] = since - 10, told  # for so long Redis was away then
            raise StoreError("lost")

        monkeypatch.setattr(instance._link, "call", call)
        await ear.say("register", port=5000)
        assert (await ear.has_heard("session"))[0]["connected"] == 1
        assert ear.close_code is None


async def test_a_connection_that_was_given_up_while_it_entered_does_not_stay_in_the_session(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with servers(redis, 1) as [one]:
        made, instance = await created(one), one.store.instance
        real, gone = instance._link.call, [False]

        async def call(script: Script, *arguments: Word) -> object:
            answer = await real(script, *arguments)
            if script is redis_scripts.LOAD and not gone[0]:
                gone[0] = True
                instance._start_anew("it was silent")
                await instance._say_alive()
            return answer

        monkeypatch.setattr(instance._link, "call", call)
        ear = await join(one, made, "cam")
        assert await ear.is_closed() == 1011
        await until(lambda: one.store.lines.is_idle)
        await trio.sleep(0.1)
        state = await one.store.changes.state("show")
        assert state is not None
        assert state.session.facts.members == {}
