"""`punch` as people run it: processes behind two NATs, a daemon each, and one server for rendezvous and STUN.

a --- a-box (NAT) --- isp --- core --- server: punchd-rendezvous with STUN, both addresses
b --- b-box (NAT) --- isp --'
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from types import MappingProxyType
from typing import IO, Any

from tests.natlab import KINDS, Host, Laboratory, Link, Site
from tests.natlab.model import PLAIN
from tests.netns.test_rendezvous import ask
from tests.pair import daemons
from tests.unit.test_client_real_daemon import wait_until_served

START_S = 40.0
PATIENCE_S = 60.0
SERVER = "192.0.2.10"
URL = f"http://{SERVER}:5025"
STUN = ("--stun", "192.0.2.10:3478", "--stun", "192.0.2.20:3478")
# Ten programs of one host come at once, and tests come one after the other.
LIMITS = "[limits]\n" + "".join(
    f"{name} = 10000\n"
    for name in ("registrations-per-minute", "registration-burst", "binding-burst", "bindings-per-minute")
)


class Program:
    """A running `punch`. Its standard error are events (`--json`)."""

    def __init__(self, process: subprocess.Popen[bytes], errors: IO[bytes] | None) -> None:
        assert errors is not None
        self.process = process
        self.events: list[dict[str, Any]] = []
        self._queue: Queue[dict[str, Any] | None] = Queue()
        self._errors = errors
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self._errors:
            try:
                self._queue.put(json.loads(line))
            except ValueError:
                self._queue.put({"event": "text", "text": line.decode()})
        self._queue.put(None)

    def until(self, name: str, timeout_s: float = PATIENCE_S) -> dict[str, Any]:
        """Wait for the next event of this name."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                event = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                raise AssertionError(f"no {name}, but {self.events}") from None
            if event is None:
                raise AssertionError(f"it ended with {self.process.wait(5)} before {name}: {self.events}")
            self.events.append(event)
            if event["event"] == name:
                return event

    def write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def close(self) -> None:
        """The end of its input."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def read(self, size: int = -1) -> bytes:
        """What it writes: so many bytes, or all to the end."""
        assert self.process.stdout is not None
        return self.process.stdout.read(size)

    def line(self) -> bytes:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.wait()

    def wait(self) -> int:
        """Its exit code."""
        code = self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        while not self._queue.empty():
            event = self._queue.get_nowait()
            self.events += [] if event is None else [event]
        return code

    def named(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == name]


class World:
    """The laboratory, the daemons, the server that can be restarted, and what was started here."""

    def __init__(self, laboratory: Laboratory, sockets: Mapping[str, str], directory: Path) -> None:
        self.laboratory = laboratory
        self._sockets = sockets
        self._directory = directory
        self._server: subprocess.Popen[bytes] | None = None
        self._started: list[Program] = []

    def host(self, name: str) -> Host:
        return self.laboratory.site(name).host

    def serve(self) -> None:
        """Start the rendezvous server."""
        config = self._directory / "rendezvous.toml"
        config.write_text(LIMITS)
        command = [sys.executable, "-m", "punchd.cli.rendezvous", "--insecure", "--log-level", "warning"]
        self._server = self.laboratory.server.popen([*command, "--config", str(config)])
        deadline = time.monotonic() + START_S
        while True:
            try:
                assert ask(self.laboratory.server, "127.0.0.1", "GET", "/health")["ok"]
            except (ConnectionRefusedError, ConnectionResetError):
                assert self._server.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            else:
                return

    def stop_server(self) -> None:
        assert self._server is not None
        self._server.kill()
        self._server.wait()

    def punch(self, site: str, *words: str, daemon: str | None = None, stdin: int = subprocess.PIPE) -> Program:
        """Start `punch` on a site's host, with a configuration of the site's own."""
        environment = {**os.environ, "XDG_CONFIG_HOME": str(self._directory / site), "PUNCH_RENDEZVOUS": URL}
        common = ["--json", "--socket", daemon or self._sockets[site]]
        place = 2 if words[0] == "media" else 1
        process = self.host(site).popen(
            [sys.executable, "-m", "punchd.cli.punch", *words[:place], *common, *words[place:]],
            env=environment,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        program = Program(process, process.stderr)
        self._started.append(program)
        return program

    def listen(self, site: str, *words: str, **more: Any) -> tuple[Program, str]:
        """A listener, as soon as it can be called, and its ADDRESS."""
        program = self.punch(site, "listen", *words, **more)
        return program, str(program.until("listening")["address"])

    def address(self, site: str, name: str = "default") -> str:
        """Of a key of that site."""
        environment = {**os.environ, "XDG_CONFIG_HOME": str(self._directory / site)}
        command = [sys.executable, "-m", "punchd.cli.punch", "address", name]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()

    def end_all(self) -> None:
        """What a test has left running."""
        for program in self._started:
            if program.process.poll() is None:
                program.process.kill()
            program.process.wait()
            for file in (program.process.stdin, program.process.stdout):
                if file is not None:
                    file.close()
            program._reader.join(PATIENCE_S)
            if program.process.stderr is not None:
                program.process.stderr.close()
        self._started.clear()


@contextmanager
def world(
    directory: Path,
    kinds: Mapping[str, str] = MappingProxyType({"a": "apdf", "b": "apdf"}),
    stun: Sequence[str] = STUN,
    wan: Link = PLAIN,
) -> Iterator[World]:
    """Everything, served. `kinds`: of the sites' NATs; `stun`: arguments of the daemons; `wan`: of a's NAT."""
    with ExitStack() as stack:
        before = signal.getsignal(signal.SIGINT)
        if before is signal.SIG_IGN:  # as in the background of a shell; `punch` would ignore it, too
            signal.signal(signal.SIGINT, signal.default_int_handler)
            stack.callback(signal.signal, signal.SIGINT, before)
        sites = [Site(name, KINDS[kinds[name]], wan=wan if name == "a" else PLAIN) for name in kinds]
        laboratory = stack.enter_context(Laboratory(sites, stun=False))
        running = stack.enter_context(daemons([(laboratory.site(name).host, stun) for name in kinds]))
        for daemon in running:
            wait_until_served(Path(daemon.path), daemon.process)
        sockets = {name: daemon.path for name, daemon in zip(kinds, running, strict=True)}
        found = World(laboratory, sockets, directory)
        stack.callback(found.end_all)
        found.serve()
        yield found


@contextmanager
def service(host: Host, greeting: bytes = b"") -> Iterator[str]:
    """A TCP service on the host's loopback that says a greeting and then repeats what it hears; its HOST:PORT."""
    with host.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)

        def serve(connection: socket.socket) -> None:
            with connection:
                connection.sendall(greeting)
                while data := connection.recv(65_536):
                    connection.sendall(data)

        def accept() -> None:
            while True:
                try:
                    connection = listener.accept()[0]
                except OSError:
                    return
                Thread(target=serve, args=(connection,), daemon=True).start()

        thread = Thread(target=accept, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)
