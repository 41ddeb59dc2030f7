"""The servers that the benches of the broker compare, each in a process of its own, on one core.

`python -m tests.bench.broker_servers NAME CORE FD CONFIG [WORD ...]`: `ours` is punchd-broker with a configuration file
and more words of its command line; `hypercorn` is the same API, machine and conversation behind Starlette on trio, so
that what differs is what reads and writes HTTP and WebSocket.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from math import inf
from pathlib import Path
from typing import Any, cast

import trio

from punchd.broker import settings as broker_settings
from punchd.broker.secret import Secret
from punchd.broker.service import Broker
from punchd.cli import broker as command
from punchd.endpoint import Endpoint
from punchd.web.messages import Headers, Request, Response, Upgrade
from punchd.web.websocket import WebSocket, WebSocketClosedError
from tests.bench.broker_client import read_answer, trusting
from tests.bench.pulse_speed import hurry
from tests.bench.web_speed import Server
from tests.unit.web.certificates import write_certificate

_COMMON = 'listen = ["127.0.0.1:8787"]\nmetrics = []\nlog-level = "warning"\n[limits]'
# No limit that a bench would meet.
GENEROUS = "\n".join(
    [
        _COMMON,
        *(
            f"{name} = 1000000"
            for name in (
                "creations-per-minute", "upgrades-per-minute", "requests-per-minute", "messages-per-second",
                "message-burst", "sessions", "sessions-per-source", "websockets-per-source", "connections",
                "connections-per-source", "connects-per-second",
            )
        ),
        "drain-seconds = 0\n",
    ]
)  # fmt: skip
DEFAULTS = f"{_COMMON}\ndrain-seconds = 0\n"
START_S = 60.0


@dataclass
class Broking(Server):
    """A running server."""

    is_tls: bool = False

    def place(self) -> tuple[str, int]:
        """Where the next client goes."""
        return self.address

    def connect(self, source: str = "127.0.0.1") -> socket.socket:
        sock = socket.create_connection(self.place(), START_S, (source, 0))
        return trusting().wrap_socket(sock) if self.is_tls else sock


@contextmanager
def server(
    name: str, core: int, config: str = GENEROUS, words: tuple[str, ...] = (), *, is_tls: bool = False
) -> Iterator[Broking]:
    """A server on 127.0.0.1 that answers."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="punchd-bench-")))
        (folder / "config.toml").write_text(config)
        if is_tls:
            chain, key = write_certificate(folder, "bench")
            words += ("--tls-cert", str(chain), "--tls-key", str(key), "--public-url", "https://bench")
        else:
            words += ("--insecure-dev",)
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=2048))
        fd = listener.fileno()
        argv = [sys.executable, "-m", "tests.bench.broker_servers", name, str(core), str(fd), f"{folder}/config.toml"]
        process = subprocess.Popen([*argv, *words], pass_fds=[fd])
        try:
            running = Broking(process, listener.getsockname(), is_tls)
            listener.close()  # a client of a server that could not start must not wait
            with contextlib.closing(running.connect()) as client:
                client.sendall(b"GET /api/health HTTP/1.1\r\nHost: bench\r\n\r\n")
                head, _ = read_answer(client)
                if not head.startswith(b"HTTP/1.1 200"):
                    raise ConnectionError(f"{name} did not start: {head!r}")
            yield running
        finally:
            process.kill()
            process.wait()


def ours(listener: socket.socket, config: str, words: list[str]) -> None:
    os.dup2(listener.fileno(), 3)  # as a service manager passes it
    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="api")
    sys.exit(command.main(["--config", config, *words]))


class Bridge:
    """What the broker's conversations want of a WebSocket, on top of Starlette's."""

    def __init__(self, ws: Any) -> None:
        self.unsent = 0
        self.notice_frame: Callable[[], None] = lambda: None
        self._ws = ws
        self._outbox, self._waiting = trio.open_memory_channel[str | int](inf)

    async def receive(self) -> str | bytes:
        message = await self._ws.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketClosedError(message.get("code", 1006), "", None)
        self.notice_frame()
        text: str | bytes | None = message.get("text")
        return cast("bytes", message["bytes"]) if text is None else text

    def queue(self, text: str) -> None:
        self._outbox.send_nowait(text)

    def ping(self) -> None:
        """hypercorn's own."""

    def start_close(self, code: int, reason: str = "", patience_s: float | None = None) -> None:
        self._outbox.send_nowait(code)

    async def write(self) -> None:
        async for what in self._waiting:
            if isinstance(what, int):
                await self._ws.close(what)
                return
            await self._ws.send_text(what)


def hypercorn(listener: socket.socket, config: str, _words: list[str]) -> None:
    from hypercorn.config import Config
    from hypercorn.trio import serve
    from starlette.applications import Starlette
    from starlette.requests import HTTPConnection
    from starlette.requests import Request as StarletteRequest
    from starlette.responses import Response as StarletteResponse
    from starlette.routing import Route, WebSocketRoute
    from starlette.websockets import WebSocket as StarletteWebSocket

    given = command.arguments().parse_args(["--config", config, "--insecure-dev"])
    chosen = command.settings(given)
    broker_settings.check(chosen)
    brokers: list[Broker] = []

    def request_of(connection: HTTPConnection, method: str, body: bytes) -> Request:
        client = connection.client
        assert client is not None
        fields = Headers([(name.decode(), value.decode("latin-1")) for name, value in connection.headers.raw])
        path, query = connection.url.path, dict(connection.query_params)
        peer = Endpoint(ip_address(client.host), client.port)
        return Request(method, path, path, query, fields, body, peer, is_tls=False)

    async def answer(request: StarletteRequest) -> StarletteResponse:
        found = await brokers[0].api(request_of(request, request.method, await request.body()))
        assert isinstance(found, Response)
        return StarletteResponse(found.body, found.status, dict(found.headers))

    async def converse(ws: StarletteWebSocket) -> None:
        found = await brokers[0].api(request_of(ws, "GET", b""))
        if not isinstance(found, Upgrade):
            await ws.close()
            return
        await ws.accept(headers=[(name.lower().encode(), value.encode()) for name, value in found.headers])
        bridge = Bridge(ws)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bridge.write)
            await found.run(cast("WebSocket", bridge))
            nursery.cancel_scope.cancel()

    routes = [
        WebSocketRoute("/api/ws/{name}", converse),
        Route("/{path:path}", answer, methods=["GET", "POST", "DELETE"]),
    ]
    app = Starlette(routes=routes)
    worker = Config()
    worker.bind = [f"fd://{listener.fileno()}"]
    worker.loglevel = "CRITICAL"
    worker.websocket_ping_interval = 30
    worker.keep_alive_max_requests = 1_000_000_000
    worker.keep_alive_timeout = 600

    async def main() -> None:
        brokers.append(Broker(chosen, Secret(None)))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(brokers[0]._agenda.run)
            nursery.start_soon(brokers[0].sessions.run)
            await serve(app, worker)  # type: ignore[arg-type]

    trio.run(main)


def main(name: str, core: str, fd: str, config: str, *words: str) -> None:
    """Serve on the listening socket until killed."""
    hurry()
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, {int(core)})
    {"ours": ours, "hypercorn": hypercorn}[name](socket.socket(fileno=int(fd)), config, list(words))


if __name__ == "__main__":
    main(*sys.argv[1:])
