"""`Aim`: when it goes up, what it opens, and what it tells. Times are the virtual clock's, in seconds."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, cast

import pytest
import trio

from punchd.attempt.outlook import KnownSide
from punchd.endpoint import Endpoint, PortSet
from punchd.events import Aimed, Event, Opened
from punchd.nat.mapping import judge
from punchd.technique import Facts, Kit, Role
from punchd.wire.token import Card
from punchd_techniques.aim import LAST_RESORT_ANSWERED_S, LAST_RESORT_S, LAST_RESORT_UNANSWERED_S, Aim

LOCAL = Endpoint(ip_address("10.0.0.2"), 5001)
PUBLIC, PEER = ip_address("203.0.113.1"), ip_address("198.51.100.9")
LOW = 4
NAMED = PortSet((5002,))
BODY = b"added"


def seen_as(*ports: int) -> KnownSide:
    return KnownSide(LOCAL, mapping=judge(LOCAL, [Endpoint(PUBLIC, port) for port in ports]), rtt_ms=20)


KIND, COUNTING, RANDOM = seen_as(5001, 5001), seen_as(41001, 41002), seen_as(41001, 27183)


def card(*ports: int, opened: tuple[int, ...] = ()) -> Card:
    return Card(PEER, PortSet(ports), opened, False, LOW, 20, b"")


@dataclass
class World:
    """Implements the parts of `Kit` and of a port that `Aim` uses, and shoots for it."""

    outlook: KnownSide = KIND
    role: Role = Role.INITIATOR
    packets_per_port: int = 64
    packets: int = 512
    local: Endpoint = LOCAL
    told: list[Card] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    shots: list[tuple[float, int, int | None]] = field(default_factory=list)  # when, to which port, TTL

    def __post_init__(self) -> None:
        self.made_s = self.now()
        facts = Facts(self.role, PEER, NAMED, LOW, self.packets_per_port, self.packets)
        self.aim = Aim(facts, cast(Kit, self), self, body=BODY, fire=self.fire)

    def now(self) -> float:
        return trio.current_time()

    def tell_peer(self, told: Card) -> None:
        self.told.append(told)

    def emit(self, event: Event) -> None:
        self.events.append(event)

    def fire(self) -> None:
        for port in self.aim.targets:
            if self.aim.spend(port):
                self.shots.append((round(self.now() - self.made_s, 6), port, self.aim.ttl))

    def whys(self) -> list[str]:
        return [event.why for event in self.events if isinstance(event, Aimed)]


OWN = "the peer has opened its NAT for our port"
ALLOWED = [
    pytest.param(KIND, (5001,), [OWN], id="our port is the one that was opened"),
    pytest.param(KIND, (7, 5001, 9), [OWN], id="our port is among those that were opened"),
    pytest.param(KIND, (5002,), [], id="another port was opened"),
    pytest.param(KIND, (), [], id="none was opened"),
    pytest.param(COUNTING, (41010,), [OWN], id="the last of eight predicted ports was opened"),
    pytest.param(COUNTING, (41011,), [], id="a port after those predicted was opened"),
    pytest.param(RANDOM, (), ["our own port is random"], id="our own port cannot be known"),
]


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize(("outlook", "opened", "whys"), ALLOWED)
async def test_a_card_lets_us_go_up_for_the_port_that_we_have(
    outlook: KnownSide, opened: tuple[int, ...], whys: list[str], role: Role, autojump_clock: Any
) -> None:
    world = World(outlook, role)
    world.aim.take(card(5002, opened=opened))
    assert world.whys() == whys
    assert world.shots == [(0, 5002, None if whys else LOW)]


LAST_RESORTS = [
    pytest.param(Role.INITIATOR, None, LAST_RESORT_UNANSWERED_S, id="an initiator without an answer"),
    pytest.param(Role.INITIATOR, 0.123, 0.123 + LAST_RESORT_ANSWERED_S, id="an initiator with an answer"),
    pytest.param(Role.RESPONDER, None, LAST_RESORT_S, id="a responder"),
    pytest.param(Role.RESPONDER, 0.123, 0.123 + LAST_RESORT_S, id="a responder with a note"),
]


@pytest.mark.parametrize(("role", "card_s", "expected_s"), LAST_RESORTS)
@pytest.mark.parametrize("pause_s", [0.05, 0.3, 60.0])
async def test_the_last_resort_comes_on_time_whenever_the_next_packet_is_due(
    role: Role, card_s: float | None, expected_s: float, pause_s: float, autojump_clock: Any
) -> None:
    world = World(role=role, packets_per_port=512)
    if role is Role.INITIATOR:
        world.aim.offer()
    else:
        world.aim.take(card(5002))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.aim.keep_firing, (pause_s,), ())
        if card_s is not None:
            await trio.sleep(card_s)
            world.aim.take(card(5002))
    assert trio.current_time() - world.made_s == pytest.approx(expected_s)
    assert world.whys() == ["no card came in time"]
    assert [at_s for at_s, _, ttl in world.shots if ttl is None] == [pytest.approx(expected_s)]


async def test_pauses_are_counted_anew_when_the_aim_changes_and_the_last_one_is_repeated(autojump_clock: Any) -> None:
    world = World()
    world.aim.offer()
    with trio.move_on_after(1.0):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.aim.keep_firing, (0.125, 0.25), (0.0625, 0.125))
            await trio.sleep(0.75)
            world.aim.go_full("the peer was heard")
    low = [(at_s, 5002, LOW) for at_s in (0, 0.125, 0.375, 0.625)]
    assert world.shots == [*low, (0.8125, 5002, None), (0.9375, 5002, None)]


async def test_wrong_hints_are_put_right_and_the_new_predictions_told(autojump_clock: Any) -> None:
    """The NAT counts: towards the port that the card names we have a later port than the one that the peer opened."""
    world = World(COUNTING)
    world.aim.offer()
    world.aim.take(card(6000, opened=(41003,)))
    world.aim.tell()
    assert world.shots == [(0, 5002, LOW), (0, 6000, LOW), (0, 5002, LOW)]
    assert [event.ports for event in world.events if isinstance(event, Opened)] == ["5002", "6000"]
    assert [(told.ports.ports[0], told.opened) for told in world.told] == [(41003, (5002,)), (41004, (6000, 5002))]
    assert world.whys() == []
    world.aim.take(card(6000, opened=(41004,)))
    assert world.whys() == [OWN]


async def test_no_card_is_told_twice_unless_it_has_to_be(autojump_clock: Any) -> None:
    world = World()
    world.aim.offer()
    world.aim.tell()
    world.aim.take(card(5002))
    world.aim.learned()
    assert len(world.told) == 1
    world.aim.tell(again=True)
    assert world.told == [Card(PUBLIC, PortSet((5001,)), (5002,), False, LOW, 20, BODY)] * 2


async def test_what_stun_says_later_is_told_and_judged(autojump_clock: Any) -> None:
    world = World(KnownSide(LOCAL), Role.RESPONDER)
    world.aim.take(card(5002, opened=(41005,)))
    world.aim.tell()
    assert world.whys() == []
    world.outlook = COUNTING
    world.aim.learned()
    assert world.whys() == [OWN]
    assert [told.ports.ports[0] for told in world.told] == [5001, 41003]


async def test_the_opened_ports_fit_a_card(autojump_clock: Any) -> None:
    """At most 16 in four runs (tokens, §`opened`); those that were named last count most."""
    world = World()
    for first in range(1000, 1100, 10):
        world.aim.take(card(first, first + 2, first + 4))
        world.aim.tell()
    assert len(world.aim.opened) == 30
    assert all(len(told.opened) <= 16 for told in world.told)
    assert set(world.told[-1].opened) >= {1090, 1092, 1094}


async def test_a_port_that_the_peer_really_has_is_aimed_at_first(autojump_clock: Any) -> None:
    world = World()
    world.aim.offer()
    for port in (5002, 7777, 5002):
        world.aim.add(port)
    assert world.aim.targets == [5002, 7777]
    world.fire()
    assert sorted(world.aim.opened) == [5002, 7777]


@pytest.mark.parametrize(("per_port", "in_all", "expected"), [(3, 100, [3, 3]), (100, 5, [3, 2]), (1, 1, [1, 0])])
async def test_no_port_gets_more_packets_than_allowed_and_only_those_sent_to_are_open(
    per_port: int, in_all: int, expected: list[int], autojump_clock: Any
) -> None:
    world = World(packets_per_port=per_port, packets=in_all)
    world.aim.take(card(6000, 6001))
    for _ in range(10):
        world.fire()
    shots = [port for _, port, _ in world.shots]
    assert [shots.count(6000), shots.count(6001)] == expected
    assert set(world.aim.opened) == set(shots)
