"""What well-behaved users of a broker notice of others who misuse it, over TLS and with the default limits.

The server has one core; the users and whoever misuses it share the other one, the users first in line. Rounds without
misuse and rounds with each kind of it alternate, each from a network of its own. Percentiles are of all rounds of a
kind. The goal: no kind doubles the 99th percentile.

On loopback that is a matter of half a millisecond, which is what one TLS handshake takes: so it is also told how far
away users have to be, in round trip time, for the goal to hold for them. That is computed from the percentiles, since
each act takes a known number of round trips.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import time
from collections import Counter, defaultdict
from contextlib import ExitStack, closing

import trio

from tests.bench.broker_client import CLOSE, Http, Peer, frame, read_answer, register
from tests.bench.broker_servers import DEFAULTS, Broking, server
from tests.bench.broker_speed import allow_files
from tests.bench.flood import Latencies, percentile
from tests.bench.pulse_speed import hurry

SESSIONS = 200  # of well-behaved users, with limits of their own each
ROUNDS = 3
ROUND_S = 2.5
PAUSE_S = 0.0005  # between two things that one of them does
PATIENCE_S = 90.0  # for a kind of misuse to begin
GOAL = 2.0
KINDS = ("messages", "slow", "handshakes", "upgrades", "expiry")
ACTS = {"view": 1, "tally": 1, "connect": 3, "match": 1}  # with round trips: TCP, TLS 1.3 and the upgrade for `connect`

_TALLY = frame('{"type":"tally","stream":"b","state":"program"}')


class Polite:
    """Users who look, tell, connect and match, one after the other; it keeps the time of each."""

    def __init__(self, target: Broking, stack: ExitStack) -> None:
        self._target = target
        self._number = 0
        self._pairs = 0
        self._http: list[socket.socket] = []
        self._made: list[tuple[str, str, str]] = []
        self._watching: list[tuple[Peer, Peer]] = []
        for number in range(SESSIONS):
            http = stack.enter_context(closing(target.connect(self._source(number))))
            made = Http(http).create(f"polite{number}", streams=["a", "b"], ttl=86_400)
            self._http.append(http)
            self._made.append((made["session"], made["token"], made["peerTokens"]["a"]))
            admin, peer = (
                Peer(stack.enter_context(closing(target.connect(self._source(number)))), made["session"], token)
                for token in (made["token"], made["peerTokens"]["b"])
            )
            for one in (admin, peer):
                one.opened()
            peer.sock.sendall(register(5000))
            peer.until("session")
            self._watching.append((admin, peer))

    def round(self, seconds: float) -> Latencies:
        """Latencies in seconds by what was done."""
        found: Latencies = defaultdict(list)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._number = (self._number + 1) % SESSIONS
            for _ in range(4):
                self._view(found)
                self._tally(found)
                time.sleep(PAUSE_S)
            self._match(found)
            time.sleep(PAUSE_S)
        return found

    def _view(self, found: Latencies) -> None:
        session, token, _ = self._made[self._number]
        http = self._http[self._number]
        begun = time.perf_counter()
        fields = f"Host: bench\r\nAuthorization: Bearer {token}\r\n\r\n"
        http.sendall(f"GET /api/session/{session} HTTP/1.1\r\n{fields}".encode())
        head, _ = read_answer(http)
        if not head.startswith(b"HTTP/1.1 200"):
            raise ConnectionError(f"expected 200, got {head[:200]!r}")
        found["view"].append(time.perf_counter() - begun)

    def _tally(self, found: Latencies) -> None:
        admin, peer = self._watching[self._number]
        begun = time.perf_counter()
        admin.sock.sendall(_TALLY)
        peer.until("tally")
        found["tally"].append(time.perf_counter() - begun)

    def _match(self, found: Latencies) -> None:
        session, _, token = self._made[self._number]
        peers = []
        for _ in range(2):
            begun = time.perf_counter()
            self._pairs += 1
            peer = Peer(self._target.connect(self._source(SESSIONS + self._pairs)), session, token)
            peers.append(peer)
            peer.opened()
            found["connect"].append(time.perf_counter() - begun)
        peers[0].sock.sendall(register(5000))
        peers[0].until("session")
        begun = time.perf_counter()
        peers[1].sock.sendall(register(6000))
        for peer in peers:
            peer.until("peer")
        found["match"].append(time.perf_counter() - begun)
        for peer in peers:
            peer.sock.sendall(CLOSE)
        for peer in peers:
            peer.closed()

    @staticmethod
    def _source(number: int) -> str:
        return f"127.2.{number // 250 % 250}.{number % 250 + 1}"


def misused(polite: Polite, target: Broking, kind: str, net: int) -> tuple[Latencies, Counter[str]]:
    """The users' latencies meanwhile, and what whoever misuses the server did."""
    [core] = os.sched_getaffinity(0)
    words = [kind, net, target.address[1], ROUND_S + 0.5, core]
    command = [sys.executable, "-m", "tests.bench.broker_flooder", *map(str, words)]
    flooder = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert flooder.stdout is not None
        while not select.select([flooder.stdout], [], [], 1)[0]:
            polite.round(0.1)  # else they would be too silent for the server
        if flooder.stdout.readline() != b"flooding\n":
            raise ConnectionError(f"{kind} did not begin")
        latencies = polite.round(ROUND_S)
        output, _ = flooder.communicate(timeout=PATIENCE_S)
    finally:
        flooder.kill()
        flooder.wait()
    return latencies, Counter(json.loads(output))


