"""The userspace NAT as tables: mapping key, filter key, TCP's states, and a clock that only the tests move."""

from __future__ import annotations

import dataclasses
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.natlab import KINDS, Engine, Filtering, InboundSyn, Mapping, Nat, Ports, TcpTracking
from tests.natlab.packet import ACK, RST, SYN, TCP, UDP, Endpoint, Packet
from tests.natlab.tcp_states import TRANSITIONS, Event, TcpState, event
from tests.natlab.translator import TCP_TIMEOUT_S, UDP_TIMEOUT_S, Translator
from tests.natlab.wiretap import Segment

PUBLIC = 0xC6336401  # 198.51.100.1
HOST: Endpoint = (0x64640102, 5000)
OTHER_PORT: Endpoint = (HOST[0], 5001)
NEAR: Endpoint = (0xC000020A, 7001)
NEAR_OTHER_PORT: Endpoint = (NEAR[0], 7002)
FAR: Endpoint = (0xC0000214, 7001)
FAR_OTHER_PORT: Endpoint = (FAR[0], 7002)

BASE = Nat(engine=Engine.USERSPACE, tcp=TcpTracking.ABSENT)


def datagram(source: Endpoint, target: Endpoint) -> Packet:
    header = bytes([0x45, 0, 0, 28, 0, 0, 0, 0, 64, UDP, 0, 0]) + source[0].to_bytes(4, "big")
    ports = source[1].to_bytes(2, "big") + target[1].to_bytes(2, "big")
    return known(Packet.parse(header + target[0].to_bytes(4, "big") + ports + bytes([0, 8, 0, 0])))


def segment(source: Endpoint, target: Endpoint, flags: int, sequence: int = 0, acknowledgement: int = 0) -> Packet:
    return known(Packet.parse(Segment(source, target, flags, sequence, acknowledgement).encode()))


def error(sender: int, target: int, quoted: Packet) -> Packet:
    size = 28 + len(quoted.data)
    header = bytes([0x45, 0]) + size.to_bytes(2, "big") + bytes([0, 0, 0, 0, 64, 1, 0, 0])
    addresses = sender.to_bytes(4, "big") + target.to_bytes(4, "big")
    return known(Packet.parse(header + addresses + bytes([11, 0, 0, 0, 0, 0, 0, 0]) + bytes(quoted.data)))


def known(packet: Packet | None) -> Packet:
    assert packet is not None
    return packet


def translator(**changes: object) -> Translator:
    return Translator(dataclasses.replace(BASE, **changes), PUBLIC)  # type: ignore[arg-type] # a table's values


def outside_port(nat: Translator, target: Endpoint, now: float = 0.0, source: Endpoint = HOST) -> int:
    packet = known(nat.handle(datagram(source, target), now))
    assert packet.source[0] == PUBLIC
    assert packet.target == target
    return packet.source[1]


REMOTES = (NEAR, NEAR_OTHER_PORT, FAR, FAR_OTHER_PORT)


@pytest.mark.parametrize(
    ("mapping", "classes"),
    [
        (Mapping.ENDPOINT_INDEPENDENT, [0, 0, 0, 0]),
        (Mapping.ADDRESS_DEPENDENT, [0, 0, 1, 1]),
        (Mapping.ADDRESS_AND_PORT_DEPENDENT, [0, 1, 2, 3]),
    ],
)
def test_the_mapping_key_decides_who_sees_the_same_port(mapping: Mapping, classes: list[int]) -> None:
    nat = translator(mapping=mapping, ports=Ports.RANDOM)
    ports = [outside_port(nat, remote) for remote in REMOTES]
    assert [ports.index(port) for port in ports] == [classes.index(one) for one in classes]


