"""What `punchd.kernel` does to TCP, seen on the wire between two hosts: silence, chosen numbers, forged connections.

"Nothing is sent" is asserted by a second packet that was sent later and is there: a sniffer keeps the order.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_address

import pytest
import trio

from punchd.endpoint import Endpoint
from punchd.errors import Code, PunchError
from punchd.kernel.raw import RawSender
from punchd.kernel.sniffer import Captured, Sniffer
from punchd.kernel.tcp import begin_connect, close_silently, established, forge, is_synchronized, reserve
from punchd.technique import Agreed
from punchd.wire import ip, tcp
from punchd.wire.tcp import SYN_ACK, Flags, Options, Segment
from tests.natlab import Host, Laboratory, Link, Site

pytestmark = pytest.mark.netns

HANG_S = 20.0
QUIET_S = 0.15  # a kernel's answer crosses four namespaces in far less than a millisecond
FRESH_PORTS = itertools.count(30000, 10)  # each test has its own: what one leaves behind is not in the next one's way
TWO_MB = 2 * 1000 * 1000
AGREED = Agreed(send_next=2**32 - 1000, receive_next=5000, mss=1440, window_scale=7, window=64_240)
MIRRORED = replace(AGREED, send_next=AGREED.receive_next, receive_next=AGREED.send_next)

either = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture(name="laboratory", scope="module")
def _laboratory() -> Iterator[Laboratory]:
    # a delay of a millisecond: without any, packets come back inside the call that sends
    with Laboratory([Site(name, wan=Link(delay_s=0.001)) for name in "ab"], stun=False) as laboratory:
        yield laboratory


@dataclass(frozen=True, slots=True)
class Ends:
    """Host a and host b, their addresses of one family, with the ports that are used here."""

    a: Host
    b: Host
    at_a: Endpoint
    at_b: Endpoint

    @property
    def version(self) -> int:
        return self.at_a.ip.version


@pytest.fixture(name="version")
def _version() -> int:
    """Of IP; tests marked `either` take both."""
    return 4


@pytest.fixture(name="ends")
def _ends(laboratory: Laboratory, version: int) -> Ends:
    a, b = (laboratory.site(name).host for name in "ab")
    port = next(FRESH_PORTS)
    addresses = [ip_address(str(host.ipv6) if version == 6 else host.ipv4) for host in (a, b)]
    return Ends(a, b, Endpoint(addresses[0], port), Endpoint(addresses[1], port + 5))


@contextmanager
def sniffing(host: Host, port: int, version: int = 4) -> Iterator[Sniffer]:
    with host.entered():
        sniffer = Sniffer(version, port)
    try:
        yield sniffer
    finally:
        sniffer.close()


@contextmanager
def sending(host: Host, version: int = 4) -> Iterator[RawSender]:
    with host.entered():
        sender = RawSender(version)
    try:
        yield sender
    finally:
        sender.close()


async def captured(sniffer: Sniffer, within_s: float = QUIET_S) -> list[Captured]:
    """All that comes until it has been quiet for so long."""
    found: list[Captured] = []
    with trio.move_on_after(within_s) as scope:
        while True:
            found.append(await sniffer.capture())
            scope.deadline = trio.current_time() + within_s
    return found


def segments(packets: list[Captured], *, leaving: bool | None = None) -> list[Segment]:
    return [
        tcp.decode(packet.payload)
        for item in packets
        if leaving in (None, item.is_outgoing) and (packet := ip.decode(item.data)).protocol == ip.TCP
    ]


def crafted(source: Endpoint, destination: Endpoint, flags: Flags, seq: int = 7, ack: int = 0) -> bytes:
    segment = Segment(source.port, destination.port, seq, ack, flags, 1000, Options(mss=1000))
    payload = tcp.encode(segment, source.ip, destination.ip)
    return ip.encode(source.ip, destination.ip, ip.TCP, payload, 64)


# --- silence --------------------------------------------------------------------------------------------------------


@either
@pytest.mark.parametrize("flags", [Flags.SYN, SYN_ACK, Flags.ACK, Flags.FIN | Flags.ACK], ids=str)
async def test_a_deaf_placeholder_answers_nothing_where_a_closed_port_answers_rst(ends: Ends, flags: Flags) -> None:
    with ends.b.entered():
        placeholder = reserve(ends.at_b)
    with sniffing(ends.b, ends.at_b.port, ends.version) as sniffer, sending(ends.a, ends.version) as sender:
        packet = crafted(ends.at_a, ends.at_b, flags)
        sender.send(packet, ends.at_b.ip)
        held = await captured(sniffer)
        placeholder.close()
        sender.send(packet, ends.at_b.ip)
        closed = await captured(sniffer)
    assert [segment.flags for segment in segments(held)] == [flags], "it came, and nothing left"
    (answer,) = segments(closed, leaving=True)
    assert answer.flags & Flags.RST


async def test_an_open_placeholder_answers_a_syn_and_a_deafened_one_no_longer(ends: Ends) -> None:
    with ends.b.entered():
        placeholder = reserve(ends.at_b)
    with sniffing(ends.b, ends.at_b.port) as sniffer, sending(ends.a) as sender:
        packet = crafted(ends.at_a, ends.at_b, Flags.SYN)
        answers = []
        for change in (placeholder.open, placeholder.deafen):
            change()
            sender.send(packet, ends.at_b.ip)
            left = segments(await captured(sniffer), leaving=True)
            answers.append([segment.flags for segment in left if segment.flags == SYN_ACK])
        placeholder.close()
    assert answers == [[SYN_ACK], []]


@either
async def test_a_connection_that_is_closed_silently_sends_neither_fin_nor_rst(ends: Ends) -> None:
    async with connected(ends) as (_, connection):
        with sniffing(ends.b, ends.at_b.port, ends.version) as sniffer:
            close_silently(connection)
            assert not segments(await captured(sniffer), leaving=True)


async def test_a_connection_that_is_closed_as_usual_sends_fin(ends: Ends) -> None:
    async with connected(ends) as (_, connection):
        with sniffing(ends.b, ends.at_b.port) as sniffer:
            connection.close()
            left = segments(await captured(sniffer), leaving=True)
    assert any(segment.flags & Flags.FIN for segment in left)


async def test_a_handshake_that_is_closed_silently_sends_nothing_more(ends: Ends) -> None:
    """Not even its SYN again, which a kernel repeats after a second."""
    with ends.b.entered():
        placeholder = reserve(ends.at_b)
    with sniffing(ends.a, ends.at_a.port) as sniffer:
        with ends.a.entered():
            connecting = begin_connect(ends.at_a, ends.at_b)
        assert len(segments(await captured(sniffer), leaving=True)) == 1
        close_silently(connecting)
        assert not segments(await captured(sniffer, 1.2), leaving=True)
    placeholder.close()


# --- chosen numbers -------------------------------------------------------------------------------------------------


@either
@pytest.mark.parametrize("isn", [1, 2**31 - 1, 2**31, 2**32 - 1])
async def test_the_chosen_initial_sequence_number_is_that_of_the_syn(ends: Ends, isn: int) -> None:
    with sniffing(ends.a, ends.at_a.port, ends.version) as sniffer:
        with ends.a.entered():
            connecting = begin_connect(ends.at_a, ends.at_b, isn)
        with trio.fail_after(HANG_S):
            (sent,) = segments([await sniffer.capture()], leaving=True)
        close_silently(connecting)
    assert (sent.flags & ~(Flags.ECE | Flags.CWR), sent.seq) == (Flags.SYN, isn)


async def test_a_connection_with_a_chosen_number_works(ends: Ends) -> None:
    async with connected(ends) as (here, there):
        here.setblocking(True)
        there.setblocking(True)
        here.send(b"x")
        assert there.recv(10) == b"x"


@asynccontextmanager
async def connected(ends: Ends) -> AsyncIterator[tuple[socket.socket, socket.socket]]:
    """An ordinary connection from a to b, with an initial sequence number that wraps at once."""
    with ends.b.entered():
        placeholder = reserve(ends.at_b)
    placeholder.open()
    with ends.a.entered():
        here = begin_connect(ends.at_a, ends.at_b, 2**32 - 1)
    there: socket.socket | None = None
    try:
        with trio.fail_after(HANG_S):
            assert await established(here) == 0
            there, _ = await placeholder.accept()
        yield here, there
    finally:
        for own in (here, there):
            if own is not None and own.fileno() >= 0:
                close_silently(own)
        placeholder.close()


# --- forged connections ---------------------------------------------------------------------------------------------


@contextmanager
def forged(ends: Ends) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection that nobody has asked for."""
    with ends.a.entered():
        here = forge(ends.at_a, ends.at_b, AGREED)
    with ends.b.entered():
        there = forge(ends.at_b, ends.at_a, MIRRORED)
    try:
        assert is_synchronized(here)
        assert is_synchronized(there)
        yield here, there
    finally:
        for own in (here, there):
            if own.fileno() >= 0:
                close_silently(own)


