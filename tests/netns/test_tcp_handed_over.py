"""The TCP socket that an application gets, beside an ordinary one of the same kernel over a path like its own.

The ordinary connection goes from host a through its NAT to the laboratory's server: the same delays and losses, one NAT
less.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from punchd.kernel.sniffer import Sniffer
from punchd.wire import ip, tcp
from punchd.wire.tcp import Flags
from tests.natlab import Host, Link
from tests.netns.daemons import Talk, until
from tests.netns.tcp_pair import (
    HANG_S,
    LATE_S,
    TECHNIQUES,
    TIME_WAIT,
    Ordinary,
    Pair,
    assert_carries,
    assert_usable,
    connected_to,
    initiation,
    ordinary_pair,
    pair,
    relay,
    sockets,
    states_of,
)
from tests.pair import Outcome, TrioSocket, attempt

pytestmark = pytest.mark.netns

each_technique = pytest.mark.parametrize("technique", TECHNIQUES)

TWO_MB, TWENTY_MB = 2 * 1000 * 1000, 20 * 1000 * 1000
ESTABLISHED = 1  # linux/tcp_states.h
TCP_REPAIR, SO_GET_FILTER = 19, 26  # linux/tcp.h, asm-generic/socket.h
LEVELS = (socket.SOL_SOCKET, socket.IPPROTO_IP, socket.IPPROTO_TCP)
OPTION_NUMBERS = range(1, 100)  # beyond the last of linux/tcp.h, asm-generic/socket.h and linux/in.h
# What differs between any two connections, by (level, number).
OWN_TO_A_CONNECTION = {
    (socket.SOL_SOCKET, 28): "SO_PEERNAME",
    (socket.SOL_SOCKET, 49): "SO_INCOMING_CPU",
    (socket.SOL_SOCKET, 55): "SO_MEMINFO, with the number of segments that were dropped",
    (socket.SOL_SOCKET, 56): "SO_INCOMING_NAPI_ID",
    (socket.SOL_SOCKET, 57): "SO_COOKIE",
    (socket.IPPROTO_IP, 33): "IP_MULTICAST_TTL: an accepted socket's is the TTL that the ACK came with",
    (socket.IPPROTO_IP, 52): "IP_PROTOCOL, of which other kernels know nothing",
    (socket.IPPROTO_TCP, 11): "TCP_INFO, compared apart",
    (socket.IPPROTO_TCP, 24): "TCP_TIMESTAMP, a clock",
    (socket.IPPROTO_TCP, 26): "TCP_CC_INFO",
}
# Twelve bytes of each segment are free where timestamps were not agreed on.
DEPEND_ON_TIMESTAMPS = {
    (socket.IPPROTO_TCP, socket.TCP_MAXSEG): "TCP_MAXSEG",
    (socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP): "TCP_WINDOW_CLAMP",
}
TIMESTAMPS_BYTES = 12
IP_AND_TCP_BYTES = 40


@pytest.fixture(name="ordinary", scope="module")
def _ordinary() -> Iterator[Ordinary]:
    yield from ordinary_pair()


@asynccontextmanager
async def punched(both: Pair, technique: str) -> AsyncIterator[Outcome]:
    """Both sockets of one attempt; they are closed at the end."""
    outcome = await attempt(both.a, both.b, late_s=LATE_S, techniques=technique)
    with closing(outcome):
        assert outcome.connected, outcome.explain()
        yield outcome


def handed_over(outcome: Outcome) -> list[TrioSocket]:
    """Both sides' sockets as they came; a trio stream would set options of its own."""
    return [end.connected.socket for end in (outcome.initiator, outcome.responder) if end.connected is not None]


