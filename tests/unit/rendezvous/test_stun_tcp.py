"""The STUN server on loopback, TCP: framing, bounds, and the end."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from punchd.endpoint import Endpoint
from punchd.errors import KernelError
from punchd.rendezvous import stun_server, stun_sockets
from punchd.rendezvous.stun_server import Limits
from punchd.wire import stun
from tests.unit.rendezvous.stun_fixture import ONE, Running, request, serving
from tests.unit.test_stun import attribute, message

ANSWER_SIZE = 32
SHORT = Limits(idle_s=0.5)


@asynccontextmanager
async def connected(server: Running) -> AsyncIterator[trio.SocketStream]:
    async with await trio.open_tcp_stream(*server.endpoint.sockaddr) as stream:
        yield stream


async def read(stream: trio.SocketStream, size: int) -> bytes:
    data = b""
    while len(data) < size and (chunk := await stream.receive_some(size - len(data))):
        data += chunk
    return data


async def is_closed(stream: trio.SocketStream) -> bool:
    try:
        return await stream.receive_some(1) == b""
    except trio.BrokenResourceError:
        return True


async def test_several_requests_on_one_connection_are_answered_in_order_however_they_are_cut() -> None:
    async with serving() as server, connected(server) as stream:
        requests = [request() for _ in range(3)]
        here = Endpoint.from_sockaddr(stream.socket.getsockname())
        await stream.send_all(b"".join(requests))
        whole = await read(stream, 3 * ANSWER_SIZE)
        for byte in b"".join(requests):
            await stream.send_all(bytes([byte]))
        assert await read(stream, 3 * ANSWER_SIZE) == whole
        for number, sent in enumerate(requests):
            answer = stun.decode_response(whole[number * ANSWER_SIZE :][:ANSWER_SIZE])
            assert answer == stun.BindingSuccess(sent[8:], here)
        assert server.counters.accepted == 1


async def test_an_indication_is_taken_without_an_answer() -> None:
    async with serving() as server, connected(server) as stream:
        sent = request()
        await stream.send_all(stun.encode_indication(bytes(12)) + sent)
        assert stun.decode_response(await read(stream, ANSWER_SIZE)).transaction_id == sent[8:]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", id="HTTP"),
        pytest.param(b"\0\1\0\0" + bytes(16), id="RFC 3489, which has no TCP"),
        pytest.param(message(0x0001, attribute(6, b"", size=9)), id="a malformed request"),
        pytest.param(b"\0\1\xff\xfc\x21\x12\xa4\x42" + bytes(12), id="a message of 64 KiB"),
    ],
)
async def test_what_is_not_stun_ends_the_connection(data: bytes) -> None:
    async with serving() as server, connected(server) as stream:
        await stream.send_all(data)
        assert await is_closed(stream)


async def test_a_connection_ends_so_long_after_its_last_whole_request() -> None:
    async with serving(limits=SHORT) as server, connected(server) as stream:
        for _ in range(3):  # longer than the limit in all
            await trio.sleep(SHORT.idle_s / 2)
            await stream.send_all(request())
            assert len(await read(stream, ANSWER_SIZE)) == ANSWER_SIZE
        assert await is_closed(stream)


async def test_single_bytes_do_not_keep_a_connection_open() -> None:
    async with serving(limits=SHORT) as server, connected(server) as stream:
        began_at = trio.current_time()
        with pytest.raises(trio.BrokenResourceError):  # noqa: PT012 (which of the sends meets the closed end is open)
            for byte in message(0x0001, attribute(0x8022, bytes(400))):
                await stream.send_all(bytes([byte]))
                await trio.sleep(SHORT.idle_s / 20)
        assert trio.current_time() - began_at < 400 * SHORT.idle_s / 20


async def test_a_connection_has_a_limited_number_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stun_server, "MAX_BYTES", 60)
    async with serving() as server, connected(server) as stream:
        for _ in range(3):
            await stream.send_all(request())
            assert len(await read(stream, ANSWER_SIZE)) == ANSWER_SIZE
        assert await is_closed(stream)


@pytest.mark.parametrize("limits", [Limits(connections_per_source=2), Limits(connections=2)], ids=["source", "all"])
async def test_who_comes_to_a_full_table_is_closed_at_once_until_there_is_room(limits: Limits) -> None:
    async with serving(limits=limits) as server, connected(server) as first:
        async with connected(server) as second:
            for stream in (first, second):
                await stream.send_all(request())
                assert len(await read(stream, ANSWER_SIZE)) == ANSWER_SIZE
            async with connected(server) as third:
                assert await is_closed(third)
            assert (server.counters.accepted, server.counters.refused) == (2, 1)
        while True:  # the server learns of the second one's end a moment later
            async with connected(server) as fourth:
                await fourth.send_all(request())
                try:
                    if await read(fourth, ANSWER_SIZE):
                        break
                except trio.BrokenResourceError:
                    continue


async def test_a_full_table_of_one_source_leaves_room_for_others() -> None:
    async with serving(limits=Limits(connections_per_source=1)) as server, connected(server) as first:
        await first.send_all(request())
        assert await read(first, ANSWER_SIZE)
        other = await trio.open_tcp_stream(*server.endpoint.sockaddr, local_address="127.0.0.9")
        async with other:
            await other.send_all(request())
            assert len(await read(other, ANSWER_SIZE)) == ANSWER_SIZE


async def test_who_connects_too_often_is_refused() -> None:
    async with serving(limits=Limits(rate=0.001, burst=1)) as server, connected(server) as first:
        await first.send_all(request())
        assert len(await read(first, ANSWER_SIZE)) == ANSWER_SIZE
        async with connected(server) as second:
            assert await is_closed(second)


async def test_stop_ends_everything_and_frees_the_port() -> None:
    async with serving() as server, connected(server) as stream:
        await stream.send_all(request())
        assert len(await read(stream, ANSWER_SIZE)) == ANSWER_SIZE
        server.stop.set()
        assert await is_closed(stream)
        await server.ended.wait()
        async with serving([Endpoint(ONE, server.endpoint.port)]) as again, connected(again) as stream_again:
            await stream_again.send_all(request())
            assert len(await read(stream_again, ANSWER_SIZE)) == ANSWER_SIZE


async def test_cancelling_closes_the_sockets() -> None:
    listening = stun_server.listen([Endpoint(ONE, 0)])
    with trio.CancelScope() as scope:
        scope.cancel()
        await stun_server.serve(listening, trio.Event())
    assert [owned.socket.fileno() for owned in listening.udp] == [-1]
    assert [owned.fileno() for owned in listening.tcp] == [-1]


def test_a_port_that_is_free_for_udp_and_taken_for_tcp_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    bound, refusals = stun_sockets._bound, iter([True, True, False])

    def taken_twice(kind: socket.SocketKind, endpoint: Endpoint) -> socket.socket:
        if kind == socket.SOCK_STREAM and next(refusals):
            raise KernelError("taken")
        return bound(kind, endpoint)

    monkeypatch.setattr(stun_sockets, "_bound", taken_twice)
    listening = stun_server.listen([Endpoint(ONE, 0)])
    assert listening.tcp[0].getsockname() == listening.udp[0].socket.getsockname()
    listening.close()
