"""One process that misuses a broker over TLS: `python -m tests.bench.broker_flooder KIND NET PORT SECONDS CORE`.

It comes from the addresses 127.NET.0.1 and on, and prints a line when it begins, what it did as JSON in the end.

    messages    peers and an admin that talk as fast as they can, and come back a second after they were sent away
    slow        forty connections in each of a few sessions that are told a lot and read nothing
    handshakes  connections that begin a TLS handshake and leave it at that
    upgrades    connections that send an upgrade but for its end
    expiry      a thousand sessions, each with an admin who listens, that all end in the second after the line
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import ssl
import sys
import time
from collections import Counter
from collections.abc import Callable

from tests.bench.broker_client import Http, Peer, frame, opening, trusting

TALKERS = 8
BATCH = 20
SLOW_SESSIONS = 4
SLOW_READERS = 39
HALF_OPEN = 100  # a source, which may have more
HALF_SOURCES = 8
EXPIRING = 1000
CREATIONS = 10  # a source and minute
REHEARSED = 30  # to know how long it takes to create them
PAUSE_S = 1.0

_TALLY = frame('{"type":"tally","state":"program"}')


class Flooder:
    """Where the server is, and where from it is called."""

    def __init__(self, net: str, port: int, seconds: float) -> None:
        self.net = net
        self.port = port
        self._seconds = seconds
        self._until = 0.0
        self.heard: Counter[str] = Counter()

    def tcp(self, number: int) -> socket.socket:
        """A connection from the source of that number."""
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(10)
        sock.bind((f"127.{self.net}.{number // 250}.{number % 250 + 1}", 0))
        sock.connect(("127.0.0.1", self.port))
        self.heard["connections"] += 1
        return sock

    def tls(self, number: int) -> ssl.SSLSocket:
        return trusting().wrap_socket(self.tcp(number))

    def go(self) -> None:
        print("flooding", flush=True)
        self._until = time.monotonic() + self._seconds

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self._until


def messages(flooder: Flooder) -> None:
    made = Http(flooder.tls(0)).create(f"flooded{flooder.net}")
    tokens = [made["token"], made["peerTokens"]["default"]]
    socks: list[ssl.SSLSocket | None] = [None] * TALKERS
    back_at = [0.0] * TALKERS
    flooder.go()
    while not flooder.is_over:
        for number, known in enumerate(socks):
            if known is None and time.monotonic() < back_at[number]:
                continue
            try:
                sock = known or flooder.tls(number)
                if known is None:
                    Peer(sock, made["session"], tokens[number % 2])
                    sock.setblocking(False)
                    socks[number] = sock
                with contextlib.suppress(ssl.SSLWantReadError):
                    if not sock.recv(65_536):
                        raise ConnectionError
                sock.send(_TALLY * BATCH)
                flooder.heard["messages"] += BATCH
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                continue
            except OSError:
                socks[number], back_at[number] = None, time.monotonic() + PAUSE_S


def slow(flooder: Flooder) -> None:
    http = Http(flooder.tls(0))
    admins, readers = [], []
    for number in range(SLOW_SESSIONS):
        streams = [f"s{stream}" for stream in range(16)]
        made = http.create(f"slow{flooder.net}-{number}", streams=streams)
        admins.append(Peer(flooder.tls(100 + number), made["session"], made["token"]))
        readers += [
            Peer(flooder.tls(number * 10 + reader % 10), made["session"], made["token"])
            for reader in range(SLOW_READERS)
        ]
    flooder.go()
    said = frame('{"type":"tally","stream":"s0","state":"program"}')
    while not flooder.is_over:
        for admin in admins:
            with contextlib.suppress(OSError):
                admin.sock.sendall(said)
                flooder.heard["messages"] += 1
        time.sleep(0.1)


def half_open(flooder: Flooder, open_one: Callable[[Flooder, int], socket.socket]) -> None:
    """As many as may be, each source for itself; one that the server ends is opened again."""
    held: list[socket.socket] = []
    flooder.go()
    while not flooder.is_over:
        number = len(held)
        if number >= HALF_OPEN * HALF_SOURCES:
            held.pop(0).close()
        try:
            held.append(open_one(flooder, flooder.heard["connections"] % HALF_SOURCES))
        except OSError:
            flooder.heard["refusals"] += 1
        time.sleep(0.001)


def handshakes(flooder: Flooder) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        trusting().wrap_bio(incoming, outgoing).do_handshake()
    hello = outgoing.read()

    def open_one(flooder: Flooder, number: int) -> socket.socket:
        sock = flooder.tcp(number)
        sock.sendall(hello if flooder.heard["connections"] % 2 else hello[:100])
        return sock

    half_open(flooder, open_one)


def upgrades(flooder: Flooder) -> None:
    head = opening("show", "p_x.y")[:-2]

    def open_one(flooder: Flooder, number: int) -> socket.socket:
        sock = flooder.tls(number)
        sock.sendall(head)
        return sock

    half_open(flooder, open_one)


def expiry(flooder: Flooder) -> None:
    def listener(number: int, end_s: float) -> Peer:
        """An admin of a new session that ends within the second before `end_s`, Unix time."""
        source = number // CREATIONS
        if number % CREATIONS == 0:
            https.append(Http(flooder.tls(source)))
        made = https[-1].create(f"e{flooder.net}-{number}", ttl=max(1, int(end_s - time.time())))
        return Peer(flooder.tls(source), made["session"], made["token"])

    https: list[Http] = []
    begun = time.time()
    listening = [listener(EXPIRING + number, 0.0) for number in range(REHEARSED)]
    one_s = (time.time() - begun) / REHEARSED
    end_s = math.ceil(time.time() + 1.5 * EXPIRING * one_s) + 1
    listening += [listener(number, end_s) for number in range(EXPIRING)]
    time.sleep(max(0.0, end_s - 1 - time.time()))
    flooder.go()
    for peer in listening:
        peer.sock.settimeout(10)
        with contextlib.suppress(OSError):
            peer.closed()
            flooder.heard["closes"] += 1


def main(kind: str, net: str, port: str, seconds: str, core: str) -> None:
    os.sched_setaffinity(0, {int(core)})
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))  # the polite user is on the same core, and never waits
    flooder = Flooder(net, int(port), float(seconds))
    kinds = {"messages": messages, "slow": slow, "handshakes": handshakes, "upgrades": upgrades, "expiry": expiry}
    kinds[kind](flooder)
    print(json.dumps(flooder.heard))


if __name__ == "__main__":
    main(*sys.argv[1:])
