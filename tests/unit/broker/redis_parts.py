"""Stores on one Redis in the test's own process, as several servers have them, and connections that remember."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from itertools import count
from typing import Any

import trio

from punchd.broker import tokens
from punchd.broker.agenda import Agenda
from punchd.broker.clock import Clock
from punchd.broker.creation import Creation
from punchd.broker.messages import KeepAlive, decode
from punchd.broker.metrics import Counts
from punchd.broker.moves import Connected
from punchd.broker.redis_scripts import PREFIX
from punchd.broker.redis_sessions import RedisSessions
from punchd.broker.secret import Secret
from punchd.broker.server_messages import CloseCode, ErrorCode
from punchd.broker.settings import Settings
from punchd.broker.store import Created
from punchd.broker.tokens import Role
from punchd.redis import url as redis_url
from tests.unit.broker.running import FixedSecret, settings
from tests.unit.broker.schema import check_server_message
from tests.unit.rendezvous.redis_server import RedisServer

PATIENCE_S = 30.0
SOURCE = b"\xc0\x00\x02\x01"

_numbers = count(1)


@dataclass(slots=True, eq=False)
class Ear:
    """A connection: an `Outlet` that keeps what it was told."""

    store: RedisSessions
    session: str
    id: str
    frames: list[dict[str, Any]] = field(default_factory=list)
    close_code: int | None = None
    probes: int = 0
    is_registered: bool = False

    def deliver(self, text: str, code: ErrorCode | None = None) -> None:
        del code
        assert self.close_code is None, text
        self.frames.append(check_server_message(text))

    def report(self, text: str) -> None:
        self.deliver(text)

    def close(self, code: CloseCode) -> None:
        assert self.close_code is None
        self.close_code = code.value

    def probe(self) -> None:
        self.probes += 1

    def registered(self) -> None:
        self.is_registered = True

    async def say(self, kind: str, **members: Any) -> bool:
        message = decode(json.dumps({"type": kind, **members}))
        assert not isinstance(message, KeepAlive)
        return await self.store.hear(self.session, self.id, message)

    @property
    def kinds(self) -> list[str]:
        return [frame["type"] for frame in self.frames]

    async def has_heard(self, *kinds: str) -> list[dict[str, Any]]:
        """Wait for frames of these types, in any order among others; all frames, which are taken."""
        await until(lambda: all(kind in self.kinds for kind in kinds))
        taken, self.frames = self.frames, []
        return taken

    async def is_closed(self) -> int:
        await until(lambda: self.close_code is not None)
        assert self.close_code is not None
        return self.close_code


async def until(is_so: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE_S):
        while not is_so():  # noqa: ASYNC110 (nobody tells)
            await trio.sleep(0.005)


@dataclass(slots=True)
class Server:
    """One of them."""

    store: RedisSessions
    counts: Counts
    scope: trio.CancelScope

    def hang(self) -> None:
        """It does nothing any more, and says no goodbye."""
        self.scope.cancel()


@asynccontextmanager
async def servers(
    redis: RedisServer,
    number: int = 2,
    *,
    secret: Callable[[], Secret] = FixedSecret,
    wall: Callable[[], float] = time.time,
    chosen: Settings | None = None,
    url: str | None = None,
) -> AsyncIterator[list[Server]]:
    """So many, which run and are known to Redis."""
    found: list[Server] = []
    place = redis_url.parse(url or redis.url, "store")

    async def run(store: RedisSessions, agenda: Agenda, scope: trio.CancelScope) -> None:
        with scope:
            async with trio.open_nursery() as both:
                both.start_soon(agenda.run)
                both.start_soon(store.run)

    async with trio.open_nursery() as nursery:
        for _ in range(number):
            agenda, counts, scope = Agenda(), Counts(), trio.CancelScope()
            store = RedisSessions(
                place, chosen or settings(), secret(), clock=Clock(wall), agenda=agenda, counts=counts
            )
            found.append(Server(store, counts, scope))
            nursery.start_soon(run, store, agenda, scope)
        await until(lambda: all(not one.store.instance._is_new for one in found))
        yield found
        nursery.cancel_scope.cancel()


async def created(server: Server, name: str = "show", *streams: str, ttl_s: int = 600) -> Created:
    made = await server.store.create(Creation(name, streams or ("cam",), ttl_s=ttl_s), SOURCE)
    assert isinstance(made, Created)
    return made


async def join(server: Server, made: Created, stream: str | None = None, ip: str = "192.0.2.1") -> Ear:
    """A connection of a peer of `stream`, or of an admin."""
    store, name = server.store, made.plan.name
    ear = Ear(store, name, f"{store.prefix}{next(_numbers)}")
    token = made.admin_token if stream is None else made.peer_tokens[stream]
    role = Role.ADMIN if stream is None else Role.PEER
    await store.enter(name, Connected(ear.id, role, stream, ip_address(ip), tokens.digest(token).hex()), ear)
    return ear


async def pair(one: Server, two: Server, made: Created, stream: str = "cam") -> tuple[Ear, Ear]:
    """Two peers at two servers, matched; what they heard is taken."""
    first, second = await join(one, made, stream, "192.0.2.11"), await join(two, made, stream, "192.0.2.12")
    await first.say("register", port=5000)
    await second.say("register", port=6000)
    await first.has_heard("peer", "session")
    await second.has_heard("peer", "session")
    return first, second


def key_of(name: str) -> str:
    return f"{PREFIX}s:{name}"
