"""Both ends on real sockets of loopback."""

from __future__ import annotations

import random
import socket
import time
from contextlib import ExitStack

import pytest
import trio
import trio.testing

from punchd.media.counters import Count, Counters
from punchd.media.datagrams import Ack, Media, Syn, encode, parse
from punchd.media.mmsg import UDP_GRO
from punchd.media.options import Options
from punchd.media.settings import ReceiverSettings
from punchd.media.sockets import SessionEndedError
from punchd.media.trio_initiator import Initiator
from punchd.media.trio_responder import Responder
from tests.unit.media.pairs import (
    PATIENCE_S,
    WAYS,
    Pair,
    carried,
    connected,
    drained_blocking,
    session,
)
from tests.unit.media.parts import A

pytestmark = pytest.mark.usefixtures("nothing_is_left_open")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
async def test_msp_c19_msp_c20_logical_sends_of_any_length_arrive_in_every_way(way: str, family: int) -> None:
    payloads = [random.Random(size).randbytes(size) for size in (0, 1, 15, 1174, 1175, 16_384, 65_536, 150_000)]
    with ExitStack() as stack:
        async with session(connected(stack, family), WAYS[way]) as (stream, initiator):
            assert await carried(stream, initiator, payloads) == payloads
            sent, received = stream.statistics(), initiator.statistics()
    total = sum(map(len, payloads))
    assert (sent.bytes, sent.logical_sends) == (received.bytes, received.logical_sends) == (total, len(payloads))
    assert sent.datagrams == received.datagrams
    assert (received.lost, received.duplicates, received.kernel_drops, received.invalid) == (0, 0, 0, 0)
    expected = {
        "all": ("gso+numpy", "gro+recvmmsg+numpy"),
        "stdlib": ("gso+stdlib", "gro+recvmmsg+stdlib"),
        "datagram-wise": ("sendmmsg+numpy", "recvmmsg+numpy"),
        "no-mmsg": ("gso+numpy", "gro+recvmsg+numpy"),
        "nothing": ("send+stdlib", "recvmsg+stdlib"),
    }
    assert (sent.path, received.path) == expected[way]


@pytest.mark.parametrize("way", WAYS)
async def test_sockets_that_are_only_bound_serve_many_and_hear_one(way: str) -> None:
    with ExitStack() as stack:
        here, *others, stranger = (
            stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(4)
        )
        for sock in (here, *others, stranger):
            sock.bind(("127.0.0.1", 0))
        found: list[bytes] = []

        async def take(sock: socket.socket) -> None:
            async with Initiator.open(sock, peer=here.getsockname(), fast=WAYS[way]) as initiator:
                stranger.sendto(encode(Media(1, 0, 0, memoryview(b"forged"))), sock.getsockname())
                found.append((await initiator.receive()).take())
                assert initiator.counters[Count.UNKNOWN_TUPLE] == 1

        with trio.fail_after(PATIENCE_S):
            async with Responder.open(here, rate_bps=None, fast=WAYS[way]) as responder, trio.open_nursery() as nursery:
                for sock in others:
                    nursery.start_soon(take, sock)
                for _ in others:
                    stream = await responder.accept()
                    await trio.testing.wait_all_tasks_blocked(0.05)
                    await stream.send(str(stream.peer[1]).encode() * 5000)
        assert sorted(found) == sorted(str(sock.getsockname()[1]).encode() * 5000 for sock in others)


async def test_pieces_share_batches_and_have_numbers_of_their_own(pair: Pair) -> None:
    data = random.Random(2).randbytes(1128 * 200 + 376)
    async with session(pair) as (stream, initiator):
        await stream.send_pieces(data, 1128)
        await stream.send_pieces(data[:50_000], 20_000)
        found: list[bytes] = []
        while len(found) < 204:
            found += [bytes(one.payload) for one in await initiator.receive_some()]
    assert b"".join(found) == data + data[:50_000]
    assert {len(one) for one in found} == {1128, 376, 20_000, 10_000}


async def test_the_socket_stays_as_it_was_and_its_owners(pair: Pair) -> None:
    """With NumPy or not, cancelled or not."""
    for sock in pair:
        assert sock.getblocking()
    async with session(pair) as (stream, initiator):
        assert pair[1].getsockopt(socket.IPPROTO_UDP, UDP_GRO) == 1
        await carried(stream, initiator, [b"x" * 5000])
    with trio.move_on_after(0.05):
        async with Initiator.open(pair[1]):
            raise AssertionError("nobody is there")
    for sock in pair:
        assert sock.getblocking()
        assert sock.getsockopt(socket.IPPROTO_UDP, UDP_GRO) == 0
    pair[0].settimeout(5)
    while not parse(pair[0].recv(100)):
        pass
    pair[0].send(b"mine")
    pair[1].settimeout(5)
    while pair[1].recv(2000) != b"mine":
        pass


