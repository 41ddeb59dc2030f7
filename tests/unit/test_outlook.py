"""A port's public side: the application's word before STUN's, STUN's before the port's own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from punchd.attempt.outlook import KnownSide
from punchd.endpoint import Endpoint, PortSet, parse_ip
from punchd.nat.discover import Discovered
from punchd.nat.mapping import Mapping, judge

PRIVATE = Endpoint(parse_ip("192.168.1.10"), 5000)
GLOBAL = Endpoint(parse_ip("192.0.2.10"), 5000)
PUBLIC, OTHER, TOLD = parse_ip("198.51.100.4"), parse_ip("198.51.100.5"), parse_ip("203.0.113.9")


def seen(*ports: int, local: Endpoint = PRIVATE) -> Mapping:
    return judge(local, [Endpoint(PUBLIC, port) for port in ports])


KIND = seen(50000, 50000)
COUNTING = seen(50000, 50001)
RANDOM = seen(50000, 60000)
ONE_SERVER = seen(50000)

ADDRESSES = [
    pytest.param(KnownSide(PRIVATE, TOLD, None, KIND), TOLD, id="the application's before STUN's"),
    pytest.param(KnownSide(GLOBAL, TOLD), TOLD, id="the application's before the port's own"),
    pytest.param(KnownSide(PRIVATE, None, PortSet((7,)), KIND), PUBLIC, id="STUN's, though the ports are given"),
    pytest.param(KnownSide(GLOBAL, mapping=KIND), PUBLIC, id="STUN's before the port's own"),
    pytest.param(KnownSide(GLOBAL), GLOBAL.ip, id="the port's own, where it is global"),
    pytest.param(KnownSide(PRIVATE), parse_ip("0.0.0.0"), id="none, IPv4"),  # noqa: S104
    pytest.param(KnownSide(Endpoint(parse_ip("fd00::1"), 1)), parse_ip("::"), id="none, IPv6"),
    pytest.param(KnownSide(Endpoint(parse_ip("fe80::1"), 1)), parse_ip("::"), id="none, link-local"),
]


@pytest.mark.parametrize(("side", "address"), ADDRESSES)
def test_the_address_is_that_of_the_best_source(side: KnownSide, address: object) -> None:
    assert side.address == address


PORTS = [
    # the side, the ports at once, the ports after two more destinations, whether they are guessed
    pytest.param(KnownSide(PRIVATE), (5000,), (5000,), True, id="only the local port"),
    pytest.param(KnownSide(GLOBAL), (5000,), (5000,), True, id="only the local port, global"),
    pytest.param(KnownSide(PRIVATE, TOLD), (5000,), (5000,), True, id="an address alone tells no port"),
    pytest.param(KnownSide(PRIVATE, None, PortSet((9, 7))), (9, 7), (9, 7), False, id="given"),
    pytest.param(KnownSide(PRIVATE, None, PortSet((9,)), COUNTING), (9,), (9,), False, id="given, before STUN's"),
    pytest.param(KnownSide(PRIVATE, mapping=KIND), (50000,), (50000,), False, id="endpoint-independent"),
    pytest.param(KnownSide(PRIVATE, mapping=ONE_SERVER), (50000,), (50000,), False, id="one server's word"),
    pytest.param(KnownSide(PRIVATE, TOLD, mapping=RANDOM), (60000,), (60000,), True, id="random"),
    pytest.param(
        KnownSide(PRIVATE, mapping=COUNTING),
        tuple(range(50002, 50010)),
        tuple(range(50004, 50012)),
        True,
        id="counting",
    ),
]


@pytest.mark.parametrize(("side", "now", "later", "guessed"), PORTS)
def test_the_ports_are_those_of_the_best_source_and_guesses_are_called_so(
    side: KnownSide, now: tuple[int, ...], later: tuple[int, ...], guessed: bool
) -> None:
    assert side.ports().ports == now
    assert side.ports(later=2).ports == later
    assert side.is_predicted is guessed


COMPLETE = [
    pytest.param(KnownSide(GLOBAL), False, id="nothing is known"),
    pytest.param(KnownSide(PRIVATE, TOLD), False, id="the ports are missing"),
    pytest.param(KnownSide(PRIVATE, None, PortSet((7,))), False, id="the address is missing"),
    pytest.param(KnownSide(PRIVATE, TOLD, PortSet((7,))), True, id="the application knows both"),
    pytest.param(KnownSide(PRIVATE, mapping=RANDOM), True, id="STUN has answered"),
]


@pytest.mark.parametrize(("side", "complete"), COMPLETE)
def test_stun_is_asked_only_where_something_is_missing(side: KnownSide, complete: bool) -> None:
    assert side.is_complete is complete


@pytest.mark.parametrize(
    ("mapping", "behaviour"),
    [
        (None, "unknown"),
        (KIND, "endpoint-independent"),
        (COUNTING, "sequential+1"),
        (RANDOM, "random"),
        (ONE_SERVER, "unknown"),
        (judge(GLOBAL, [GLOBAL]), "open"),
    ],
)
def test_the_behaviour_is_the_word_of_the_line_protocol(mapping: Mapping | None, behaviour: str) -> None:
    assert KnownSide(PRIVATE, TOLD, PortSet((7,)), mapping).behaviour == behaviour


@pytest.mark.parametrize(
    ("rtt_s", "rtt_ms"),
    [(None, 1), (0.0, 1), (0.0004, 1), (0.0256, 26), (1.5, 1500), (65.534, 65534), (65.6, 65535), (1e6, 65535)],
)
def test_the_round_trip_time_is_never_unknown_after_an_answer_and_fits_a_token(
    rtt_s: float | None, rtt_ms: int
) -> None:
    side = KnownSide(PRIVATE).with_discovered(Discovered(mapping=KIND, rtt_s=rtt_s, failures=()))
    assert side.rtt_ms == rtt_ms
    assert side.mapping == KIND


def test_silence_leaves_what_was_known() -> None:
    side = KnownSide(GLOBAL, TOLD, PortSet((7,)))
    assert side.with_discovered(Discovered(mapping=None, rtt_s=None, failures=())) == side


def test_a_discovery_replaces_only_what_it_found() -> None:
    side = KnownSide(PRIVATE, None, PortSet((7,)))
    found = Discovered(mapping=KIND, rtt_s=0.02, failures=())
    assert side.with_discovered(found) == replace(side, mapping=KIND, rtt_ms=20)