@asynccontextmanager
async def plain_connection(both: Pair) -> AsyncIterator[tuple[socket.socket, socket.socket]]:
    """An ordinary connection from host a to the server: the end that connected, and the one that accepted."""
    server = both.laboratory.server
    with ExitStack() as owned:
        listener = owned.enter_context(server.socket(socket.AF_INET, socket.SOCK_STREAM))
        listener.bind((str(server.ipv4), 0))
        listener.listen()
        here = owned.enter_context(both.host("a").socket(socket.AF_INET, socket.SOCK_STREAM))
        await trio.to_thread.run_sync(here.connect, listener.getsockname())
        there, _ = listener.accept()
        with there:
            yield here, there


# --- options --------------------------------------------------------------------------------------------------------


@each_technique
async def test_every_option_is_that_of_a_socket_that_connected_or_accepted(ordinary: Ordinary, technique: str) -> None:
    async with connected_to(ordinary) as both, plain_connection(both) as plain, punched(both, technique) as outcome:
        usual = [options_of(own) for own in plain]
        found = [options_of(own) for own in handed_over(outcome)]
    for own in found:
        strange = {
            key: (value, [some[key] for some in usual])
            for key, value in own.items()
            if value not in [some[key] for some in usual] and key not in DEPEND_ON_TIMESTAMPS
        }
        assert not strange
        for key in DEPEND_ON_TIMESTAMPS:
            assert abs(as_number(own[key]) - as_number(usual[0][key])) in (0, TIMESTAMPS_BYTES), key


def options_of(own: socket.socket | TrioSocket) -> dict[tuple[int, int], bytes | int]:
    """Every option that can be read, or the errno that it is refused with, by level and number."""
    found: dict[tuple[int, int], bytes | int] = {}
    for level in LEVELS:
        for number in OPTION_NUMBERS:
            if (level, number) in OWN_TO_A_CONNECTION:
                continue
            try:
                found[level, number] = own.getsockopt(level, number, 256)
            except OSError as error:
                found[level, number] = error.errno or 0
    return found


def as_number(value: bytes | int) -> int:
    return value if isinstance(value, int) else int.from_bytes(value, "little")


@dataclass(frozen=True, slots=True)
class Agreed:
    """What both ends of a connection have agreed on, and segments sent again: struct tcp_info (linux/tcp.h)."""

    state: int
    has_timestamps: bool
    has_sack: bool
    has_scale: bool
    send_scale: int
    receive_scale: int
    advertised_mss: int
    path_mtu: int
    resent: int

    @classmethod
    def of(cls, own: socket.socket | TrioSocket) -> Agreed:
        info = own.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
        options, scales = info[5], info[6]
        (path_mtu,) = struct.unpack_from("I", info, 60)
        (advertised_mss,) = struct.unpack_from("I", info, 84)
        (resent,) = struct.unpack_from("I", info, 100)
        timestamps, sack, scale = (bool(options & 1 << bit) for bit in range(3))
        return cls(info[0], timestamps, sack, scale, scales & 15, scales >> 4, advertised_mss, path_mtu, resent)


@each_technique
async def test_window_scaling_sack_and_mss_are_agreed_on_as_ever(ordinary: Ordinary, technique: str) -> None:
    """Timestamps come only with the technique whose SYNs are the kernels' own."""
    async with connected_to(ordinary) as both, plain_connection(both) as plain, punched(both, technique) as outcome:
        a, b = (Agreed.of(own) for own in handed_over(outcome))
        usual = Agreed.of(plain[0])
    assert (a.send_scale, b.send_scale) == (b.receive_scale, a.receive_scale), "each scales as the other expects"
    for own in (a, b):
        assert own.state == ESTABLISHED
        assert (own.has_sack, own.has_scale) == (usual.has_sack, usual.has_scale) == (True, True)
        assert own.path_mtu == usual.path_mtu
        assert own.path_mtu - IP_AND_TCP_BYTES - own.advertised_mss in (0, TIMESTAMPS_BYTES)
        assert own.has_timestamps == (technique == "tcp-nutss")
        if technique != "tcp-repair":
            assert own.receive_scale == usual.receive_scale


