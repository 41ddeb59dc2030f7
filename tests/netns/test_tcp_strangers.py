"""Who is answered by the port of a TCP round while it listens: the peer, and nobody else at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address

import pytest
import trio

from punchd.endpoint import Endpoint
from punchd.kernel.tcp import Placeholder
from punchd.wire.tcp import Flags
from tests.natlab import Laboratory
from tests.netns.two_hosts import Ends, captured, crafted, either, ends_of, segments, sending, sniffing, two_hosts

pytestmark = pytest.mark.netns

STRANGERS = {4: "203.0.113.77", 6: "2001:db8:77::1"}


@pytest.fixture(name="laboratory", scope="module")
def _laboratory() -> Iterator[Laboratory]:
    yield from two_hosts()


@contextmanager
def holding(ends: Ends) -> Iterator[Placeholder]:
    with ends.a.entered():
        placeholder = Placeholder(ends.at_a)
    try:
        yield placeholder
    finally:
        placeholder.close()


async def answers(ends: Ends, sources: list[Endpoint]) -> list[int]:
    """The ports that get a SYN-ACK or RST of host a when SYNs come to it, seemingly from there."""
    with sniffing(ends.a, ends.at_a.port, ends.version) as sniffer, sending(ends.b, ends.version) as sender:
        for source in sources:
            sender.send(crafted(source, ends.at_a, Flags.SYN), ends.at_a.ip)
            await trio.sleep(0.01)
        return [segment.destination_port for segment in segments(await captured(sniffer), leaving=True)]


@either
async def test_a_listening_port_answers_the_peer_and_nobody_else(laboratory: Laboratory, version: int) -> None:
    ends = ends_of(laboratory, version)
    stranger = ip_address(STRANGERS[version])
    with holding(ends) as placeholder:
        placeholder.open(ends.at_b.ip, deaf_to=[7002, 7003])
        peers = [Endpoint(ends.at_b.ip, port) for port in (7001, 7002, 7003, 7004)]
        strangers = [Endpoint(stranger, port) for port in (7011, 7002, 7014)]
        assert set(await answers(ends, [peers[0], *strangers, *peers[1:]])) == {7001, 7004}


@either
async def test_an_address_that_differs_from_the_peers_in_one_bit_is_a_stranger(
    laboratory: Laboratory, version: int
) -> None:
    ends = ends_of(laboratory, version)
    size = ends.at_b.ip.max_prefixlen
    spots = [0, 7, 31, 32, 63, 64, 100, 126] if version == 6 else [0, 7, 15, 24, 29]
    near = [
        Endpoint(ip_address(int(ends.at_b.ip) ^ 1 << (size - 1 - spot)), 7100 + spot) for spot in spots if spot < size
    ]
    with holding(ends) as placeholder:
        placeholder.open(ends.at_b.ip)
        assert set(await answers(ends, [*near, Endpoint(ends.at_b.ip, 7001)])) == {7001}


@either
async def test_a_deaf_port_answers_nobody(laboratory: Laboratory, version: int) -> None:
    ends = ends_of(laboratory, version)
    with holding(ends):
        assert await answers(ends, [Endpoint(ends.at_b.ip, 7001), Endpoint(ends.at_b.ip, 7002)]) == []
