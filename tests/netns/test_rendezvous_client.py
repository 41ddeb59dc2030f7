"""The rendezvous client while its NAT forgets it, its host moves, and its server dies.

a --- a-box (a new random port for each mapping) --- isp-left --- core --- server 192.0.2.10: punchd-rendezvous
b --- b-box --- isp-right --- core
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
import trio
from pyroute2 import NFCTSocket

from punchd.rendezvous.network_watch import NetworkWatch
from tests.natlab import KINDS, Host, Laboratory, Node, Site
from tests.netns.test_rendezvous import ask, looked_up, serve

pytestmark = pytest.mark.netns

SERVER = "192.0.2.10"
URL = f"http://{SERVER}:5025"
PULSES_PORT = 5024
OFTEN_S, NEVER_S = 2.0, 86_400.0  # between two pulses: soon again, and not while a test runs
INTERVAL_S = 25.0  # of the client, unless told otherwise: within it, it has to be back
HALF_DEAD_S = 12.0  # a connection over the network of old is not found dead before 20 s
START_S = 30.0


class Member:
    """A program on a host that keeps a client; what it says, line by line."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._read = b""
        self.client_id = self.hear("id", START_S)

    def hear(self, name: str, patience_s: float = INTERVAL_S) -> str:
        """What it says under that name; whatever it said before is passed over.

        Raises:
            TimeoutError: nothing under that name.
        """
        assert self._process.stdout is not None
        said = self._process.stdout.fileno()
        deadline = time.monotonic() + patience_s
        while True:
            line, ended, rest = self._read.partition(b"\n")
            if ended:
                self._read = rest
                word: dict[str, str] = json.loads(line)
                if name in word:
                    return word[name]
                continue
            left_s = max(0.0, deadline - time.monotonic())
            if not select.select([said], [], [], left_s)[0]:
                raise TimeoutError(f"no {name!r} within {patience_s:g} s")
            part = os.read(said, 4096)
            assert part, "the program ended"
            self._read += part


class Caller:
    """Somebody at b who looks a client up and sends it signals."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._key = ask(host, SERVER, "POST", "/register")["private_id"]

    def seen(self, member: Member) -> tuple[str, int] | None:
        """The public address of a client, if it has one."""
        try:
            return looked_up(self._host, member.client_id, self._key)
        except KeyError:
            return None

    def send(self, member: Member, text: str) -> None:
        assert ask(self._host, SERVER, "POST", f"/peer/{member.client_id}/signal", self._key, body=text)["ok"]


@pytest.fixture
def lab() -> Iterator[Laboratory]:
    with Laboratory([Site("a", KINDS["symmetric-random"]), Site("b", KINDS["apdf"])], stun=False) as built:
        yield built


@contextmanager
def member(host: Host, interval_s: float) -> Iterator[Member]:
    command = [sys.executable, "-m", "tests.netns.rendezvous_member", URL, str(interval_s)]
    with host.popen(command, stdout=subprocess.PIPE) as process:
        try:
            yield Member(process)
        finally:
            process.kill()


def within_an_interval(look: Callable[[], Any], wanted: Callable[[Any], bool]) -> Any:
    """What is seen as soon as it is what is wanted."""
    deadline = time.monotonic() + INTERVAL_S
    while not wanted(found := look()):
        assert time.monotonic() < deadline, f"still {found}"
        time.sleep(0.1)
    return found


def reach(caller: Caller, member: Member, patience_s: float) -> None:
    """Send signals until one is heard: what goes into a dead connection is lost, as signals may be."""
    give_up_at = time.monotonic() + patience_s
    while True:
        caller.send(member, "are you there?")
        try:
            heard = member.hear("signal", 1.0)
        except TimeoutError:
            assert time.monotonic() < give_up_at, f"no signal within {patience_s:g} s"
        else:
            assert heard == "are you there?"
            return


def mappings(box: Node) -> set[tuple[str, int]]:
    """The outside endpoints of all flows to the port of pulses, as the NAT's own table has them."""
    with box.entered(), closing(NFCTSocket()) as table:
        entries = list(table.dump())
    found: set[tuple[str, int]] = set()
    for entry in entries:
        reply = entry.get_attr("CTA_TUPLE_REPLY")
        transport, network = reply.get_attr("CTA_TUPLE_PROTO"), reply.get_attr("CTA_TUPLE_IP")
        number, port = transport.get_attr("CTA_PROTO_NUM"), transport.get_attr("CTA_PROTO_SRC_PORT")
        if (number, port) == (socket.IPPROTO_UDP, PULSES_PORT):
            found.add((network.get_attr("CTA_IP_V4_DST"), transport.get_attr("CTA_PROTO_DST_PORT")))
    return found