@either
async def test_forged_connections_carry_two_megabytes_each_way_and_end_one_way_at_a_time(ends: Ends) -> None:
    with forged(ends) as pair:
        streams = [trio.SocketStream(trio.socket.from_stdlib_socket(own)) for own in pair]
        sent = [random.Random(seed).randbytes(TWO_MB) for seed in (1, 2)]
        received = [bytearray(), bytearray()]

        async def send(index: int) -> None:
            await streams[index].send_all(sent[index])
            await streams[index].send_eof()

        async def receive(index: int) -> None:
            async for chunk in streams[index]:
                received[index] += chunk

        with trio.fail_after(HANG_S):
            async with trio.open_nursery() as nursery:
                for index in (0, 1):
                    nursery.start_soon(send, index)
                    nursery.start_soon(receive, index)
        assert [hashlib.sha256(data).digest() for data in received] == [
            hashlib.sha256(data).digest() for data in reversed(sent)
        ]


async def test_a_forged_connection_ended_by_one_side_still_carries_the_others_data(ends: Ends) -> None:
    with forged(ends) as (here, there):
        here.setblocking(True)
        there.setblocking(True)
        for own in (here, there):
            own.settimeout(HANG_S)
        here.shutdown(socket.SHUT_WR)
        assert there.recv(1) == b""
        there.send(b"still here")
        assert here.recv(100) == b"still here"


