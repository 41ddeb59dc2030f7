"""Redis goes, hangs and comes back, with what it had or without: the server goes on by itself."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import replace
from functools import partial

import pytest
import trio

from punchd.errors import StoreError
from punchd.redis import url as redis_url
from punchd.redis.link import Link
from punchd.redis.script import Use
from punchd.rendezvous.pulse import ACCEPTED, UNKNOWN
from punchd.rendezvous.signals import Posted
from punchd.rendezvous.store import Registered
from tests.unit.rendezvous.parts import origin
from tests.unit.rendezvous.redis_parts import (
    PATIENCE_S,
    is_down,
    is_up,
    redis_stores,
    registered,
    shared_settings,
    until,
)
from tests.unit.rendezvous.redis_server import needs_redis, redis_server
from tests.unit.rendezvous.running import Pulser, running

pytestmark = needs_redis


async def test_without_its_data_clients_hear_1060_and_401_and_register_anew() -> None:
    with redis_server() as redis:
        async with running(shared_settings(redis)) as server:
            member = await server.register()
            with Pulser(server.udp) as pulser:
                assert await pulser.pulse(member.raw_key) == 1020
                redis.kill()
                await is_down(server.store)
                redis.start()
                await is_up(server.store)
                assert await pulser.pulse(member.raw_key) == 1060
                assert (await server.ask("POST", "/verify", member))[0] == 401
                assert await pulser.pulse((await server.register()).raw_key) == 1020


async def test_with_its_data_clients_signals_and_waits_go_on() -> None:
    with redis_server(is_durable=True) as redis:
        async with redis_stores(redis, 2) as [one, two]:
            who, waiting = await registered(one), await registered(one)
            assert await one.pulses([(who.key, origin())]) == [ACCEPTED]
            assert await one.post_signal(who.client_id, who.client_id, "kept") is Posted.SENT
            heard: list[object] = []

            async def wait() -> None:
                heard.append(await one.take_signals(waiting.client_id, PATIENCE_S))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await until(lambda: waiting.client_id in one._waits)
                redis.kill()
                await is_down(one)
                await is_down(two)
                redis.start()
                await is_up(two)
                assert await two.pulses([(who.key, origin())]) == [ACCEPTED]
                assert await two.post_signal(who.client_id, waiting.client_id, "heard") is Posted.SENT
            assert isinstance(heard[0], list)
            assert [signal.data for signal in heard[0]] == ["heard"]
            taken = await two.take_signals(who.client_id, 0)
            assert isinstance(taken, list)
            assert [signal.data for signal in taken] == ["kept"]


async def test_while_it_is_down_http_gets_503_pulses_nothing_and_one_line_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with redis_server() as redis:
        async with running(shared_settings(redis)) as server:
            member = await server.register()
            redis.kill()
            await is_down(server.store)
            for method, target in (
                ("POST", "/register"), ("POST", "/verify"), ("GET", "/signals?wait=5"), ("GET", "/health"),
            ):  # fmt: skip
                status, head, body = await server.ask_bytes(method, target, member)
                assert status == 503, (target, body)
                assert b"retry-after: 1\r\n" in head.lower() + b"\r\n"
                assert b"UNHEALTHY" in body
            with Pulser(server.udp) as pulser:
                await pulser.socket.sendto(member.raw_key, ("127.0.0.1", server.udp))
                assert await pulser.hears_nothing()
            redis.start()
            await is_up(server.store)
            assert (await server.ask("GET", "/health"))[0] == 200
    said = [record for record in caplog.records if "redis" in record.getMessage()]
    assert [record.levelno for record in said] == [logging.ERROR, logging.WARNING]
    assert f"store: redis at {redis.path}: " in said[0].getMessage()
    assert all(record.exc_info is None for record in caplog.records)


async def test_when_it_hangs_requests_fail_in_time_and_all_goes_on_afterwards() -> None:
    with redis_server() as redis:
        async with running(shared_settings(redis)) as server:
            member = await server.register()
            redis.pause()
            try:
                start = trio.current_time()
                status, _, _ = await server.ask_bytes("POST", "/verify", member)
                print(f"\nhung Redis: 503 after {trio.current_time() - start:.2f} s")
                assert status == 503
                await is_down(server.store)
                start = trio.current_time()
                for _ in range(20):
                    assert (await server.ask_bytes("POST", "/verify", member))[0] == 503
                print(f"20 more: {trio.current_time() - start:.2f} s")
            finally:
                redis.go_on()
            await is_up(server.store)
            assert (await server.ask("POST", "/verify", member))[0] == 200


async def test_a_signal_posted_while_the_messages_were_cut_off_is_heard() -> None:
    with redis_server() as redis:
        async with redis_stores(redis, 2) as [one, two]:
            who = await registered(one)
            heard: list[object] = []

            async def wait() -> None:
                heard.append(await one.take_signals(who.client_id, PATIENCE_S))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await until(lambda: who.client_id in one._waits and one._waits[who.client_id].number is not None)
                one._link._hear = lambda _message: None  # nothing comes through from here on
                assert await two.post_signal(who.client_id, who.client_id, "x") is Posted.SENT
                redis.ask("CLIENT", "KILL", "TYPE", "pubsub")
            assert isinstance(heard[0], list)


async def test_it_starts_without_redis_and_says_so_and_serves_as_soon_as_there_is_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with redis_server() as redis:
        redis.kill()
        async with running(shared_settings(redis)) as server:
            assert (await server.ask_bytes("POST", "/register", None))[0] == 503
            [line] = [text for text in caplog.messages if "redis" in text]
            assert "until it is back" in line
            redis.start()
            await is_up(server.store)
            await server.register()


async def test_the_first_request_waits_for_the_connection() -> None:
    with redis_server() as redis:
        for _ in range(5):
            async with running(shared_settings(redis)) as server:
                await server.register()


async def test_cancelled_calls_leave_the_connection_as_it_was() -> None:
    with redis_server() as redis:
        async with redis_stores(redis) as [store]:
            who = await registered(store)
            for _ in range(300):
                with trio.move_on_after(0):
                    await store.lookup(who.client_id)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(store.lookup, who.client_id)
                    await trio.lowlevel.checkpoint()
                    nursery.cancel_scope.cancel()
            redis.kill()
            await is_down(store)
            for _ in range(300):
                with trio.move_on_after(0.001), suppress(StoreError):
                    await store.lookup(who.client_id)
            redis.start()
            await is_up(store)
            assert await store.pulses([(who.key, origin())]) == [UNKNOWN]
            assert redis.ask("CLIENT", "LIST").count(b"sub=1") == 1


async def test_who_leaves_while_signals_are_on_their_way_to_him_loses_none() -> None:
    with redis_server() as redis:
        async with redis_stores(redis) as [store]:
            who = await registered(store)
            for number in range(30):
                assert await store.post_signal(who.client_id, who.client_id, str(number)) is Posted.SENT
                found: list[object] = []
                async with trio.open_nursery() as nursery:

                    async def take(found: list[object] = found) -> None:
                        found.append(await store.take_signals(who.client_id, 0))

                    nursery.start_soon(take)
                    for _ in range(number % 5):
                        await trio.lowlevel.checkpoint()
                    nursery.cancel_scope.cancel()
                [taken] = found
                assert isinstance(taken, list)
                assert [signal.data for signal in taken] == [str(number)]


async def test_scripts_that_were_flushed_are_sent_again() -> None:
    with redis_server() as redis:
        async with redis_stores(redis) as [store]:
            who = await registered(store)
            redis.ask("SCRIPT", "FLUSH")
            assert await store.authenticate(who.key) == who.client_id


async def test_what_others_say_on_the_channel_is_not_heard() -> None:
    with redis_server() as redis:
        async with redis_stores(redis) as [store]:
            who = await registered(store)
            for message in ("", "x", "S", "Wabc", "W" + "i" * 16 + "x"):
                assert redis.number("PUBLISH", "punchd:1:wake", message) == 1
            heard: list[object] = []

            async def wait() -> None:
                heard.append(await store.take_signals(who.client_id, PATIENCE_S))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await until(lambda: who.client_id in store._waits)
                assert await store.post_signal(who.client_id, who.client_id, "x") is Posted.SENT
            assert isinstance(heard[0], list)


async def test_when_it_refuses_to_write_it_is_down(caplog: pytest.LogCaptureFixture) -> None:
    with redis_server() as redis:
        async with redis_stores(redis) as [store]:
            who = await registered(store)
            redis.ask("CONFIG", "SET", "maxmemory", "1")
            with pytest.raises(StoreError):
                await registered(store)
            await is_down(store)
            redis.ask("CONFIG", "SET", "maxmemory", "0")
            await is_up(store)
            assert await store.authenticate(who.key) == who.client_id
    assert any("OOM" in text or "maxmemory" in text for text in caplog.messages)


@pytest.mark.parametrize(("password", "is_right"), [("hunter2", True), ("hunter3", False)])
async def test_a_password_is_used_and_never_told(
    password: str, is_right: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with redis_server(options=("--requirepass", "hunter2")) as redis:
        settings = replace(shared_settings(redis), store=f"unix://:{password}@{redis.path}")
        async with running(settings) as server:
            status, _, _ = await server.ask_bytes("POST", "/register", None)
            assert status == (200 if is_right else 503)
    assert "hunter" not in caplog.text
    assert is_right or "WRONGPASS" in caplog.text or "invalid username-password" in caplog.text


@pytest.mark.parametrize(
    "answer",
    [
        b"-ERR unknown command `HELLO`, with args beginning with: `3`, `AUTH`, `hunter1`, `hunter2`, \r\n",  # Redis 5
        b"-ERR syntax error in HELLO option 'hunter1 hunter2'\r\n",
    ],
)
async def test_a_redis_that_repeats_the_password_is_not_quoted(answer: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async def repeat(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(answer)
        await stream.receive_some()

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, repeat, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        use = Use(b"channel", b"probe", "punchd.test", "nothing goes on")
        place = redis_url.parse(f"redis://hunter1:hunter2@127.0.0.1:{port}", "store")
        nursery.start_soon(Link(place, use, hear=lambda _message: None, resync=lambda: None).run)
        await until(lambda: "punchd.test" in caplog.text)
        nursery.cancel_scope.cancel()
    assert "hunter" not in caplog.text


def test_a_registered_client_shows_no_key() -> None:
    assert "6b6b" not in repr(Registered(b"i" * 16, b"k" * 32))
