"""A NAT that counts its ports is predicted rightly although the host has few ports to choose from."""

from __future__ import annotations

import pytest

from punchd.client.trio_client import Daemon
from tests.natlab import KINDS, Laboratory, Site
from tests.natlab.namespace import write_sysctls
from tests.pair import daemons, stun_arguments

pytestmark = pytest.mark.netns

ATTEMPTS = 24
# For TCP the kernel takes odd ports first: three quarters of those stay free to the end, and eight draws meet old ones
# only once in 65,000 times. Without a memory two of 24 would be the same in all but a few runs.
RANGE = "40000 40191"


@pytest.mark.parametrize("protocol", ["udp", "tcp"])
async def test_each_attempt_has_a_port_of_its_own_and_so_a_new_mapping(protocol: str) -> None:
    with Laboratory([Site("a", KINDS["symmetric-sequential"])]) as laboratory:
        host = laboratory.site("a").host
        write_sysctls(host.path, {"ipv4/ip_local_port_range": RANGE})
        with daemons([(host, stun_arguments(laboratory.stun))]) as (daemon,):
            await daemon.until_ready()
            probed = []
            for _ in range(ATTEMPTS):
                async with Daemon.connect(daemon.path) as application:
                    probed.append(await application.probe(protocol))

    assert len({answer.lport for answer in probed}) == ATTEMPTS
    predictions = [answer.ports.ports[0] for answer in probed]
    assert predictions == sorted(set(predictions)), "an old mapping was seen"
