"""`punchd-broker` as processes that share a Redis, and clients that wait for what they are told."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.unit.broker.contract import check_answer
from tests.unit.broker.running import SECRET, listener, secret_file
from tests.unit.broker.schema import check_server_message
from tests.unit.broker.test_broker_process import ACTIVATE
from tests.unit.rendezvous.redis_server import RedisServer

START_S = 60.0
PATIENCE_S = 30.0

_CONFIG = """
insecure-dev = true
listen = ["127.0.0.1:1"]
secret-file = "{secret}"
store = "{store}"
[limits]
creations-per-minute = 5
requests-per-minute = 100000
upgrades-per-minute = 100000
drain-seconds = 0
"""


@dataclass(slots=True)
class Server:
    """One that serves."""

    process: subprocess.Popen[bytes]
    port: int
    clients: ExitStack

    def ask(self, method: str, target: str, body: Any = None, token: str = "") -> tuple[int, Any]:
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
        with closing(client):
            client.request(method, target, None if body is None else json.dumps(body), headers)
            answer = client.getresponse()
            text = answer.read()
        fields = {name.lower(): value for name, value in answer.getheaders()}
        check_answer(method, target.partition("?")[0], answer.status, fields, text)
        return answer.status, json.loads(text)

    def create(self, name: str, **members: Any) -> dict[str, Any]:
        status, made = self.ask("POST", "/api/session", {"name": name, **members})
        assert status == 201, made
        return dict(made)

    def join(self, name: str, token: str, source: str = "127.0.0.1") -> Client:
        url = f"ws://127.0.0.1:{self.port}/api/ws/{name}?t={token}"
        websocket = connect(
            url, open_timeout=PATIENCE_S, close_timeout=1, source_address=(source, 0), ping_interval=None
        )
        return Client(self.clients.enter_context(websocket))

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(START_S)


@dataclass(slots=True)
class Client:
    """A WebSocket."""

    websocket: ClientConnection
    heard: list[dict[str, Any]] = field(default_factory=list)

    def say(self, kind: str, **members: Any) -> None:
        self.websocket.send(json.dumps({"type": kind, **members}))

    def hears(self, kind: str, **members: Any) -> dict[str, Any]:
        """The next frame of this kind that has these members."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            frame = check_server_message(str(self.websocket.recv(max(0.0, deadline - time.monotonic()))))
            self.heard.append(frame)
            if frame["type"] == kind and all(frame[name] == value for name, value in members.items()):
                return frame

    def is_closed(self) -> int | None:
        """The code of the close frame."""
        with contextlib.suppress(ConnectionClosed):
            while True:
                self.heard.append(check_server_message(str(self.websocket.recv(PATIENCE_S))))
        return self.websocket.close_code


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextmanager
def fleet(redis: RedisServer, folder: Path, number: int) -> Iterator[list[Server]]:
    """So many servers on one Redis; killed at the end."""
    config = folder / "broker.toml"
    config.write_text(_CONFIG.format(secret=secret_file(folder, SECRET), store=redis.url))
    with ExitStack() as stack:
        starting = [stack.enter_context(_started(config)) for _ in range(number)]
        for notified, _ in starting:
            while b"READY=1" not in notified.recv(4096):
                pass
        yield [server for _, server in starting]


@contextmanager
def _started(config: Path) -> Iterator[tuple[socket.socket, Server]]:
    sockets = [listener(), listener()]
    above = [fcntl.fcntl(sock, fcntl.F_DUPFD, 10) for sock in sockets]
    port = sockets[0].getsockname()[1]
    command = [sys.executable, "-c", ACTIVATE, *map(str, above), "--config", str(config)]
    with (
        tempfile.TemporaryDirectory(prefix="punchd-notify-") as directory,
        closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as notified,
        ExitStack() as clients,
    ):
        notified.bind(f"{directory}/notify")
        notified.settimeout(START_S)
        environment = os.environ | {"NOTIFY_SOCKET": f"{directory}/notify"}
        process = subprocess.Popen(command, pass_fds=above, stderr=subprocess.DEVNULL, env=environment)
        for fd in above:
            os.close(fd)
        for sock in sockets:
            sock.close()
        try:
            yield notified, Server(process, port, clients)
        finally:
            process.kill()
            process.wait(START_S)
