"""Ten thousand matched peers that have nothing to say, for two minutes: is one of them lost?

They come from 100 addresses of loopback. The server pings who is silent for 30 s; half of the clients only answer that,
the other half send the bare `punch.ping` every 30 s, as clients do. PUNCHD_BENCH_SECONDS sets another duration.

The server has one core, the clients the other. It prints what the server needs a second for its idle clients.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections import Counter
from contextlib import ExitStack

import trio

from tests.bench.broker_client import KEEP_ALIVE, PONG, Frames, Http, Peer, register
from tests.bench.broker_servers import Broking, server
from tests.bench.broker_speed import allow_files
from tests.bench.pulse_speed import hurry

PEERS = 10_000
SOURCES = 100
AT_ONCE = 50  # pairs that join
SECONDS = float(os.environ.get("PUNCHD_BENCH_SECONDS", "120"))
KEEP_ALIVE_S = 30.0
TURN_S = 0.1


def join(target: Broking) -> list[Peer]:
    """All of them, a pair in each session."""
    peers: list[Peer] = []
    with target.connect() as sock:
        http = Http(sock)
        while len(peers) < PEERS:
            made = [http.create(f"s{len(peers)}-{number}") for number in range(AT_ONCE)]
            new = [
                Peer(target.connect(f"127.0.1.{1 + (len(peers) + 2 * pair + end) % SOURCES}"), one["session"], token)
                for pair, one in enumerate(made)
                for token in one["peerTokens"].values()
                for end in range(2)
            ]
            for number, peer in enumerate(new):
                peer.opened()
                peer.sock.sendall(register(5000 + number % 2))
            for peer in new:
                peer.until("peer")
            peers += new
    return peers


def hold(peers: list[Peer], seconds: float) -> tuple[Counter[str], int]:
    """Answer pings and send signs of life; what came, and how many were lost."""
    heard: Counter[str] = Counter()
    known = {peer.sock.fileno(): (peer.sock, Frames(is_open=True)) for peer in peers}
    begun = time.monotonic()
    # Not all in one moment: they did not join in one either.
    due = {fd: begun + KEEP_ALIVE_S * number / len(known) for number, fd in enumerate(known) if number % 2}
    with contextlib.closing(select.epoll()) as poll:
        for fd, (sock, _) in known.items():
            sock.setblocking(False)
            poll.register(fd, select.EPOLLIN)
        while (now := time.monotonic()) < begun + seconds:
            for fd in [fd for fd, when in due.items() if when <= now]:
                known[fd][0].send(KEEP_ALIVE)
                due[fd] += KEEP_ALIVE_S
            for fd, _ in poll.poll(TURN_S):
                sock, frames = known[fd]
                data = sock.recv(65_536)
                for opcode, payload in frames.feed(data):
                    if opcode == 9:
                        sock.send(PONG)
                    is_pong = payload == b"punch.pong"
                    heard["punch.pong" if is_pong else {8: "closes", 9: "pings"}.get(opcode, "messages")] += 1
                if not data:
                    poll.unregister(fd)
                    due.pop(fd, None)
                    del known[fd]
            time.sleep(TURN_S / 10)
    return heard, len(peers) - len(known)


async def main() -> None:
    """Print it all."""
    await trio.to_thread.run_sync(measure)


def measure() -> None:
    """Blocking, since the clients are."""
    allow_files(PEERS + 1000)
    cores = sorted(os.sched_getaffinity(0))
    priority = os.getpriority(os.PRIO_PROCESS, 0)
    with ExitStack() as stack:
        target = stack.enter_context(server("ours", cores[-1]))
        hurry()
        os.sched_setaffinity(0, {cores[0]})
        stack.callback(os.sched_setaffinity, 0, cores)
        stack.callback(os.setpriority, os.PRIO_PROCESS, 0, priority)
        begun, empty_kib = time.monotonic(), target.resident_kib()
        peers = join(target)
        for peer in peers:
            stack.callback(peer.sock.close)
        took_s, cpu_s = time.monotonic() - begun, target.cpu_s()
        heard, lost = hold(peers, SECONDS)
        cpu_s, size_kb = target.cpu_s() - cpu_s, (target.resident_kib() - empty_kib) * 1.024 / PEERS
    print(f"broker-idle: {PEERS:,} matched peers came in {took_s:.0f} s; {size_kb:.1f} KB each with half a session")
    told = ", ".join(f"{number:,} {what}" for what, number in sorted(heard.items()))
    print(f"  {SECONDS:.0f} s: {told}; {cpu_s / SECONDS * 100:.1f} % of a core")
    print(f"  lost        {lost} (goal: 0)")