@pytest.mark.parametrize(
    ("filtering", "admitted"),
    [
        (Filtering.ENDPOINT_INDEPENDENT, [True, True, True]),
        (Filtering.ADDRESS_DEPENDENT, [True, True, False]),
        (Filtering.ADDRESS_AND_PORT_DEPENDENT, [True, False, False]),
    ],
)
def test_the_filter_key_decides_who_may_answer(filtering: Filtering, admitted: list[bool]) -> None:
    nat = translator(filtering=filtering)
    port = outside_port(nat, NEAR)
    for remote, passes in zip((NEAR, NEAR_OTHER_PORT, FAR), admitted, strict=True):
        packet = nat.handle(datagram(remote, (PUBLIC, port)), 1.0)
        assert (packet is not None) is passes
        assert packet is None or (packet.source, packet.target) == (remote, HOST)


@pytest.mark.parametrize(
    ("ports", "first", "second"),
    [(Ports.PRESERVED, 5000, 5001), (Ports.SCRAMBLED, 5000 ^ 0x155, 5001 ^ 0x155), (Ports.SEQUENTIAL, 20000, 20003)],
)
def test_ports_are_chosen_as_described(ports: Ports, first: int, second: int) -> None:
    nat = translator(ports=ports, port_step=3)
    assert outside_port(nat, NEAR) == first
    assert outside_port(nat, NEAR, source=OTHER_PORT) == second


def test_a_taken_port_is_not_given_twice() -> None:
    nat = translator(mapping=Mapping.ADDRESS_AND_PORT_DEPENDENT)
    assert outside_port(nat, NEAR) == 5000
    assert 20000 <= outside_port(nat, FAR) <= 60000


def test_sequential_ports_start_again_after_the_last_and_run_out() -> None:
    nat = translator(mapping=Mapping.ADDRESS_AND_PORT_DEPENDENT, ports=Ports.SEQUENTIAL, port_range=(3000, 3001))
    assert [outside_port(nat, NEAR), outside_port(nat, FAR)] == [3000, 3001]
    assert nat.handle(datagram(HOST, FAR_OTHER_PORT), 0.0) is None
    assert outside_port(nat, FAR_OTHER_PORT, now=UDP_TIMEOUT_S) == 3000


@pytest.mark.parametrize(("timeout_s", "limit"), [(None, UDP_TIMEOUT_S), (2, 2.0)])
def test_an_idle_mapping_ends_exactly_at_its_time(timeout_s: int | None, limit: float) -> None:
    nat = translator(udp_timeout_s=timeout_s)
    port = outside_port(nat, NEAR, now=10.0)
    assert nat.handle(datagram(NEAR, (PUBLIC, port)), 10.0 + limit - 0.001)
    # That packet refreshed it.
    assert nat.handle(datagram(NEAR, (PUBLIC, port)), 10.0 + 2 * limit - 0.002)
    assert nat.handle(datagram(NEAR, (PUBLIC, port)), 10.0 + 3 * limit - 0.002) is None


def test_a_session_ends_though_its_mapping_lives_on() -> None:
    nat = translator()
    outside_port(nat, NEAR, now=0.0)
    port = outside_port(nat, FAR, now=100.0)
    assert nat.handle(datagram(NEAR, (PUBLIC, port)), 130.0) is None
    assert nat.handle(datagram(FAR, (PUBLIC, port)), 130.0)


OUT, IN = True, False
SYN_ACK, RST_ACK = SYN | ACK, RST | ACK
STRICT, ABSENT = TcpTracking.STRICT, TcpTracking.ABSENT
PASSED, DROPPED, UNTRACKED = InboundSyn.PASSED, InboundSyn.DROPPED, InboundSyn.DROPPED_UNTRACKED


