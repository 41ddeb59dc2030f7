"""The low TTL learnt in the laboratory: by the traceroute alone, and by daemons in the packets that they send.

a --- a-box --- [a-carrier] --- isp-left --- core --- server        hops 1, 2, (3) and so on from a
"""

from __future__ import annotations

import json
import socket
import struct
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
import trio

from punchd.client.trio_client import Daemon
from punchd.kernel.traceroute import FIRST_PORT, MOST_HOPS, PATIENCE_S, ROUNDS
from punchd.wire import ip
from tests.natlab import KINDS, Host, Laboratory, Node, Site
from tests.netns.daemons import writable
from tests.pair import daemons, stun_arguments

pytestmark = pytest.mark.netns

HANG_S = 30.0
ALONE = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all")
TRACE = """
import json, sys, trio
from ipaddress import ip_address
from punchd.kernel.traceroute import low_ttl, trace
source, target = map(ip_address, sys.argv[1:])
capabilities = [line.split()[1] for line in open("/proc/self/status") if line.startswith("CapEff")]
hops = trio.run(trace, source, target, None)
print(json.dumps([capabilities, low_ttl(hops, None), {index: str(hop.address) for index, hop in hops.items()}]))
"""
HOP_PORTS = range(FIRST_PORT, FIRST_PORT + MOST_HOPS)
PEER = "192.0.2.20"  # the server's second address: nobody answers there


def traced(host: Host, target: str, source: str | None = None) -> tuple[int | None, dict[int, str]]:
    """The low TTL and who answered, as an ordinary user without capabilities finds it."""
    command = [*ALONE, sys.executable, "-c", TRACE, source or host.ipv4, target]
    done = host.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    capabilities, ttl, hops = json.loads(done.stdout)
    assert [int(mask, 16) for mask in capabilities] == [0]
    return ttl, {int(index): address for index, address in hops.items()}


def rules(node: Node, table: str) -> None:
    node.run(["nft", "-f", "-"], input=table.encode(), check=True)


def swallow_icmp(box: Node) -> None:
    rules(box, "table inet deaf { chain c { type filter hook forward priority -5; icmp type time-exceeded drop; }\n}")


def second_firewall(provider: Node) -> None:
    rules(
        provider,
        'table inet second { chain c { type filter hook forward priority -5; iifname "core" ct state new drop; }\n}',
    )


# --- the traceroute --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def laboratory() -> Iterator[Laboratory]:
    names = ("apdf", "carrier", "any-opens", "stateless", "no-filter", "firewall")
    with Laboratory([Site(name, KINDS[name]) for name in names]) as running:
        yield running


@pytest.mark.parametrize(("kind", "ttl"), [("apdf", 2), ("carrier", 3), ("any-opens", 2), ("stateless", None)])
def test_the_first_public_hop_is_found_without_capabilities(laboratory: Laboratory, kind: str, ttl: int | None) -> None:
    """A stateless NAT does not translate ICMP errors: only its own answer arrives."""
    found, hops = traced(laboratory.site(kind).host, laboratory.server.ipv4)
    assert found == ttl
    if ttl is not None:
        assert hops[ttl] in ("198.51.100.254", "203.0.113.254")
    assert all(address.startswith("100.") for index, address in hops.items() if index < (ttl or MOST_HOPS))


def test_a_nat_that_swallows_icmp_teaches_nothing() -> None:
    with Laboratory([Site("a", KINDS["apdf"])], stun=False) as alone:
        swallow_icmp(alone.nodes["a-box"])
        ttl, hops = traced(alone.site("a").host, alone.server.ipv4)
        assert (ttl, hops[1]) == (None, "100.100.1.1")


def test_a_target_in_the_same_private_network_teaches_nothing(laboratory: Laboratory) -> None:
    host = laboratory.site("no-filter").host
    router = host.ipv4.removesuffix(".2") + ".1"
    ttl, hops = traced(host, router)
    assert (ttl, set(hops.values())) == (None, {router})


