"""A running broker on loopback in the test's own event loop, and clients on plain sockets.

Clients never wait: they send, let the server do all it has to, and take what came. So the tests need no times, and
those about timers set the clock.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import trio
import trio.testing

from punchd.broker.redis_sessions import RedisSessions
from punchd.broker.secret import Secret
from punchd.broker.service import Broker, Listening
from punchd.broker.settings import Limits, Settings
from punchd.broker.tokens import Keys
from punchd.broker.turnstile import Verifier
from punchd.redis.link import IN_FLIGHT
from punchd.web.listen import Certificate
from tests.unit.broker.contract import TAP, check_answer
from tests.unit.broker.peer import BUSY, ROUNDS, Peer, settle

SECRET = "punch-test-secret-A-0123456789abcdef0123456789abcdef"  # noqa: S105 (the specification's)
BASE_S = 1_777_810_000.0  # the specification's `now`
URL = "https://broker.example"

GENEROUS = Limits(
    creations_per_minute=10**6,
    upgrades_per_minute=10**6,
    requests_per_minute=10**6,
    failed_authentications_per_minute=10**6,
    drain_seconds=0,
)
SHARED = ""  # the URL of a Redis in place of memory; see `each_store` in conftest.py
SETTINGS = Settings(listen=("127.0.0.1:1",), insecure_dev=True, public_url=URL, limits=GENEROUS)


def settings(limits: dict[str, int] | None = None, **changes: Any) -> Settings:
    """Those of most tests, with changes."""
    return replace(SETTINGS, limits=replace(GENEROUS, **(limits or {})), **changes)


@dataclass(slots=True)
class Answer:
    """One HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return str(self.json["error"])


@dataclass(slots=True)
class Running:
    """A server, and what is behind it."""

    port: int
    metrics: int
    stop: trio.Event
    ended: trio.Event
    secret: Secret
    broker: Broker
    opened: list[socket.socket] = field(default_factory=list)

    # --- HTTP --------------------------------------------------------------------------------------------------------

    def connect(self, source: str = "127.0.0.1", port: int | None = None) -> socket.socket:
        """A client's socket; closed with the server at the latest."""
        sock = socket.create_connection(("127.0.0.1", port or self.port), source_address=(source, 0))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else Nagle holds back what `settle` waits for
        self.opened.append(sock)
        return sock

    async def ask(
        self,
        method: str,
        target: str,
        body: Any = None,
        *,
        token: str | None = None,
        source: str = "127.0.0.1",
        **headers: str,
    ) -> Answer:
        """One request over a connection of its own. A body that is no bytes is sent as JSON; `_` in names is `-`."""
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        fields = {"Host": "broker.example", "Connection": "close"}
        if body is not None:
            fields |= {"Content-Type": "application/json", "Content-Length": str(len(data))}
        if token is not None:
            fields["Authorization"] = f"Bearer {token}"
        fields |= {name.replace("_", "-").title(): value for name, value in headers.items()}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        raw = f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode() + data
        with contextlib.closing(self.connect(source)) as sock:
            sock.sendall(raw)
            path = re.sub(r"^https?://[^/]*", "", target).partition("?")[0]
            return await self.read(sock, method, path)

    async def raw(self, data: bytes, method: str = "GET", path: str = "-") -> Answer:
        """The answer to bytes."""
        with contextlib.closing(self.connect()) as sock:
            sock.sendall(data)
            return await self.read(sock, method, path)

    async def read(self, sock: socket.socket, method: str, path: str) -> Answer:
        """One answer."""
        data = bytearray()
        for _ in range(ROUNDS):
            await settle()
            with contextlib.suppress(BlockingIOError):
                while more := sock.recv(65_536, socket.MSG_DONTWAIT):
                    data += more
            found = parse(bytes(data), method)
            if found is not None:
                TAP.sent(bytes(data))
                check_answer(method, path, found.status, found.headers, found.body)
                _remember(found.body)
                return found
        raise AssertionError(f"no whole answer to {method} {path}: {bytes(data)!r}")

    async def metric(self, name: str) -> float:
        """A value of /metrics."""
        with contextlib.closing(self.connect(port=self.metrics)) as sock:
            sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            data = bytearray()
            for _ in range(ROUNDS):
                await settle()
                with contextlib.suppress(BlockingIOError):
                    while more := sock.recv(65_536, socket.MSG_DONTWAIT):
                        data += more
                    break
        lines = [line.rpartition(" ") for line in data.decode().splitlines() if line.startswith(name)]
        return float(lines[0][2]) if lines else 0.0

    async def create(self, name: str = "show", **members: Any) -> dict[str, Any]:
        """A session; the body of the answer."""
        answer = await self.ask("POST", "/api/session", {"name": name, **members})
        assert answer.status == 201, answer
        return dict(answer.json)

    # --- WebSocket ---------------------------------------------------------------------------------------------------

    async def upgrade(self, target: str, source: str = "127.0.0.1", **headers: str) -> tuple[Answer, Peer | None]:
        """The answer to an upgrade, and the conversation if there is one."""
        fields = {
            "Host": "broker.example",
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        }
        fields = {name.lower(): value for name, value in fields.items()}
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value)
        sock = self.connect(source)
        sock.sendall(f"GET {target} HTTP/1.1\r\n{head}\r\n".encode())
        answer = await self.read(sock, "GET", target.partition("?")[0])
        if answer.status != 101:
            sock.close()
            return answer, None
        peer = Peer(sock)
        peer.feed(answer.body)
        return answer, peer

    async def join(self, session: str, token: str, source: str = "127.0.0.1") -> Peer:
        """A conversation."""
        if source != "127.0.0.1":
            TAP.addresses.add(source)
        answer, peer = await self.upgrade(f"/api/ws/{session}?t={token}", source)
        assert peer is not None, answer
        return peer

    async def pair(self, made: dict[str, Any], stream: str | None = None) -> tuple[Peer, Peer]:
        """Two peers of a stream, matched; what they heard on the way is taken."""
        stream = stream or made["streams"][0]
        number = 10 * (1 + made["streams"].index(stream))
        peers = []
        for last in (number + 1, number + 2):
            peer = await self.join(made["session"], made["peerTokens"][stream], f"127.0.0.{last}")
            peer.say("register", port=5000 + last)
            await settle()
            peers.append(peer)
        for peer in peers:
            await peer.heard()
        return peers[0], peers[1]


