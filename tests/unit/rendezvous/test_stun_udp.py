"""The STUN server on loopback, UDP: where answers come from, who is limited, and a flood of garbage."""

from __future__ import annotations

import os
import random
from ipaddress import ip_address

import pytest

from punchd.endpoint import Endpoint
from punchd.errors import KernelError
from punchd.rendezvous.stun_server import Limits, _key, listen
from punchd.wire import stun
from tests.unit.rendezvous.stun_fixture import ONE, answer_within, asking, free_grid, request, serving, until
from tests.unit.test_stun import attribute, message

SOON_S = 0.3  # for what must not come
BURST = 50  # datagrams that any receive buffer holds
FEW, MANY = 20_000, 1_000_000


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_a_request_is_answered_with_where_it_came_from(address: str) -> None:
    async with serving([Endpoint(ip_address(address), 0)]) as server, asking(address) as client:
        await client.sendto(request(), server.endpoint.sockaddr)
        answer = await answer_within(client)
        assert answer is not None
        mapped = stun.decode_response(answer[0])
        assert isinstance(mapped, stun.BindingSuccess)
        assert mapped.mapped == Endpoint.from_sockaddr(client.getsockname())


@pytest.mark.parametrize(("wildcard", "asked"), [("0.0.0.0", "127.0.0.5"), ("::", "::1")])  # noqa: S104
async def test_a_wildcard_socket_answers_from_the_address_that_was_asked(wildcard: str, asked: str) -> None:
    local = "::1" if ":" in asked else "127.0.0.1"
    async with serving([Endpoint(ip_address(wildcard), 0)]) as server, asking(local) as client:
        await client.sendto(request(), (asked, server.endpoint.port))
        answer = await answer_within(client)
        assert answer is not None
        assert answer[1] == Endpoint(ip_address(asked), server.endpoint.port)


@pytest.mark.parametrize("flags", [0, 2, 4, 6])
async def test_the_answer_leaves_from_the_socket_that_change_request_names(flags: int) -> None:
    async with serving(free_grid()) as server, asking() as client:
        await client.sendto(message(0x0001, attribute(0x0003, bytes((0, 0, 0, flags)))), server.endpoint.sockaddr)
        answer = await answer_within(client)
        assert answer is not None
        assert answer[1] == server.endpoints[flags >> 1]
        assert server.counters.answered == 1


async def test_response_port_sends_the_answer_to_another_socket_of_the_client() -> None:
    async with serving(free_grid()) as server, asking() as first, asking() as second:
        port = second.getsockname()[1].to_bytes(2)
        await first.sendto(message(0x0001, attribute(0x0027, port + b"\0\0")), server.endpoint.sockaddr)
        assert await answer_within(second) is not None
        assert await answer_within(first, SOON_S) is None


async def test_who_asks_too_fast_is_not_answered_and_others_are() -> None:
    async with serving(limits=Limits(rate=0.001, burst=3)) as server, asking() as fast, asking("127.0.0.9") as other:
        for _ in range(5):
            await fast.sendto(request(), server.endpoint.sockaddr)
        await until(server, 5)
        assert (server.counters.answered, server.counters.limited) == (3, 2)
        await other.sendto(request(), server.endpoint.sockaddr)
        assert await answer_within(other) is not None


async def test_garbage_does_not_use_up_a_sources_share() -> None:
    async with serving(limits=Limits(rate=0.001, burst=1)) as server, asking() as client:
        for _ in range(BURST):
            await client.sendto(b"\0\1garbage", server.endpoint.sockaddr)
        await client.sendto(request(), server.endpoint.sockaddr)
        assert await answer_within(client) is not None
        assert server.counters.ignored == BURST


def test_one_customers_ipv6_network_is_one_source() -> None:
    first, same, other = (ip_address(text).packed for text in ("2001:db8::1", "2001:db8::2:3", "2001:db8:0:1::1"))
    assert _key(first) == _key(same) != _key(other)


def nonsense(rng: random.Random) -> bytes:
    """A datagram that is no request: random, a request that is cut, or one whose length lies."""
    kind = rng.randrange(4)
    if kind == 0:
        return bytes([rng.randrange(2, 256)]) + rng.randbytes(rng.randrange(200))
    if kind == 1:
        return request()[: rng.randrange(20)]
    if kind == 2:
        return b"\0\1\0\4" + rng.randbytes(16)
    return message(0x0001, attribute(rng.randrange(0x8000), rng.randbytes(4), size=rng.randrange(5, 999)))


@pytest.mark.parametrize(
    "count", [FEW, pytest.param(MANY, marks=[pytest.mark.long, pytest.mark.timeout(900)])], ids=["few", "a million"]
)
async def test_after_a_flood_of_garbage_nothing_is_lost_and_the_next_request_is_answered(count: int) -> None:
    rng = random.Random(count)
    pieces = [nonsense(rng) for _ in range(1000)]
    async with serving(hang_s=800) as server, asking() as client:
        descriptors = len(os.listdir("/proc/self/fd"))
        for sent in range(0, count, BURST):
            for number in range(BURST):
                await client.sendto(pieces[(sent + number) % len(pieces)], server.endpoint.sockaddr)
            await until(server, sent + BURST)
        assert server.counters.ignored == count
        await client.sendto(request(), server.endpoint.sockaddr)
        answer = await answer_within(client)
        assert answer is not None  # and the first that came: nothing else was answered
        assert isinstance(stun.decode_response(answer[0]), stun.BindingSuccess)
        assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_port_that_is_taken_is_one_clear_error_and_leaves_nothing_open() -> None:
    taken = listen([Endpoint(ip_address("::1"), 0)])
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(KernelError, match=r"stun: \[::1\]:\d+: cannot listen there \(UDP\): Address already in use"):
        listen([Endpoint(ONE, 0), taken.places[0].endpoint])  # the second one fails
    assert len(os.listdir("/proc/self/fd")) == descriptors
    taken.close()
