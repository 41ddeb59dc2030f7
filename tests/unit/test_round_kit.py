"""The kit of one round: what it passes on, what it drops, and that it falls silent when the round is over."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from punchd.attempt.kit import UNHEARD_CARDS, AttemptPorts, RoundKit
from punchd.attempt.outlook import KnownSide
from punchd.attempt.tcp_connection import RoundConnection
from punchd.attempt.tcp_port import LearningTcpPort
from punchd.endpoint import Endpoint, PortSet, parse_ip
from punchd.errors import Code, PunchError
from punchd.events import Event, Explained
from punchd.kernel.firewall import NoFirewall
from punchd.kernel.tcp import reserve
from punchd.wire.token import Card
from tests.unit.machine_parts import NONCE, B, card

HANG_S = 10.0


async def test_cards_that_nobody_asks_for_are_dropped_beyond_a_limit() -> None:
    ports = AttemptPorts(None, ())
    kit = RoundKit(nonce=NONCE, peer=B, packets=1, ports=ports, tell=lambda told: None, emit=lambda event: None)
    for number in range(1, UNHEARD_CARDS + 5):
        kit.deliver(card(port=number))
    heard = [(await kit.hear_peer()).ports.ports[0] for _ in range(UNHEARD_CARDS)]
    assert heard == list(range(1, UNHEARD_CARDS + 1))
    with trio.move_on_after(0) as scope:
        await kit.hear_peer()
    assert scope.cancelled_caught


async def test_a_retired_kit_says_nothing_more() -> None:
    told: list[Card] = []
    emitted: list[Event] = []
    kit = RoundKit(nonce=NONCE, peer=B, packets=1, ports=AttemptPorts(None, ()), tell=told.append, emit=emitted.append)
    for _ in range(2):
        kit.tell_peer(card())
        kit.emit(Explained("no datagram came"))
        kit.retire()
    assert (len(told), len(emitted)) == (1, 1)


class Firewall(NoFirewall):
    """Knows which exemptions there are."""

    families = frozenset({socket.AF_INET})

    def __init__(self) -> None:
        self.held: list[tuple[int, int, bytes]] = []

    @asynccontextmanager
    async def exempt(self, port: int, family: int, nonce: bytes) -> AsyncIterator[None]:
        self.held.append((port, family, nonce))
        yield
        self.held.remove((port, family, nonce))


@asynccontextmanager
async def tcp_kit(firewall: NoFirewall, packets: int = 9) -> AsyncIterator[RoundKit]:
    """A kit with a TCP port on loopback, and a deaf peer there."""
    here = parse_ip("127.0.0.1")
    placeholder = reserve(Endpoint(here, 0))
    known = KnownSide(placeholder.local, here, PortSet((placeholder.local.port,)))
    ports = AttemptPorts(None, (), LearningTcpPort(placeholder, known), firewall)
    try:
        yield RoundKit(
            nonce=NONCE, peer=here, packets=packets, ports=ports, tell=lambda _: None, emit=lambda event: None
        )
    finally:
        ports.close()


async def test_only_the_attempts_own_port_is_exempt_and_only_within_the_scope() -> None:
    firewall = Firewall()
    async with tcp_kit(firewall) as kit:
        async with kit.tcp() as port:
            assert port.can_exempt
            async with port.exempt():
                assert firewall.held == [(port.local.port, socket.AF_INET, NONCE)]
            assert firewall.held == []
        with pytest.raises(PunchError) as caught:
            port.exempt()
        assert caught.value.reason is Code.REFUSED
        assert firewall.held == []


async def test_without_a_backend_for_the_peers_family_nothing_can_be_exempt() -> None:
    async with tcp_kit(NoFirewall()) as kit, kit.tcp() as port:
        assert not port.can_exempt


@pytest.mark.netns  # a chosen sequence number needs CAP_NET_ADMIN
async def test_a_connection_that_is_made_again_goes_on_as_the_one_that_is_waited_for() -> None:
    peer = reserve(Endpoint(parse_ip("127.0.0.1"), 0))
    results: list[int] = []
    try:
        async with tcp_kit(Firewall()) as kit, kit.tcp() as port:
            connection = port.connect(peer.local.port, 7)
            assert isinstance(connection, RoundConnection)

            async def wait() -> None:
                results.append(await connection.result())

            with trio.fail_after(HANG_S):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(wait)
                    await trio.testing.wait_all_tasks_blocked(0.01)
                    port.reconnect(connection, 7)
                    await trio.testing.wait_all_tasks_blocked(0.01)
                    assert results == [], "the peer is deaf"
                    peer.open(port.local.ip)
                    port.reconnect(connection, 7)
            assert results == [0]
            before = connection.socket
            port.reconnect(connection, 7)
            assert connection.socket is before, "it was answered"
    finally:
        peer.close()


@pytest.mark.netns
async def test_each_syn_of_a_connection_is_a_packet_of_the_round() -> None:
    peer = reserve(Endpoint(parse_ip("127.0.0.1"), 0))
    try:
        async with tcp_kit(Firewall(), packets=3) as kit, kit.tcp() as port:
            connection = port.connect(peer.local.port, 7)
            for _ in range(2):
                port.reconnect(connection, 7)
            with pytest.raises(PunchError, match="all the packets that it may"):
                port.reconnect(connection, 7)
    finally:
        peer.close()
