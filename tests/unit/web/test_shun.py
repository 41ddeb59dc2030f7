"""Who floods is left to the kernel for a while: counting, the filter on real sockets, the server that uses it."""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, ip_address

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from punchd.web import shun
from punchd.web.limits import Limits
from punchd.web.messages import Answer, Request, Response
from punchd.web.server import WebServer
from punchd.web.shun import MOST, SHUN_S, Census, Shunned, program
from tests.unit.web.site import GET, LAST_GET, PATIENCE_S, Site, read_all, read_answer, reply, serving, status

_PASS = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0xFFFF_FFFF))
ALL_PASS = struct.pack("HP", 1, ctypes.addressof(_PASS))

A, B = b"aaaa", b"bbbb"


def test_who_passes_the_bound_within_a_second_is_told_and_nobody_else() -> None:
    census = Census(3)
    assert census.count([A, A, A, B], 7.0) == []
    assert census.count([B], 7.5) == []
    assert census.count([A, B, A], 7.999) == [A]
    assert census.count([A, A, A], 8.0) == []


def test_a_census_of_ever_new_sources_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shun, "CENSUS_MOST", 100)
    census = Census(3)
    for number in range(1000):
        census.count([number.to_bytes(4, "big")], 7.0)
        assert len(census) <= 101


@given(st.lists(st.tuples(st.sampled_from([A, B]), st.sampled_from([0.0, 0.2, 0.6])), max_size=40), st.integers(1, 5))
def test_a_census_is_a_count_by_the_second(steps: list[tuple[bytes, float]], most: int) -> None:
    census, now, counts = Census(most), 0.0, dict[tuple[bytes, int], int]()
    for source, step in steps:
        now += step
        counts[source, int(now)] = counts.get((source, int(now)), 0) + 1
        assert bool(census.count([source], now)) == (counts[source, int(now)] > most)


# --- the filter -------------------------------------------------------------------------------------------------------


def packed(address: str, port: int | None = None) -> bytes:
    return ip_address(address).packed + (b"" if port is None else port.to_bytes(2, "big"))


@contextmanager
def bound(address: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((address, 0))
        sock.setblocking(False)
        yield sock


def hears(receiver: socket.socket, sender: socket.socket) -> bool:
    """On loopback a datagram is there, or dropped, when sendto returns."""
    sender.sendto(b"x" * 32, receiver.getsockname())
    try:
        return receiver.recv(100) == b"x" * 32
    except BlockingIOError:
        return False


def test_an_ipv4_address_is_not_heard_and_its_neighbours_are() -> None:
    with bound("127.0.0.1") as receiver, bound("127.0.0.9") as loud, bound("127.0.0.8") as calm:
        shunned = Shunned([receiver], lambda: 0.0)
        shunned.add(packed("127.0.0.9"))
        assert (hears(receiver, loud), hears(receiver, calm)) == (False, True)


@pytest.mark.parametrize("address", ["127.0.0.9", "::1"])
def test_one_port_is_not_heard_and_others_of_the_same_address_are(address: str) -> None:
    with bound(address) as receiver, bound(address) as loud, bound(address) as calm:
        shunned = Shunned([receiver], lambda: 0.0)
        shunned.add(packed("127.0.0.1", loud.getsockname()[1]) if ":" not in address else packed("::2", 5))
        assert hears(receiver, loud)
        shunned.add(packed(address, loud.getsockname()[1]))
        assert (hears(receiver, loud), hears(receiver, calm)) == (False, True)


def test_an_ipv6_network_is_not_heard() -> None:
    with bound("::1") as receiver, bound("::1") as loud:
        shunned = Shunned([receiver], lambda: 0.0)
        shunned.add(packed("2001:db8::1")[:8])
        assert hears(receiver, loud)
        shunned.add(packed("::")[:8])
        assert not hears(receiver, loud)


def test_as_many_as_may_be_shunned_fit_into_a_filter_and_the_first_gives_way() -> None:
    with bound("::1") as receiver, bound("::1") as loud:
        shunned = Shunned([receiver], lambda: 0.0)
        own = packed("::1", loud.getsockname()[1])
        shunned.add(own)
        for number in range(MOST - 1):
            shunned.add(packed("2001:db8::1", number))
        assert not hears(receiver, loud)
        shunned.add(packed("2001:db8::2", 1))
        assert own not in shunned
        assert hears(receiver, loud)
    assert len(program([packed("2001:db8::1", number) for number in range(MOST)], socket.AF_INET6)) // 8 <= 4096


async def test_after_a_while_a_source_is_heard_again(autojump_clock: trio.testing.MockClock) -> None:
    told: list[bytes] = []
    with bound("127.0.0.1") as receiver, bound("127.0.0.9") as loud:
        shunned = Shunned([receiver], trio.current_time, told.append)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shunned.run)
            for _ in range(2):
                shunned.add(packed("127.0.0.9"))
            assert told == [packed("127.0.0.9")]
            await trio.sleep(SHUN_S - 1)
            assert not hears(receiver, loud)
            await trio.sleep(2.5)
            assert hears(receiver, loud)
            assert not shunned
            nursery.cancel_scope.cancel()


