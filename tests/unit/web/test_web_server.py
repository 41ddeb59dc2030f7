"""The server as a whole: who is let in, how it stops, where it runs."""

from __future__ import annotations

import json
import os
import socket
import time

import pytest
import trio
import trio.testing

from punchd.web.limits import Limits
from punchd.web.messages import Answer, LongPoll, Request, Response, Upgrade, text_response
from punchd.web.server import STOP_S, WebServer
from punchd.web.websocket import WebSocket, WebSocketClosedError
from tests.unit.web.raw_websocket import CLOSE, OPENING, TEXT, closing, frame, raw_websocket
from tests.unit.web.site import (
    GET,
    LAST_GET,
    PATIENCE_S,
    emptied,
    read_all,
    read_answer,
    reply,
    serving,
    status,
    statuses,
)

# --- how many ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [Limits(connections=2), Limits(connections_per_source=2)])
async def test_one_connection_too_many_hears_503_and_there_is_room_when_another_ends(limits: Limits) -> None:
    async with serving(limits=limits) as site, await site.connect() as first:
        async with await site.connect() as second:
            for stream in (first, second):
                await stream.send_all(GET)
                assert status(await read_answer(stream)) == 200
            assert status(await site.exchange(b"")) == 503
            assert site.server.counts.refused_connections == 1
        with trio.fail_after(PATIENCE_S):
            while site.server.counts.connections > 1:  # noqa: ASYNC110 (what is tested has no event)
                await trio.sleep(0.01)
        assert status(await site.exchange(LAST_GET)) == 200


async def test_sources_are_counted_apart() -> None:
    async with serving(limits=Limits(connections_per_source=1)) as site, await site.connect() as first:
        await first.send_all(GET)
        assert status(await read_answer(first)) == 200
        with socket.create_connection(("127.0.0.1", site.port), source_address=("127.0.0.2", 0)) as other:
            other.setblocking(False)
            async with trio.SocketStream(trio.socket.from_stdlib_socket(other)) as stream:
                await stream.send_all(LAST_GET)
                assert status(await read_all(stream)) == 200


async def test_an_ipv4_client_of_a_socket_for_both_families_is_an_ipv4_client() -> None:
    seen: list[str] = []

    async def handle(request: Request) -> Answer:
        seen.append(str(request.peer.ip))
        return text_response("")

    listener = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    async with serving(handle, listener=listener) as site:
        await site.exchange(LAST_GET)
    assert seen == ["127.0.0.1"]


async def test_running_out_of_descriptors_is_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    with trio.socket.socket() as some:
        kind = type(some)
    real_accept = kind.accept
    refusals = 0

    async def accept(self: trio.socket.SocketType) -> object:
        nonlocal refusals
        if refusals < 2:
            refusals += 1
            raise OSError(24 if refusals == 1 else 103, "no")
        return await real_accept(self)

    async with serving() as site:
        monkeypatch.setattr(kind, "accept", accept)
        with trio.fail_after(PATIENCE_S):
            for _ in range(3):
                assert status(await site.exchange(LAST_GET)) == 200
    assert refusals == 2


# --- stopping -----------------------------------------------------------------------------------------------------


async def test_stopping_ends_what_is_idle_at_once() -> None:
    async with serving() as site:
        async with await site.connect() as fresh, await site.connect() as used:
            await used.send_all(GET)
            await read_answer(used)
            await trio.testing.wait_all_tasks_blocked(0.05)
            site.stop.set()
            assert await read_all(fresh) == b""
            assert await read_all(used) == b""
        with trio.fail_after(PATIENCE_S):
            await site.ended.wait()


async def test_stopping_finishes_the_answers_under_way_and_takes_no_further_request() -> None:
    async def handle(_: Request) -> Answer:
        await trio.sleep(0.3)
        return text_response("done")

    async with serving(handle) as site, await site.connect() as stream:
        await stream.send_all(GET + GET)
        await trio.sleep(0.1)
        site.stop.set()
        answers = await read_all(stream)
        assert statuses(answers) == [200]
        assert b"Connection: close" in answers


async def test_stopping_answers_long_polls() -> None:
    async def handle(request: Request) -> Answer:
        return LongPoll(trio.sleep_forever, Response(204) if request.path == "/own" else None)

    async with serving(handle) as site, await site.connect() as own, await site.connect() as plain:
        await own.send_all(b"GET /own HTTP/1.1\r\nHost: a\r\n\r\n")
        await plain.send_all(GET)
        await trio.sleep(0.1)
        site.stop.set()
        assert statuses(await read_all(own)) == [204]
        answer = await read_all(plain)
        assert status(answer) == 503
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"] == "STOPPING"


