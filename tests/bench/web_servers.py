"""The servers that `web_speed` compares, each in a process of its own: `python -m tests.bench.web_servers NAME FD`.

Each answers GET / with a small JSON document, echoes on the WebSocket /ws, and holds GET /poll for ever.
"""

from __future__ import annotations

import socket
import sys

import trio

from punchd.web.limits import Limits
from punchd.web.messages import Answer, LongPoll, Request, Upgrade, json_response
from punchd.web.server import WebServer
from punchd.web.websocket import WebSocket

DOCUMENT = {"ok": True, "version": "1"}


def ours(listener: socket.socket) -> None:
    async def echo(ws: WebSocket) -> None:
        while True:
            await ws.send(await ws.receive())

    async def handle(request: Request) -> Answer:
        match request.path:
            case "/ws":
                return Upgrade(echo)
            case "/poll":
                return LongPoll(trio.sleep_forever)
            case _:
                return json_response(DOCUMENT)

    limits = Limits(connections_per_source=100_000, connects_per_second=100_000)
    trio.run(WebServer(handle, limits=limits).serve, [listener], trio.Event())


def hypercorn(listener: socket.socket) -> None:
    from hypercorn.config import Config
    from hypercorn.trio import serve
    from starlette.applications import Starlette
    from starlette.requests import Request as StarletteRequest
    from starlette.responses import JSONResponse
    from starlette.routing import Route, WebSocketRoute
    from starlette.websockets import WebSocket as StarletteWebSocket
    from starlette.websockets import WebSocketDisconnect

    async def document(_: StarletteRequest) -> JSONResponse:
        return JSONResponse(DOCUMENT)

    async def poll(_: StarletteRequest) -> JSONResponse:
        await trio.sleep_forever()
        return JSONResponse(DOCUMENT)

    async def echo(ws: StarletteWebSocket) -> None:
        await ws.accept()
        try:
            while True:
                await ws.send_text(await ws.receive_text())
        except WebSocketDisconnect:
            return

    app = Starlette(routes=[Route("/", document), Route("/poll", poll), WebSocketRoute("/ws", echo)])
    config = Config()
    config.bind = [f"fd://{listener.fileno()}"]
    config.loglevel = "CRITICAL"
    config.websocket_ping_interval = 30
    config.keep_alive_max_requests = 1_000_000_000
    config.keep_alive_timeout = 600
    trio.run(lambda: serve(app, config))  # type: ignore[arg-type]


def main(name: str, fd: str) -> None:
    """Serve on the listening socket `fd` until killed."""
    {"ours": ours, "hypercorn": hypercorn}[name](socket.socket(fileno=int(fd)))


if __name__ == "__main__":
    main(*sys.argv[1:])
