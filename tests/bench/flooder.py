"""One process that floods a rendezvous server: `python -m tests.bench.flooder KIND ADDRESS PORT SECONDS CORE ID KEY`.

It sends from ADDRESS, a loopback address, as fast as CORE lets it. It prints a line when it begins, and what it heard
as JSON in the end.

    register  POST /register, sent ahead on many connections; a connection that the server ends is opened again
    signals   POST /peer/ID/signal with a good key, in the same way
    connects  connections that ask for one thing and are opened anew
    pulses    pulses with unknown keys, from a few ports
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import socket
import sys
import time
from collections import Counter

CONNECTIONS = 50
AHEAD = 20  # requests on their way on each connection
PORTS = 4
BURST = 64  # datagrams between two looks at the clock

_STATUS = re.compile(rb"HTTP/1\.1 (\d{3})")


class Connection:
    """One of many: sends ahead, counts the answers, and comes back when it is sent away."""

    def __init__(self, source: str, port: int, request: bytes, heard: Counter[str], *, ahead: int) -> None:
        self._source, self._port, self._request, self._heard, self._ahead = source, port, request, heard, ahead
        self._open()

    def _open(self) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT: ports are chosen at connect
        self.socket.bind((self._source, 0))
        self.socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            self.socket.connect(("127.0.0.1", self._port))
        self._heard["connections"] += 1
        self._on_way = 0

    def turn(self) -> None:
        """Send what may be sent, read what is there."""
        try:
            if self._on_way == 0:
                self.socket.send(self._request * self._ahead)
                self._on_way = self._ahead
            answers = self.socket.recv(65_536)
        except BlockingIOError:
            return
        except OSError:
            answers = b""
        for status in _STATUS.findall(answers):
            self._heard[status.decode()] += 1
            self._on_way -= 1
        if not answers or self._ahead == 1:
            self.socket.close()
            with contextlib.suppress(OSError):
                self._open()


def flood_http(source: str, port: int, until: float, request: bytes, heard: Counter[str], *, ahead: int) -> None:
    connections = [Connection(source, port, request, heard, ahead=ahead) for _ in range(CONNECTIONS)]
    while time.monotonic() < until:
        for connection in connections:
            connection.turn()
        select.select([one.socket for one in connections], [], [], 0.001)


def flood_pulses(source: str, port: int, until: float, heard: Counter[str]) -> None:
    sockets = []
    for _ in range(PORTS):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((source, 0))
        sock.connect(("127.0.0.1", port))
        sock.setblocking(False)
        sockets.append(sock)
    while time.monotonic() < until:
        for sock in sockets:
            datagram = os.urandom(32)
            with contextlib.suppress(OSError):
                for _ in range(BURST):
                    sock.send(datagram)
                    heard["datagrams"] += 1
            with contextlib.suppress(OSError):
                while True:
                    sock.recv(100)
                    heard["replies"] += 1


def main(arguments: list[str]) -> None:
    kind, source, port, seconds, core, client_id, key = arguments
    heard: Counter[str] = Counter()
    os.sched_setaffinity(0, {int(core)})
    os.setpriority(os.PRIO_PROCESS, 0, 0)  # behind the polite user, who is on the same core
    print("flooding", flush=True)
    until = time.monotonic() + float(seconds)
    if kind == "pulses":
        flood_pulses(source, int(port), until, heard)
    else:
        request = b"POST /register HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
        if kind == "signals":
            head = f"POST /peer/{client_id}/signal HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
            request = f"{head}Content-Length: 5\r\n\r\nflood".encode()
        flood_http(source, int(port), until, request, heard, ahead=1 if kind == "connects" else AHEAD)
    print(json.dumps(heard))


if __name__ == "__main__":
    main(sys.argv[1:])
