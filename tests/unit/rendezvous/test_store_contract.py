"""What every store does with clients, the one in memory and the one in Redis: the same at the same times."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_address

import pytest

from punchd.rendezvous import pulse
from punchd.rendezvous.pulse import ACCEPTED, NO_REPLY, UNKNOWN, VERIFY
from punchd.rendezvous.settings import Limits
from punchd.rendezvous.signals import Posted
from punchd.rendezvous.store import Ended, Registered, Store
from punchd.rendezvous.views import Policy, State
from tests.unit.rendezvous.parts import origin
from tests.unit.rendezvous.redis_parts import IP, registered
from tests.unit.rendezvous.store_bench import Bench

HERE, THERE, HERE6 = origin(port=4000), origin(port=4001), origin("2001:db8::1", 3)
NEW, ONLINE, PENDING, GONE = State.NEW, State.ONLINE, State.PENDING, None


class Subject:
    """A client of the store."""

    def __init__(self, bench: Bench, store: Store, who: Registered) -> None:
        self.clock, self.store, self.id, self.key = bench.clock, store, who.client_id, who.key

    async def pulse(self, at: float, where: bytes = HERE) -> bytes:
        self.clock.at(at)
        [reply] = await self.store.pulses([(self.key, where)])
        return reply

    async def verify(self, at: float, ip: str = "192.0.2.1") -> bool:
        self.clock.at(at)
        return await self.store.verify(self.key, ip_address(ip)) == self.id

    async def state(self, at: float) -> State | None:
        self.clock.at(at)
        view = await self.store.lookup(self.id)
        assert (await self.store.authenticate(self.key) == self.id) == (view is not None)
        return None if view is None else view.state

    async def seen(self, at: float) -> tuple[list[str], float | None]:
        """Addresses with their ages, and the time since the last pulse."""
        self.clock.at(at)
        view = await self.store.lookup(self.id)
        assert view is not None
        return [f"{one.endpoint} {one.age:.3f}" for one in view.addresses], view.last_online and round(
            view.last_online, 3
        )


@asynccontextmanager
async def subject(bench: Bench, *, pulsed: bool = True, policy: Policy | None = None) -> AsyncIterator[Subject]:
    bench.clock.at(0)
    async with bench.store(policy) as store:
        one = Subject(bench, store, await registered(store))
        if pulsed:
            assert await one.pulse(0) == ACCEPTED
        yield one


# --- section 2 of the specification ----------------------------------------------------------------------------------


async def test_states_change_at_their_times_to_the_millisecond(bench: Bench) -> None:
    times = (0, 30, 34.999, 35, 35.001, 100, 209.999, 210, 210.001)
    async with subject(bench) as pulsed:
        states = [await pulsed.state(at) for at in times]
        assert states == [ONLINE] * 4 + [PENDING] * 3 + [GONE] * 2
    async with subject(bench, pulsed=False) as new:
        assert [await new.state(at) for at in times] == [NEW] * 7 + [GONE] * 2


@pytest.mark.parametrize(
    ("at", "reply", "state", "port"),
    [(0, ACCEPTED, ONLINE, 4001), (35, ACCEPTED, ONLINE, 4001), (35.001, VERIFY, PENDING, 4000),
     (209.999, VERIFY, PENDING, 4000)],
)  # fmt: skip
async def test_a_pulse_on_time_renews_all_and_a_late_one_nothing(
    bench: Bench, at: float, reply: bytes, state: State, port: int
) -> None:
    async with subject(bench) as one:
        assert await one.pulse(at, THERE) == reply
        assert await one.state(at) is state
        addresses, last_online = await one.seen(at)
        assert addresses == [f"192.0.2.1:{port} {0 if reply == ACCEPTED else at:.3f}"]
        assert last_online == (0 if reply == ACCEPTED else at)
        assert await one.state(210) is (PENDING if reply == ACCEPTED and at else GONE)


async def test_a_client_that_is_gone_is_unknown_in_every_way(bench: Bench) -> None:
    async with subject(bench) as one:
        assert await one.state(210) is GONE
        assert await one.pulse(210) == UNKNOWN
        assert not await one.verify(210)
        assert await one.store.logout(one.key) is None
        assert await one.store.post_signal(one.id, one.id, "x") is Posted.UNKNOWN
        assert await one.store.take_signals(one.id, 0) is Ended.GONE


async def test_the_time_line_of_the_specification(bench: Bench) -> None:
    async with subject(bench) as one:
        assert await one.pulse(100, THERE) == VERIFY
        assert await one.verify(101)
        assert await one.seen(101.5) == (["192.0.2.1:4000 101.500"], 101.5)
        assert await one.pulse(102, THERE) == ACCEPTED
        assert [await one.state(at) for at in (137, 137.001, 311.999, 312)] == [ONLINE, PENDING, PENDING, GONE]


async def test_verify_gives_a_new_lease_only_to_who_is_pending(bench: Bench) -> None:
    async with subject(bench) as one:
        assert await one.verify(35)
        assert await one.state(35.001) is PENDING
        assert await one.verify(209.999)
        assert [await one.state(at) for at in (244.999, 245, 419.998, 419.999)] == [ONLINE, PENDING, PENDING, GONE]
    async with subject(bench, pulsed=False) as new:
        assert await new.verify(200)
        assert [await new.state(at) for at in (200, 210)] == [NEW, GONE]


async def test_who_lives_on_verify_alone_shows_it(bench: Bench) -> None:
    async with subject(bench) as one:
        for at in range(40, 400, 40):
            assert await one.verify(at)
        assert await one.seen(360) == ([], 360)


async def test_logout_forgets_at_once_whatever_the_state(bench: Bench) -> None:
    for at, pulsed in ((0, False), (10, True), (100, True)):
        async with subject(bench, pulsed=pulsed) as one:
            bench.clock.at(at)
            assert await one.store.logout(one.key) == one.id
            assert await one.state(at) is GONE
            assert await one.pulse(at) == UNKNOWN
            assert await one.store.logout(one.key) is None


async def test_the_newest_address_of_each_family_is_kept_and_grows_old_by_itself(bench: Bench) -> None:
    async with subject(bench) as one:
        assert await one.pulse(10, HERE6) == ACCEPTED
        for at in range(30, 200, 30):
            assert await one.pulse(at, HERE6) == ACCEPTED
        assert (await one.seen(209.999))[0] == ["192.0.2.1:4000 209.999", "[2001:db8::1]:3 29.999"]
        assert (await one.seen(210))[0] == ["[2001:db8::1]:3 30.000"]


async def test_a_batch_is_answered_in_order_and_each_datagram_for_itself(bench: Bench) -> None:
    async with bench.store() as store:
        one, two = await registered(store), await registered(store)
        batch = [
            (one.key, HERE), (b"short", HERE), (two.key.hex().upper().encode(), THERE), (b"x" * 32, HERE),
            (b"z" * 64, HERE), (b"q" * 68, HERE), (b"SRP1" + b"q" * 64, HERE), (one.key, THERE),
        ]  # fmt: skip
        expected = [ACCEPTED, NO_REPLY, ACCEPTED, UNKNOWN, NO_REPLY, NO_REPLY, UNKNOWN, ACCEPTED]
        assert await store.pulses(batch) == expected
        assert await store.pulses([]) == []
        view = await store.lookup(one.client_id)
        assert view is not None
        assert view.addresses[0].endpoint.port == 4001


# --- room ------------------------------------------------------------------------------------------------------------


async def test_when_full_the_oldest_that_never_pulsed_makes_room(bench: Bench) -> None:
    async with bench.store(limits=replace(Limits(), clients=3)) as store:
        members: list[Registered] = []
        for at in range(3):
            bench.clock.at(at)
            members.append(await registered(store))
        assert await store.pulses([(members[0].key, HERE)]) == [ACCEPTED]
        newest = await registered(store)
        known = [await store.lookup(one.client_id) is not None for one in (*members, newest)]
        assert known == [True, False, True, True]
        assert await store.pulses([(members[2].key, HERE), (newest.key, HERE)]) == [ACCEPTED] * 2
        assert await store.register(IP) is None
        assert await store.logout(newest.key) == newest.client_id
        assert await store.register(IP) is not None


# --- policies --------------------------------------------------------------------------------------------------------


async def test_with_reverify_a_new_address_takes_a_verify_and_then_one_pulse(bench: Bench) -> None:
    async with subject(bench, policy=Policy(reverify_moves=True)) as one:
        assert await one.pulse(0, HERE6) == ACCEPTED  # of the other family: no change
        assert await one.pulse(1, THERE) == VERIFY
        assert await one.state(1) is PENDING
        assert await one.pulse(2, HERE) == VERIFY  # also from the old one
        assert await one.verify(3)
        assert await one.state(3) is ONLINE
        assert await one.pulse(4, THERE) == ACCEPTED
        assert await one.pulse(5, THERE) == ACCEPTED
        assert await one.pulse(6, HERE) == VERIFY


async def test_with_require_same_ip_pulses_come_from_where_http_did(bench: Bench) -> None:
    async with subject(bench, policy=Policy(require_same_ip=True)) as one:
        assert await one.pulse(2, origin("192.0.2.9", 7)) == VERIFY
        assert await one.verify(3, "192.0.2.9")
        assert await one.pulse(4, origin("192.0.2.9", 7)) == ACCEPTED
        assert await one.pulse(5, HERE) == VERIFY
        assert await one.verify(6, "2001:db8::1")
        assert await one.pulse(7, HERE6) == ACCEPTED


# --- signed pulses ---------------------------------------------------------------------------------------------------


async def send(
    one: Subject, at: float, cookie: bytes = pulse.NO_COOKIE, where: bytes = HERE, *, off_ms: int = 0, key: bytes = b""
) -> bytes:
    one.clock.at(at)
    signed = pulse.sign(key or one.key, one.id, int(one.clock.now * 1000) + off_ms, cookie)
    [reply] = await one.store.pulses([(signed, where)])
    return reply


async def cookie_for(one: Subject, at: float, where: bytes = HERE) -> bytes:
    reply = pulse.read_reply(await send(one, at, where=where))
    assert reply.code is pulse.Code.COOKIE
    assert reply.cookie is not None
    return reply.cookie


async def test_a_signed_pulse_takes_the_cookie_that_went_to_its_address(bench: Bench) -> None:
    async with subject(bench, pulsed=False) as one:
        cookie = await cookie_for(one, 1)
        assert await one.seen(1) == ([], None)
        assert pulse.read_reply(await send(one, 2, cookie, THERE)).code is pulse.Code.COOKIE
        assert await send(one, 3, cookie) == ACCEPTED
        assert await one.state(3) is ONLINE
        assert pulse.read_reply(await send(one, 33, b"12345678")).code is pulse.Code.COOKIE


async def test_after_a_signed_pulse_plain_ones_no_longer_count(bench: Bench) -> None:
    async with subject(bench) as one:
        cookie = await cookie_for(one, 1)
        assert await one.pulse(1, THERE) == ACCEPTED  # a 1051 is not yet a pulse
        assert await send(one, 2, cookie) == ACCEPTED
        assert await one.pulse(3, THERE) == VERIFY
        assert (await one.seen(3))[0] == ["192.0.2.1:4000 1.000"]


async def test_a_signed_pulse_counts_once_in_order_near_its_time_and_from_its_owner(bench: Bench) -> None:
    async with subject(bench) as one:
        cookie = await cookie_for(one, 1)
        assert await send(one, 2, cookie) == ACCEPTED
        assert await send(one, 2, cookie) == VERIFY
        assert await send(one, 3, cookie, off_ms=-1001) == VERIFY
        assert await send(one, 3, cookie, off_ms=-999) == ACCEPTED
        assert await send(one, 4, cookie, off_ms=60_001) == VERIFY
        assert await send(one, 4, cookie, key=b"x" * 32) == UNKNOWN
        assert await send(one, 4, cookie, off_ms=60_000) == ACCEPTED


async def test_a_late_signed_pulse_is_told_to_verify(bench: Bench) -> None:
    async with subject(bench) as one:
        assert await send(one, 30, await cookie_for(one, 29)) == ACCEPTED
        assert await send(one, 65.001) == VERIFY
        assert await one.verify(66)
        assert await send(one, 67, await cookie_for(one, 66.5)) == ACCEPTED