def test_ipv6_behind_a_translator_of_local_addresses(laboratory: Laboratory) -> None:
    """Unique local addresses (RFC 4193) inside, a global one outside: NAT66, where it exists."""
    host, box = laboratory.site("apdf").host, laboratory.nodes["apdf-box"]
    described = json.loads(host.run(["ip", "-j", "link", "show", "eth0"], check=True, capture_output=True).stdout)
    host.run(["ip", "addr", "add", "fd00::2/64", "dev", "eth0", "nodad"], check=True)
    for words in (
        "addr add fd00::1/64 dev lan nodad",
        f"neigh replace fd00::2 lladdr {described[0]['address']} dev lan nud permanent",
    ):
        box.run(["ip", *words.split()], check=True)
    outside = str(host.ipv6).rsplit("::", 1)[0] + "::1"
    rules(
        box,
        "table ip6 nat66 { chain c { type nat hook postrouting priority srcnat; "
        f'oifname "wan" ip6 saddr fd00::/64 snat to {outside}; }}\n}}',
    )
    ttl, hops = traced(host, str(laboratory.server.ipv6), "fd00::2")
    assert (ttl, hops[1], hops[2][:12]) == (2, "fd00::1", "2001:db8:fff")


# --- what a low TTL opens --------------------------------------------------------------------------------------------


def opens(laboratory: Laboratory, name: str, ttl: int) -> bool:
    """Whether the server's datagram comes in after one with that TTL went out towards it."""
    host = laboratory.site(name).host
    with host.socket() as inside, laboratory.server.socket() as outside:
        inside.bind((host.ipv4, 0))
        outside.bind((laboratory.server.ipv4, 0))
        inside.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
        inside.settimeout(1.0)
        inside.sendto(b"open", outside.getsockname())
        outside.sendto(b"come in", (host.public_ipv4, inside.getsockname()[1]))
        try:
            return inside.recv(100) == b"come in"
        except OSError:
            return False


@pytest.mark.parametrize(
    ("kind", "ttl", "opened"), [("apdf", 1, False), ("apdf", 2, True), ("carrier", 2, False), ("carrier", 3, True)]
)
def test_a_datagram_that_dies_in_a_nat_does_not_open_it(
    laboratory: Laboratory, kind: str, ttl: int, opened: bool
) -> None:
    assert opens(laboratory, kind, ttl) is opened


def test_behind_two_firewalls_without_nat_the_first_public_hop_is_too_near() -> None:
    """Why nothing is learnt from a public address: the default opens both, the first public hop only one."""
    with Laboratory([Site("a", KINDS["firewall"])], stun=False) as alone:
        assert traced(alone.site("a").host, alone.server.ipv4)[0] == 2
        assert opens(alone, "a", 2)
        second_firewall(alone.nodes["isp-left"])
        assert not opens(alone, "a", 2)
        assert opens(alone, "a", 4)


# --- daemons ---------------------------------------------------------------------------------------------------------


class Capture:
    """What leaves a host in UDP: (destination, port, TTL), in order."""

    def __init__(self, host: Host) -> None:
        self._socket = host.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        self._socket.bind(("eth0", 0x0003))
        self._socket.setblocking(False)

    def close(self) -> None:
        self._socket.close()

    async def sent(self, wanted: Callable[[str, int], bool]) -> list[int]:
        """The TTLs of what went to such destinations since the last call; waits for the first one."""
        found: list[int] = []
        with trio.fail_after(HANG_S):
            while not found:
                await trio.lowlevel.wait_readable(self._socket)
                found = self.so_far(wanted)
        return found

    def so_far(self, wanted: Callable[[str, int], bool]) -> list[int]:
        found: list[int] = []
        while True:
            try:
                data, source = self._socket.recvfrom(2048)
            except BlockingIOError:
                return found
            packet = ip.decode(data)
            if source[2] != socket.PACKET_OUTGOING or packet.protocol != socket.IPPROTO_UDP:
                continue
            (port,) = struct.unpack_from("!H", packet.payload, 2)
            if wanted(str(packet.destination), port):
                found.append(packet.ttl)


@asynccontextmanager
async def host_with_daemon(
    kind: str, *arguments: str, deaf: bool = False
) -> AsyncIterator[tuple[Host, Daemon, Capture]]:
    """A host behind a NAT of that kind, its daemon, and what it sends; `deaf`: the NAT swallows ICMP."""
    with Laboratory([Site("a", KINDS[kind])]) as laboratory:
        host = laboratory.site("a").host
        if deaf:
            swallow_icmp(laboratory.nodes["a-box"])
        words = [*stun_arguments(laboratory.stun), *arguments]
        with daemons([(host, words)]) as [running], closing(Capture(host)) as capture:
            await running.until_ready()
            async with Daemon.connect(running.path) as daemon:
                yield host, daemon, capture


