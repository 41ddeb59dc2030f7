"""The servers that the benches of the rendezvous compare, each in a process of its own, on one core.

`python -m tests.bench.rendezvous_servers NAME CORE HTTP_FD UDP_FD CLIENTS`: `defaults` is the server with its limits,
`ours` the same without any that a bench would meet, `hypercorn` the part of it that is measured, as one would
write it with Starlette on trio. All know the same clients, each of which has pulsed once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import trio

from punchd.rendezvous import pulse, pulses, service
from punchd.rendezvous.memory import MemoryStore
from punchd.rendezvous.settings import Settings, Timing
from tests.bench.pulse_speed import hurry, key_of
from tests.bench.web_speed import Server
from tests.unit.rendezvous.parts import GENEROUS

ADDRESS, PORT = "192.0.2.1", 4000  # where every client is said to be
_SOURCE = socket.inet_aton(ADDRESS) + PORT.to_bytes(2, "big")
_STAY = Timing(interval=3600, grace=3600, error_time=86_400)  # nobody expires during a bench
_START_S = 60.0


def id_of(number: int) -> bytes:
    return hashlib.blake2b(b"id" + number.to_bytes(8, "big"), digest_size=pulse.ID_SIZE).digest()


def bearer(number: int) -> bytes:
    return f"Authorization: Bearer {key_of(number).hex()}\r\n".encode()


@dataclass
class Rendezvous(Server):
    """A running server; pulses go to the same port number as HTTP."""


@contextmanager
def server(name: str, core: int, clients: int) -> Iterator[Rendezvous]:
    """A server on 127.0.0.1 that answers."""
    with ExitStack() as stack:
        http = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1024))
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(http.getsockname())
        fds = [http.fileno(), udp.fileno()]
        command = [sys.executable, "-m", "tests.bench.rendezvous_servers", name, *map(str, (core, *fds, clients))]
        process = subprocess.Popen(command, pass_fds=fds)
        try:
            running = Rendezvous(process, http.getsockname())
            with socket.create_connection(running.address, timeout=_START_S) as client:
                client.sendall(b"GET /health HTTP/1.1\r\nHost: bench\r\n\r\n")
                if not client.recv(1000).startswith(b"HTTP/1.1 200"):
                    raise ConnectionError(f"{name} did not start")
            yield running
        finally:
            process.kill()
            process.wait()


def _ours(settings: Settings, http: socket.socket, udp: socket.socket, clients: int) -> None:
    store = service.open_store(settings)
    assert isinstance(store, MemoryStore)
    now = time.monotonic()
    for number in range(clients):
        store._clients.register(id_of(number), key_of(number), now)
        store._clients.pulse(key_of(number), _SOURCE, now)
    store._clock = time.monotonic
    http.setblocking(False)
    pulses.prepare(udp)
    sockets = service.Sockets(http=[http], udp=[udp])
    trio.run(service.serve, settings, sockets, store, trio.Event())


def ours(http: socket.socket, udp: socket.socket, clients: int) -> None:
    limits = replace(GENEROUS, clients=2 * clients, connections_per_source=10_000)
    _ours(Settings(timing=_STAY, limits=limits), http, udp, clients)


def defaults(http: socket.socket, udp: socket.socket, clients: int) -> None:
    settings = Settings(timing=_STAY)
    _ours(replace(settings, limits=replace(settings.limits, clients=2 * clients)), http, udp, clients)


def hypercorn(http: socket.socket, _udp: socket.socket, clients: int) -> None:
    from hypercorn.config import Config
    from hypercorn.trio import serve
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route, WebSocketRoute
    from starlette.websockets import WebSocket

    members = {key_of(number).hex(): id_of(number).hex() for number in range(clients)}
    places = {client_id: (ADDRESS, PORT, time.time()) for client_id in members.values()}
    queues: dict[str, deque[dict[str, object]]] = {}
    wakes: dict[str, trio.Event] = {}

    def caller(headers: object) -> str | None:
        return members.get(str(headers["authorization"]).removeprefix("Bearer "))  # type: ignore[index]

    async def health(_: Request) -> JSONResponse:
        return JSONResponse({"ok": True})

    async def udp_address(request: Request) -> JSONResponse:
        if caller(request.headers) is None:
            return JSONResponse({"ok": False, "error": "AUTH_FAILED", "message": "no such key"}, 401)
        client_id = request.path_params["client_id"]
        place = places.get(client_id)
        if place is None:
            return JSONResponse({"ok": False, "error": "NOT_FOUND", "message": "no such client"}, 404)
        host, port, seen = place
        address = {"family": 4, "host": host, "port": port, "age": int(time.time() - seen)}
        found = {"client_id": client_id, "host": host, "port": port, "timestamp": int(time.time())}
        return JSONResponse({**found, "addresses": [address], "ok": True})

    async def post_signal(request: Request) -> JSONResponse:
        sender, target = caller(request.headers), request.path_params["client_id"]
        if sender is None or target not in places:
            return JSONResponse({"ok": False, "error": "NOT_FOUND", "message": "no such client"}, 404)
        signal = {"from": sender, "data": (await request.body()).decode(), "age": 0}
        queues.setdefault(target, deque()).append(signal)
        if target in wakes:
            wakes[target].set()
        return JSONResponse({"timestamp": int(time.time()), "ok": True}, 202)

    async def next_signals(client_id: str) -> list[dict[str, object]]:
        queue = queues.setdefault(client_id, deque())
        if not queue:
            wakes[client_id] = trio.Event()
            await wakes[client_id].wait()
            del wakes[client_id]
        found = list(queue)
        queue.clear()
        return found

    async def poll(request: Request) -> JSONResponse:
        client_id = caller(request.headers)
        assert client_id is not None
        found: list[dict[str, object]] = []
        with trio.move_on_after(int(request.query_params["wait"])):
            found = await next_signals(client_id)
        return JSONResponse({"signals": found, "ok": True})

    async def stream(ws: WebSocket) -> None:
        client_id = caller(ws.headers)
        assert client_id is not None
        await ws.accept()
        while True:
            for signal in await next_signals(client_id):
                await ws.send_text(json.dumps(signal))

    app = Starlette(
        routes=[
            Route("/health", health),
            Route("/peer/{client_id}/udp", udp_address),
            Route("/peer/{client_id}/signal", post_signal, methods=["POST"]),
            Route("/signals", poll),
            WebSocketRoute("/signals", stream),
        ]
    )
    config = Config()
    config.bind = [f"fd://{http.fileno()}"]
    config.loglevel = "CRITICAL"
    config.keep_alive_max_requests = 1_000_000_000
    config.keep_alive_timeout = 600
    trio.run(lambda: serve(app, config))  # type: ignore[arg-type]


def main(name: str, core: str, http: str, udp: str, clients: str) -> None:
    """Serve on the sockets until killed."""
    hurry()
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, {int(core)})
    serve = {"ours": ours, "defaults": defaults, "hypercorn": hypercorn}[name]
    serve(socket.socket(fileno=int(http)), socket.socket(fileno=int(udp)), int(clients))


if __name__ == "__main__":
    main(*sys.argv[1:])
