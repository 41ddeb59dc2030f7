"""WebSocket clients that are silent, deaf or flooding, and what they may cost."""

from __future__ import annotations

import contextlib
import socket

import trio

from punchd.web.limits import Limits
from punchd.web.messages import Answer, Request, Upgrade
from punchd.web.websocket import INBOX_MESSAGES, WebSocket, WebSocketClosedError
from tests.unit.web.raw_websocket import CLOSE, PING, PONG, TEXT, closing, frame, raw_websocket
from tests.unit.web.site import PATIENCE_S, Site, echo, emptied, serving


async def test_a_client_that_is_silent_is_pinged_and_lives_if_it_answers() -> None:
    async with serving(limits=Limits(ping_s=0.2)) as site, raw_websocket(site) as ws:
        for _ in range(4):
            assert await ws.frame() == (PING, b"")
            await ws.send(frame(PONG))
        await ws.send(frame(TEXT, b"alive"))
        assert await ws.frame() == (TEXT, b"alive")


async def test_a_client_that_does_not_answer_pings_is_dropped() -> None:
    ended = trio.Event()

    async def run(ws: WebSocket) -> None:
        with contextlib.suppress(WebSocketClosedError):
            await ws.receive()
        assert ws.close_code == 1006
        ended.set()

    async def handle(_: Request) -> Answer:
        return Upgrade(run)

    async with serving(handle, Limits(ping_s=0.2)) as site, raw_websocket(site):
        with trio.fail_after(PATIENCE_S):
            await ended.wait()
        await emptied(site)


async def test_a_client_that_sends_on_after_our_close_frame_is_dropped_in_time() -> None:
    async def run(ws: WebSocket) -> None:
        await ws.close(1000)

    async def handle(_: Request) -> Answer:
        return Upgrade(run)

    async def chatter(site: Site) -> None:
        async with raw_websocket(site) as ws:
            with contextlib.suppress(trio.BrokenResourceError):
                while True:
                    await ws.send(frame(TEXT, b"x"))
                    await trio.sleep(0.05)

    async with serving(handle, Limits(close_s=0.3)) as site:
        with trio.fail_after(PATIENCE_S):
            await chatter(site)
        await emptied(site)


async def test_a_client_that_floods_after_our_close_frame_is_not_heard_out() -> None:
    async def run(ws: WebSocket) -> None:
        await ws.close(1000)

    async def handle(_: Request) -> Answer:
        return Upgrade(run)

    async with serving(handle, Limits(close_s=1e6)) as site:
        with trio.fail_after(PATIENCE_S):
            async with raw_websocket(site) as ws:
                assert await ws.frame() == (CLOSE, b"\x03\xe8")
                with contextlib.suppress(trio.BrokenResourceError):
                    while True:
                        await ws.send(frame(TEXT, b"x" * 100) * 100)
        await emptied(site)


async def test_a_client_that_never_reads_costs_a_bounded_queue_and_is_dropped() -> None:
    queued = 0
    sent = 0
    dropped = trio.Event()

    async def flood(ws: WebSocket) -> None:
        nonlocal queued, sent
        try:
            while True:
                await ws.send("x" * 10_000)
                sent += 10_000
                queued = max(queued, len(ws._outbox))
        except WebSocketClosedError:
            dropped.set()

    async def handle(_: Request) -> Answer:
        return Upgrade(flood)

    limits = Limits(write_s=0.3, unread_bytes=100_000)
    async with serving(handle, limits) as site, raw_websocket(site) as ws:
        ws.stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with trio.fail_after(PATIENCE_S):
            await dropped.wait()
        await emptied(site)
    assert 100_000 < queued < 120_000
    assert sent > queued


async def test_one_client_that_does_not_read_does_not_hold_up_what_others_are_sent() -> None:
    sockets: list[WebSocket] = []

    async def tell_all(ws: WebSocket) -> None:
        sockets.append(ws)
        while True:
            message = await ws.receive()
            for each in sockets:
                await each.send(message)

    async def handle(_: Request) -> Answer:
        return Upgrade(tell_all)

    async with serving(handle) as site, raw_websocket(site) as deaf, raw_websocket(site) as ws:
        deaf.stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for _ in range(30):  # 300 kB that wait for the deaf one
            await ws.send(frame(TEXT, b"x" * 10_000))
            assert await ws.frame() == (TEXT, b"x" * 10_000)


async def test_a_cancelled_sender_leaves_whole_messages_only() -> None:
    async def impatient(ws: WebSocket) -> None:
        for number in range(500):
            with trio.move_on_after(0.002):
                await ws.send(str(number) * 1000)
        await ws.close()

    async def handle(_: Request) -> Answer:
        return Upgrade(impatient)

    async with serving(handle, Limits(unread_bytes=10_000)) as site, raw_websocket(site) as ws:
        ws.stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await trio.sleep(0.3)
        numbers: list[int] = []
        while (got := await ws.frame()) is not None and got[0] == TEXT:
            number = got[1][: len(got[1]) // 1000]
            assert got[1] == number * 1000
            numbers.append(int(number))
        await ws.send(closing(1000))
        assert got is not None
    assert numbers == sorted(numbers)
    assert numbers


async def test_pings_of_a_client_that_does_not_read_the_pongs_fill_no_memory() -> None:
    sockets: list[WebSocket] = []

    async def run(ws: WebSocket) -> None:
        sockets.append(ws)
        await echo(ws)

    async def handle(_: Request) -> Answer:
        return Upgrade(run)

    most = 0
    async with serving(handle, Limits(unread_bytes=20_000, write_s=0.5)) as site, raw_websocket(site) as ws:
        ws.stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with trio.fail_after(PATIENCE_S), contextlib.suppress(trio.BrokenResourceError):
            while True:
                await ws.send(frame(PING, b"x" * 125) * 100)
                most = max(most, len(sockets[0]._outbox))
        await emptied(site)
    assert most < 20_000 + 16_384


async def test_a_client_that_talks_faster_than_the_application_listens_is_slowed_down() -> None:
    sockets: list[WebSocket] = []
    go = trio.Event()
    got: list[str | bytes] = []
    everything = trio.Event()

    async def run(ws: WebSocket) -> None:
        sockets.append(ws)
        await go.wait()
        while len(got) < 2000:
            got.append(await ws.receive())
        everything.set()

    async def handle(_: Request) -> Answer:
        return Upgrade(run)

    async with serving(handle) as site, raw_websocket(site) as ws, trio.open_nursery() as nursery:

        async def talk() -> None:
            for number in range(2000):
                await ws.send(frame(TEXT, b"%07d" % number * 1000))

        nursery.start_soon(talk)
        await trio.sleep(0.5)
        assert len(sockets[0]._inbox) <= INBOX_MESSAGES + 3
        go.set()
        with trio.fail_after(PATIENCE_S):
            await everything.wait()
    assert got == [f"{number:07}" * 1000 for number in range(2000)]
