"""Pairs, messages, latency and memory of the broker, beside the same broker behind hypercorn and Starlette on trio.

A pair is two connections that upgrade and register, one match, and two closes. Servers take turns; what is compared is
their processor time an operation, from /proc. Latency is what a client saw from its `register` to the `peer` of both,
at a fixed rate of new pairs that does not wait for the server. The goals stand in the report.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import resource
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from typing import Any

import trio

from tests.bench.broker_client import CLOSE, Frames, Http, Peer, frame, opening, register
from tests.bench.broker_servers import Broking, server
from tests.bench.pulse_speed import hurry

SESSIONS = 200
AT_ONCE = 10  # pairs
PAIRS = 600  # a round
ROUNDS = 5  # the median of each counts
TALKERS = 10  # pairs that talk
MESSAGES = 20  # of each talker at once; the last of them is one that is answered
TURNS = 15  # a round
RATE = 200  # pairs a second
RATE_S = 6.0
IDLE = 1000  # connections of which the memory is measured

PAIR_GOAL = 1.3
LATENCY_GOAL_MS = 50
PLAIN_GOAL_KB, TLS_GOAL_KB = 20, 40

_HEALTH = frame('{"type":"health","rtt":40,"retransmit":0.5,"bitrate":4000000}')
_Made = list[tuple[str, str]]  # name and token of sessions


def sessions(target: Broking, prefix: str, count: int) -> _Made:
    with closing(target.connect()) as sock:
        http = Http(sock)
        made = [http.create(f"{prefix}{number}") for number in range(count)]
    return [(one["session"], one["peerTokens"]["default"]) for one in made]


def joined(target: Broking, made: _Made) -> list[Peer]:
    """A registered pair in each session; all phases are those of many at once."""
    peers = [Peer(target.connect(), *one) for one in made for _ in range(2)]
    for peer in peers:
        peer.opened()
    for number, peer in enumerate(peers):
        peer.sock.sendall(register(5000 + number % 2))
    for peer in peers:
        peer.until("peer")
    return peers


def joined_in_turn(target: Broking, made: _Made) -> list[Peer]:
    """The same, a few at a time: a thousand registers in one moment leave a process larger than its work is."""
    return [peer for start in range(0, len(made), AT_ONCE) for peer in joined(target, made[start : start + AT_ONCE])]


def pairs(target: Broking, made: _Made, count: int) -> int:
    for start in range(0, count, AT_ONCE):
        peers = joined(target, [made[(start + number) % len(made)] for number in range(AT_ONCE)])
        for peer in peers:
            peer.sock.sendall(CLOSE)
        for peer in peers:
            peer.closed()
    return count


def messages(peers: list[Peer]) -> int:
    """Reports of health, and at the end of each batch a register that changes nothing, which is answered to both."""
    for _ in range(TURNS):
        for number, peer in enumerate(peers):
            peer.sock.sendall(_HEALTH * (MESSAGES - 1) + register(5000 + number % 2))
        for peer in peers:
            peer.until("session")
            peer.until("session")
    return TURNS * len(peers) * MESSAGES


def latencies(target: Broking, made: _Made, rate: float = RATE) -> list[float]:
    """Seconds from the second register to `peer` at both, of a pair for each session."""
    found: list[float] = []

    async def open_one(one: tuple[str, str]) -> tuple[trio.SocketStream, Frames]:
        stream = await trio.open_tcp_stream(*target.place())
        frames = Frames()
        await stream.send_all(opening(*one))
        await until(stream, frames, b"")
        return stream, frames

    async def until(stream: trio.SocketStream, frames: Frames, mark: bytes) -> None:
        while not any(mark in data for _, data in frames.feed(bytes(await stream.receive_some(65_536)) or _gone())):
            pass

    async def pair(one: tuple[str, str]) -> None:
        a, frames_a = await open_one(one)
        b, frames_b = await open_one(one)
        async with a, b:
            await a.send_all(register(5000))
            await until(a, frames_a, b'"session"')
            begun = time.perf_counter()
            await b.send_all(register(6000))
            await until(b, frames_b, b'"peer"')
            await until(a, frames_a, b'"peer"')
            found.append(time.perf_counter() - begun)
            for stream in (a, b):
                await stream.send_all(CLOSE)
            for stream in (a, b):
                while await stream.receive_some(65_536):
                    pass

    async def drive() -> None:
        with trio.fail_after(10 * RATE_S):
            async with trio.open_nursery() as nursery:
                begun = trio.current_time()
                for number, one in enumerate(made):
                    await trio.sleep_until(begun + number / rate)
                    nursery.start_soon(pair, one)

    trio.run(drive)
    return found


def _gone() -> bytes:
    raise ConnectionError("the server closed the connection")


def idle_kb(name: str, core: int, *, is_tls: bool) -> tuple[float, float]:
    """Resident memory, in units of 1,000 bytes, of an idle connection of a matched peer, and of a session."""
    with server(name, core, is_tls=is_tls) as target, ExitStack() as stack:
        warm = sessions(target, "warm", IDLE // 20)
        stack.callback(_close, joined_in_turn(target, warm))
        before = target.resident_kib()
        made = sessions(target, "idle", IDLE // 2)
        with_sessions = target.resident_kib()
        stack.callback(_close, joined_in_turn(target, made))
        time.sleep(1)
        after = target.resident_kib()
    return (after - with_sessions) * 1.024 / IDLE, (with_sessions - before) * 1.024 / len(made)


def _close(peers: list[Peer]) -> None:
    for peer in peers:
        peer.sock.close()


def allow_files(count: int) -> None:
    """Let this process and its children have as many descriptors, if root allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, max(hard, count)))


