"""What every store does with signals and aliases, the one in memory and the one in Redis."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from punchd.rendezvous import identity
from punchd.rendezvous.aliases import Bound
from punchd.rendezvous.settings import Limits
from punchd.rendezvous.signals import OVERHEAD_BYTES, Posted, Signal
from punchd.rendezvous.store import Ended, Registered, Store
from tests.unit.rendezvous.redis_parts import PATIENCE_S, registered
from tests.unit.rendezvous.store_bench import Bench


def texts(found: list[Signal] | Ended) -> list[str]:
    assert isinstance(found, list)
    return [signal.data for signal in found]


async def test_signals_are_given_out_in_order_once_with_sender_and_age(bench: Bench) -> None:
    async with bench.store() as store:
        one, two = await registered(store), await registered(store)
        for at, text in enumerate(("a", "äöü\0", "c" * 1000)):
            bench.clock.at(at)
            assert await store.post_signal(two.client_id, one.client_id, text) is Posted.SENT
        found = await store.take_signals(one.client_id, 0)
        assert texts(found) == ["a", "äöü\0", "c" * 1000]
        assert isinstance(found, list)
        assert {signal.sender for signal in found} == {two.client_id}
        assert [await store.age(signal) for signal in found] == pytest.approx([2, 1, 0], abs=1e-5)
        assert texts(await store.take_signals(one.client_id, 0)) == []


async def test_queues_are_bounded_for_each_client_and_in_all(bench: Bench) -> None:
    limits = replace(Limits(), signal_queue=3, signal_memory=4 * (OVERHEAD_BYTES + 2))
    async with bench.store(limits=limits) as store:
        one, two = await registered(store), await registered(store)
        results = [await store.post_signal(two.client_id, one.client_id, "ä") for _ in range(4)]
        assert results == [Posted.SENT] * 3 + [Posted.FULL]
        results = [await store.post_signal(one.client_id, two.client_id, "ä") for _ in range(2)]
        assert results == [Posted.SENT, Posted.EXHAUSTED]
        assert len(texts(await store.take_signals(one.client_id, 0))) == 3
        assert await store.post_signal(one.client_id, two.client_id, "ä") is Posted.SENT
        assert await store.logout(two.key) == two.client_id
        assert await store.post_signal(two.client_id, one.client_id, "ä" * 500) is Posted.SENT


async def test_a_signal_waits_for_so_long_and_not_a_millisecond_longer(bench: Bench) -> None:
    async with bench.store(limits=replace(Limits(), signal_queue=2)) as store:
        one = await registered(store)
        assert await store.post_signal(one.client_id, one.client_id, "old") is Posted.SENT
        bench.clock.at(100)
        assert await store.post_signal(one.client_id, one.client_id, "new") is Posted.SENT
        bench.clock.at(179.999)
        assert await store.post_signal(one.client_id, one.client_id, "x") is Posted.FULL
        bench.clock.at(180)
        assert await store.post_signal(one.client_id, one.client_id, "y") is Posted.SENT
        assert texts(await store.take_signals(one.client_id, 0)) == ["new", "y"]


async def test_what_comes_back_stands_before_what_came_since(bench: Bench) -> None:
    async with bench.store() as store:
        one = await registered(store)
        for text in "abc":
            await store.post_signal(one.client_id, one.client_id, text)
        taken = await store.take_signals(one.client_id, 0)
        assert isinstance(taken, list)
        await store.post_signal(one.client_id, one.client_id, "d")
        await store.return_signals(one.client_id, taken[1:])
        assert texts(await store.take_signals(one.client_id, 0)) == ["b", "c", "d"]


async def wait(store: Store, who: Registered, found: list[object]) -> None:
    found.append(await store.take_signals(who.client_id, PATIENCE_S))


async def is_waiting(store: Store, who: Registered) -> None:
    with trio.fail_after(PATIENCE_S):
        while who.client_id not in store._waits:  # type: ignore[attr-defined]  # noqa: ASYNC110
            await trio.sleep(0.005)


async def test_a_wait_ends_with_a_signal_a_newer_wait_or_the_client(bench: Bench) -> None:
    async with bench.store() as store:
        one = await registered(store)
        found: list[object] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, store, one, found)
            await is_waiting(store, one)
            assert texts(await store.take_signals(one.client_id, 0.01)) == []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, store, one, found)
            await is_waiting(store, one)
            await store.post_signal(one.client_id, one.client_id, "x")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, store, one, found)
            await is_waiting(store, one)
            await store.logout(one.key)
        replaced, signals, gone = found
        assert replaced is Ended.REPLACED
        assert isinstance(signals, list)
        assert texts(signals) == ["x"]
        assert gone is Ended.GONE


# --- aliases ---------------------------------------------------------------------------------------------------------


async def test_an_alias_follows_its_newest_binding_and_its_client(bench: Bench) -> None:
    async with bench.store() as store:
        one, two = await registered(store), await registered(store)
        who = identity.generate()
        first, second = who.bind(one.client_id, 1_700_000_000), who.bind(two.client_id, 1_700_000_001)
        assert await store.resolve_alias(first.fingerprint) is None
        assert await store.bind_alias(first) is Bound.BOUND
        assert await store.bind_alias(first) is Bound.BOUND
        assert await store.resolve_alias(first.fingerprint) == first
        assert await store.bind_alias(second) is Bound.BOUND
        assert await store.bind_alias(first) is Bound.STALE
        assert await store.resolve_alias(first.fingerprint) == second
        assert await store.logout(one.key) is not None  # its alias has moved on
        assert await store.resolve_alias(first.fingerprint) == second
        assert await store.bind_alias(who.bind(one.client_id, 1_700_000_009)) is Bound.UNKNOWN
        assert await store.logout(two.key) is not None
        assert await store.resolve_alias(first.fingerprint) is None


async def test_a_client_has_few_aliases(bench: Bench) -> None:
    async with bench.store(limits=replace(Limits(), aliases_per_client=2)) as store:
        one, two = await registered(store), await registered(store)
        people = [identity.generate() for _ in range(3)]
        results = [await store.bind_alias(who.bind(one.client_id, 5)) for who in people]
        assert results == [Bound.BOUND, Bound.BOUND, Bound.TOO_MANY]
        assert await store.bind_alias(people[0].bind(one.client_id, 6)) is Bound.BOUND
        assert await store.bind_alias(people[0].bind(two.client_id, 7)) is Bound.BOUND
        assert await store.bind_alias(people[2].bind(one.client_id, 8)) is Bound.BOUND
