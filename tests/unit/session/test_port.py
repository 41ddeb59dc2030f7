"""The held port, with STUN servers of this process on loopback."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address

import pytest
import trio
from trio.testing import MockClock

from punchd.endpoint import Endpoint
from punchd.nat.discover import Discovered
from punchd.punch.outcomes import EndedError, Exit
from punchd.session.port import KEEPALIVE_S, PATIENCE_S, HeldPort
from punchd.wire import stun

LOOPBACK = {4: "127.0.0.1", 6: "::1"}
SEEN = {4: Endpoint(ip_address("192.0.2.7"), 6000), 6: Endpoint(ip_address("2001:db8::7"), 6000)}
LIMIT_S = 30.0


@asynccontextmanager
async def stun_server(version: int = 4) -> AsyncIterator[tuple[tuple[str, int], list[Endpoint]]]:
    """Says that everybody is SEEN; its place, and who has asked."""
    asked: list[Endpoint] = []
    family = socket.AF_INET if version == 4 else socket.AF_INET6

    async def serve(sock: trio.socket.SocketType) -> None:
        while True:
            data, source = await sock.recvfrom(2048)
            asked.append(Endpoint.from_sockaddr(source))
            await sock.sendto(stun.encode_success(stun.decode_request(data), SEEN[version]), source)

    with trio.socket.socket(family, socket.SOCK_DGRAM) as sock:
        await sock.bind((LOOPBACK[version], 0))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, sock)
            yield (LOOPBACK[version], sock.getsockname()[1]), asked
            nursery.cancel_scope.cancel()


class Told:
    """What was said of the port."""

    def __init__(self) -> None:
        self.found: list[Discovered] = []
        self.busy: list[int] = []
        self._new = trio.Event()

    def take(self, found: Discovered) -> None:
        self.found.append(found)
        self._new.set()

    async def next(self) -> Discovered:
        with trio.fail_after(LIMIT_S):
            await self._new.wait()
        self._new = trio.Event()
        return self.found[-1]


def is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as trial:
        try:
            trial.bind(("", port))
        except OSError:
            return False
        return True


@pytest.mark.parametrize("version", [4, 6])
async def test_stun_is_asked_from_the_very_port_and_letting_go_of_it_is_immediate(version: int) -> None:
    told = Told()
    async with stun_server(version) as (server, asked), trio.open_nursery() as nursery:
        held = HeldPort(0, (server,), told.busy.append)
        held.bind()
        nursery.start_soon(held.hold, version, told.take)
        found = await told.next()
        assert found.mapping is not None
        assert found.mapping.observed == (SEEN[version],)
        assert {endpoint.port for endpoint in asked} == {held.number}
        held.release()
        assert is_free(held.number)
        nursery.start_soon(held.hold, version, told.take)  # again, with the same number
        await told.next()
        assert {endpoint.port for endpoint in asked} == {held.number}
        nursery.start_soon(held.hold, version, told.take)  # anew while it is held
        await told.next()
        held.release()
    assert is_free(held.number)
    assert told.busy == []


async def test_stun_is_asked_again_to_keep_the_mapping_and_strangers_get_no_answer(autojump_clock: MockClock) -> None:
    told = Told()
    async with trio.open_nursery() as nursery:
        held = HeldPort(0, (("127.0.0.1", 9),), told.busy.append)  # nobody is there
        held.bind()
        nursery.start_soon(held.hold, 4, told.take)
        first = await told.next()
        assert first.mapping is None
        started_at = trio.current_time()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(os.urandom(100), ("127.0.0.1", held.number))
        await told.next()
        assert trio.current_time() >= started_at + KEEPALIVE_S
        held.release()


async def test_a_port_that_somebody_else_has_is_told_and_waited_for(autojump_clock: MockClock) -> None:
    told = Told()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("", 0))
        held = HeldPort(other.getsockname()[1], (), told.busy.append)
        with pytest.raises(EndedError) as refused:
            held.bind()
        assert refused.value.code is Exit.USAGE
        async with trio.open_nursery() as nursery:
            nursery.start_soon(held.hold, 4, told.take)
            await trio.sleep(PATIENCE_S + 1)
            assert told.busy == [held.number]
            other.close()
            found = await told.next()
            assert "no STUN server is known" in found.reason
            held.release()
