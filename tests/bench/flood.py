"""What a polite user notices while another source floods the server as fast as it can.

The server has one core and its default limits; the flooder and the polite user share the other one, the polite user
first in line. Rounds without a flood and rounds with each kind of it alternate; each flood comes from an address of its
own, so that every round begins with a flooder that the server does not know yet; how that begins is told apart.
Latencies are the medians over the rounds of what one round had. The goal: a flood does not double the 99th percentile.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter, defaultdict
from contextlib import ExitStack

import trio

from tests.bench.pulse_speed import hurry, key_of
from tests.bench.rendezvous_servers import Rendezvous, bearer, id_of, server

CLIENTS = 100_000
POLITE = 400  # clients of the polite users: each has limits of its own
USERS = 16  # addresses that they come from: likewise
ROUNDS = 5
ROUND_S = 1.2
FIRST_S = 0.3  # of a flood: until the server has noticed it
PAUSE_S = 0.0005  # between two things that one of them does
GOAL = 2.0
KINDS = ("register", "pulses", "signals", "connects")
FLOODING = POLITE  # the number of the client whose key the flooder has
PATIENCE_S = 2.0  # then a pulse counts as lost

Latencies = dict[str, list[float]]


class Polite:
    """Users who look up, pulse, send signals and connect, one after the other; it keeps the time of each."""

    def __init__(self, target: Rendezvous, stack: ExitStack) -> None:
        self.target = target
        self._sources = [f"127.2.0.{number + 1}" for number in range(USERS)]
        self._http = [stack.enter_context(self._connected(source)) for source in self._sources]
        self._udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self._udp.connect(target.address)
        self._udp.settimeout(PATIENCE_S)
        self._websocket = stack.enter_context(target.connect())
        self._websocket.sendall(
            b"GET /signals HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n" + bearer(0) + b"\r\n"
        )
        self._expect(self._websocket, b"HTTP/1.1 101")
        self._heard = b""

    def round(self, seconds: float) -> Latencies:
        """Latencies in seconds by what was done; what was lost counts as the patience."""
        found: Latencies = defaultdict(list)
        acts = (
            ("look-up", self._look_up),
            ("pulse", self._pulse),
            ("signal", self._signal),
            ("connect", self._connect),
        )
        end, number = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            name, act = acts[number % len(acts)]
            begun = time.perf_counter()
            with contextlib.suppress(TimeoutError):
                act(1 + number // len(acts) % (POLITE - 1))
            found[name].append(time.perf_counter() - begun)
            number += 1
            time.sleep(PAUSE_S)
        return found

    def _look_up(self, number: int) -> None:
        path = f"GET /peer/{id_of(number + POLITE).hex()}/udp HTTP/1.1\r\nHost: x\r\n".encode()
        http = self._http[number % USERS]
        http.sendall(path + bearer(number) + b"\r\n")
        self._expect(http, b"HTTP/1.1 200")

    def _pulse(self, number: int) -> None:
        self._udp.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:  # replies that came too late
                self._udp.recv(100)
        self._udp.settimeout(PATIENCE_S)
        self._udp.send(key_of(number))
        if self._udp.recv(100) != b"\0\0\x03\xfc":
            raise ConnectionError("a good pulse was not accepted")

    def _signal(self, number: int) -> None:
        path = f"POST /peer/{id_of(0).hex()}/signal HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n".encode()
        http = self._http[number % USERS]
        http.sendall(path + bearer(number) + b"\r\nhello")
        while b'"hello"' not in self._heard:
            self._heard += self._websocket.recv(1000)
        self._heard = b""
        self._expect(http, b"HTTP/1.1 202")

    def _connect(self, number: int) -> None:
        with self._connected(self._sources[number % USERS]) as client:
            client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            self._expect(client, b"HTTP/1.1 200")

    def _connected(self, source: str) -> socket.socket:
        return socket.create_connection(self.target.address, timeout=60, source_address=(source, 0))

    @staticmethod
    def _expect(client: socket.socket, beginning: bytes) -> None:
        answer = client.recv(4000)
        if not answer.startswith(beginning):
            raise ConnectionError(f"expected {beginning!r}, got {answer[:200]!r}")


def flooded(polite: Polite, kind: str, source: str) -> tuple[Latencies, Latencies, Counter[str]]:
    """The polite user's latencies when a flood from `source` begins and later on, and what the flooder heard."""
    [core] = os.sched_getaffinity(0)
    words = [kind, source, polite.target.address[1], FIRST_S + ROUND_S, core, id_of(0).hex(), key_of(FLOODING).hex()]
    command = [sys.executable, "-m", "tests.bench.flooder", *map(str, words)]
    flooder = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert flooder.stdout is not None
        flooder.stdout.readline()
        first, later = polite.round(FIRST_S), polite.round(ROUND_S)
        output, _ = flooder.communicate(timeout=60)
    finally:
        flooder.kill()
        flooder.wait()
    return first, later, Counter(json.loads(output))


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


