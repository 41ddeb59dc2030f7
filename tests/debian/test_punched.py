"""A Debian 12 and a Debian 13, each behind a NAT of the laboratory: their daemons, as packaged, connect."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import trio

from tests.debian import packages
from tests.debian.machine import Machine
from tests.natlab import KINDS, Laboratory, Site
from tests.pair import applications, attempt

pytestmark = [
    pytest.mark.long,
    pytest.mark.netns,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(packages.lacking()), reason=packages.lacking() or "-"),
]


@pytest.fixture(scope="module")
def machines() -> Iterator[tuple[Machine, Machine]]:
    with Laboratory([Site("a", KINDS["apdf"]), Site("b", KINDS["full-cone"])]) as laboratory:
        first, second = (laboratory.site(name).host.path for name in "ab")
        with Machine("bookworm", "punchd-a", first) as a, Machine("trixie", "punchd-b", second) as b:
            for machine in (a, b):
                packages.install(machine, packages.built())
                stun = ", ".join(f'"{server}"' for server in laboratory.stun)
                machine.path("/etc/punchd/punchd.toml").write_text(f"stun = [{stun}]\n")
                machine.run("systemctl", "restart", "punchd.service")
            yield a, b


@pytest.mark.parametrize("technique", ["tcp-syni", "tcp-nutss", "udp"])
async def test_two_machines_behind_nats_get_a_socket_to_each_other(
    machines: tuple[Machine, Machine], technique: str
) -> None:
    paths = [str(machine.path("/run/punchd/punchd.socket")) for machine in machines]
    async with applications(*paths) as (a, b):
        outcome = await attempt(a, b, techniques=technique, timeout_ms=15_000)
        try:
            assert outcome.initiator.connected is not None, outcome.explain()
            assert outcome.responder.connected is not None, outcome.explain()
            with trio.fail_after(10):
                await outcome.initiator.connected.socket.send(b"hello")
                assert await outcome.responder.connected.socket.recv(100) == b"hello"
                await outcome.responder.connected.socket.send(b"hello yourself")
                assert await outcome.initiator.connected.socket.recv(100) == b"hello yourself"
        finally:
            outcome.close()