async def test_a_socket_that_outlives_its_server_hears_everybody(autojump_clock: trio.testing.MockClock) -> None:
    with bound("127.0.0.1") as receiver, bound("127.0.0.9") as loud:
        async with trio.open_nursery() as nursery:
            shunned = Shunned([receiver], trio.current_time)
            nursery.start_soon(shunned.run)
            await trio.sleep(0.5)
            shunned.add(packed("127.0.0.9"))
            assert not hears(receiver, loud)
            nursery.cancel_scope.cancel()
        assert hears(receiver, loud)
        Shunned([receiver], lambda: 0.0).add(packed("127.0.0.9"))  # and one that was killed
        Shunned([receiver], lambda: 0.0)
        assert hears(receiver, loud)


def test_without_room_for_a_filter_the_process_still_knows_whom_it_shuns() -> None:
    with bound("127.0.0.1") as receiver, bound("127.0.0.9") as loud:
        receiver.setsockopt(socket.SOL_SOCKET, 26, ALL_PASS)
        receiver.setsockopt(socket.SOL_SOCKET, 44, 1)  # SO_LOCK_FILTER: the kernel takes no other
        shunned = Shunned([receiver], lambda: 0.0)
        shunned.add(packed("127.0.0.9"))
        assert hears(receiver, loud)
        assert packed("127.0.0.9") in shunned


# --- the server -------------------------------------------------------------------------------------------------------


async def connect_from(address: str, port: int) -> trio.SocketStream:
    sock = trio.socket.socket()
    try:
        await sock.bind((address, 0))
        await sock.connect(("127.0.0.1", port))
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(sock)


async def test_who_connects_too_often_is_not_heard_while_its_connections_and_everybody_else_are() -> None:
    async with (
        serving(limits=Limits(connects_per_second=10)) as site,
        await connect_from("127.0.0.9", site.port) as old,
    ):
        await old.send_all(GET)
        await read_answer(old)
        streams: list[trio.SocketStream] = []
        with trio.fail_after(PATIENCE_S):
            while not site.server.counts.shunned:
                with trio.move_on_after(0.2), contextlib.suppress(ConnectionResetError):
                    streams.append(await connect_from("127.0.0.9", site.port))
        assert 8 <= len(streams) < 1000  # of those that a busy machine was slow to connect, some are not in it
        with trio.move_on_after(0.3) as scope:  # the kernel drops its SYN
            await connect_from("127.0.0.9", site.port)
        assert scope.cancelled_caught
        assert status(await site.exchange(LAST_GET)) == 200
        await old.send_all(GET)
        assert status(await read_answer(old)) == 200
        for stream in streams:
            await trio.aclose_forcefully(stream)


async def test_a_trusted_proxy_may_connect_as_often_and_hold_as_many_as_it_likes() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        limits = Limits(connects_per_second=1, connections_per_source=1)
        stop = trio.Event()
        async with trio.open_nursery() as nursery:
            server = WebServer(reply, limits=limits, trusted=[IPv4Address("127.0.0.1")])
            nursery.start_soon(server.serve, [listener], stop)
            streams = [await trio.open_tcp_stream(*listener.getsockname()) for _ in range(10)]
            for stream in streams:
                async with stream:
                    await stream.send_all(LAST_GET)
                    assert status(await read_all(stream)) == 200
            assert server.counts.shunned == 0
            stop.set()


# --- who asks too often on connections that stand ---------------------------------------------------------------------


async def refuse(_: Request) -> Answer:
    return Response(429, pause_s=0.5)


async def test_a_client_that_is_told_to_pause_is_not_read_meanwhile() -> None:
    async with serving(refuse) as site, await site.connect() as stream:
        await stream.send_all(GET + GET)
        begun = time.monotonic()
        assert status(await read_answer(stream)) == 429
        assert status(await read_answer(stream)) == 429
        assert time.monotonic() - begun >= 0.5


async def test_stopping_waits_for_no_pause() -> None:
    async def handle(_: Request) -> Answer:
        return Response(429, pause_s=3600)

    async with serving(handle) as site, await site.connect() as stream:
        await stream.send_all(GET)
        assert status(await read_answer(stream)) == 429
        await trio.testing.wait_all_tasks_blocked(0.05)
        site.stop.set()
        with trio.fail_after(PATIENCE_S):
            assert await read_all(stream) == b""


async def test_pauses_of_many_do_not_end_together() -> None:
    ends: list[float] = []

    async def ask_twice(site: Site) -> None:
        async with await site.connect() as stream:
            await stream.send_all(GET + GET)
            await read_answer(stream)
            await read_answer(stream)
            ends.append(time.monotonic())

    async with serving(refuse) as site, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(ask_twice, site)
    assert max(ends) - min(ends) > 0.1
