"""What is remembered of traceroutes, for how long, and when there is a reason for one; a virtual clock, no packets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from punchd.attempt.outlook import KnownSide
from punchd.endpoint import Endpoint, IPAddress, parse_ip
from punchd.errors import Code, PunchError
from punchd.kernel.traceroute import Hop
from punchd.nat.low_ttl import MOST_SOURCES, REMEMBER_S, REMEMBER_SILENCE_S, LowTtls
from punchd.nat.mapping import Behaviour, Mapping

HOST, OTHER = parse_ip("192.168.1.2"), parse_ip("192.168.1.3")
PUBLIC = parse_ip("198.51.100.4")
SERVER = parse_ip("192.0.2.10")
ROUTER = parse_ip("198.51.100.254")
SECOND_HOP = {1: Hop(parse_ip("192.168.1.1"), True), 2: Hop(ROUTER, True)}
THIRD_HOP = {2: Hop(parse_ip("100.64.0.1"), True), 3: Hop(ROUTER, True)}


class World:
    """A host whose routes change when the test says so, and what its traceroutes see."""

    def __init__(self) -> None:
        self.changed = False
        self.hops: dict[int, Hop] = SECOND_HOP
        self.fault: PunchError | None = None
        self.asked: list[tuple[IPAddress, IPAddress, IPAddress | None]] = []
        self.go: trio.Event | None = None  # a traceroute waits for it
        self.ttls = LowTtls(self._routes_changed, self._look)

    def _routes_changed(self) -> bool:
        changed, self.changed = self.changed, False
        return changed

    async def _look(self, source: IPAddress, target: IPAddress, public: IPAddress | None) -> dict[int, Hop]:
        self.asked.append((source, target, public))
        seen = self.hops
        if self.go is not None:
            await self.go.wait()
        if self.fault is not None:
            raise self.fault
        return seen

    def ttl(self, source: IPAddress = HOST) -> int | None:
        learnt = self.ttls.known(source)
        return None if learnt is None else learnt.ttl

    async def consider(
        self,
        source: IPAddress = HOST,
        behaviour: Behaviour = Behaviour.ENDPOINT_INDEPENDENT,
        target: IPAddress = SERVER,
    ) -> None:
        local = Endpoint(source, 40000)
        mapping = Mapping(local, (Endpoint(PUBLIC, 40000),), behaviour, int(behaviour is Behaviour.SEQUENTIAL))
        self.ttls.consider(KnownSide(local, mapping=mapping), target)
        await wait_all_tasks_blocked()


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    made = World()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.ttls.run)
        await wait_all_tasks_blocked()
        yield made
        nursery.cancel_scope.cancel()


async def test_what_a_traceroute_taught_is_known_for_its_address_only(autojump_clock: MockClock) -> None:
    async with world() as made:
        await made.consider()
        assert made.asked == [(HOST, SERVER, PUBLIC)]
        assert made.ttl() == 2
        assert str(made.ttls.known(HOST)) == "learnt, 198.51.100.254 is the first public hop"
        assert made.ttl(OTHER) is None


async def test_what_is_fresh_is_not_asked_for_again(autojump_clock: MockClock) -> None:
    async with world() as made:
        await made.consider()
        made.hops = THIRD_HOP
        await trio.sleep(REMEMBER_S - 1)
        await made.consider()
        assert (made.ttl(), len(made.asked)) == (2, 1)
        await trio.sleep(1)
        assert made.ttl() is None
        await made.consider()
        assert (made.ttl(), len(made.asked)) == (3, 2)


async def test_silence_is_remembered_for_a_shorter_time(autojump_clock: MockClock) -> None:
    async with world() as made:
        made.hops = {}
        await made.consider()
        await trio.sleep(REMEMBER_SILENCE_S - 1)
        await made.consider()
        assert (made.ttl(), len(made.asked)) == (None, 1)
        await trio.sleep(1)
        made.hops = SECOND_HOP
        await made.consider()
        assert (made.ttl(), len(made.asked)) == (2, 2)


async def test_two_traceroutes_from_one_address_never_run_at_once(autojump_clock: MockClock) -> None:
    async with world() as made:
        made.go = trio.Event()
        for _ in range(3):
            await made.consider()
        await made.consider(OTHER)
        assert [source for source, *_ in made.asked] == [HOST, OTHER]
        assert made.ttl() is None  # whoever begins now does not wait
        made.changed = True
        await made.consider()
        assert len(made.asked) == 2  # not even when what the first one finds is void
        made.go.set()


async def test_changed_routes_void_what_was_learnt(autojump_clock: MockClock) -> None:
    async with world() as made:
        await made.consider()
        made.changed = True
        assert made.ttl() is None
        made.hops = THIRD_HOP
        await made.consider()
        assert made.ttl() == 3


async def test_what_is_learnt_while_routes_change_is_not_believed(autojump_clock: MockClock) -> None:
    for noticed_before_the_end in (True, False):
        async with world() as made:
            made.go = trio.Event()
            await made.consider()
            made.changed = True
            if noticed_before_the_end:
                assert made.ttl() is None
            made.go.set()
            await wait_all_tasks_blocked()
            assert made.ttl() is None
            await made.consider()
            assert (made.ttl(), len(made.asked)) == (2, 2)


@pytest.mark.parametrize(
    ("source", "behaviour", "target"),
    [
        (PUBLIC, Behaviour.OPEN, SERVER),
        (parse_ip("2001:db8::2"), Behaviour.OPEN, parse_ip("2001:db8::1")),
        (HOST, Behaviour.SEQUENTIAL, SERVER),
        (HOST, Behaviour.UNKNOWN, parse_ip("2001:db8::1")),
    ],
    ids=["a public address", "a public IPv6 address", "a NAT that counts its ports", "another family"],
)
async def test_where_it_teaches_nothing_or_does_harm_it_is_not_looked(
    autojump_clock: MockClock, source: IPAddress, behaviour: Behaviour, target: IPAddress
) -> None:
    async with world() as made:
        await made.consider(source, behaviour, target)
        assert made.asked == []


@pytest.mark.parametrize("behaviour", [Behaviour.UNKNOWN, Behaviour.RANDOM, Behaviour.ENDPOINT_INDEPENDENT])
async def test_it_is_looked_behind_any_other_nat(autojump_clock: MockClock, behaviour: Behaviour) -> None:
    async with world() as made:
        await made.consider(behaviour=behaviour)
        assert made.ttl() == 2


async def test_without_an_answer_of_stun_it_is_not_looked(autojump_clock: MockClock) -> None:
    async with world() as made:
        made.ttls.consider(KnownSide(Endpoint(HOST, 40000), given_address=PUBLIC), SERVER)
        await wait_all_tasks_blocked()
        assert made.asked == []


async def test_a_traceroute_that_fails_teaches_nothing_and_ends_nothing(autojump_clock: MockClock) -> None:
    async with world() as made:
        made.fault = PunchError(Code.NETWORK, "send to 192.0.2.10:33434: ENETUNREACH Network is unreachable")
        await made.consider()
        assert made.ttl() is None
        made.fault = None
        await trio.sleep(REMEMBER_SILENCE_S)
        await made.consider()
        assert made.ttl() == 2


async def test_only_so_many_addresses_are_remembered_the_oldest_go_first(autojump_clock: MockClock) -> None:
    first, second, *others, last = [parse_ip(f"192.168.2.{number}") for number in range(1, MOST_SOURCES + 2)]
    async with world() as made:
        made.hops = {}
        await made.consider(first)
        made.hops = SECOND_HOP
        for host in (second, *others):
            await made.consider(host)
        await trio.sleep(REMEMBER_SILENCE_S)
        await made.consider(first)  # which makes it the youngest
        await made.consider(last)
        assert [host for host in (first, second, *others, last) if made.ttl(host) is None] == [second]


async def test_only_so_many_traceroutes_run_at_once(autojump_clock: MockClock) -> None:
    async with world() as made:
        made.go = trio.Event()
        for number in range(1, MOST_SOURCES + 3):
            await made.consider(parse_ip(f"192.168.2.{number}"))
        assert len(made.asked) == MOST_SOURCES


async def test_while_it_does_not_run_nothing_is_asked() -> None:
    made = World()
    await made.consider()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.ttls.run)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    await made.consider()
    assert made.asked == []
