"""Whatever happens in whichever order, at whichever server: in the end all of them and Redis agree."""

from __future__ import annotations

import contextlib
import logging
import random

import pytest
import trio

from punchd.broker.creation import Creation
from punchd.broker.redis_scripts import PREFIX
from punchd.broker.store import Created
from punchd.errors import StoreError
from tests.unit.broker.redis_parts import SOURCE, Ear, Server, join, servers, until
from tests.unit.broker.running import settings
from tests.unit.rendezvous.redis_server import RedisServer, needs_redis, redis_server

pytestmark = needs_redis

NAMES = ("a", "b", "c")
MANY = settings({"messages_per_second": 10**6, "message_burst": 10**6, "sessions_per_source": 10**6})


class Turmoil:
    """Clients that do what comes to their minds."""

    def __init__(self, redis: RedisServer, all_of_them: list[Server], seed: int) -> None:
        self.redis = redis
        self.servers = all_of_them
        self.random = random.Random(seed)
        self.made: dict[str, Created] = {}
        self.ears: list[Ear] = []
        self.cuts = 0

    async def live(self, steps: int) -> None:
        for _ in range(steps):
            with contextlib.suppress(StoreError):  # of those that wait over HTTP
                await self._act()

    async def _act(self) -> None:
        name = self.random.choice(NAMES)
        server = self.random.choice(self.servers)
        made = self.made.get(name)
        open_ears = [ear for ear in self.ears if ear.close_code is None]
        match self.random.choices(("create", "join", "say", "leave", "close", "cut"), (4, 8, 30, 3, 1, 1))[0]:
            case "create":
                found = await server.store.create(Creation(name, ("x", "y")), SOURCE)
                if isinstance(found, Created):
                    self.made[name] = found
            case "join" if made is not None and len(open_ears) < 20:
                stream = self.random.choice(("x", "y", None))
                self.ears.append(await join(server, made, stream, f"192.0.2.{self.random.randrange(1, 5)}"))
            case "say" if open_ears:
                await self._say(self.random.choice(open_ears))
            case "leave" if open_ears:
                self._leave(self.random.choice(open_ears))
            case "close":
                await server.store.close(name)
            case "cut" if self.cuts < 2:
                self.cuts += 1
                self.redis.ask("CLIENT", "KILL", "TYPE", "pubsub")

    async def _say(self, ear: Ear) -> None:
        number = self.random.randrange(1, 100)
        kind, members = self.random.choice(
            (
                ("register", {"port": 5000 + number % 3}),
                ("ready", {}),
                ("status", {"srt": self.random.choice(("connected", "error"))}),
                ("health", {"rtt": number, "retransmit": 0, "bitrate": 1}),
                ("tally", {"state": "program", "stream": "x"}),
            )
        )
        await ear.say(kind, **members)

    def _leave(self, ear: Ear) -> None:
        if ear.close_code is None:
            ear.close_code = 0
            ear.store.leave(ear.session, ear.id)


@pytest.mark.parametrize(
    ("seed", "steps"), [(1, 80), *(pytest.param(n, 1000, marks=pytest.mark.long) for n in (2, 3, 4))]
)
async def test_b_010_b_064_all_agree_in_the_end(seed: int, steps: int, caplog: pytest.LogCaptureFixture) -> None:
    with redis_server() as redis:
        async with servers(redis, 3, chosen=MANY) as all_three:
            turmoil = Turmoil(redis, all_three, seed)
            with trio.fail_after(100):
                async with trio.open_nursery() as nursery:
                    for _ in range(6):
                        nursery.start_soon(turmoil.live, steps)
            stores = [server.store for server in all_three]
            await until(lambda: not any(local.tickets for store in stores for local in store.lines._locals.values()))
            for store in stores:
                await store.instance.catch_up()
            open_now = []
            for name in NAMES:
                state = await stores[0].changes.state(name)
                members = set() if state is None else set(state.session.facts.members)
                assert {ear.id for ear in turmoil.ears if ear.session == name and ear.close_code is None} == members
                open_now += [name] if state is not None else []
            assert redis.number("ZCARD", f"{PREFIX}n") == len(open_now)
            held = sum(redis.number("HLEN", f"{PREFIX}c:{store.instance.id}") for store in stores)
            assert held == sum(len(store.lines._homes) for store in stores)
            assert held == len([ear for ear in turmoil.ears if ear.close_code is None])
            assert {name for store in stores for name in store.lines._locals} <= set(open_now)
            assert all(ear.close_code in (None, 0, 1000, 1011) for ear in turmoil.ears)
    wrong = [one for one in caplog.records if one.levelno >= logging.ERROR and "redis at" not in one.getMessage()]
    assert wrong == []
