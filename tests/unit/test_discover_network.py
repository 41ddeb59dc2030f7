"""Discovery under a virtual clock in lossy, hostile and lying networks, and through any order of events."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from punchd.endpoint import Endpoint
from punchd.nat.discover import DEADLINE_S, MAX_SENDS, PATIENCE_S, Datagram, Discovered, Discovery
from punchd.wire import stun
from tests.unit.discover_parts import LOCAL, STRANGER, A, B, C, D, answer, discovery, id_of, run_out, seen


@dataclass
class Network:
    """A NAT and servers behind one delay each, under a virtual clock. `fate` decides about every datagram.

    `fate(rng)` returns after how many extra seconds the datagram arrives, once for each copy; none if it is lost.
    """

    servers: Sequence[Endpoint]
    rtts_s: Sequence[float]
    map_port: Callable[[int], int]  # the NAT: number of the destination, in the order first seen → public port
    fate: Callable[[random.Random], Sequence[float]]
    rng: random.Random
    dead: frozenset[Endpoint] = frozenset()
    noise: Callable[[random.Random, Datagram], tuple[bytes, Endpoint] | None] = lambda _rng, _datagram: None
    sent: dict[Endpoint, int] = field(default_factory=dict)
    wakes: list[float] = field(default_factory=list)
    _ports: dict[Endpoint, int] = field(default_factory=dict)
    _flying: list[tuple[float, int, bytes, Endpoint]] = field(default_factory=list)
    _count: int = 0

    def run(self, machine: Discovery, start_s: float = 1000.0) -> tuple[Discovered, float]:
        """The result, and how many seconds it took."""
        now = start_s
        self._carry(machine.start(now), now)
        while machine.result() is None:
            wake_s = machine.next_timeout()
            assert wake_s is not None
            assert wake_s >= now, "a timer in the past"
            if self._flying and self._flying[0][0] <= wake_s:
                now, _, data, source = heapq.heappop(self._flying)
                machine.handle_datagram(data, source, now)
            else:
                now = wake_s
                self.wakes.append(now)
                self._carry(machine.handle_timeout(now), now)
                following_s = machine.next_timeout()
                assert following_s is None or following_s > now, "a busy loop"
        result = machine.result()
        assert result is not None
        assert machine.next_timeout() is None
        return result, now - start_s

    def _carry(self, datagrams: list[Datagram], now: float) -> None:
        for datagram in datagrams:
            server = datagram.destination
            self.sent[server] = self.sent.get(server, 0) + 1
            port = self._ports.setdefault(server, self.map_port(len(self._ports)))
            if (forged := self.noise(self.rng, datagram)) is not None:
                self._fly(now + self.rng.uniform(0.0, 0.3), *forged)
            if server in self.dead:
                continue
            reply = stun.encode_success(stun.decode_request(datagram.payload), seen(port))
            for there_s in self.fate(self.rng):
                for back_s in self.fate(self.rng):
                    self._fly(now + self.rtts_s[self.servers.index(server)] + there_s + back_s, reply, server)

    def _fly(self, at: float, data: bytes, source: Endpoint) -> None:
        self._count += 1
        heapq.heappush(self._flying, (at, self._count, data, source))


def lossy(share: float) -> Callable[[random.Random], Sequence[float]]:
    return lambda rng: () if rng.random() < share else (0.0,)


def wild(rng: random.Random) -> Sequence[float]:
    """Lost, once, or doubled; each copy late by up to 300 ms, so that everything overtakes everything."""
    return [rng.uniform(0.0, 0.3) for _ in range(rng.choice((0, 0, 1, 1, 1, 2)))]


def forge(rng: random.Random, datagram: Datagram) -> tuple[bytes, Endpoint] | None:
    """What hostile hosts send: our id from elsewhere, a guessed id from the server, broken answers with both right."""
    transaction_id, server = datagram.payload[8:20], datagram.destination
    lie = stun.encode_success(transaction_id, Endpoint(STRANGER.ip, 666))
    guessed = stun.encode_success(rng.randbytes(12), Endpoint(STRANGER.ip, 666))
    broken = lie[:20] + rng.randbytes(4) + lie[24:]
    nonsense = stun.encode_success(transaction_id, Endpoint(STRANGER.ip, 0))
    return rng.choice(
        ((lie, STRANGER), (guessed, server), (nonsense, server), (broken, STRANGER), (b"\0" * 20, server))
    )


def test_a_quiet_network_takes_one_round_trip_and_one_question_each() -> None:
    network = Network([A, B], [0.05, 0.08], lambda _n: 5000, lossy(0.0), random.Random(1))
    result, took_s = network.run(discovery(A, B))
    assert str(result.mapping) == "endpoint-independent"
    assert result.rtt_s == pytest.approx(0.05)
    assert took_s == pytest.approx(0.08)
    assert network.sent == {A: 1, B: 1}


def test_a_dead_server_costs_no_more_than_patience() -> None:
    network = Network([A, B], [0.05, 0.05], lambda _n: 5000, lossy(0.0), random.Random(1), dead=frozenset({B}))
    result, took_s = network.run(discovery(A, B))
    assert str(result.mapping) == "unknown"
    assert took_s == pytest.approx(0.05 + PATIENCE_S)
    assert network.sent == {A: 1, B: MAX_SENDS}


@pytest.mark.parametrize("rtt_s", [0.02, 0.1, 0.3])
def test_twenty_per_cent_loss_each_way_loses_fewer_than_one_verdict_in_a_hundred(rtt_s: float) -> None:
    rng = random.Random(20)  # fixed: 0.3 % expected, 6 of 2,000; with doubling throughout it would be 68
    lost = 0
    for _ in range(2000):
        network = Network([A, B], [rtt_s, rtt_s], lambda number: 5000 + number, lossy(0.2), rng)
        result, took_s = network.run(discovery(A, B))
        assert took_s <= DEADLINE_S + 1e-9
        lost += str(result.mapping) != "sequential+1"
    assert lost < 20


@given(
    seed=st.integers(0, 2**32),
    servers=st.integers(1, 4),
    dead=st.sets(st.sampled_from([A, B, C, D])),
    rtts_s=st.lists(st.floats(0.001, 3.0), min_size=4, max_size=4),
    deadline_s=st.floats(0.05, 12.0),
)
def test_every_network_lets_a_discovery_end_in_time_with_the_truth(
    seed: int, servers: int, dead: set[Endpoint], rtts_s: list[float], deadline_s: float
) -> None:
    asked = [A, B, C, D][:servers]
    rng = random.Random(seed)
    network = Network(asked, rtts_s, lambda number: 5000 + number, wild, rng, frozenset(dead), forge)
    ids = [rng.randbytes(12) for _ in asked]
    result, took_s = network.run(Discovery(asked, LOCAL, ids, deadline_s=deadline_s))

    assert took_s <= deadline_s + 1e-9
    assert all(1 <= network.sent[server] <= MAX_SENDS for server in asked)
    assert network.wakes == sorted(set(network.wakes)), "two wakes at one time"
    failed = {failure.server for failure in result.failures}
    assert failed >= dead & set(asked)
    answered = [number for number, server in enumerate(asked) if server not in failed]
    if result.mapping is None:
        assert answered == []
        assert result.rtt_s is None
        assert all(str(server) in result.reason for server in asked)
    else:
        assert result.mapping.observed == tuple(seen(5000 + number) for number in answered)
        assert result.rtt_s is not None
        assert min(rtts_s[number] for number in answered) - 1e-9 <= result.rtt_s <= deadline_s


operations = st.one_of(
    st.tuples(st.just("wake"), st.floats(0.0, 0.5)),
    st.tuples(st.just("datagram"), st.integers(0, 4), st.integers(0, 4), st.binary(max_size=40)),
    st.tuples(st.just("answer"), st.integers(0, 4), st.integers(0, 4), st.integers(0, 65535)),
    st.tuples(st.just("refusal"), st.integers(0, 4), st.integers(0, 4), st.integers(300, 699)),
    st.tuples(st.just("unreachable"), st.integers(0, 4)),
)


@given(st.lists(operations, max_size=40))
def test_no_order_of_events_breaks_the_machine(events: list[tuple[str | int | float | bytes, ...]]) -> None:
    """Sources 0 to 3 were asked with the ids 0 to 3; 4 is a stranger's."""
    hosts = [A, B, C, D, STRANGER]
    machine = discovery(A, B, C, D)
    sends = dict.fromkeys(hosts, 0)
    now = 0.0
    for datagram in machine.start(now):
        sends[datagram.destination] += 1
    final: Discovered | None = None
    for event in events:
        match event:
            case ("wake", float(passed_s)):
                now += passed_s
                for datagram in machine.handle_timeout(now):
                    sends[datagram.destination] += 1
                assert now < DEADLINE_S or machine.result() is not None
            case ("datagram", int(number), int(host), bytes(body)):
                head = stun.encode_success(id_of(number), LOCAL)[:20]
                whole = head[:2] + (len(body) & ~3).to_bytes(2) + head[4:] + body[: len(body) & ~3]
                assert machine.handle_datagram(whole, hosts[host], now) is (number < 4 or host < 4)
            case ("answer", int(number), int(host), int(port)):
                assert machine.handle_datagram(answer(number, port), hosts[host], now) is (number < 4 or host < 4)
            case ("refusal", int(number), int(host), int(code)):
                machine.handle_datagram(stun.encode_error(id_of(number), code, "no"), hosts[host], now)
            case ("unreachable", int(host)):
                assert machine.handle_unreachable(hosts[host], "gone") is (host < 4)
            case _:
                pytest.fail(f"unknown event {event}")
        wake_s = machine.next_timeout()
        assert (wake_s is None) is (machine.result() is not None)
        assert final is None or machine.result() is final
        final = machine.result()
    assert max(sends.values()) <= MAX_SENDS
    assert sends[STRANGER] == 0
    result = run_out(machine)
    assert len(result.failures) + (len(result.mapping.observed) if result.mapping else 0) == 4