# fmt: off
EXCHANGES: Final[list[tuple[TcpTracking, InboundSyn, list[tuple[bool, int, bool]]]]] = [
    # what any-opens lets through: everything, once something went out
    (ABSENT, PASSED, [(IN, SYN, False), (OUT, ACK, True), (IN, SYN, True)]),
    # nosyn-userspace: SYNs in are lost, the SYN-ACK out is not
    (ABSENT, UNTRACKED, [(OUT, SYN, True), (IN, SYN, False), (OUT, SYN_ACK, True)]),
    # strict: only a SYN opens
    (STRICT, PASSED, [(OUT, ACK, False), (OUT, SYN_ACK, False), (OUT, SYN, True)]),
    # strict: ordinary handshake
    (STRICT, PASSED, [(OUT, SYN, True), (IN, SYN_ACK, True), (OUT, ACK, True), (IN, ACK, True)]),
    # strict: simultaneous open, then a SYN-ACK out
    (STRICT, PASSED, [(OUT, SYN, True), (IN, SYN, True), (OUT, SYN_ACK, True), (IN, ACK, True)]),
    # strict and SYN dropped, but seen: the SYN-ACK passes all the same
    (STRICT, DROPPED, [(OUT, SYN, True), (IN, SYN, False), (OUT, SYN_ACK, True)]),
    # strict: no SYN-ACK out without a SYN from there
    (STRICT, PASSED, [(OUT, SYN, True), (OUT, SYN_ACK, False)]),
    # strict: a RST closes, the next own SYN opens again
    (STRICT, PASSED, [
        (OUT, SYN, True), (IN, RST_ACK, True), (IN, SYN, False), (OUT, SYN, True), (IN, SYN, True),
    ]),
]
# fmt: on


@pytest.mark.parametrize(("tcp", "syn", "exchange"), EXCHANGES)
def test_tcp_segments_pass_as_the_description_says(
    tcp: TcpTracking, syn: InboundSyn, exchange: list[tuple[bool, int, bool]]
) -> None:
    nat = translator(tcp=tcp, syn=syn)
    for step, (outbound, flags, passes) in enumerate(exchange):
        ends = (HOST, NEAR) if outbound else (NEAR, (PUBLIC, HOST[1]))
        assert (nat.handle(segment(*ends, flags), float(step)) is not None) is passes, f"step {step}"


def test_a_rewritten_sequence_is_shifted_out_and_back_and_stays_for_the_connection() -> None:
    nat = translator(rewrites_sequence=True)
    first, again = (known(nat.handle(segment(HOST, NEAR, SYN, sequence), 0.0)) for sequence in (999, 1000))
    assert sequence_of(again) - sequence_of(first) == 1
    shift = (sequence_of(again) - 1000) % 2**32
    assert shift
    answer = known(
        nat.handle(segment(NEAR, (PUBLIC, HOST[1]), SYN | ACK, 7, (1001 + shift) % 2**32), 1.0),
    )
    assert int.from_bytes(answer.data[28:32], "big") == 1001
    assert sequence_of(answer) == 7
    other = known(nat.handle(segment(HOST, FAR, SYN, 1000), 1.0))
    assert sequence_of(other) != sequence_of(again)


def sequence_of(packet: Packet) -> int:
    return int.from_bytes(packet.data[24:28], "big")


@pytest.mark.parametrize("dies", [False, True])
def test_an_error_from_the_path_reaches_the_host_and_may_kill_the_mapping(dies: bool) -> None:
    nat = translator(dies_of_errors=dies)
    sent = known(nat.handle(datagram(HOST, NEAR), 0.0))
    came = known(nat.handle(error(FAR[0], PUBLIC, sent), 1.0))
    assert came.target[0] == HOST[0]
    assert known(came.quote()).source == HOST
    assert (nat.handle(datagram(NEAR, (PUBLIC, HOST[1])), 2.0) is None) is dies


def test_an_error_about_a_packet_that_was_never_sent_is_dropped() -> None:
    nat = translator()
    assert nat.handle(error(FAR[0], PUBLIC, datagram((PUBLIC, 5000), NEAR)), 0.0) is None
    outside_port(nat, NEAR)
    assert nat.handle(error(FAR[0], PUBLIC, datagram((PUBLIC, 5000), FAR)), 0.0) is None


