"""GET, WebSocket echo and memory of idle connections, beside hypercorn with Starlette on trio in the same run.

Each server runs in a process of its own; this process is the client and speaks bytes. What is compared is the processor
time of the server an operation, from /proc, which other users of the machine disturb less than the clock on the wall.
"""

from __future__ import annotations

import importlib.util
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

CONNECTIONS = 20
OPERATIONS = 20_000
ROUNDS = 3  # alternating; the best of each counts
IDLE = 1000  # connections of which the memory is measured

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_GET = b"GET / HTTP/1.1\r\nHost: bench\r\nUser-Agent: bench\r\nAccept: */*\r\nAuthorization: Bearer 0000\r\n\r\n"
_POLL = b"GET /poll HTTP/1.1\r\nHost: bench\r\n\r\n"
_OPENING = (
    b"GET /ws HTTP/1.1\r\nHost: bench\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
_MESSAGE = b"x" * 100
_FRAME = bytes([0x81, 0x80 | len(_MESSAGE)]) + bytes(4) + _MESSAGE  # masked with zeros
_REPLY_BYTES = 2 + len(_MESSAGE)


@dataclass
class Server:
    """A server under test."""

    process: subprocess.Popen[bytes]
    address: tuple[str, int]

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * _TICK_S

    def resident_kib(self) -> float:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1024

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=60)


@contextmanager
def server(name: str) -> Iterator[Server]:
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        command = [sys.executable, "-m", "tests.bench.web_servers", name, str(listener.fileno())]
        process = subprocess.Popen(command, pass_fds=[listener.fileno()])
        try:
            running = Server(process, listener.getsockname())
            with running.connect() as client:  # answers once it is up
                client.sendall(_GET)
                _read_answer(client)
            yield running
        finally:
            process.kill()
            process.wait()


def _read_answer(client: socket.socket) -> int:
    """Bytes of one answer that has a Content-Length."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = client.recv(65_536)
        if not more:
            raise ConnectionError(f"the server closed after {data!r}")
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
    while len(body) < length:
        body += client.recv(65_536)
    return len(head) + 4 + length


def _open_websocket(client: socket.socket) -> None:
    client.sendall(_OPENING)
    data = b""
    while b"\r\n\r\n" not in data:
        more = client.recv(65_536)
        if not more:
            break
        data += more
    if not data.startswith(b"HTTP/1.1 101"):
        raise ConnectionError(f"no WebSocket: {data!r}")


def _speed(
    target: Server, prepare: Callable[[socket.socket], None], sent: bytes, reply_bytes: int
) -> tuple[float, float]:
    """Operations a second, and microseconds of the server's processor time for each."""
    with ExitStack() as stack:
        clients = [stack.enter_context(target.connect()) for _ in range(CONNECTIONS)]
        for client in clients:
            prepare(client)
        begun, cpu_s = time.perf_counter(), target.cpu_s()
        for _ in range(OPERATIONS // CONNECTIONS):
            for client in clients:
                client.sendall(sent)
            for client in clients:
                left = reply_bytes
                while left:
                    left -= len(client.recv(left)) or _ended()
        return OPERATIONS / (time.perf_counter() - begun), (target.cpu_s() - cpu_s) / OPERATIONS * 1e6


def _ended() -> int:
    raise ConnectionError("the server closed")


def _idle_kib(name: str, prepare: Callable[[socket.socket], None]) -> float:
    """Resident memory that one idle connection costs, of a server that has seen some already."""
    with server(name) as target, ExitStack() as stack:
        for _ in range(50):
            prepare(stack.enter_context(target.connect()))
        before_kib = target.resident_kib()
        for _ in range(IDLE):
            prepare(stack.enter_context(target.connect()))
        time.sleep(1)
        return (target.resident_kib() - before_kib) / IDLE


def _get_once(client: socket.socket) -> None:
    client.sendall(_GET)
    _read_answer(client)


def _poll(client: socket.socket) -> None:
    client.sendall(_POLL)


async def main() -> None:
    """Print it all."""
    await trio.to_thread.run_sync(compare)


def compare() -> None:
    """Blocking, since the client is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 2 * IDLE:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4 * IDLE), hard))
    names = ["ours"]
    if importlib.util.find_spec("hypercorn") and importlib.util.find_spec("starlette"):
        names.append("hypercorn")
    else:
        print("web: hypercorn and starlette are not installed, no reference")
    rates: dict[tuple[str, str], tuple[float, float]] = {}
    with ExitStack() as stack:
        servers = {name: stack.enter_context(server(name)) for name in names}
        for _ in range(ROUNDS):
            for name, target in servers.items():
                with target.connect() as client:
                    client.sendall(_GET)
                    get_bytes = _read_answer(client)
                for what, found in (
                    ("GET", _speed(target, _get_once, _GET, get_bytes)),
                    ("echo", _speed(target, _open_websocket, _FRAME, _REPLY_BYTES)),
                ):
                    best = rates.get((name, what), (0.0, float("inf")))
                    rates[name, what] = (max(best[0], found[0]), min(best[1], found[1]))
    for (name, what), (per_s, cpu_us) in rates.items():
        print(f"web: {what:5} {name:10} {per_s:8.0f} /s {cpu_us:8.1f} us of processor time each")
    memory: dict[tuple[str, str], float] = {}
    for name in names:
        for what, prepare in (("keep-alive", _get_once), ("long poll", _poll), ("WebSocket", _open_websocket)):
            memory[name, what] = _idle_kib(name, prepare)
            print(f"web: idle {what:10} {name:10} {memory[name, what]:8.1f} KiB a connection")
    if len(names) < 2:
        return
    for what in ("GET", "echo"):
        ratio = rates["ours", what][1] / rates["hypercorn", what][1]
        print(f"  ratio       {ratio:.2f} of hypercorn's processor time, {what}")
    for what in ("keep-alive", "long poll", "WebSocket"):
        ratio = memory["ours", what] / memory["hypercorn", what]
        print(f"  ratio       {ratio:.2f} of hypercorn's memory, {what}")
