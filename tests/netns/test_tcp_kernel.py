"""What `punchd.kernel` does to TCP, seen on the wire: silence, chosen numbers, forged connections."""

from __future__ import annotations

import hashlib
import random
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial

import pytest
import trio

from punchd.errors import Code, PunchError
from punchd.kernel.syn_options import syn_options
from punchd.kernel.tcp import begin_connect, close_silently, established, forge, is_synchronized, reserve
from punchd.technique import Agreed
from punchd.wire.tcp import SYN_ACK, Flags
from tests.natlab import Host, Laboratory
from tests.netns.two_hosts import Ends, captured, crafted, either, ends_of, segments, sending, sniffing, two_hosts

pytestmark = pytest.mark.netns

HANG_S = 20.0
TWO_MB = 2 * 1000 * 1000
AGREED = Agreed(send_next=2**32 - 1000, receive_next=5000, mss=1440, window_scale=7, window=64_240)
MIRRORED = replace(AGREED, send_next=AGREED.receive_next, receive_next=AGREED.send_next)


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
        for change in (partial(placeholder.open, ends.at_a.ip), placeholder.deafen):
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
        try:
            with trio.fail_after(HANG_S):
                while not (found := segments([await sniffer.capture()], leaving=True)):
                    pass  # what an earlier test's connection is still sent
        finally:
            close_silently(connecting)
    [sent] = found
    assert (sent.flags & ~(Flags.ECE | Flags.CWR), sent.seq) == (Flags.SYN, isn)


@either
@pytest.mark.parametrize(("mtu", "receive_memory"), [(1500, 6 << 20), (1400, 128 << 20)])
async def test_the_options_that_are_foretold_are_those_of_the_kernels_syn(
    ends: Ends, mtu: int, receive_memory: int
) -> None:
    """But for timestamps. The window scale follows the host's memory limits, the segment size its interface."""
    set_limits(ends.a, mtu, receive_memory)
    try:
        with sniffing(ends.a, ends.at_a.port, ends.version) as sniffer:
            with ends.a.entered():
                foretold = syn_options(ends.at_a.ip, ends.at_b.ip)
                connecting = begin_connect(ends.at_a, ends.at_b)
            with trio.fail_after(HANG_S):
                (sent,) = segments([await sniffer.capture()], leaving=True)
            close_silently(connecting)
    finally:
        set_limits(ends.a, 1500, 6 << 20)
    assert foretold == replace(sent.options, timestamps=None)
    assert foretold.mss == mtu - (60 if ends.version == 6 else 40)
    assert receive_memory < 128 << 20 or foretold.window_scale == 12  # 2^27 bytes in 16 bits


def set_limits(host: Host, mtu: int, receive_memory: int) -> None:
    host.run(["ip", "link", "set", "eth0", "mtu", str(mtu)], check=True)
    host.run(["sysctl", "-q", "-w", f"net.ipv4.tcp_rmem=4096 131072 {receive_memory}"], check=True)


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
    placeholder.open(ends.at_a.ip)
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
