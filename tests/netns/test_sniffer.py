"""What the sniffer sees and does not see, and what forbids raw packets, seen between two hosts."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from punchd.endpoint import Endpoint
from punchd.errors import Code, PunchError
from punchd.wire import ip
from punchd.wire.tcp import Flags
from tests.natlab import Laboratory
from tests.netns.daemons import HANG_S
from tests.netns.two_hosts import Ends, captured, crafted, either, ends_of, segments, sending, sniffing, two_hosts

pytestmark = pytest.mark.netns


@pytest.fixture(name="laboratory", scope="module")
def _laboratory() -> Iterator[Laboratory]:
    yield from two_hosts()


@pytest.fixture(name="version")
def _version() -> int:
    """Of IP; tests marked `either` take both."""
    return 4


@pytest.fixture(name="ends")
def _ends(laboratory: Laboratory, version: int) -> Ends:
    return ends_of(laboratory, version)


# --- the sniffer ----------------------------------------------------------------------------------------------------


def test_closing_a_sniffer_does_not_wait_for_the_kernel(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the kernel tens of milliseconds, in which a daemon would serve nobody."""
    closed, go, really_close = threading.Event(), threading.Event(), os.close

    with sniffing(ends.a, ends.at_a.port) as sniffer:
        fd = sniffer._socket.fileno()

        def close(number: int) -> None:
            if number != fd:
                really_close(number)
                return
            assert go.wait(HANG_S)
            really_close(number)
            closed.set()

        monkeypatch.setattr(os, "close", close)
    assert not closed.is_set()
    go.set()
    assert closed.wait(HANG_S)


def with_ipv4_option(packet: bytes) -> bytes:
    """The same with four bytes of padding as an IPv4 option; the kernel mends length and checksum."""
    return bytes((0x46,)) + packet[1:2] + struct.pack("!H", len(packet) + 4) + packet[4:20] + b"\1\1\1\0" + packet[20:]


def as_fragment(packet: bytes, units: int, *, more: bool) -> bytes:
    """The same, but said to be a fragment at so many units of eight bytes."""
    return packet[:4] + struct.pack("!HH", 99, units | (0x2000 if more else 0)) + packet[8:]


@pytest.mark.parametrize("leaving", [True, False], ids=["leaving", "coming"])
@either
async def test_the_sniffer_passes_tcp_of_its_port_and_icmp_about_it_and_nothing_else(ends: Ends, leaving: bool) -> None:
    here, there = (ends.at_a, ends.at_b) if leaving else (ends.at_b, ends.at_a)
    version, own = ends.version, ends.at_a.port
    icmp = ip.ICMPV6 if version == 6 else ip.ICMP

    def segment(source: int, destination: int) -> bytes:
        return crafted(Endpoint(here.ip, source), Endpoint(there.ip, destination), Flags.RST)

    def plain(protocol: int, payload: bytes) -> bytes:
        return ip.encode(here.ip, there.ip, protocol, payload, 64)

    def about(kind: int, packet: bytes) -> bytes:
        """ICMP, of a type that nobody answers, that quotes a packet."""
        return plain(icmp, struct.pack("!BBHI", kind, 0, 0, 0) + packet)

    ports = struct.pack("!HHHH", own, own, 8, 0)
    wanted = [
        segment(own, 9),
        segment(9, own),
        segment(own, own),
        about(200, segment(own, 9)),
        about(201, segment(9, own)),
        segment(own, 9999),  # the last one: what was sent before it would be here by then
    ]
    unwanted = [segment(own + 1, own - 1), plain(ip.UDP, ports), plain(132, ports)]
    unwanted += [about(202, segment(own + 1, own - 1)), about(203, b"")]
    if version == 4:
        wanted[1:1] = [with_ipv4_option(segment(own, 10)), as_fragment(segment(own, 11), 0, more=True)]
        unwanted += [
            as_fragment(segment(own, 12), 1, more=False),
            as_fragment(segment(own, 13), 0x1FFF, more=True),
        ]
    else:
        fragment_header = struct.pack("!BBHI", ip.TCP, 0, 1 << 3, 99)
        unwanted.append(plain(44, fragment_header + segment(own, 12)[40:]))

    with (
        sniffing(ends.a, ends.at_a.port, version) as sniffer,
        sending(ends.a if leaving else ends.b, version) as sender,
    ):
        for packet in [*unwanted, *wanted]:
            sender.send(packet, there.ip)
        found = await captured(sniffer)

    seen = [item for item in found if item.is_outgoing is leaving and ip.decode(item.data).source == here.ip]
    described = [describe(item.data) for item in seen]
    assert described == [describe(packet) for packet in wanted]