def parse(data: bytes, method: str) -> Answer | None:
    head, end, rest = data.partition(b"\r\n\r\n")
    if not end:
        return None
    lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
    status = int(lines[0].split()[1])
    size = 0 if method == "HEAD" else int(headers.get("content-length", 0))
    if len(rest) < size:
        return None
    return Answer(status, headers, rest if status == 101 else rest[:size])


def _remember(body: bytes) -> None:
    """Tokens and passphrases that an answer holds."""
    with contextlib.suppress(ValueError):
        members = json.loads(body)
        if isinstance(members, dict):
            tokens = [members.get("token"), *(members.get("peerTokens") or {}).values()]
            for token in tokens:
                if isinstance(token, str):
                    TAP.token(token)


def listener() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0), backlog=1024)


class FixedSecret(Secret):
    """The specification's key."""

    def __init__(self, *secrets: str) -> None:
        super().__init__(None)
        self.keys = Keys(secrets or (SECRET,))
        TAP.secrets.update(secrets or (SECRET,))


@asynccontextmanager
async def running(
    chosen: Settings = SETTINGS,
    *,
    wall: Callable[[], float] | None = None,
    verify: Verifier | None = None,
    secret: Secret | None = None,
    certificate: Certificate | None = None,
    http: socket.socket | None = None,
) -> AsyncIterator[Running]:
    """A broker, with the specification's time unless the test says otherwise; it leaves no descriptor behind."""
    before = len(os.listdir("/proc/self/fd"))
    if SHARED:
        chosen = replace(chosen, store=SHARED, secret_file="shared")  # noqa: S106 (no file is read)
    listening = Listening([http or listener()], [listener()])
    start = trio.current_time()
    keys = secret or FixedSecret()
    clock = wall or (lambda: BASE_S + trio.current_time() - start)
    broker = Broker(chosen, keys, certificate=certificate, wall=clock, verify=verify)
    waits_for_redis = partial(_waits_for_redis, broker)
    BUSY.append(waits_for_redis)
    stop, ended = trio.Event(), trio.Event()
    opened: list[socket.socket] = []

    async def run() -> None:
        await broker.serve(listening, stop)
        ended.set()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            ports = [one.getsockname()[1] for one in (*listening.http, *listening.metrics)]
            yield Running(ports[0], ports[1], stop, ended, keys, broker, opened)
            for sock in opened:
                sock.close()
            stop.set()
    finally:
        BUSY.remove(waits_for_redis)
        listening.close()
        for sock in opened:
            sock.close()
    assert len(broker.sockets) == 0
    await trio.testing.wait_all_tasks_blocked()
    assert len(os.listdir("/proc/self/fd")) <= before + (http is not None)


def _waits_for_redis(broker: Broker) -> bool:
    store = broker.sessions
    return isinstance(store, RedisSessions) and (
        store.instance._link._free.value < IN_FLIGHT or not store.lines.is_idle
    )


def secret_file(folder: Path, *secrets: str, mode: int = 0o600) -> Path:
    """A file of secrets."""
    path = folder / "secret"
    path.write_text("\n".join(secrets) + "\n")
    path.chmod(mode)
    TAP.secrets.update(one for one in secrets if len(one) >= 16)
    return path
