"""`punchd-broker` and `punch session` as processes, as their users start them."""

from __future__ import annotations

import json
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.unit.web.certificates import write_certificate

PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Place:
    """A broker over TLS on loopback, and where `punch` has its configuration."""

    url: str
    ca: Path
    home: Path
    process: subprocess.Popen[bytes]

    def punch(self, *words: str, stdin: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
        """Run `punch session` to its end."""
        return subprocess.run(
            command(*words), env=self.environment(**variables), capture_output=True, text=True, input=stdin,
            timeout=PATIENCE_S, check=False,
        )  # fmt: skip

    def environment(self, **variables: str) -> dict[str, str]:
        found = {name: value for name, value in os.environ.items() if not name.startswith("PUNCH")}
        return found | {"XDG_CONFIG_HOME": str(self.home), "PUNCH_BROKER": self.url} | variables

    def create(self, name: str, *words: str) -> Any:
        """A session: what `create --json` prints."""
        done = self.punch("create", name, "--json", *words)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "punchd.cli.punch", "session", *words]


@contextmanager
def place(folder: Path) -> Iterator[Place]:
    """A broker process; its certificate's authority stands in the configuration of `punch`."""
    chain, key = write_certificate(folder, "first")
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port = probe.getsockname()[1]
    url = f"https://localhost:{port}"
    config = folder / "broker.toml"
    limits = ("creations", "requests", "upgrades", "failed-authentications")
    lines = [
        f'listen = ["127.0.0.1:{port}"]',
        "metrics = []",
        "[limits]",
        *(f"{one}-per-minute = 100000" for one in limits),
    ]
    config.write_text("\n".join(lines))
    home = folder / "home"
    (home / "punch").mkdir(parents=True)
    (home / "punch" / "config.toml").write_text(f"ca = {json.dumps(str(chain))}\n")
    words = ["--config", config, "--tls-cert", chain, "--tls-key", key, "--public-url", url, "--log-level", "error"]
    process = subprocess.Popen([sys.executable, "-m", "punchd.cli.broker", *map(str, words)])
    try:
        _await_port(process, port)
        yield Place(url, chain, home, process)
    finally:
        process.kill()
        process.wait(PATIENCE_S)


def _await_port(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S).close()
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        else:
            return


class Running:
    """A `punch session` that goes on."""

    def __init__(self, at: Place, *words: str) -> None:
        self.process = subprocess.Popen(
            command(*words), env=at.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))

    def line(self, holds: str) -> str:
        """The next line of its output that holds this."""
        while True:
            found = self._lines.get(timeout=PATIENCE_S)
            if holds in found:
                return found

    def end(self) -> tuple[int, str]:
        """Its exit code and what it said on standard error, once it has ended."""
        assert self.process.stderr is not None
        said = self.process.stderr.read()
        code = self.process.wait(PATIENCE_S)
        return code, said

    def close(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


@contextmanager
def running(at: Place, *words: str) -> Iterator[Running]:
    """It is killed if it has not ended."""
    found = Running(at, *words)
    try:
        yield found
    finally:
        found.close()
