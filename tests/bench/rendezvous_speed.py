"""HTTP look-ups, and how long a signal takes from its POST to its client, beside hypercorn with Starlette on trio.

The table holds 100,000 clients, which are looked up at random by clients chosen at random. Signals go one by one from
one client to another that waits on a WebSocket or in a long poll. Both servers have the same core, in alternating
rounds; what is compared is their processor time an operation, from /proc, and the latencies that a client saw.
"""

from __future__ import annotations

import importlib.util
import os
import random
import socket
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import trio

from tests.bench.pulse_speed import hurry
from tests.bench.rendezvous_servers import Rendezvous, bearer, id_of, server

CLIENTS = 100_000
CONNECTIONS = 20
LOOK_UPS = 6_000  # a round
SIGNALS = 300  # a round and way
ROUNDS = 3
SETTLE_S = 0.002  # until a long poll waits
TARGET, SENDER = 0, 1  # numbers of clients

_CHANCE = random.Random(5025)


def look_ups(target: Rendezvous) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(target.connect()) for _ in range(CONNECTIONS)]
        for _ in range(LOOK_UPS // CONNECTIONS):
            for client in clients:
                caller, wanted = _CHANCE.randrange(CLIENTS), _CHANCE.randrange(CLIENTS)
                line = f"GET /peer/{id_of(wanted).hex()}/udp HTTP/1.1\r\nHost: bench\r\n".encode()
                client.sendall(line + bearer(caller) + b"\r\n")
            for client in clients:
                _expect(client, b"HTTP/1.1 200")


def signals(target: Rendezvous, way: str, found: list[float]) -> None:
    """Adds the seconds from before the POST until the text is read, of each."""
    path = f"POST /peer/{id_of(TARGET).hex()}/signal HTTP/1.1\r\nHost: bench\r\nContent-Length: 200\r\n".encode()
    post = path + bearer(SENDER) + b"\r\n" + b"x" * 200
    with target.connect() as sender, target.connect() as receiver:
        if way == "WebSocket":
            _open(receiver)
        for _ in range(SIGNALS):
            if way == "long poll":
                receiver.sendall(b"GET /signals?wait=25 HTTP/1.1\r\nHost: bench\r\n" + bearer(TARGET) + b"\r\n")
            time.sleep(SETTLE_S)
            begun = time.perf_counter()
            sender.sendall(post)
            if way == "WebSocket":
                _read(receiver, b'"age": 0}')
            else:
                _expect(receiver, b"HTTP/1.1 200")
            found.append(time.perf_counter() - begun)
            _expect(sender, b"HTTP/1.1 202")


def _expect(client: socket.socket, beginning: bytes) -> None:
    answer = _read(client, b'"ok":true}')
    if not answer.startswith(beginning):
        raise ConnectionError(f"expected {beginning!r}, got {answer!r}")


def _read(client: socket.socket, end: bytes) -> bytes:
    heard = b""
    while not heard.endswith(end):
        heard += client.recv(4096) or _ended()
    return heard


def _open(receiver: socket.socket) -> None:
    receiver.sendall(
        b"GET /signals HTTP/1.1\r\nHost: bench\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n" + bearer(TARGET) + b"\r\n"
    )
    if not receiver.recv(4096).startswith(b"HTTP/1.1 101"):
        raise ConnectionError("no WebSocket")


def _ended() -> bytes:
    raise ConnectionError("the server closed")


async def main() -> None:
    """Print it all."""
    await trio.to_thread.run_sync(compare)


def compare() -> None:
    """Blocking, since the client is."""
    names = ["ours"]
    if importlib.util.find_spec("hypercorn") and importlib.util.find_spec("starlette"):
        names.append("hypercorn")
    else:
        print("rendezvous: hypercorn and starlette are not installed, no reference")
    cores = sorted(os.sched_getaffinity(0))
    priority = os.getpriority(os.PRIO_PROCESS, 0)
    cpu_us: dict[tuple[str, str], list[float]] = defaultdict(list)
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    rates: dict[str, list[float]] = defaultdict(list)
    with ExitStack() as stack:
        servers = {name: stack.enter_context(server(name, cores[-1], CLIENTS)) for name in names}
        hurry()
        os.sched_setaffinity(0, {cores[0]})
        stack.callback(os.sched_setaffinity, 0, cores)
        stack.callback(os.setpriority, os.PRIO_PROCESS, 0, priority)
        for _ in range(ROUNDS):
            for name, target in servers.items():
                begun = time.perf_counter()
                cpu_us[name, "look-up"].append(_cost_us(target, partial(look_ups, target), LOOK_UPS))
                rates[name].append(LOOK_UPS / (time.perf_counter() - begun))
                for way in ("WebSocket", "long poll"):
                    signal = partial(signals, target, way, seconds[name, way])
                    cpu_us[name, way].append(_cost_us(target, signal, SIGNALS))
    report(names, rates, cpu_us, seconds)


def _cost_us(target: Rendezvous, act: Callable[[], None], operations: int) -> float:
    """Processor time of the server for each of the operations."""
    before_s = target.cpu_s()
    act()
    return (target.cpu_s() - before_s) / operations * 1e6


def report(
    names: list[str],
    rates: dict[str, list[float]],
    cpu_us: dict[tuple[str, str], list[float]],
    seconds: dict[tuple[str, str], list[float]],
) -> None:
    cost = {key: min(values) for key, values in cpu_us.items()}
    median = {key: statistics.median(values) * 1e6 for key, values in seconds.items()}
    high = {key: statistics.quantiles(values, n=100)[98] * 1e6 for key, values in seconds.items()}
    ways = ("WebSocket", "long poll")
    print(f"rendezvous: {CLIENTS:,} clients registered; processor time is the server's")
    for name in names:
        print(
            f"  look-up          {name:10} {cost[name, 'look-up']:6.0f} us of processor time, {max(rates[name]):.0f} /s"
        )
        for way in ways:
            key = (name, way)
            times = f"arrives after {median[key]:.0f} us, p99 {high[key]:.0f} us"
            print(f"  signal {way:9} {name:10} {cost[key]:6.0f} us of processor time, {times}")
    if len(names) < 2:
        return
    share = cost["ours", "look-up"] / cost["hypercorn", "look-up"]
    print(f"  ratio       {share:.2f} of hypercorn's processor time, look-up")
    for way in ways:
        times_ = [values["ours", way] / values["hypercorn", way] for values in (cost, median, high)]
        words = "{:.2f} of hypercorn's processor time, {:.2f} of its latency, {:.2f} of its p99".format(*times_)
        print(f"  ratio       {words}, signal by {way}")
