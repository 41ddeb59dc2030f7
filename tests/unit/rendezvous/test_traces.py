"""What is left of clients that are gone: nothing, in any of the store's tables."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from punchd.rendezvous import identity
from punchd.rendezvous.store import Ended
from tests.unit.rendezvous.parts import UNIX_S, World, origin

CLIENTS = 300


@pytest.mark.parametrize("way", ["expiry", "logout", "eviction"])
async def test_v_020_of_clients_that_are_gone_no_signal_no_alias_and_no_wait_is_left(
    way: str, autojump_clock: trio.testing.MockClock
) -> None:
    world = World(clock=trio.current_time)
    ended: list[object] = []

    async def wait(client_id: bytes) -> None:
        ended.append(await world.store.take_signals(client_id, 10_000))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.store.run)
        members = [await world.register() for _ in range(CLIENTS)]
        for number, member in enumerate(members):
            client_id = bytes.fromhex(member.id)
            if way != "eviction":
                await world.pulse(member, origin(port=number))
            if number % 2:
                nursery.start_soon(wait, client_id)
            else:
                await world.store.post_signal(bytes(16), client_id, "x")
            if number < 10:
                await world.store.bind_alias(identity.generate().bind(client_id, int(UNIX_S)))
        await trio.sleep(1)
        assert (len(world.signals), len(world.aliases), len(world.store._waits)) == (CLIENTS // 2, 10, CLIENTS // 2)
        match way:
            case "expiry":
                await trio.sleep(220)
            case "logout":
                for member in members:
                    await world.get("POST", "/logout", member)
            case _:
                world.clients._capacity = CLIENTS
                for _ in members:
                    await world.register()
        await trio.sleep(1)
        assert ended == [Ended.GONE] * (CLIENTS // 2)
        assert (len(world.signals), len(world.aliases), len(world.store._waits)) == (0, 0, 0)
        assert world.signals.cost_bytes == 0
        assert len(world.clients) == (CLIENTS if way == "eviction" else 0)
        nursery.cancel_scope.cancel()
