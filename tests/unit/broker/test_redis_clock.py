"""Redis' clock is set back by an hour: nobody is limited, and no dead server is waited for, for so much longer."""

from __future__ import annotations

import pytest
import trio

from punchd.broker import redis_scripts
from punchd.broker.redis_rates import RedisRates
from punchd.broker.settings import Limits
from punchd.broker.windows import Deed
from punchd.redis.script import Script
from tests.unit.broker.redis_parts import SOURCE, created, join, servers
from tests.unit.broker.running import settings
from tests.unit.rendezvous.redis_server import RedisServer, needs_redis

pytestmark = needs_redis

_TIME = b"local time = call('TIME')\n"


def set_back(monkeypatch: pytest.MonkeyPatch, seconds: int, *, reap_ms: int = redis_scripts.REAP_MS) -> None:
    """From now on for all scripts."""
    reap = b"%d" % redis_scripts.REAP_MS
    for name in ("COMMIT", "BEAT", "RATE"):
        source = getattr(redis_scripts, name).source
        assert _TIME in source
        changed = source.replace(_TIME, _TIME + b"time[1] = time[1] - %d\n" % seconds)
        if name == "BEAT":
            assert changed.count(reap) == 2
            changed = changed.replace(reap, b"%d" % reap_ms)
        monkeypatch.setattr(redis_scripts, name, Script(changed.decode()))


async def test_a_source_is_not_limited_for_longer(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    redis.ask("FLUSHALL")
    async with servers(redis, 1) as [one]:
        rates = [RedisRates(one.store.instance, one.store.changes, Limits(creations_per_minute=2)) for _ in range(2)]
        waits = [await rates[0].allow(Deed.CREATE, SOURCE, trio.current_time()) for _ in range(3)]
        assert waits[:2] == [0, 0]
        assert waits[2] > 0
        set_back(monkeypatch, 3600)
        waits = [await rates[1].allow(Deed.CREATE, SOURCE, trio.current_time()) for _ in range(3)]
        assert waits[:2] == [0, 0]
        assert 0 < waits[2] <= 60


async def test_a_token_is_not_limited_for_longer(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = settings({"messages_per_second": 1, "message_burst": 3})
    async with servers(redis, 1, chosen=chosen) as [one]:
        ear = await join(one, await created(one, "limited"))
        assert await ear.say("tally", state="program")
        set_back(monkeypatch, 3600)
        assert [await ear.say("tally", state="program") for _ in range(4)] == [True, True, True, False]


async def test_a_dead_servers_connections_leave_their_sessions_as_soon_as_ever(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with servers(redis, 2) as [one, two]:
        made = await created(one, "left")
        peer, admin = await join(one, made, "cam"), await join(two, made)
        await peer.say("register", port=5000)
        await admin.has_heard("session")
        one.hang()
        set_back(monkeypatch, 3600, reap_ms=2500)
        while True:
            told = (await admin.has_heard("session"))[-1]
            if told["connected"] == 0:
                break