@each_technique
async def test_hosts_with_other_memory_limits_still_scale_windows_as_the_other_expects(technique: str) -> None:
    async with pair("apdf", "apdf") as both:
        for name, most in (("a", 1 << 20), ("b", 128 << 20)):
            both.host(name).run(["sysctl", "-q", "-w", f"net.ipv4.tcp_rmem=4096 131072 {most}"], check=True)
        async with punched(both, technique) as outcome:
            a, b = (Agreed.of(own) for own in handed_over(outcome))
            await assert_usable(outcome, size=TWO_MB)
    assert (a.send_scale, b.send_scale) == (b.receive_scale, a.receive_scale)
    assert technique == "tcp-repair" or a.receive_scale < b.receive_scale == 12


@each_technique
async def test_the_socket_is_established_blocking_and_as_the_kernel_makes_them(
    ordinary: Ordinary, technique: str
) -> None:
    async with connected_to(ordinary) as both, punched(both, technique) as outcome:
        for end in (outcome.initiator, outcome.responder):
            assert end.connected is not None
            own = end.connected.socket
            assert own.getsockname() == end.connected.local.sockaddr
            assert own.getpeername() == end.connected.remote.sockaddr
            assert own.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == ESTABLISHED
            assert own.getsockopt(socket.IPPROTO_IP, socket.IP_TTL) == 64
            assert own.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
            assert own.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 0
            assert own.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0
            assert own.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == bytes(8)
            assert own.getsockopt(socket.IPPROTO_TCP, TCP_REPAIR) == 0
            assert attached_filter(own) == 0


def attached_filter(own: TrioSocket) -> int:
    """Instructions of a socket's filter; 0: it has none."""
    return len(own.getsockopt(socket.SOL_SOCKET, SO_GET_FILTER, 1024))  # the kernel says how many there are


@each_technique
async def test_a_descriptor_arrives_blocking(ordinary: Ordinary, technique: str) -> None:
    """The trio client makes its own non-blocking; so both descriptors are taken as they come over the Unix socket."""
    async with connected_to(ordinary) as both:
        flags = await trio.to_thread.run_sync(raw_descriptor_flags, both, technique)
        assert [bits & os.O_NONBLOCK for bits in flags] == [0, 0]


def raw_descriptor_flags(both: Pair, technique: str) -> list[int]:
    """fcntl's flags of both sides' descriptors, from an attempt in plain lines."""
    with ExitStack() as owned:
        a, b = (owned.enter_context(Talk(Path(daemon.path))) for daemon in both.daemons)
        relay(a, b, initiation(b, technique))
        for end in (a, b):
            assert end.fds, "no descriptor came"
        return [fcntl.fcntl(end.fds[0], fcntl.F_GETFL) for end in (a, b)]


# --- data -----------------------------------------------------------------------------------------------------------


@each_technique
async def test_two_megabytes_each_way_arrive_unaltered_and_the_first_byte_is_the_applications(
    ordinary: Ordinary, technique: str
) -> None:
    async with connected_to(ordinary) as both, punched(both, technique) as outcome:
        await assert_usable(outcome, size=TWO_MB)


@pytest.mark.timeout(600)
@each_technique
async def test_twenty_megabytes_each_way_at_one_percent_loss_arrive_unaltered(technique: str) -> None:
    """4 ms from host to host and back, half a percent lost on each of two cables."""
    lossy = [Link(delay_s=0.001, loss=0.005, seed=seed) for seed in range(3)]
    async with (
        pair("apdf", "apdf", links=lossy, server_link=lossy[2]) as both,
        punched(both, technique) as outcome,
        plain_connection(both) as plain,
    ):
        ends = sockets(outcome)
        ours_s = await assert_carries(ends, TWENTY_MB, outcome.explain(), hang_s=300)
        resent = [Agreed.of(own.socket).resent for own in ends]
        for own in plain:
            own.setblocking(False)
        streams = [trio.SocketStream(trio.socket.from_stdlib_socket(own)) for own in plain]
        plain_s = await assert_carries(streams, TWENTY_MB, "an ordinary connection", hang_s=300)
    print(f"{technique}: {ours_s:.2f} s, an ordinary connection {plain_s:.2f} s, ratio {ours_s / plain_s:.2f}")
    # 13,700 segments at the least, of which one in a hundred is lost; the kernel finds none of the losses by accident
    assert min(resent) > 50, resent


