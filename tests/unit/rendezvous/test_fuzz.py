"""Random datagrams and malformed requests by the thousand, at once, against the server's process.

Nothing is lost: every good pulse among them is answered, and the server counts as many datagrams as were sent. Nothing
is left: descriptors, threads and connections are as many as before, memory about as much, and nothing is logged. What
the tables hold afterwards, `test_service` asks a server in the test's own process.
"""

from __future__ import annotations

import json
import random
import subprocess
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
import trio

from punchd.knobs import key
from punchd.rendezvous.settings import Limits
from tests.unit.rendezvous.parts import GENEROUS, Member
from tests.unit.rendezvous.running import PATIENCE_S, Pulser, Running
from tests.unit.rendezvous.test_settings import free_port, process
from tests.unit.web.test_http_fuzz import malformed, throw

MEMBERS = 20
BURST = 500  # datagrams between two good pulses: fewer than any receive buffer holds
THROWERS = 10
WARM_UP = 0.2  # of it all, before which memory is not looked at: caches fill
GROWTH_KIB = 4096  # of memory after that; 1,000,000 datagrams and 100,000 requests that leave 5 bytes each are more
SIZES = (0, 1, 31, 32, 32, 33, 63, 64, 64, 65, 68, 68, 69, 200, 1472)


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a process holds."""

    descriptors: int
    threads: int
    memory_kib: int


async def footprint(running: subprocess.Popen[str]) -> Footprint:
    await trio.sleep(1)  # the connection that asked for the metrics ends
    folder = Path(f"/proc/{running.pid}")
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    return Footprint(len(list((folder / "fd").iterdir())), int(status["Threads"]), int(status["VmRSS"].split()[0]))


class Bombardment:
    """Garbage for one server, and good pulses of its members in between."""

    def __init__(self, server: Running, members: list[Member]) -> None:
        self._server = server
        self._members = members
        self._chance = random.Random(5024)
        self.datagrams = 0  # sent, the good ones included
        self.requests = 0

    async def throw(self, datagrams: int, requests: int) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send, datagrams)
            for _ in range(THROWERS):
                nursery.start_soon(self._ask, requests // THROWERS, self._chance.getrandbits(64))

    async def pulse_all(self) -> None:
        with Pulser(self._server.udp) as pulser:
            for member in self._members:
                assert await pulser.pulse(member.raw_key) == 1020
                self.datagrams += 1

    async def _send(self, count: int) -> None:
        chance = self._chance
        with Pulser(self._server.udp) as bad, Pulser(self._server.udp) as good:
            for _ in range(count // BURST):
                for _ in range(BURST):
                    data = chance.randbytes(chance.choice(SIZES))
                    bad.burst(b"SRP1" + data[4:] if len(data) == 68 and data[0] % 2 else data, 1)
                assert await good.pulse(chance.choice(self._members).raw_key) == 1020
                self.datagrams += BURST + 1

    async def _ask(self, count: int, seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(count):
            await throw(self._server.http, self._aimed(malformed(chance), chance), chance)
            self.requests += 1

    def _aimed(self, data: bytes, chance: random.Random) -> bytes:
        """At this server's routes, half of it with a good key."""
        target = chance.choice(self._members)
        for part, route in ((b"/fail", b"/verify"), (b"/nothing", b"/peer/%b/signal"), (b"/ws", b"/signals")):
            data = data.replace(part, route.replace(b"%b", target.id.encode()))
        data = data.replace(b"/a?", f"/peer/{target.id}/udp?family=4&".encode())
        if chance.random() < 0.5:
            data = data.replace(b"Host: a\r\n", f"Host: a\r\nAuthorization: Bearer {target.key}\r\n".encode())
        return data


async def metrics(server: Running) -> dict[str, float]:
    _, _, text = await server.ask_bytes("GET", "/metrics", port=server.metrics)
    lines = [line.rpartition(" ") for line in text.decode().splitlines() if line[0] != "#"]
    return {name.removeprefix("punchd_rendezvous_"): float(value) for name, _, value in lines}


async def settled(server: Running, number: int) -> dict[str, float]:
    """The metrics when all connections have ended and the number of clients online is right."""
    with trio.fail_after(6 * PATIENCE_S):
        while True:
            found = await metrics(server)
            if found["connections"] == 0 and found["clients_online"] == number:
                return found
            await trio.sleep(0.2)


@pytest.mark.parametrize(
    ("datagrams", "requests"),
    [
        pytest.param(20_000, 1_000, marks=pytest.mark.timeout(300)),
        pytest.param(1_000_000, 100_000, marks=[pytest.mark.long, pytest.mark.timeout(7200)]),
    ],
)
async def test_v_021_d_20_garbage_over_udp_and_http_loses_nothing_and_leaves_nothing(
    datagrams: int, requests: int, tmp_path: Path
) -> None:
    config = tmp_path / "rendezvous.toml"
    limits = [f"{key(one.name)} = {getattr(GENEROUS, one.name)}" for one in fields(Limits)]
    config.write_text("\n".join(["[limits]", *limits]))
    http, udp, metrics_port = free_port(), free_port(), free_port()
    places = ("--udp", f"127.0.0.1:{udp}", "--metrics", f"127.0.0.1:{metrics_port}")
    with process(http, *places, "--config", str(config)) as running:
        server = Running(http, udp, metrics_port, None, trio.Event())
        bombardment = Bombardment(server, [await server.register() for _ in range(MEMBERS)])
        await bombardment.pulse_all()
        await bombardment.throw(int(datagrams * WARM_UP), int(requests * WARM_UP))
        await settled(server, MEMBERS)
        before = await footprint(running)
        await bombardment.throw(int(datagrams * (1 - WARM_UP)), int(requests * (1 - WARM_UP)))
        await bombardment.pulse_all()
        found = await settled(server, MEMBERS)
        after = await footprint(running)
        assert (after.descriptors, after.threads) == (before.descriptors, before.threads)
        assert after.memory_kib - before.memory_kib < GROWTH_KIB
        results = ("accepted", "verify", "cookie", "unknown", "malformed")
        assert sum(found[f'pulses_total{{result="{result}"}}'] for result in results) == bombardment.datagrams
        assert bombardment.requests == requests
        assert found["failures_total"] == 0
        assert (await server.ask("GET", "/health"))[0] == 200
        running.terminate()
        assert running.stderr is not None
        assert [json.loads(line)["level"] for line in running.stderr] == ["info"]  # that it stops
        assert running.wait(20) == 0
    print(f"{bombardment.datagrams:,} datagrams, {requests:,} requests: {before} became {after}")