async def opening_ttl(daemon: Daemon, capture: Capture, live_s: float = 0.0, **options: int) -> int:
    """The TTL of the first datagram of an attempt that nobody answers; after `live_s` more it is given up."""
    async with daemon.initiate(PEER, 40000, techniques="udp", **options):  # type: ignore[arg-type]
        ttls = await capture.sent(lambda to, port: (to, port) == (PEER, 40000))
        await trio.sleep(live_s)
    capture.so_far(lambda to, port: False)
    return ttls[0]


async def until_learnt(daemon: Daemon, capture: Capture, ttl: int, live_s: float = 0.0) -> None:
    """Until an attempt uses that TTL: learning takes a moment, and attempts do not wait for it."""
    with trio.fail_after(HANG_S):
        while await opening_ttl(daemon, capture, live_s) != ttl:  # noqa: ASYNC110 (the daemon tells nobody)
            await trio.sleep(0.05)


def explanations(directory: Path) -> str:
    return "".join(path.read_text() for path in directory.glob("*.txt"))


async def test_after_a_probe_an_attempt_behind_a_carriers_nat_uses_what_was_learnt(tmp_path: Path) -> None:
    traces = writable(tmp_path / "traces")
    async with host_with_daemon("carrier", "--trace", str(traces)) as (_, daemon, capture):
        await daemon.probe("udp")
        await until_learnt(daemon, capture, 3)
        probed = await daemon.probe("udp")
        assert await opening_ttl(daemon, capture, lport=probed.lport) == 3
        assert await opening_ttl(daemon, capture, ttl=6) == 6
        with trio.fail_after(HANG_S):
            while "asked for" not in (told := explanations(traces)):  # noqa: ASYNC110 (as above)
                await trio.sleep(0.02)
    assert "TtlChosen ttl=3 why=learnt, 198.51.100.254 is the first public hop\n" in told
    assert "TtlChosen ttl=6 why=asked for by the application\n" in told


async def test_without_a_probe_the_first_attempt_uses_the_default_and_later_ones_what_it_learnt() -> None:
    async with host_with_daemon("carrier") as (_, daemon, capture):
        assert await opening_ttl(daemon, capture, live_s=1.0) == 4
        await until_learnt(daemon, capture, 3, live_s=1.0)


async def test_behind_a_nat_that_swallows_icmp_the_default_is_used() -> None:
    async with host_with_daemon("apdf", deaf=True) as (_, daemon, capture):
        probed = await daemon.probe("udp")
        await trio.sleep(ROUNDS * PATIENCE_S + 0.5)
        assert await opening_ttl(daemon, capture, lport=probed.lport) == 4


async def test_changed_routes_void_what_was_learnt() -> None:
    async with host_with_daemon("apdf") as (host, daemon, capture):
        await daemon.probe("udp")
        await until_learnt(daemon, capture, 2)
        host.run(["ip", "route", "add", "unreachable", "198.51.100.77"], check=True)
        assert await opening_ttl(daemon, capture) == 4


async def test_the_traceroute_goes_to_the_stun_server_and_only_there() -> None:
    async with host_with_daemon("apdf") as (_, daemon, capture):
        await daemon.probe("udp")
        targets: list[str] = []

        def note(to: str, port: int) -> bool:
            if port in HOP_PORTS:
                targets.append(to)
            return port in HOP_PORTS

        ttls: list[int] = []
        while len(ttls) < MOST_HOPS:
            ttls += await capture.sent(note)
        assert ttls == list(range(1, MOST_HOPS + 1))
        assert set(targets) == {"192.0.2.10"}


@pytest.mark.parametrize(
    ("kind", "arguments", "ttl"),
    [
        ("apdf", ["--ttl", "4"], 4),
        ("carrier", ["--ttl", "7"], 7),
        ("symmetric-sequential", [], 4),
        ("firewall", [], 4),
    ],
    ids=["a TTL that is set", "another one", "a NAT that counts its ports", "a public address"],
)
async def test_no_traceroute_is_made_where_it_is_not_wanted(kind: str, arguments: list[str], ttl: int) -> None:
    async with host_with_daemon(kind, *arguments) as (_, daemon, capture):
        probed = await daemon.probe("udp")
        await trio.sleep(0.3)
        assert capture.so_far(lambda to, port: port in HOP_PORTS) == []
        assert await opening_ttl(daemon, capture, lport=probed.lport) == ttl
