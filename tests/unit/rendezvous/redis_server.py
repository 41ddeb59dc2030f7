"""A real redis-server in a directory of its own, on a unix socket, started and ended as often as a test likes."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

REDIS_SERVER = shutil.which("redis-server") or shutil.which("valkey-server")
START_S = 30.0

needs_redis = pytest.mark.skipif(
    REDIS_SERVER is None, reason="needs redis-server: `./dev test` installs it, or apt-get install redis-server"
)


class RedisServer:
    """One Redis. `is_durable`: it writes each change to disk before it answers."""

    def __init__(self, directory: Path, *, is_durable: bool = False, options: tuple[str, ...] = ()) -> None:
        self.directory = directory
        self.path = directory / "redis.socket"
        self._options = [
            "--port", "0", "--unixsocket", str(self.path), "--dir", str(directory), "--save", "", "--daemonize", "no",
            "--logfile", str(directory / "log"), "--appendonly", "yes" if is_durable else "no",
            "--appendfsync", "always", *options,
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.path}"

    def start(self) -> None:
        assert REDIS_SERVER is not None
        assert self._process is None
        self._process = subprocess.Popen([REDIS_SERVER, *self._options], stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + START_S
        while b"PONG" not in self._ask(b"PING\r\n") and b"NOAUTH" not in self._ask(b"PING\r\n"):
            assert self._process.poll() is None, (self.directory / "log").read_text()
            assert time.monotonic() < deadline, "redis-server does not answer"
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL; nothing is said to clients, nothing written."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait(START_S)
            self._process = None

    def pause(self) -> None:
        """It hangs: connections stay, and nothing is answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def ask(self, *words: str) -> bytes:
        """What Redis answers to a command, in RESP2; a connection for each."""
        command = b"".join(b"$%d\r\n%s\r\n" % (len(word.encode()), word.encode()) for word in words)
        return self._ask(b"*%d\r\n%s" % (len(words), command))

    def number(self, *words: str) -> int:
        answer = self.ask(*words)
        assert answer[:1] == b":", answer
        return int(answer[1:])

    def _ask(self, command: bytes) -> bytes:
        try:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(START_S)
                sock.connect(str(self.path))
                sock.sendall(command)
                sock.shutdown(socket.SHUT_WR)
                return b"".join(iter(lambda: sock.recv(65536), b""))
        except (ConnectionError, FileNotFoundError):
            return b""


@contextmanager
def redis_server(*, is_durable: bool = False, options: tuple[str, ...] = ()) -> Iterator[RedisServer]:
    """A Redis that runs, and is gone at the end with all it wrote. Short paths: a socket's has 107 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="punchd-redis-") as directory:
        server = RedisServer(Path(directory), is_durable=is_durable, options=options)
        try:
            server.start()
            yield server
        finally:
            server.kill()