def names_of_servers(bench: str) -> list[str]:
    if importlib.util.find_spec("hypercorn") and importlib.util.find_spec("starlette"):
        return ["ours", "hypercorn"]
    print(f"{bench}: hypercorn and starlette are not installed, no reference")
    return ["ours"]


async def main() -> None:
    """Print it all."""
    await trio.to_thread.run_sync(compare)


def compare() -> None:
    """Blocking, since the client is."""
    allow_files(10_000)
    names = names_of_servers("broker")
    cores = sorted(os.sched_getaffinity(0))
    priority = os.getpriority(os.PRIO_PROCESS, 0)
    with ExitStack() as stack:
        servers = {name: stack.enter_context(server(name, cores[-1])) for name in names}
        hurry()
        os.sched_setaffinity(0, {cores[0]})
        stack.callback(os.sched_setaffinity, 0, cores)
        stack.callback(os.setpriority, os.PRIO_PROCESS, 0, priority)
        speeds(servers)
    memory(names, cores[-1])


def speeds(servers: dict[str, Broking]) -> None:
    cost_us: dict[tuple[str, str], list[float]] = defaultdict(list)
    seconds: dict[str, list[float]] = {}
    made = {name: sessions(target, "s", SESSIONS) for name, target in servers.items()}
    talkers = {name: joined(target, sessions(target, "t", TALKERS)) for name, target in servers.items()}
    for name, target in servers.items():
        pairs(target, made[name], AT_ONCE)  # the first ones of a process cost more
    for _ in range(ROUNDS):
        for name, target in servers.items():
            cost_us[name, "pair"].append(_cost_us(target, partial(pairs, target, made[name], PAIRS)))
            cost_us[name, "message"].append(_cost_us(target, partial(messages, talkers[name])))
    for name, target in servers.items():
        gc.collect()
        seconds[name] = latencies(target, sessions(target, "l", int(RATE * RATE_S)))
    report(list(servers), cost_us, seconds)


def _cost_us(target: Broking, act: Callable[[], int]) -> float:
    """Processor time of the server for each operation."""
    before_s = target.cpu_s()
    operations = act()
    return (target.cpu_s() - before_s) / operations * 1e6


def report(names: list[str], cost_us: dict[tuple[str, str], list[float]], seconds: dict[str, list[float]]) -> None:
    cost = {key: statistics.median(values) for key, values in cost_us.items()}
    print(f"broker: pairs and messages, processor time of the server, median of {ROUNDS} rounds")
    for name in names:
        pair_us, message_us = cost[name, "pair"], cost[name, "message"]
        print(f"  pair        {name:10} {pair_us:7.0f} us, {1e6 / pair_us:6.0f} a second of processor time")
        print(f"  message     {name:10} {message_us:7.1f} us, {1e6 / message_us:6.0f} a second of processor time")
    for name in names:
        p50, p99 = statistics.median(seconds[name]), statistics.quantiles(seconds[name], n=100)[98]
        goal = f" (goal: {LATENCY_GOAL_MS} or less)" if name == "ours" else ""
        words = f"p50 {p50 * 1e3:.1f} ms, p99 {p99 * 1e3:.1f} ms{goal}"
        print(f"  register to peer at {RATE} pairs/s: {name:10} {words}, {len(seconds[name])} pairs")
    if len(names) < 2:
        return
    ratio = cost["hypercorn", "pair"] / cost["ours", "pair"]
    print(f"  ratio       {ratio:.2f} times the pairs of hypercorn (goal: {PAIR_GOAL} or more)")
    ratio = cost["hypercorn", "message"] / cost["ours", "message"]
    print(f"  ratio       {ratio:.2f} times the messages of hypercorn")


def memory(names: list[str], core: int) -> None:
    found: dict[str, Any] = {}
    for name, is_tls, goal in [("ours", False, PLAIN_GOAL_KB), ("ours", True, TLS_GOAL_KB), ("hypercorn", False, 0)]:
        if name in names:
            what = f"{name}{', TLS' if is_tls else ''}"
            found[what], session_kb = idle_kb(name, core, is_tls=is_tls)
            words = f" (goal: {goal} or less)" if goal else ""
            print(f"broker: idle {what:10} {found[what]:6.1f} KB a connection{words}, {session_kb:.1f} KB a session")
    if "hypercorn" in found:
        print(f"  ratio       {found['ours'] / found['hypercorn']:.2f} of hypercorn's memory")