async def test_sockets_of_trio_will_do_and_others_are_refused(pair: Pair) -> None:
    async with session(tuple(map(trio.socket.from_stdlib_socket, pair))) as (stream, initiator):  # type: ignore[arg-type]
        assert await carried(stream, initiator, [b"x"]) == [b"x"]
    with socket.socket() as tcp, pytest.raises(ValueError, match="expected a UDP socket"):
        async with Initiator.open(tcp):
            pass
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound, pytest.raises(ValueError, match="connected"):
        async with Initiator.open(bound):
            pass


async def test_d_27_in_order_what_waits_for_a_lost_send_comes_when_its_time_is_over(pair: Pair) -> None:
    limits = ReceiverSettings(ordered=True, window_s=0.1)
    async with session(pair, settings=limits) as (stream, initiator):
        assert await carried(stream, initiator, [b"0"]) == [b"0"]
        stream._take_numbers(1)  # one that is lost
        for payload in (b"2", b"3"):
            await stream.send(payload)
        assert [(await initiator.receive()).take() for _ in range(2)] == [b"2", b"3"]
        assert initiator.statistics().lost == 1


async def test_d_28_a_batch_has_one_sample_of_the_clock_of_when_it_was_sent(pair: Pair) -> None:
    async with Responder.open(pair[0], rate_bps=None) as responder:
        pair[1].send(encode(Syn(A)))
        pair[1].send(encode(Ack(A)))
        with trio.fail_after(PATIENCE_S):
            stream = await responder.accept()
            before = time.perf_counter_ns()
            await stream.send(bytes(90_000))
            after = time.perf_counter_ns()
    came = [parse(one) for one in drained_blocking(pair[1])]
    samples = [one.qpc for one in came if isinstance(one, Media)]
    assert [samples.count(one) for one in sorted(set(samples))] == [54, 24]
    assert before <= min(samples) < max(samples) <= after
    assert {one.qpf for one in came if isinstance(one, Media)} == {10**9}


async def test_d_30_a_rate_is_kept_to_and_the_other_side_may_ask_for_less(pair: Pair) -> None:
    async with session(pair, rate_bps=80e6, options=Options(rate=8_000_000)) as (stream, _):
        began_at = trio.current_time()
        for _ in range(4):
            await stream.send(bytes(60_000))
        # 252,912 bytes with headers, of which 65,507 at once and 62,000 are the last batch
        assert trio.current_time() - began_at > 0.1
        assert stream.statistics().rate_bps == 8e6


async def test_msp_c15_the_limits_of_the_other_side_hold(pair: Pair) -> None:
    limits = ReceiverSettings(max_total=100_000)
    options = Options(max_datagram=600)
    async with session(pair, settings=limits, options=options) as (stream, initiator):
        assert stream.options == Options(100_000, 600)
        with pytest.raises(ValueError, match="at most 100000 bytes"):
            await stream.send(bytes(100_001))
        await carried(stream, initiator, [bytes(100_000)])
        assert stream.statistics().datagram_size == 600


async def test_what_the_kernel_drops_is_counted(pair: Pair) -> None:
    async with session(pair) as (stream, initiator):
        pair[1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 100_000)
        for _ in range(200):
            await stream.send(bytes(16_000))
        await stream.send(b"last")
        statistics = initiator.statistics()
        assert statistics.kernel_drops > 0
        with trio.move_on_after(0.3):
            while True:
                await initiator.receive_some()
        after = initiator.statistics()
        assert after.logical_sends < 201
        assert after.kernel_drops >= statistics.kernel_drops


async def test_an_icmp_error_is_no_end(pair: Pair) -> None:
    """The other side's port is closed for a while."""
    async with session(pair) as (stream, initiator):
        where = pair[1].getsockname()
        pair[0].connect(("127.0.0.1", 9))
        for _ in range(3):
            await stream.send(b"x" * 5000)
        pair[0].connect(where)
        assert await carried(stream, initiator, [b"y" * 5000]) == [b"y" * 5000]


async def test_a_receiver_can_be_cancelled_and_goes_on(pair: Pair) -> None:
    async with session(pair) as (stream, initiator):
        with trio.move_on_after(0.05) as scope:
            await initiator.receive()
        assert scope.cancelled_caught
        assert await carried(stream, initiator, [b"x"]) == [b"x"]
        with trio.CancelScope() as scope:
            scope.cancel()
            await stream.send(b"x" * 1_000_000)
        assert scope.cancelled_caught
        await stream.send(b"y")
        assert (await initiator.receive()).take() == b"y"


async def test_errors_of_the_block_come_out_as_they_are(pair: Pair) -> None:
    with pytest.raises(KeyError):
        async with session(pair):
            raise KeyError
    counters = Counters()
    async with session(pair, counters=counters) as (stream, initiator):
        await carried(stream, initiator, [b"x"])
    assert counters[Count.COMPLETED] == 1


async def test_a_stream_that_is_closed_takes_no_more(pair: Pair) -> None:
    async with session(pair) as (stream, _):
        stream.close()
        with pytest.raises(SessionEndedError, match="closed"):
            await stream.send(b"x")