def forget(box: Node) -> None:
    """Flush the NAT's table."""
    with box.entered(), closing(NFCTSocket()) as table:
        table.flush()


def test_the_looked_up_port_is_the_nats_and_after_it_forgot_the_next_pulse_moves_it(lab: Laboratory) -> None:
    serve(lab)
    box = lab.nodes["a-box"]
    caller = Caller(lab.site("b").host)
    with member(lab.site("a").host, OFTEN_S) as one:
        first = within_an_interval(lambda: caller.seen(one), bool)
        assert first in mappings(box)
        assert first[0] == lab.site("a").host.public_ipv4
        forget(box)
        second = within_an_interval(lambda: caller.seen(one), lambda seen: seen != first)
        assert second in mappings(box)
        reach(caller, one, INTERVAL_S)


def configure(node: Node, *commands: str) -> None:
    node.run(["ip", "-batch", "-"], input="\n".join(commands), text=True, check=True)


def move(lab: Laboratory, address: str) -> None:
    """Host a gets another address in its network; neighbours are written down, as everywhere in the laboratory."""
    host, box, gateway = lab.site("a").host, lab.nodes["a-box"], "100.100.1.1"
    [mac], [router] = (
        [json.loads(node.run(["ip", "-j", "link", "show", device], capture_output=True).stdout)[0]["address"]]
        for node, device in ((host, "eth0"), (box, "lan"))
    )
    configure(
        box,
        f"neigh replace {address} lladdr {mac} dev lan nud permanent",
        f"route replace {address} dev lan",
    )
    configure(
        host,
        f"addr del {host.ipv4}/24 dev eth0",
        f"addr add {address}/24 dev eth0",
        f"neigh replace {gateway} lladdr {router} dev eth0 nud permanent",
        f"route replace default via {gateway} dev eth0 onlink",
    )


@pytest.mark.parametrize("is_cut", [False, True])
def test_a_host_that_gets_another_address_is_known_by_its_new_mapping_at_once(lab: Laboratory, is_cut: bool) -> None:
    serve(lab)
    caller, host = Caller(lab.site("b").host), lab.site("a").host
    with member(host, NEVER_S) as one:  # so that nothing but the change makes it pulse
        first = within_an_interval(lambda: caller.seen(one), bool)
        caller.send(one, "before")
        assert one.hear("signal") == "before"
        if is_cut:
            configure(host, "link set eth0 down")
            time.sleep(1.0)  # long enough for the client to see that there is no way at all
            configure(host, "link set eth0 up")
        move(lab, "100.100.1.77")
        second = within_an_interval(lambda: caller.seen(one), lambda seen: seen != first)
        assert second in mappings(lab.nodes["a-box"])
        reach(caller, one, HALF_DEAD_S)


async def test_a_link_that_goes_down_is_a_change_although_nobody_tells_of_its_routes() -> None:
    with Laboratory([Site("a", KINDS["apdf"], ipv6=False)], stun=False) as lab:
        host = lab.site("a").host
        host.run(["sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1"], check=True)
        with host.entered():
            watch = NetworkWatch()
        with closing(watch):
            configure(host, "link set eth0 down")
            with trio.fail_after(INTERVAL_S):
                await watch.change()


def test_a_client_whose_server_was_killed_and_started_anew_says_so_and_is_back_when_it_renews(lab: Laboratory) -> None:
    server = serve(lab)
    with member(lab.site("a").host, INTERVAL_S) as one:
        lost = one.client_id
        assert within_an_interval(lambda: Caller(lab.site("b").host).seen(one), bool)
        server.kill()
        server.wait(START_S)
        serve(lab)
        assert one.hear("lost") == lost
        one.client_id = one.hear("id")
        assert one.client_id != lost
        caller = Caller(lab.site("b").host)
        seen = within_an_interval(lambda: caller.seen(one), bool)
        assert seen in mappings(lab.nodes["a-box"])
        caller.send(one, "it is you")
        assert one.hear("signal") == "it is you"
