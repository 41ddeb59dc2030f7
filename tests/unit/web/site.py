"""A server on loopback for one test, and clients that speak bytes. When the server is gone, nothing may be left."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio
import trio.testing

from punchd.web.limits import Limits
from punchd.web.messages import Answer, Handler, LongPoll, Request, Response, Upgrade, json_response, text_response
from punchd.web.server import WebServer
from punchd.web.websocket import WebSocket

PATIENCE_S = 30  # for what happens at once on a machine that is not busy

GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
LAST_GET = b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"


@dataclass
class Site:
    """A running server."""

    server: WebServer
    port: int
    stop: trio.Event
    ended: trio.Event

    async def connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.port)

    async def exchange(self, data: bytes) -> bytes:
        """All that comes back for `data` until the server closes."""
        async with await self.connect() as stream:
            await stream.send_all(data)
            return await read_all(stream)


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    """Until the end; an RST is a failure."""
    with trio.fail_after(PATIENCE_S):
        return b"".join([data async for data in stream])


async def read_answer(stream: trio.abc.ReceiveStream) -> bytes:
    """One answer with a Content-Length, and nothing beyond it."""
    data = bytearray()
    with trio.fail_after(PATIENCE_S):
        while b"\r\n\r\n" not in data:
            more = await stream.receive_some(1)
            assert more, f"the connection ended after {bytes(data)!r}"
            data += more
        left = int(field(bytes(data), "content-length") or 0)
        while left:
            more = await stream.receive_some(left)
            assert more, f"the connection ended after {bytes(data)!r}"
            data += more
            left -= len(more)
    return bytes(data)


async def emptied(site: Site) -> None:
    """Until the server has no connection any more."""
    with trio.fail_after(PATIENCE_S):
        while site.server.counts.connections:  # noqa: ASYNC110 (what is tested has no event)
            await trio.sleep(0.01)


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def statuses(answers: bytes) -> list[int]:
    """Of several answers in a row whose bodies hold no such line."""
    return [int(line.split(b" ")[1]) for line in answers.split(b"\r\n") if b"HTTP/1.1 " in line]


def field(answer: bytes, name: str) -> str | None:
    head = answer.partition(b"\r\n\r\n")[0].decode("latin-1")
    for line in head.split("\r\n")[1:]:
        key, _, value = line.partition(": ")
        if key.lower() == name:
            return value
    return None


@asynccontextmanager
async def serving(
    handler: Handler | None = None,
    limits: Limits | None = None,
    tls: Callable[[], ssl.SSLContext] | None = None,
    listener: socket.socket | None = None,
) -> AsyncIterator[Site]:
    """A server that answers by `handler` (or by `reply`); it is stopped at the end and must leave no descriptor."""
    before = len(os.listdir("/proc/self/fd"))
    with listener or socket.create_server(("127.0.0.1", 0), backlog=1024) as bound:
        server = WebServer(handler or reply, limits=limits, tls=tls)
        stop, ended = trio.Event(), trio.Event()
        site = Site(server, bound.getsockname()[1], stop, ended)

        async def run() -> None:
            await server.serve([bound], stop)
            ended.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            yield site
            stop.set()
        assert server.counts.connections == 0
        assert server.counts.websockets == 0
    await trio.testing.wait_all_tasks_blocked()
    assert len(os.listdir("/proc/self/fd")) <= before


async def reply(request: Request) -> Answer:
    """Shows what came; `/poll` waits for ever, `/fail` raises, `/ws` echoes."""
    match request.path:
        case "/poll":
            return LongPoll(trio.sleep_forever)
        case "/fail":
            raise ValueError("oops")
        case "/ws":
            return Upgrade(echo)
        case "/big":
            return text_response("x" * int(request.query["size"]))
        case "/nothing":
            return Response(204)
        case _:
            return json_response(
                {
                    "method": request.method,
                    "path": request.path,
                    "query": dict(request.query),
                    "host": request.headers.get("host"),
                    "body": request.body.decode("latin-1"),
                    "tls": request.is_tls,
                }
            )


async def echo(ws: WebSocket) -> None:
    while True:
        await ws.send(await ws.receive())