async def main() -> None:
    """Print it all."""
    await trio.to_thread.run_sync(measure)


def measure() -> None:
    """Blocking, since the users are."""
    allow_files(10_000)
    cores = sorted(os.sched_getaffinity(0))
    before = os.getpriority(os.PRIO_PROCESS, 0)
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    told: dict[str, Counter[str]] = defaultdict(Counter)
    with ExitStack() as stack:
        target = stack.enter_context(server("ours", cores[-1], DEFAULTS, is_tls=True))
        hurry()
        os.sched_setaffinity(0, {cores[0]})
        stack.callback(os.sched_setaffinity, 0, cores)
        stack.callback(os.setpriority, os.PRIO_PROCESS, 0, before)
        polite = Polite(target, stack)
        polite.round(0.5)
        for turn in range(ROUNDS):
            for place, kind in enumerate(("nobody", *KINDS)):
                if kind == "nobody":
                    latencies = polite.round(ROUND_S)
                else:
                    latencies, did = misused(polite, target, kind, 10 + 10 * turn + place)
                    told[kind] += did
                for act, values in latencies.items():
                    found[kind, act] += values
    report(found, told)


def report(found: dict[tuple[str, str], list[float]], told: dict[str, Counter[str]]) -> None:
    worst = distance_s = 0.0
    print(f"broker-flood: {ROUNDS} rounds of {ROUND_S} s, TLS, default limits")
    for kind in ("nobody", *KINDS):
        did = ", ".join(f"{number:,} {what}" for what, number in sorted(told[kind].items()))
        print(f"  {kind}: {did or 'does'}")
        for act, trips in ACTS.items():
            median, high = (percentile(found[kind, act], share) for share in (0.5, 0.99))
            calm = percentile(found["nobody", act], 0.99)
            ratio = "" if kind == "nobody" else f"  ratio {high / calm:.2f}"
            if kind != "nobody":
                worst = max(worst, high / calm)
                distance_s = max(distance_s, (high - GOAL * calm) / (GOAL - 1) / trips)
            print(f"    {act:8} p50 {median * 1e6:7.0f} us, p99 {high * 1e6:7.0f} us of {len(found[kind, act])}{ratio}")
    print(f"  ratio       {worst:.2f} of the calm 99th percentile at worst (goal: {GOAL:.0f} or less)")
    print(f"  goal        holds for users {distance_s * 1e3:.1f} ms and more away (round trip)")
