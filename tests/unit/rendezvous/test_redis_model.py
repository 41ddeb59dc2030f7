"""Random operations at random times: the store in Redis answers what the store in memory answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from punchd.rendezvous import identity, pulse
from punchd.rendezvous.aliases import Aliases
from punchd.rendezvous.clients import Clients
from punchd.rendezvous.memory import MemoryStore
from punchd.rendezvous.redis_store import RedisStore
from punchd.rendezvous.settings import Limits
from punchd.rendezvous.signals import Signal, Signals
from punchd.rendezvous.store import Ended, Registered, Store
from punchd.rendezvous.views import Policy, Timing
from tests.unit.rendezvous.parts import origin
from tests.unit.rendezvous.redis_parts import redis_stores
from tests.unit.rendezvous.redis_server import RedisServer, needs_redis
from tests.unit.rendezvous.store_bench import Clock

LIMITS = replace(Limits(), clients=4, signal_queue=3, aliases_per_client=2)
IPS = ("192.0.2.1", "192.0.2.2", "2001:db8::1")
PEOPLE = [identity.generate() for _ in range(4)]

CLIENT = st.integers(0, 5)
PLACE = st.integers(0, 2)
STEP_MS = st.sampled_from([1, 30_000, 34_999, 35_000, 35_001, 100_000, 180_000, 209_999, 210_000]) | st.integers(
    1, 9999
)
STEPS = st.one_of(
    st.tuples(st.just("advance"), STEP_MS, st.just(0)),
    st.tuples(st.just("register"), PLACE, st.just(0)),
    st.tuples(st.just("pulse"), CLIENT, PLACE),
    st.tuples(st.just("sign"), CLIENT, PLACE),
    st.tuples(st.just("verify"), CLIENT, PLACE),
    st.tuples(st.just("log out"), CLIENT, st.just(0)),
    st.tuples(st.just("post"), CLIENT, CLIENT),
    st.tuples(st.just("take"), CLIENT, st.just(0)),
    st.tuples(st.just("take and return"), CLIENT, st.just(0)),
    st.tuples(st.just("bind"), CLIENT, st.integers(0, len(PEOPLE) * 3 - 1)),
)


class Side:
    """One store; what it answers is told without ids, which are random."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self.store = store
        self.clock = clock
        self.members: list[Registered] = []

    def named(self, client_id: bytes | None) -> int | None:
        ids = [member.client_id for member in self.members]
        return None if client_id is None else ids.index(client_id)

    async def do(self, act: str, first: int, second: int) -> object:
        store = self.store
        if act == "register":
            new = await store.register(ip_address(IPS[first]))
            self.members += [] if new is None else [new]
            return new is None
        if act == "advance" or first >= len(self.members):
            return None
        one = self.members[-1 - first]
        match act:
            case "pulse":
                return await store.pulses([(one.key, origin(IPS[second], 4000))])
            case "sign":
                return await self.sign(one, origin(IPS[second], 4000))
            case "verify":
                return self.named(await store.verify(one.key, ip_address(IPS[second])))
            case "log out":
                return self.named(await store.logout(one.key))
            case "post":
                sender = self.members[-1 - second % len(self.members)]
                return await store.post_signal(sender.client_id, one.client_id, f"{first} {second}")
            case "take" | "take and return":
                taken = await store.take_signals(one.client_id, 0)
                if isinstance(taken, Ended):
                    return taken
                if act == "take and return":
                    await store.return_signals(one.client_id, taken[1:])
                return [self.told(signal) for signal in taken]
            case _:
                who, time = PEOPLE[second % len(PEOPLE)], second // len(PEOPLE)
                return await store.bind_alias(who.bind(one.client_id, time))

    async def sign(self, one: Registered, where: bytes) -> list[int]:
        """Two signed pulses, the second with the cookie that the first one brought."""
        codes: list[int] = []
        cookie: bytes | None = None
        for _ in range(2):
            signed = pulse.sign(one.key, one.client_id, int(self.clock.now * 1000), cookie or pulse.NO_COOKIE)
            [answer] = await self.store.pulses([(signed, where)])
            reply = pulse.read_reply(answer)
            codes.append(reply.code)
            cookie = reply.cookie
        return codes

    def told(self, signal: Signal) -> tuple[object, ...]:
        return self.named(signal.sender), signal.data, round(signal.posted, 3)

    async def shown(self) -> list[object]:
        """All that can be looked up."""
        shown: list[object] = []
        for member in self.members[-6:]:
            view = await self.store.lookup(member.client_id)
            assert (await self.store.authenticate(member.key) == member.client_id) == (view is not None)
            if view is not None:
                addresses = [(one.endpoint, round(one.age, 3)) for one in view.addresses]
                last = None if view.last_online is None else round(view.last_online, 3)
                shown.append((self.named(view.client_id), view.state, addresses, last))
        for who in PEOPLE:
            binding = await self.store.resolve_alias(who.bind(bytes(16), 0).fingerprint)
            shown.append(binding and (self.named(binding.client_id), binding.timestamp))
        return shown


class Model(MemoryStore):
    """In memory; who is gone is forgotten at once, not within the next second."""

    def forget_gone(self, now: float) -> None:
        gone = [client_id for client_id in list(self._clients._row_of_id) if self._clients.view(client_id, now) is None]
        for client_id in gone:
            self._clients._remove(self._clients._row_of_id[client_id])
        self._forget(gone)
        self._signals.sweep(now)


@needs_redis
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(policy=st.builds(Policy, st.booleans(), st.booleans()), steps=st.lists(STEPS, min_size=5, max_size=40))
async def test_both_stores_answer_the_same(
    redis: RedisServer, policy: Policy, steps: Sequence[tuple[str, int, int]]
) -> None:
    redis.ask("FLUSHALL")
    clock = Clock()
    model = Model(
        Clients(LIMITS.clients, Timing(), policy),
        Signals(LIMITS.signal_queue, LIMITS.signal_memory, float(LIMITS.signal_seconds)),
        Aliases(LIMITS.aliases_per_client),
        clock=clock,
        unix_clock=clock,
    )
    async with redis_stores(redis, policy=policy, limits=LIMITS, clock=clock) as [store]:
        assert isinstance(store, RedisStore)
        expected, found = Side(model, clock), Side(store, clock)
        for step in (("register", 0, 0), ("register", 1, 0), *steps):
            # No two register at the same time: which of them counts as older is left open, and nobody can tell.
            passed_ms = step[1] if step[0] == "advance" else int(step[0] == "register")
            clock.now = round(clock.now + passed_ms / 1000, 6)
            model.forget_gone(clock.now)
            assert await found.do(*step) == await expected.do(*step), step
            assert await found.shown() == await expected.shown(), step
