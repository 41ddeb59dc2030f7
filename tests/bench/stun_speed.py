"""STUN requests: processor time of our server for each, beside a bare UDP echo loop and coturn in the same run.

All three run in the laboratory's server namespace, each a process of its own, ours and coturn with two addresses (the
longest answers). This process asks in bursts and waits for each burst's answers, so that nothing is lost. Processor
time is compared as it does not depend on who else uses the machine; requests a second include this client's own time.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from statistics import median
from typing import Any

import trio

from punchd.endpoint import Endpoint
from punchd.rendezvous.stun_server import Limits, listen, serve
from punchd.wire import stun
from tests.natlab import KINDS, Host, Laboratory, Site, coturn

REQUESTS = 50_000  # a server and round
ROUNDS = 3
BURST = 32
PORTS = {"echo": 5478, "punchd": 4478, "coturn": coturn.PORT}
PATIENCE_S = 20.0
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Server:
    """One of the three. Lists have a figure for each round."""

    process: subprocess.Popen[Any]
    cpu_us: list[float] = field(default_factory=list)
    per_s: list[float] = field(default_factory=list)

    def cpu_s(self) -> float:
        """Processor seconds so far, all threads (proc(5): fields 14 and 15)."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS


def ask(host: Host, address: str, port: int, count: int) -> float:
    """Ask so often; how many seconds it took.

    Raises:
        RuntimeError: an answer did not come.
    """
    request = stun.encode_request(os.urandom(12))
    with host.socket() as client:
        client.connect((address, port))
        began = time.perf_counter()
        for _ in range(0, count, BURST):
            for _ in range(BURST):
                client.send(request)
            for _ in range(BURST):
                if not select.select([client], [], [], PATIENCE_S)[0]:
                    raise RuntimeError(f"no answer from port {port} within {PATIENCE_S:g} s")
                client.recv(1000)
        return time.perf_counter() - began


def until_ready(host: Host, address: str, port: int) -> None:
    """Wait until somebody answers there."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        with host.socket() as client, suppress(OSError):
            client.connect((address, port))
            client.settimeout(0.1)
            client.send(stun.encode_request(bytes(12)))
            client.recv(1000)
            return
        time.sleep(0.02)
    raise RuntimeError(f"nobody answers on port {port} after {PATIENCE_S:g} s")


async def main() -> None:
    with Laboratory([Site("a", KINDS["open"])], stun=False) as lab:
        address = lab.server.ipv4
        own = [sys.executable, "-m", "tests.bench.stun_speed"]
        servers = {
            "echo": Server(lab.server.popen([*own, "echo", address])),
            "punchd": Server(lab.server.popen([*own, "punchd", *lab.server.ipv4_addresses])),
            "coturn": Server(coturn.start(lab.server)),
        }
        for port in PORTS.values():
            until_ready(lab.server, address, port)
        for _ in range(ROUNDS):
            for name, server in servers.items():
                before = server.cpu_s()
                took_s = await trio.to_thread.run_sync(ask, lab.server, address, PORTS[name], REQUESTS)
                server.cpu_us.append((server.cpu_s() - before) / REQUESTS * 1e6)
                server.per_s.append(REQUESTS / took_s)
    print(f"stun: a bare Binding request over UDP, {ROUNDS} rounds of {REQUESTS:,}, medians")
    for name, server in servers.items():
        print(f"  {name:8} {median(server.cpu_us):6.1f} us of processor time, {median(server.per_s):8,.0f} a second")
    ours = median(servers["punchd"].cpu_us)
    for name in ("echo", "coturn"):
        print(f"  ratio    {ours / median(servers[name].cpu_us):.2f} of the processor time of {name}")


def echo(address: str) -> None:
    """A bare loop in the same language."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        own.bind((address, PORTS["echo"]))
        while True:
            data, source = own.recvfrom(2048)
            own.sendto(data, source)


async def punchd(addresses: list[str]) -> None:
    listening = listen([Endpoint(ip_address(address), PORTS["punchd"]) for address in addresses])
    await serve(listening, trio.Event(), limits=Limits(rate=1e6, burst=1_000_000))


if __name__ == "__main__":
    if sys.argv[1] == "echo":
        echo(sys.argv[2])
    trio.run(punchd, sys.argv[2:])
