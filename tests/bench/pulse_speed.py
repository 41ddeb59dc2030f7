"""Pulses a second with a million clients in the table, beside a bare UDP echo loop in the same run.

The server runs in a process of its own, bound to one core; this process sends, at the rate of a million clients that
pulse every 30 s, pulses of clients chosen at random, and counts the replies. The echo loop gets the same datagrams at
the same rate. What is compared is the processor time of the two servers a datagram: it does not depend on who else
uses the machine as much as the clock on the wall does. Both processes run before others where that is allowed; what
is lost all the same is told apart: not sent in time, no room in the server's socket, or no reply.
"""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import random
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import trio

from punchd.rendezvous import pulse, pulses
from punchd.rendezvous.aliases import Aliases
from punchd.rendezvous.clients import Clients
from punchd.rendezvous.memory import MemoryStore
from punchd.rendezvous.pulses import Counts, PulseServer
from punchd.rendezvous.signals import Signals
from punchd.web.rate import Limiter

CLIENTS = 1_000_000
RATE = 33_334  # a second: a million clients, one pulse each in 30 s
SECONDS = 10
TICK_S = 0.005
SOCKETS = 256  # the client sends from: each stays below the bound of one address and port
SETTLE_S = 1.0  # for the last replies
START_S = 120.0


@dataclass(frozen=True, slots=True)
class Result:
    """One run: datagrams sent, replies that were right, seconds it took, processor seconds of the server."""

    sent: int
    replies: int
    seconds: float
    server_cpu_s: float
    overflows: int  # datagrams for which a receive buffer of this host had no room

    @property
    def cpu_us(self) -> float:
        return self.server_cpu_s / self.sent * 1e6


def key_of(number: int) -> bytes:
    return hashlib.blake2b(number.to_bytes(8, "big"), digest_size=pulse.KEY_SIZE).digest()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def bound_socket() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    return sock


def hurry() -> None:
    """Run before others: the machine may be shared, and a server that does not run loses pulses."""
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -15)


def overflows() -> int:
    """RcvbufErrors of the kernel's UDP."""
    names, values = (line.split() for line in Path("/proc/net/snmp").read_text().splitlines() if line[:4] == "Udp:")
    return int(values[names.index("RcvbufErrors")])


def serve_pulses(control: Connection, core: int) -> None:
    """The server's process: tells its port and bytes a client, then its processor time whenever asked."""
    hurry()
    os.sched_setaffinity(0, {core})
    clients = Clients(CLIENTS)
    before = resident_bytes()
    began = time.perf_counter()
    for number in range(CLIENTS):
        clients.register(os.urandom(pulse.ID_SIZE), key_of(number), 0.0)
    took = time.perf_counter() - began
    size = (resident_bytes() - before) / CLIENTS
    zero = time.monotonic()
    store = MemoryStore(clients, Signals(32, 1 << 26, 180), Aliases(4), clock=lambda: time.monotonic() - zero)
    sock = bound_socket()
    buffer = pulses.prepare(sock)
    control.send((sock.getsockname()[1], size, took / CLIENTS * 1e6, buffer))

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.run)
            nursery.start_soon(PulseServer(sock, store, Limiter(20, 20, 1000), Counts()).run)
            while True:
                await trio.lowlevel.wait_readable(control.fileno())
                if control.recv() == "stop":
                    nursery.cancel_scope.cancel()
                    return
                control.send(time.process_time())

    trio.run(main)


def serve_echo(control: Connection, core: int) -> None:
    """The same with a loop that sends back the first four bytes."""
    hurry()
    os.sched_setaffinity(0, {core})
    sock = bound_socket()
    pulses.prepare(sock)
    sock.settimeout(0.05)
    control.send((sock.getsockname()[1], 0.0, 0.0, 0))
    while True:
        with contextlib.suppress(TimeoutError):
            sock.settimeout(0.05)
            datagram, address = sock.recvfrom(69)
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    sock.sendto(datagram[:4], address)
                    datagram, address = sock.recvfrom(69)
        if control.poll():
            if control.recv() == "stop":
                return
            control.send(time.process_time())


def run_against(serve: Callable[[Connection, int], None], keys: list[bytes], core: int) -> tuple[Result, str]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    server = context.Process(target=serve, args=(there, core))
    server.start()
    try:
        if not here.poll(START_S):
            raise RuntimeError("the server did not start")
        port, size, register_us, buffer = here.recv()
        start, before = cpu_time(here), overflows()
        sent, replies, seconds = send_paced(port, keys)
        result = Result(sent, replies, seconds, cpu_time(here) - start, overflows() - before)
        here.send("stop")
        server.join(10)
    finally:
        server.kill()
        server.join()
    return result, f"{size:.0f} bytes a client, {register_us:.1f} us to register one, receive buffer {buffer >> 20} MiB"


def cpu_time(control: Connection) -> float:
    control.send("time")
    answer = control.recv()
    assert isinstance(answer, float)
    return answer


def send_paced(port: int, keys: list[bytes]) -> tuple[int, int, float]:
    """Send one datagram a key at RATE; how many, how many replies came, and the seconds of sending."""
    sockets = []
    for _ in range(SOCKETS):
        sock = bound_socket()
        pulses.prepare(sock)
        sock.connect(("127.0.0.1", port))
        sockets.append(sock)
    replies = sent = 0
    seconds = 0.0
    start = time.perf_counter()
    while sent < len(keys):
        due = min(len(keys), int((time.perf_counter() - start) * RATE))
        for number in range(sent, due):
            sockets[number % SOCKETS].send(keys[number])
        sent = due
        seconds = time.perf_counter() - start
        replies += sum(drain(sock) for sock in sockets)
        time.sleep(TICK_S)
    end = time.perf_counter() + SETTLE_S
    while replies < sent and time.perf_counter() < end:
        replies += sum(drain(sock) for sock in sockets)
    for sock in sockets:
        sock.close()
    return sent, replies, seconds


def drain(sock: socket.socket) -> int:
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            count += len(sock.recv(64)) == len(pulse.ACCEPTED)
    return count


async def main() -> None:
    await trio.lowlevel.checkpoint()
    before = os.getpriority(os.PRIO_PROCESS, 0)
    hurry()
    cores = sorted(os.sched_getaffinity(0))
    chance = random.Random(5024)
    keys = [key_of(chance.randrange(CLIENTS)) for _ in range(RATE * SECONDS)]
    ours, words = run_against(serve_pulses, keys, cores[-1])
    bare, _ = run_against(serve_echo, keys, cores[-1])
    os.setpriority(os.PRIO_PROCESS, 0, before)
    print(f"pulses: {CLIENTS:,} clients registered; {words}")
    for name, result in (("punchd-rendezvous", ours), ("bare echo", bare)):
        print(
            f"  {name:18} {result.sent / result.seconds:,.0f} a second for {result.seconds:.0f} s, "
            f"{result.sent - result.replies} of {result.sent:,} lost ({result.overflows} in full buffers), "
            f"{result.cpu_us:.1f} us of one core each "
            f"({result.server_cpu_s / result.seconds:.0%} of it)"
        )
    print(f"  ratio       {ours.cpu_us / bare.cpu_us:.1f} of a bare UDP echo loop's processor time")
