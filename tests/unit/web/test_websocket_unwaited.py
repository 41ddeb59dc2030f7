"""What an application may do with a WebSocket without waiting: queue, ping, close; and hear of every frame."""

from __future__ import annotations

import math

import trio

from punchd.web.limits import Limits
from punchd.web.messages import Answer, Request, Upgrade
from punchd.web.websocket import WebSocket, WebSocketClosedError
from tests.unit.web.raw_websocket import CLOSE, PING, PONG, TEXT, frame, raw_websocket
from tests.unit.web.site import serving

OUR_CODES = {1001: 1011, 1002: 1011}


async def test_what_is_queued_comes_in_order_and_after_the_close_nothing() -> None:
    async def run(ws: WebSocket) -> None:
        ws.queue("one")
        ws.ping()
        ws.queue("two")
        ws.start_close(1011)
        ws.queue("three")
        ws.ping()
        ws.start_close(1000)
        await ws.wait_closed()

    async def handle(_: Request) -> Answer:
        return Upgrade(run)

    async with serving(handle) as site, raw_websocket(site) as client:
        got = [await client.frame() for _ in range(4)]
        assert got == [(TEXT, b"one"), (PING, b""), (TEXT, b"two"), (CLOSE, b"\x03\xf3")]


async def test_every_frame_is_noticed_before_its_message_is_received() -> None:
    told: list[str] = []

    async def run(ws: WebSocket) -> None:
        ws.notice_frame = lambda: told.append("frame")
        try:
            while True:
                told.append(str(await ws.receive()))
                ws.queue("next")
        except WebSocketClosedError:
            pass

    async def handle(_: Request) -> Answer:
        return Upgrade(run)

    async with serving(handle) as site, raw_websocket(site) as client:
        await client.send(frame(TEXT, b"one"))
        assert await client.frame() == (TEXT, b"next")
        await client.send(frame(PING, b"x"))
        assert await client.frame() == (PONG, b"x")
        await client.send(frame(TEXT, b"half", fin=False))
        await client.send(frame(PONG))
        await client.send(frame(0, b"way"))
        assert await client.frame() == (TEXT, b"next")
    assert [one for one in told if one != "frame"] == ["one", "halfway"]
    assert told[0] == "frame"
    assert told.index("halfway") > told.index("one") + 2


async def test_unsent_is_what_a_client_does_not_read() -> None:
    seen: list[int] = []

    async def run(ws: WebSocket) -> None:
        seen.append(ws.unsent)
        while not ws.unsent:
            ws.queue("x" * 65_536)
        before = ws.unsent
        ws.queue("y" * 100)
        seen.append(ws.unsent - before)

    async def handle(_: Request) -> Answer:
        return Upgrade(run)

    async with serving(handle, Limits(close_s=0.1, ping_s=math.inf)) as site, raw_websocket(site):
        with trio.fail_after(30):
            while len(seen) < 2:  # noqa: ASYNC110 (the server's own business)
                await trio.sleep(0.01)
    assert seen == [0, 102]


async def test_when_the_server_stops_the_application_chooses_the_code() -> None:
    async def run(ws: WebSocket) -> None:
        await ws.wait_closed()

    async def handle(_: Request) -> Answer:
        return Upgrade(run, close_codes=OUR_CODES)

    async with serving(handle) as site, raw_websocket(site) as client:
        site.stop.set()
        got = await client.frame()
        assert got is not None
        assert (got[0], got[1][:2]) == (CLOSE, b"\x03\xf3")
