"""Discovery under a virtual clock: schedules and verdicts as tables, then lossy, hostile and lying networks."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from punchd.endpoint import Endpoint
from punchd.nat.discover import (
    DEADLINE_S,
    LAST_WAIT_S,
    MAX_SENDS,
    MAX_SERVERS,
    PATIENCE_S,
    RTO_S,
    Datagram,
    Discovered,
    Discovery,
    Failure,
)
from punchd.nat.mapping import Behaviour
from punchd.wire import stun

LOCAL = Endpoint(ip_address("10.0.0.2"), 4000)
PUBLIC = ip_address("203.0.113.1")
A, B, C, D = (Endpoint(ip_address(f"192.0.2.{number}"), 3478) for number in range(1, 5))
SIX = Endpoint(ip_address("2001:db8::1"), 3478)
STRANGER = Endpoint(ip_address("198.51.100.66"), 3478)


def id_of(number: int) -> bytes:
    return bytes([number]) * 12


def seen(port: int) -> Endpoint:
    return Endpoint(PUBLIC, port)


def answer(number: int, port: int = 5000) -> bytes:
    return stun.encode_success(id_of(number), seen(port))


def discovery(*servers: Endpoint, local: Endpoint = LOCAL, deadline_s: float = DEADLINE_S) -> Discovery:
    """One whose server number n is asked with id_of(n)."""
    ids = [id_of(number) for number in range(len(servers))]
    return Discovery(servers, local, ids, deadline_s=deadline_s)


def started(*servers: Endpoint) -> Discovery:
    machine = discovery(*servers)
    machine.start(0.0)
    return machine


def run_out(machine: Discovery) -> Discovered:
    """Let time pass without another datagram."""
    while (wake_s := machine.next_timeout()) is not None:
        machine.handle_timeout(wake_s)
    result = machine.result()
    assert result is not None
    return result


def schedule(machine: Discovery) -> tuple[dict[Endpoint, list[float]], float]:
    """When each server is asked if time passes in silence, milliseconds rounded; and when it ends."""
    times: dict[Endpoint, list[float]] = {}
    end_s = 0.0
    while (wake_s := machine.next_timeout()) is not None:
        end_s = wake_s
        for datagram in machine.handle_timeout(wake_s):
            times.setdefault(datagram.destination, []).append(round(wake_s * 1000))
    return times, round(end_s * 1000)


# --- asking ----------------------------------------------------------------------------------------------------------


def test_all_servers_are_asked_at_once_and_in_order() -> None:
    assert discovery(A, B, C).start(7.0) == [
        Datagram(stun.encode_request(id_of(0)), A),
        Datagram(stun.encode_request(id_of(1)), B),
        Datagram(stun.encode_request(id_of(2)), C),
    ]


def test_silent_servers_are_asked_after_100_ms_doubling_until_the_deadline() -> None:
    machine = started(A, B)
    assert schedule(machine) == ({A: [100, 300, 700, 1500], B: [100, 300, 700, 1500]}, 2000)


def test_a_repeated_question_is_the_same_question() -> None:
    machine = discovery(A, B)
    first = machine.start(0.0)
    assert machine.handle_timeout(0.1) == first


def test_without_a_near_deadline_a_server_is_asked_seven_times_and_given_1600_ms_more() -> None:
    machine = discovery(A, deadline_s=60.0)
    machine.start(0.0)
    assert schedule(machine) == ({A: [100, 300, 700, 1500, 3100, 6300]}, 6300 + 1600)
    assert run_out(machine).failures == (Failure(A, "no answer"),)
    assert LAST_WAIT_S == 16 * RTO_S
    assert MAX_SENDS == 7


def test_after_the_first_answer_a_silent_server_is_asked_every_100_ms_and_no_longer_than_patience() -> None:
    machine = started(A, B)
    assert machine.handle_datagram(answer(0), A, 0.05)
    assert schedule(machine) == ({B: [100, 200, 300, 400, 500, 600]}, 850)
    assert PATIENCE_S == 0.8


def test_a_late_first_answer_does_not_move_the_deadline() -> None:
    machine = started(A, B)
    for wake_s in (0.1, 0.3, 0.7, 1.5):
        machine.handle_timeout(wake_s)
    machine.handle_datagram(answer(0), A, 1.6)
    assert schedule(machine) == ({}, 2000)


def test_a_second_answer_does_not_renew_patience() -> None:
    machine = started(A, B, C)
    machine.handle_datagram(answer(0), A, 0.05)
    machine.handle_datagram(answer(1), B, 0.5)
    assert schedule(machine)[1] == 850


def test_an_early_call_sends_nothing_and_a_late_one_asks_each_server_once() -> None:
    machine = started(A, B)
    assert machine.handle_timeout(0.099) == []
    assert [datagram.destination for datagram in machine.handle_timeout(1.2)] == [A, B]
    assert machine.next_timeout() == pytest.approx(1.4)


def test_nothing_happens_before_the_start() -> None:
    machine = discovery(A)
    assert machine.next_timeout() is None
    assert machine.handle_timeout(99.0) == []
    assert machine.handle_datagram(answer(0), A, 0.0) is False
    assert machine.handle_unreachable(A, "port unreachable") is False
    assert machine.result() is None
    assert machine.so_far() == Discovered(None, None, ())


def test_a_discovery_starts_once() -> None:
    machine = started(A)
    with pytest.raises(RuntimeError, match="starts once"):
        machine.start(1.0)


# --- verdicts --------------------------------------------------------------------------------------------------------

VERDICTS = [
    pytest.param([5000, 5000], "endpoint-independent", id="the same"),
    pytest.param([5000, 5001], "sequential+1", id="counting"),
    pytest.param([5000, 9000], "random", id="far apart"),
]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["A answers first", "B answers first"])
@pytest.mark.parametrize(("ports", "verdict"), VERDICTS)
def test_observations_stand_in_the_order_of_asking_whoever_answers_first(
    ports: list[int], verdict: str, order: tuple[int, int]
) -> None:
    machine = started(A, B)
    for place in order:
        assert machine.handle_datagram(answer(place, ports[place]), (A, B)[place], 0.05)
    result = machine.result()
    assert result is not None
    assert result.mapping is not None
    assert result.mapping.observed == (seen(ports[0]), seen(ports[1]))
    assert str(result.mapping) == verdict
    assert result.failures == ()
    assert result.reason == ""


def test_the_local_endpoint_itself_is_open_even_from_one_server() -> None:
    machine = started(A)
    machine.handle_datagram(stun.encode_success(id_of(0), LOCAL), A, 0.02)
    assert str(run_out(machine).mapping) == "open"


def test_two_ports_of_one_server_do_not_prove_endpoint_independence() -> None:
    other_port = Endpoint(A.ip, 3479)
    machine = started(A, other_port)
    machine.handle_datagram(answer(0), A, 0.02)
    machine.handle_datagram(answer(1), other_port, 0.02)
    assert str(run_out(machine).mapping) == "unknown"


def test_a_dead_server_leaves_the_address_and_an_unknown_behaviour() -> None:
    machine = started(A, B)
    machine.handle_datagram(answer(1, 5001), B, 0.03)
    assert machine.result() is None
    result = run_out(machine)
    assert result.mapping is not None
    assert result.mapping.observed == (seen(5001),)
    assert result.mapping.behaviour is Behaviour.UNKNOWN
    assert result.failures == (Failure(A, "no answer"),)


def test_what_is_known_so_far_can_be_had_before_the_end() -> None:
    machine = started(A, B, C)
    machine.handle_datagram(stun.encode_error(id_of(2), 500, "Server Error"), C, 0.01)
    machine.handle_datagram(answer(0), A, 0.02)
    known = machine.so_far()
    assert machine.result() is None
    assert known.mapping is not None
    assert str(known.mapping) == "unknown"
    assert known.rtt_s == 0.02
    assert known.failures == (Failure(C, "error 500 Server Error"),)
    machine.handle_datagram(answer(1), B, 0.03)
    assert machine.so_far() is machine.result()


def test_the_result_never_changes_again() -> None:
    machine = started(A, B)
    machine.handle_datagram(answer(0), A, 0.05)
    result = run_out(machine)
    assert machine.handle_datagram(answer(1), B, 1.0) is True
    assert machine.handle_unreachable(B, "port unreachable") is True
    assert machine.handle_timeout(1.1) == []
    assert machine.next_timeout() is None
    assert machine.result() is result


# --- round-trip times ------------------------------------------------------------------------------------------------


def test_the_smallest_round_trip_time_counts() -> None:
    machine = discovery(A, B)
    machine.start(100.0)
    machine.handle_datagram(answer(1), B, 100.0625)
    machine.handle_datagram(answer(0), A, 100.09375)
    assert run_out(machine).rtt_s == 0.0625


def test_after_a_repeated_question_the_time_counts_from_the_first() -> None:
    machine = started(A)
    machine.handle_timeout(0.1)
    machine.handle_datagram(answer(0), A, 0.125)
    assert run_out(machine).rtt_s == 0.125


def test_an_answer_found_late_counts_but_its_time_is_at_most_the_deadline() -> None:
    """The program was stopped for an hour; the answer waited in the socket."""
    machine = started(A)
    machine.handle_datagram(answer(0), A, 3600.0)
    result = run_out(machine)
    assert str(result.mapping) == "unknown"
    assert result.rtt_s == DEADLINE_S


# --- which servers are asked -----------------------------------------------------------------------------------------


def test_without_servers_the_result_is_there_from_the_beginning() -> None:
    machine = discovery()
    result = machine.result()
    assert result == Discovered(None, None, ())
    assert result.reason == "no STUN server is known: use --stun or the configuration"
    assert machine.start(0.0) == []
    assert machine.next_timeout() is None


def test_a_server_of_another_address_family_is_skipped_and_named() -> None:
    machine = discovery(SIX, A)
    assert [datagram.destination for datagram in machine.start(0.0)] == [A]
    machine.handle_datagram(answer(1), A, 0.02)
    result = machine.result()
    assert result is not None
    assert result.failures == (Failure(SIX, "not asked from an IPv4 address"),)


def test_with_servers_of_another_family_only_the_result_says_so() -> None:
    result = discovery(A, B, local=Endpoint(ip_address("2001:db8::2"), 4000)).result()
    assert result is not None
    assert result.reason == (
        "no STUN server answered: 192.0.2.1:3478 (not asked from an IPv6 address), "
        "192.0.2.2:3478 (not asked from an IPv6 address)"
    )


def test_at_most_four_servers_are_asked() -> None:
    machine = discovery(A, B, C, D, STRANGER)
    assert len(machine.start(0.0)) == MAX_SERVERS == 4
    assert run_out(machine).failures[-1] == Failure(STRANGER, "not asked, only 4 are")


def test_a_server_that_is_named_twice_is_asked_once() -> None:
    machine = discovery(A, A, B)
    assert machine.start(0.0) == [
        Datagram(stun.encode_request(id_of(0)), A),
        Datagram(stun.encode_request(id_of(2)), B),
    ]
    assert len(run_out(machine).failures) == 2


@pytest.mark.parametrize("ids", [[], [id_of(0)], [id_of(0), id_of(0)], [id_of(0), id_of(1), id_of(2)]])
def test_each_server_needs_a_transaction_id_of_its_own(ids: list[bytes]) -> None:
    with pytest.raises(ValueError, match="expected 2 distinct transaction ids"):
        Discovery([A, B], LOCAL, ids)


def test_a_transaction_id_has_twelve_bytes() -> None:
    with pytest.raises(ValueError, match="expected 12 bytes"):
        Discovery([A], LOCAL, [b"short"])


# --- failures --------------------------------------------------------------------------------------------------------


def test_if_nobody_answers_the_reason_names_the_servers() -> None:
    result = run_out(started(A, B))
    assert result.mapping is None
    assert result.rtt_s is None
    assert result.reason == "no STUN server answered: 192.0.2.1:3478, 192.0.2.2:3478"


def test_a_refusing_server_has_failed_with_its_own_words_at_once() -> None:
    machine = started(A, B)
    assert machine.handle_datagram(stun.encode_error(id_of(0), 420, "Unknown Attribute"), A, 0.02)
    machine.handle_datagram(stun.encode_error(id_of(1), 500, ""), B, 0.03)
    result = machine.result()
    assert result is not None
    assert result.reason == (
        "no STUN server answered: 192.0.2.1:3478 (error 420 Unknown Attribute), 192.0.2.2:3478 (error 500)"
    )


def test_an_unreachable_server_is_not_waited_for() -> None:
    machine = started(A, B)
    machine.handle_datagram(answer(0), A, 0.02)
    assert machine.handle_unreachable(B, "port unreachable") is True
    result = machine.result()
    assert result is not None
    assert str(result.mapping) == "unknown"
    assert result.failures == (Failure(B, "port unreachable"),)


def test_an_icmp_error_after_the_answer_or_about_others_changes_nothing() -> None:
    machine = started(A, B)
    machine.handle_datagram(answer(0), A, 0.02)
    assert machine.handle_unreachable(A, "port unreachable") is True
    assert machine.handle_unreachable(STRANGER, "port unreachable") is False
    machine.handle_datagram(answer(1), B, 0.03)
    assert run_out(machine).failures == ()


# --- forged and strange datagrams ------------------------------------------------------------------------------------

UNKNOWN_FAMILY = answer(0)[:25] + b"\x03" + answer(0)[26:]
IGNORED = [
    pytest.param(answer(0), STRANGER, True, id="our id from elsewhere"),
    pytest.param(answer(0), Endpoint(A.ip, 3479), True, id="our id from another port of the server"),
    pytest.param(answer(0), B, True, id="A's id from B"),
    pytest.param(answer(9), A, True, id="a wrong id from the server"),
    pytest.param(stun.encode_error(id_of(9), 500, ""), A, True, id="a refusal with a wrong id"),
    pytest.param(answer(9), STRANGER, False, id="STUN between others"),
    pytest.param(b"", A, False, id="nothing"),
    pytest.param(b"hello", A, False, id="no STUN from the server"),
    pytest.param(answer(0) + b"\0", A, False, id="STUN and one byte more"),
]


@pytest.mark.parametrize(("data", "source", "consumed"), IGNORED)
def test_a_datagram_that_answers_no_question_changes_nothing(data: bytes, source: Endpoint, consumed: bool) -> None:
    machine, untouched = started(A, B), started(A, B)
    assert machine.handle_datagram(data, source, 0.01) is consumed
    assert schedule(machine) == schedule(untouched)
    assert run_out(machine) == run_out(untouched)


NONSENSE = [
    pytest.param(stun.encode_request(id_of(0)), "expected a Binding response", id="our own question comes back"),
    pytest.param(stun.encode_success(id_of(0), seen(0)), "says that we are 203.0.113.1:0", id="port 0"),
    pytest.param(stun.encode_success(id_of(0), SIX), "says that we are [2001:db8::1]:3478", id="another family"),
    pytest.param(
        stun.encode_success(id_of(0), Endpoint(ip_address(0), 5000)), "we are 0.0.0.0:5000", id="unspecified address"
    ),
    pytest.param(UNKNOWN_FAMILY, "STUN address", id="malformed"),
]


@pytest.mark.parametrize(("data", "complaint"), NONSENSE)
def test_nonsense_from_a_server_is_its_failure_only_if_nothing_better_comes(data: bytes, complaint: str) -> None:
    silent, talking = started(A), started(A)
    for machine in (silent, talking):
        assert machine.handle_datagram(data, A, 0.01) is True
        assert machine.result() is None
    assert complaint in run_out(silent).reason
    talking.handle_datagram(answer(0), A, 0.02)
    assert run_out(talking).failures == ()


def test_of_two_good_answers_the_first_counts() -> None:
    machine = started(A, B)
    machine.handle_datagram(answer(0, 5000), A, 0.01)
    assert machine.handle_datagram(answer(0, 6000), A, 0.02) is True
    machine.handle_datagram(answer(1, 5000), B, 0.03)
    assert str(run_out(machine).mapping) == "endpoint-independent"


# --- a virtual network -----------------------------------------------------------------------------------------------


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