def test_an_error_of_the_host_quotes_the_public_endpoint() -> None:
    nat = translator()
    port = outside_port(nat, NEAR)
    came = known(nat.handle(datagram(NEAR, (PUBLIC, port)), 0.0))
    went = known(nat.handle(error(HOST[0], NEAR[0], came), 0.0))
    assert went.source[0] == PUBLIC
    assert known(went.quote()).target == (PUBLIC, port)


@pytest.mark.parametrize(("dies", "survives"), [(False, True), (True, False)])
def test_a_rst_kills_only_where_it_is_said(dies: bool, survives: bool) -> None:
    nat = translator(dies_of_errors=dies)
    nat.handle(segment(HOST, NEAR, SYN), 0.0)
    assert nat.handle(segment(NEAR, (PUBLIC, HOST[1]), RST | ACK), 1.0)
    assert (nat.handle(segment(NEAR, (PUBLIC, HOST[1]), SYN | ACK), 2.0) is not None) is survives


def test_an_idle_tcp_mapping_ends() -> None:
    nat = translator()
    nat.handle(segment(HOST, NEAR, SYN), 0.0)
    assert nat.handle(segment(NEAR, (PUBLIC, HOST[1]), SYN | ACK), TCP_TIMEOUT_S) is None


def test_a_full_table_forgets_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.natlab.translator.MOST_MAPPINGS", 2)
    nat = translator()
    for port in (5000, 5001, 5002):
        outside_port(nat, NEAR, source=(HOST[0], port))
    assert nat.handle(datagram(NEAR, (PUBLIC, 5000)), 1.0) is None
    assert nat.handle(datagram(NEAR, (PUBLIC, 5002)), 1.0)


def test_nobody_gets_in_where_nothing_went_out() -> None:
    for name, kind in KINDS.items():
        if kind.engine is Engine.USERSPACE:
            nat = Translator(kind, PUBLIC)
            assert nat.handle(datagram(NEAR, (PUBLIC, 5000)), 0.0) is None, name
            assert nat.handle(segment(NEAR, (PUBLIC, 5000), SYN), 0.0) is None, name


@given(
    kind=st.sampled_from([kind for kind in KINDS.values() if kind.engine is Engine.USERSPACE]),
    packets=st.lists(st.tuples(st.sampled_from([1, TCP, UDP]), st.booleans(), st.binary(min_size=8, max_size=90))),
)
def test_no_packets_break_a_nat(kind: Nat, packets: list[tuple[int, bool, bytes]]) -> None:
    """Whatever comes, in whatever order: what is passed is a packet of the same size."""
    nat = Translator(kind, PUBLIC)
    for now, (protocol, inbound, body) in enumerate(packets):
        source, target = (NEAR[0], PUBLIC) if inbound else (HOST[0], NEAR[0])
        header = b"\x45\0" + (20 + len(body)).to_bytes(2, "big") + bytes([0, 0, 0, 0, 64, protocol, 0, 0])
        data = header + source.to_bytes(4, "big") + target.to_bytes(4, "big") + body
        packet = Packet.parse(data)
        translated = nat.handle(packet, float(now)) if packet else None
        assert translated is None or len(translated.data) == len(data)


def test_every_state_has_a_row_and_a_rst_always_closes() -> None:
    assert set(TRANSITIONS) == set(TcpState)
    assert all(row[Event.RST] is TcpState.CLOSED for state, row in TRANSITIONS.items() if state is not TcpState.CLOSED)


@pytest.mark.parametrize("outbound", [False, True])
def test_flags_and_direction_make_an_event(outbound: bool) -> None:
    way = "out" if outbound else "in"
    assert event(RST | ACK, outbound=outbound) is Event.RST
    assert event(SYN, outbound=outbound).value == f"SYN {way}"
    assert event(SYN | ACK, outbound=outbound).value == f"SYN-ACK {way}"
    assert event(ACK, outbound=outbound).value == f"other {way}"
