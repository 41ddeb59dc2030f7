"""What servers ask Redis for, and what they know without."""

from __future__ import annotations

from functools import partial
from ipaddress import ip_address

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from punchd.broker import redis_codec as codec
from punchd.broker import redis_scripts, tokens
from punchd.broker.moves import Connected, Probe
from punchd.broker.redis_codec import Delivery
from punchd.broker.redis_locals import GLANCE_S, GLANCES, Glances
from punchd.broker.redis_scripts import BEAT, COMMIT, LOAD, READ_ON
from punchd.broker.tokens import Role
from punchd.errors import DecodeError
from punchd.redis.connection import Word
from punchd.redis.script import Script
from tests.unit.broker.redis_parts import Ear, Server, created, join, pair, servers, until
from tests.unit.broker.running import settings
from tests.unit.rendezvous.redis_server import RedisServer, needs_redis

pytestmark = needs_redis


@pytest.fixture(autouse=True)
def _empty(redis: RedisServer) -> None:
    redis.ask("FLUSHALL")


def asked(server: Server, monkeypatch: pytest.MonkeyPatch) -> list[Script]:
    """The scripts that a server runs from now on, without its beats."""
    found: list[Script] = []
    real = server.store.instance._link.call

    async def call(script: Script, *arguments: Word) -> object:
        if script is not BEAT:
            found.append(script)
        return await real(script, *arguments)

    monkeypatch.setattr(server.store.instance._link, "call", call)
    return found


async def enter(server: Server, name: str, token: str) -> Ear:
    """As a request does it."""
    store = server.store
    assert tokens.digest(token) in (await store.issued(name) or ())
    assert await store.has_room(name)
    ear = Ear(store, name, f"{store.prefix}e")
    digest = tokens.digest(token).hex()
    await store.enter(name, Connected(ear.id, Role.PEER, "cam", ip_address("192.0.2.1"), digest), ear)
    return ear


async def test_who_enters_costs_a_look_and_a_change(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async with servers(redis, 1) as [one]:
        made = await created(one)
        found = asked(one, monkeypatch)
        ear = await enter(one, "show", made.peer_tokens["cam"])
        assert found == [LOAD, COMMIT]
        assert await ear.say("register", port=5000)
        assert found == [LOAD, COMMIT, COMMIT]
        await ear.has_heard("session")


async def test_a_token_that_was_revoked_after_it_was_looked_at_lets_nobody_in(redis: RedisServer) -> None:
    async with servers(redis, 2) as [one, two]:
        made = await created(one)
        token = made.peer_tokens["cam"]
        await one.store.issued("show")
        assert await two.store.revoke("show", tokens.digest(token))
        ear = await join(one, made, "cam")
        assert await ear.is_closed() == 1000


async def test_in_turn_each_server_changes_what_the_other_one_made_without_asking_for_it(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with servers(redis, 2) as [one, two]:
        both, ears = (one, two), await pair(one, two, await created(one))
        await ears[0].say("health", rtt=0, retransmit=0, bitrate=1)
        await until(lambda: "health_report" in ears[1].kinds)
        for ear in ears:
            ear.frames.clear()
        found = [asked(server, monkeypatch) for server in both]
        for number in range(1, 9):
            await ears[number % 2].say("health", rtt=number, retransmit=0, bitrate=1)
            for ear in ears:
                assert (await ear.has_heard("health_report"))[0]["streams"]["cam"]["rtt"] == number
        assert found == [[COMMIT] * 4] * 2


async def test_a_state_that_is_too_large_for_a_message_is_asked_for(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Script(COMMIT.source.decode().replace(f"#state <= {redis_scripts.STATE}", "#state <= 10"))
    assert small.sha != COMMIT.sha
    monkeypatch.setattr(redis_scripts, "COMMIT", small)
    async with servers(redis, 2) as [one, two]:
        ears = await pair(one, two, await created(one))
        found = asked(two, monkeypatch)
        await ears[0].say("health", rtt=1, retransmit=0, bitrate=1)
        await until(lambda: "health_report" in ears[1].kinds)
        await ears[1].say("health", rtt=2, retransmit=0, bitrate=1)
        await until(lambda: ears[0].kinds.count("health_report") == 2)
        assert found == [small, small]


async def test_after_a_message_that_was_missed_the_next_beat_tells_what_is_missing(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with servers(redis, 2) as [one, two]:
        made = await created(one)
        admin, speaker = await join(one, made), await join(two, made)
        await speaker.has_heard("session")
        link = one.store.instance._link
        hear, missed, found = link._hear, list[bytes](), asked(one, monkeypatch)
        for is_missed in (True, False):
            link._hear = missed.append if is_missed else hear
            await speaker.say("tally", state="program")
            await until(lambda: bool(missed))
        await until(lambda: admin.kinds.count("tally") == 2)
        assert found == []
        hear(missed[0])  # late
        hear(b"nonsense")
        await until(lambda: found == [READ_ON])
        assert admin.kinds.count("tally") == 2
        await until(lambda: not one.store.instance._ahead)


async def test_entries_whose_answers_are_handled_in_another_order_are_told_in_theirs_and_once(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with servers(redis, 1) as [one]:
        instance, told = one.store.instance, list[Delivery]()
        monkeypatch.setattr(one.store.lines, "tell", told.extend)
        for number in (3, 1, 1, 2, 3, 4):
            key = b"%d" % number
            instance._own.setdefault(key, (trio.current_time(), [Probe(str(number))]))
            instance._come(b"%d-0" % (number - 1), b"%d-0" % number, (b"n", b"show", b"k", key))
        assert told == [Probe(str(number)) for number in range(1, 5)]
        assert not instance._ahead


async def test_what_many_changes_at_once_are_answered_grows_with_their_number_and_not_with_its_square(
    redis: RedisServer,
) -> None:
    number = 300
    async with servers(redis, 1, chosen=settings({"sessions_per_source": number})) as [one]:
        ears = [await join(one, await created(one, f"s{index}")) for index in range(number)]

        def sent_bytes() -> int:
            return int(redis.ask("INFO", "stats").partition(b"total_net_output_bytes:")[2].split()[0])

        before = sent_bytes()
        async with trio.open_nursery() as nursery:
            for ear in ears:
                nursery.start_soon(partial(ear.say, "tally", state="program"))
        for ear in ears:
            await ear.has_heard("tally")
        assert sent_bytes() - before < number * 1000


@given(st.binary(max_size=40) | st.lists(st.sampled_from([b"a.0", b"1-0", b"show", b"7"])).map(b" ".join))
def test_another_message_is_one_error(message: bytes) -> None:
    try:
        codec.load_wake(message)
    except DecodeError:
        return
    assert message.partition(b"\n")[0].count(b" ") == 5


async def test_what_was_looked_at_is_kept_for_a_moment_and_for_few(redis: RedisServer) -> None:
    async with servers(redis, 1) as [one]:
        await created(one)
        state = await one.store.changes.state("show")
        assert state is not None
        glances = Glances()
        glances.keep("a", state, 10.0)
        assert glances.at("a", 10.0 + GLANCE_S) is state
        assert glances.at("a", 10.1 + GLANCE_S) is glances.at("b", 10.0) is None
        assert glances.take("a", 10.0) is state
        assert glances.take("a", 10.0) is None
        for number in range(GLANCES + 5):
            glances.keep(str(number), state, 20.0)
        assert len(glances._found) == GLANCES
        glances.forget_old(20.1 + GLANCE_S)
        assert not glances._found