async def test_a_forged_connection_says_nothing_by_itself_and_answers_a_keepalive(ends: Ends) -> None:
    with sniffing(ends.a, ends.at_a.port) as sniffer, forged(ends) as (here, there):
        assert not segments(await captured(sniffer)), "neither connect() nor the end of repair mode sends"
        here.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
        here.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        found = segments(await captured(sniffer, 1.5))
        assert is_synchronized(here)
        assert is_synchronized(there)
    assert [(segment.source_port, segment.seq, segment.ack) for segment in found[:2]] == [
        (ends.at_a.port, AGREED.send_next - 1, AGREED.receive_next),
        (ends.at_b.port, AGREED.receive_next, AGREED.send_next),
    ]


@pytest.mark.parametrize(
    "wrong",
    [replace(AGREED, mss=2**40), replace(AGREED, window=-1)],
    ids=["mss", "window"],
)
async def test_numbers_that_are_none_are_refused_and_leave_no_socket(ends: Ends, wrong: Agreed) -> None:
    with ends.a.entered():
        with pytest.raises(PunchError) as caught:
            forge(ends.at_a, ends.at_b, wrong)
        assert caught.value.reason is Code.NETWORK
        reserve(ends.at_a).close()  # nobody holds the port


# --- the sniffer ----------------------------------------------------------------------------------------------------


def with_ipv4_option(packet: bytes) -> bytes:
    """The same with four bytes of padding as an IPv4 option; the kernel mends length and checksum."""
    return bytes((0x46,)) + packet[1:2] + struct.pack("!H", len(packet) + 4) + packet[4:20] + b"\1\1\1\0" + packet[20:]


def as_fragment(packet: bytes, units: int, *, more: bool) -> bytes:
    """The same, but said to be a fragment at so many units of eight bytes."""
    return packet[:4] + struct.pack("!HH", 99, units | (0x2000 if more else 0)) + packet[8:]


@pytest.mark.parametrize("leaving", [True, False], ids=["leaving", "coming"])
@either
async def test_the_sniffer_passes_tcp_of_its_port_and_icmp_and_nothing_else(ends: Ends, leaving: bool) -> None:
    here, there = (ends.at_a, ends.at_b) if leaving else (ends.at_b, ends.at_a)
    version, own = ends.version, ends.at_a.port
    icmp = ip.ICMPV6 if version == 6 else ip.ICMP
    error = struct.pack("!BBHI", 200, 0, 0, 0)  # of a type that nobody answers

    def segment(source: int, destination: int) -> bytes:
        return crafted(Endpoint(here.ip, source), Endpoint(there.ip, destination), Flags.RST)

    def plain(protocol: int, payload: bytes) -> bytes:
        return ip.encode(here.ip, there.ip, protocol, payload, 64)

    ports = struct.pack("!HHHH", own, own, 8, 0)
    wanted = [
        segment(own, 9),
        segment(9, own),
        segment(own, own),
        plain(icmp, error),
        segment(own, 9999),  # the last one: what was sent before it would be here by then
    ]
    unwanted = [segment(own + 1, own - 1), plain(ip.UDP, ports), plain(132, ports)]
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
    neighbours = {f"{icmp} {kind}" for kind in (135, 136)}  # IPv6's own
    assert [text for text in described if text not in neighbours] == [describe(packet) for packet in wanted]


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