async def test_stopping_closes_websockets_with_1001_and_hears_them_out() -> None:
    heard: list[tuple[int, int | None]] = []

    async def run(ws: WebSocket) -> None:
        try:
            await ws.receive()
        except WebSocketClosedError as closed:
            heard.append((closed.code, closed.sent))

    async def handle(_: Request) -> Answer:
        return Upgrade(run)

    async with serving(handle) as site, raw_websocket(site) as ws:
        site.stop.set()
        got = await ws.frame()
        assert got is not None
        assert got[0] == CLOSE
        assert got[1].startswith(b"\x03\xe9")
        await ws.send(closing(1001))
        assert await ws.frame() is None
    assert heard == [(1001, 1001)]


async def test_stopping_is_bounded_whatever_clients_and_handlers_do() -> None:
    async def stuck(_: WebSocket | None = None) -> None:
        await trio.sleep_forever()

    async def handle(request: Request) -> Answer:
        match request.path:
            case "/stuck":
                await stuck()
            case "/ws":
                return Upgrade(stuck)
            case "/flood":

                async def flood(ws: WebSocket) -> None:
                    while True:
                        await ws.send("x" * 10_000)

                return Upgrade(flood)
            case _:
                pass
        return await reply(request)

    async with serving(handle) as site, trio.open_nursery() as nursery:
        streams = [await site.connect() for _ in range(5)]
        for stream, data in zip(
            streams,
            [
                b"GET / HT",
                b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n",
                b"GET /stuck HTTP/1.1\r\nHost: a\r\n\r\n",
                b"GET /big?size=9000000 HTTP/1.1\r\nHost: a\r\n\r\n",
                b"bad\r\n\r\n",
            ],
            strict=True,
        ):
            await stream.send_all(data)
        for path in (b"/ws", b"/flood"):
            streams.append(await site.connect())
            await streams[-1].send_all(OPENING.replace(b"/ws", path) + b"\r\n")
        await trio.sleep(0.3)
        begun = time.monotonic()
        site.stop.set()
        with trio.fail_after(PATIENCE_S):
            await site.ended.wait()
        assert STOP_S == 2
        assert time.monotonic() - begun < STOP_S + 10  # far from the deadlines above, whatever else the machine does
        for stream in streams:
            await stream.aclose()
        nursery.cancel_scope.cancel()


async def test_a_handshake_that_comes_while_it_stops_is_refused() -> None:
    entered = trio.Event()

    async def handle(_: Request) -> Answer:
        entered.set()
        await trio.sleep(0.3)
        return Upgrade(trio.sleep)  # type: ignore[arg-type]

    async with serving(handle) as site, await site.connect() as stream:
        await stream.send_all(OPENING + b"\r\n")
        await entered.wait()
        site.stop.set()
        assert statuses(await read_all(stream)) == [503]


async def test_cancelling_ends_everything_at_once() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = WebServer(reply)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.serve, [listener], trio.Event())
            streams = [await trio.open_tcp_stream(*listener.getsockname()) for _ in range(3)]
            await streams[0].send_all(b"GET /poll HTTP/1.1\r\nHost: a\r\n\r\n")
            await streams[1].send_all(GET)
            await read_answer(streams[1])
            nursery.cancel_scope.cancel()
        assert server.counts.connections == 0
        for stream in streams:
            await trio.aclose_forcefully(stream)
        assert listener.fileno() >= 0  # stays the caller's
    assert len(os.listdir("/proc/self/fd")) <= before


async def test_several_listeners_and_a_second_server_live_in_one_nursery() -> None:
    async def other(_: Request) -> Answer:
        return text_response("other")

    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as two,
        socket.create_server(("127.0.0.1", 0)) as three,
    ):
        stop = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(WebServer(reply).serve, [one, two], stop)
            nursery.start_soon(WebServer(other).serve, [three], stop)
            for listener, ending in ((one, b"}"), (two, b"}"), (three, b"other")):
                async with await trio.open_tcp_stream(*listener.getsockname()[:2]) as stream:
                    await stream.send_all(LAST_GET)
                    assert (await read_all(stream)).endswith(ending)
            stop.set()


async def test_a_conversation_goes_on_while_others_come_and_go() -> None:
    async with serving() as site, raw_websocket(site) as ws:
        for number in range(20):
            await ws.send(frame(TEXT, str(number).encode()))
            assert await ws.frame() == (TEXT, str(number).encode())
            assert status(await site.exchange(LAST_GET)) == 200
        await ws.send(closing(1000))
        assert await ws.close_code() == 1000
        await emptied(site)