async def main() -> None:
    """Print it all."""
    await trio.to_thread.run_sync(measure)


def measure() -> None:
    """Blocking, since the polite user is."""
    cores = sorted(os.sched_getaffinity(0))
    before = os.getpriority(os.PRIO_PROCESS, 0)
    found: dict[tuple[str, str], list[list[float]]] = defaultdict(list)
    heard: dict[str, Counter[str]] = defaultdict(Counter)
    worst: dict[str, float] = defaultdict(float)
    with ExitStack() as stack:
        target = stack.enter_context(server("defaults", cores[-1], CLIENTS))
        hurry()
        os.sched_setaffinity(0, {cores[0]})
        stack.callback(os.sched_setaffinity, 0, cores)
        stack.callback(os.setpriority, os.PRIO_PROCESS, 0, before)
        polite = Polite(target, stack)
        polite.round(0.3)
        for turn in range(ROUNDS):
            for place, kind in enumerate(("alone", *KINDS)):
                if kind == "alone":
                    latencies = polite.round(ROUND_S)
                else:
                    first, latencies, told = flooded(polite, kind, f"127.1.{turn + 1}.{place}")
                    heard[kind] += told
                    worst[kind] = max(worst[kind], *map(max, first.values()))
                for act, values in latencies.items():
                    found[kind, act].append(values)
    report(found, heard, worst)


def report(
    found: dict[tuple[str, str], list[list[float]]], heard: dict[str, Counter[str]], first_s: dict[str, float]
) -> None:
    def of(kind: str, act: str, share: float) -> float:
        return statistics.median(percentile(values, share) for values in found[kind, act])

    worst = 0.0
    for kind in ("alone", *KINDS):
        if kind != "alone":
            told = ", ".join(f"{number:,} {what}" for what, number in sorted(heard[kind].items()))
            print(f"flood: {kind}, {len(found[kind, 'pulse'])} rounds of {FIRST_S + ROUND_S} s: {told}")
            print(f"  until it is noticed, in the first {FIRST_S} s: {first_s[kind] * 1e6:,.0f} us at worst")
        else:
            print("flood: nobody floods")
        for act in ("look-up", "pulse", "signal", "connect"):
            median, high, calm = of(kind, act, 0.5), of(kind, act, 0.99), of("alone", act, 0.99)
            lost = sum(value >= PATIENCE_S for values in found[kind, act] for value in values)
            ratio = "" if kind == "alone" else f"  ratio {high / calm:.2f}"
            worst = max(worst, 0.0 if kind == "alone" else high / calm)
            print(f"  {act:8} p50 {median * 1e6:8.0f} us, p99 {high * 1e6:8.0f} us, {lost} lost{ratio}")
    print(f"  ratio       {worst:.2f} of the calm 99th percentile at worst (goal: {GOAL:.0f} or less)")