# --- the end --------------------------------------------------------------------------------------------------------


@each_technique
async def test_a_half_close_is_the_end_for_one_direction_only(ordinary: Ordinary, technique: str) -> None:
    async with connected_to(ordinary) as both:
        for turn in (1, -1):
            async with punched(both, technique) as outcome:
                first, second = sockets(outcome)[::turn]
                with trio.fail_after(HANG_S):
                    await first.send_eof()
                    assert await second.receive_some() == b""
                    await second.send_all(b"still here")
                    assert await first.receive_some() == b"still here"
                    await second.send_eof()
                    assert await first.receive_some() == b""


@pytest.mark.parametrize("closer", ["initiator", "responder"])
@each_technique
async def test_closing_sends_a_fin_and_no_rst_and_ends_in_time_wait(
    ordinary: Ordinary, technique: str, closer: str
) -> None:
    async with connected_to(ordinary) as both, punched(both, technique) as outcome:
        turn = 1 if closer == "initiator" else -1
        first, second = sockets(outcome)[::turn]
        host = both.host("a" if closer == "initiator" else "b")
        port = first.socket.getsockname()[1]
        with host.entered():
            sniffer = Sniffer(4, port)
        try:
            first.socket.close()
            with trio.fail_after(HANG_S):
                assert await second.receive_some() == b"", "the end of the data, no error"
                second.socket.close()
            await trio.to_thread.run_sync(
                until, lambda: states_of(host, port) == [TIME_WAIT], "it waits for stragglers"
            )
            seen = await flags_seen(sniffer)
        finally:
            sniffer.close()
    assert {is_outgoing for is_outgoing, flags in seen if flags & Flags.FIN} == {True, False}
    assert not [flags for _, flags in seen if flags & Flags.RST]


async def flags_seen(sniffer: Sniffer, quiet_s: float = 0.1) -> list[tuple[bool, Flags]]:
    """Of each segment that was captured so far: whether it was leaving, and its flags."""
    found: list[tuple[bool, Flags]] = []
    while True:
        with trio.move_on_after(quiet_s) as patience:
            captured = await sniffer.capture()
            packet = ip.decode(captured.data)
            if packet.protocol == ip.TCP:
                found.append((captured.is_outgoing, tcp.decode(packet.payload).flags))
        if patience.cancelled_caught:
            return found


@each_technique
async def test_a_keepalive_holds_a_living_connection_and_ends_a_dead_one(ordinary: Ordinary, technique: str) -> None:
    async with connected_to(ordinary) as both, punched(both, technique) as outcome:
        own = sockets(outcome)[0].socket
        for option, value in ((socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 2)):
            own.setsockopt(socket.IPPROTO_TCP, option, value)
        with both.host("a").entered():
            sniffer = Sniffer(4, own.getsockname()[1])
        try:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            with trio.move_on_after(3.5):  # three probes, and one more than would be forgiven
                assert not await own.recv(1), "nobody sends anything"
            probes = await flags_seen(sniffer)
        finally:
            sniffer.close()
        assert Agreed.of(own).state == ESTABLISHED
        assert {is_outgoing for is_outgoing, _ in probes} == {True, False}, "probes, and answers to them"
        with cut_off(both.host("b")), trio.fail_after(HANG_S), pytest.raises(TimeoutError):
            await own.recv(1)


@contextmanager
def cut_off(host: Host) -> Iterator[None]:
    """No TCP segment reaches the host."""
    rules = (
        "table inet cut {\n chain input {\n type filter hook prerouting priority raw;\n meta l4proto tcp drop\n }\n}\n"
    )
    host.run(["nft", "-f", "-"], input=rules.encode(), check=True)
    try:
        yield
    finally:
        host.run(["nft", "delete", "table", "inet", "cut"], check=True)