def describe(data: bytes) -> str:
    """Protocol, and the first bytes of what it carries that tell the packets of a test apart."""
    packet = ip.decode(data)
    if packet.protocol == ip.TCP:
        return f"{packet.protocol} {struct.unpack_from('!HH', packet.payload)}"
    return f"{packet.protocol} {packet.payload[0]}"


@either
async def test_the_sniffer_of_one_family_does_not_see_the_other(ends: Ends) -> None:
    other = 10 - ends.version
    with sniffing(ends.a, ends.at_a.port, other) as sniffer, sending(ends.a, ends.version) as sender:
        sender.send(crafted(ends.at_a, ends.at_b, Flags.RST), ends.at_b.ip)
        assert not segments(await captured(sniffer))


async def test_the_sniffer_sees_what_is_injected_into_the_own_stack(ends: Ends) -> None:
    with sniffing(ends.a, ends.at_a.port) as sniffer, sending(ends.a) as sender:
        sender.send(crafted(ends.at_b, ends.at_a, Flags.RST), ends.at_a.ip)
        found = await captured(sniffer)
    assert {item.is_outgoing for item in found} == {True, False}, "on its way into lo, and out of it"
    assert {segment.source_port for segment in segments(found)} == {ends.at_b.port}


async def test_the_sniffer_cuts_long_packets_and_outlives_an_interface(ends: Ends) -> None:
    with sniffing(ends.a, ends.at_a.port) as sniffer, sending(ends.a) as sender:
        ends.a.run(["ip", "link", "add", "gone0", "type", "veth", "peer", "name", "gone1"], check=True)
        ends.a.run(["ip", "link", "set", "gone0", "up"], check=True)
        ends.a.run(["ip", "link", "del", "gone0"], check=True)
        head = crafted(ends.at_a, ends.at_a, Flags.RST)
        sender.send(head + bytes(5000), ends.at_a.ip)
        found = await captured(sniffer)
    assert {len(item.data) for item in found} == {2048}


# --- what forbids it ------------------------------------------------------------------------------------------------


@either
async def test_a_local_firewall_that_forbids_raw_packets_is_named(ends: Ends) -> None:
    chain = f"chain output {{ type filter hook output priority 0;\n tcp sport {ends.at_a.port} drop\n}}"
    rules = f"table inet forbid {{ {chain}\n}}"
    ends.a.run(["nft", "-f", "-"], input=rules.encode(), check=True)
    try:
        with sending(ends.a, ends.version) as sender:
            with pytest.raises(PunchError, match="refused by the local firewall") as caught:
                sender.send(crafted(ends.at_a, ends.at_b, Flags.SYN), ends.at_b.ip)
            assert caught.value.reason is Code.REFUSED
            assert str(ends.at_b.ip) in str(caught.value)
    finally:
        ends.a.run(["nft", "delete", "table", "inet", "forbid"], check=True)


WITHOUT = """
from ipaddress import ip_address
from punchd.endpoint import Endpoint
from punchd.errors import PunchError
from punchd.kernel import raw, sniffer, tcp
from punchd.technique import Agreed
here = Endpoint(ip_address("127.0.0.1"), 0)
for effect in (
    lambda: raw.RawSender(4),
    lambda: raw.RawSender(6),
    lambda: sniffer.Sniffer(4, 1),
    lambda: tcp.begin_connect(here, here, 7),
    lambda: tcp.forge(here, Endpoint(here.ip, 9), Agreed(1, 1, 536, 0, 1000)),
):
    try:
        effect()
    except PunchError as error:
        print(error.reason.value, error)
"""


@pytest.mark.parametrize(
    ("lacking", "said"),
    [
        ("net_raw", ["no-privilege", "no-privilege", "no-privilege"]),
        ("net_admin", ["network", "network"]),
    ],
)
def test_without_a_capability_it_says_which_and_does_nothing(lacking: str, said: list[str]) -> None:
    words = ["setpriv", f"--bounding-set=-{lacking}", f"--inh-caps=-{lacking}", "--", sys.executable, "-c", WITHOUT]
    lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    failed = [line for line in lines if "CAP_NET_RAW" in line or "EPERM" in line]
    assert [line.split()[0] for line in failed] == said
