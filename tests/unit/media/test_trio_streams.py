"""What a stream does when its session changes under it; the other side is written out datagram by datagram."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from punchd.media.buffers import Memory
from punchd.media.counters import Count
from punchd.media.datagrams import Ack, ConnectionId, Control, Media, Syn, SynAck, encode, parse
from punchd.media.options import Options
from punchd.media.settings import ReceiverSettings, ResponderSettings, Timing
from punchd.media.trio_initiator import Initiator
from punchd.media.trio_responder import Responder
from tests.unit.media.pairs import PATIENCE_S, Pair, connected, drained, session, until
from tests.unit.media.parts import MIB, A, B, data, fragment

pytestmark = pytest.mark.usefixtures("nothing_is_left_open")

OPTIMISTIC = ResponderSettings(optimistic=True, timing=Timing(first_retry_s=60.0))


@asynccontextmanager
async def responding(
    pair: Pair, *said: Control, rate_bps: float | None = None, **more: Any
) -> AsyncIterator[Responder]:
    """A responder that was told that much."""
    pair[1].setblocking(False)
    with trio.fail_after(PATIENCE_S):
        async with Responder.open(pair[0], rate_bps=rate_bps, **more) as responder:
            for datagram in said:
                pair[1].send(encode(datagram))
            await trio.testing.wait_all_tasks_blocked(0.05)
            yield responder


@asynccontextmanager
async def initiating(pair: Pair, *answers: bytes, **more: Any) -> AsyncIterator[Initiator]:
    """An initiator that gets these answers to its SYN, one read after the other."""
    pair[0].setblocking(False)

    async def answer() -> None:
        await trio.lowlevel.wait_readable(pair[0])
        assert isinstance(parse(pair[0].recv(100)), Syn)
        for datagram in answers:
            pair[0].send(datagram)
            await trio.testing.wait_all_tasks_blocked(0.02)

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            async with Initiator.open(pair[1], desired=A, **more) as initiator:
                yield initiator


async def is_waiting(responder: Responder) -> bool:
    """Whether nobody has asked."""
    with trio.move_on_after(0.1) as scope:
        await responder.accept()
    return scope.cancelled_caught


# --- sending ---------------------------------------------------------------------------------------------------------


async def test_msp_c28_d_23_a_send_that_is_under_way_when_the_id_changes_begins_anew_in_other_numbers(
    pair: Pair,
) -> None:
    async with responding(pair, Syn(A), Ack(A), rate_bps=4e6) as responder:
        stream = await responder.accept()
        pair[1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, MIB)
        came: list[Media] = []

        def take() -> int:
            came.extend(one for one in map(parse, drained(pair[1])) if isinstance(one, Media))
            return len(came)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send, bytes(200_000))
            await until(lambda: take() > 0)
            pair[1].send(encode(ConnectionId(B)))
            await until(lambda: take() > 0 and stream.statistics().logical_sends > 0)
        take()
        assert stream.statistics().logical_sends == 1
    old, new = came[0].sequence, came[-1].sequence
    assert abs(old - new) >= 2**32
    assert {one.sequence for one in came} == {old, new}
    offsets = [one.offset for one in came if one.sequence == new]
    assert offsets == list(range(0, 200_000, 1158))


async def test_d_05_before_the_ack_exactly_three_times_what_came_may_be_used_up(pair: Pair) -> None:
    async with responding(pair, Syn(A), settings=OPTIMISTIC) as responder:
        stream = await responder.accept()
        await stream.send(bytes(3 * 67 - 67 - 39 - 26))
        with trio.move_on_after(0.1) as scope:
            await stream.send(b"")
        assert scope.cancelled_caught
        assert sum(map(len, drained(pair[1]))) == 3 * 67


async def test_d_30_the_other_side_may_not_ask_for_more_than_the_rate(pair: Pair) -> None:
    async with responding(pair, Syn(A, Options(rate=80_000_000)), Ack(A), rate_bps=8e6) as responder:
        assert (await responder.accept()).statistics().rate_bps == 8e6


async def test_d_31_a_limit_that_leaves_no_room_for_a_payload_is_the_least_that_does(pair: Pair) -> None:
    async with responding(pair, Syn(A, Options(max_datagram=1)), Ack(A)) as responder:
        stream = await responder.accept()
        await stream.send(b"0123456789" * 2)
        sizes = {len(one) for one in drained(pair[1]) if isinstance(parse(one), Media)}
    assert sizes == {43}


async def test_pieces_count_as_logical_sends(pair: Pair) -> None:
    async with responding(pair, Syn(A), Ack(A)) as responder:
        stream = await responder.accept()
        await stream.send_pieces(bytes(1000), 100)
        statistics = stream.statistics()
    assert (statistics.logical_sends, statistics.datagrams, statistics.bytes) == (10, 10, 1000)


# --- accepting -------------------------------------------------------------------------------------------------------


async def test_msp_c29_an_optimistic_stream_that_is_asked_for_again_goes_on_under_the_new_id(pair: Pair) -> None:
    async with responding(pair, Syn(A), settings=OPTIMISTIC) as responder:
        stream = await responder.accept()
        pair[1].send(encode(Syn(B, Options(rate=5_000_000))))
        assert await is_waiting(responder)
        assert stream.id == B
        pair[1].send(encode(Ack(B)))
        assert await is_waiting(responder)
        assert stream.options.rate == 5_000_000


async def test_what_has_ended_by_silence_is_not_accepted(pair: Pair) -> None:
    settings = ResponderSettings(timing=Timing(idle_s=0.1, keep_alive_s=60.0))
    async with responding(pair, Syn(A), Ack(A), settings=settings) as responder:
        await trio.sleep(0.3)
        assert await is_waiting(responder)


async def test_an_icmp_error_does_not_end_a_responder(nothing_is_left_open: None) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as there,
    ):
        there.bind(("127.0.0.1", 0))
        place = there.getsockname()
        there.close()
        here.connect(place)
        async with Responder.open(here, rate_bps=None) as responder:
            for _ in range(3):
                here.send(b"nobody is there")
                assert await is_waiting(responder)


# --- receiving -------------------------------------------------------------------------------------------------------


async def test_msp_c27_media_that_came_before_the_syn_ack_are_still_whole_after_it(pair: Pair) -> None:
    early = b"early" * 10
    async with initiating(pair, encode(ConnectionId(A)), data(1, early), encode(SynAck(True, A))) as initiator:
        assert (await initiator.receive()).take() == early


async def test_the_first_name_is_no_change_of_it(pair: Pair) -> None:
    async with initiating(pair, encode(SynAck(True, A))) as initiator:
        with trio.move_on_after(0.1) as scope:
            await initiator.receive_some()
        assert scope.cancelled_caught


async def test_lost_is_what_is_missing_late_timed_out_or_was_lost_under_another_name(pair: Pair) -> None:
    memory = Memory(16 * MIB)
    limits = ReceiverSettings(ordered=True, window_s=0.02, reassembly_timeout_s=0.1)
    async with initiating(pair, encode(SynAck(True, A)), settings=limits, memory=memory) as initiator:
        lost = []

        async def hears(*datagrams: bytes) -> None:
            for datagram in datagrams:
                pair[0].send(datagram)
                with trio.move_on_after(0.05):
                    while True:
                        await initiator.receive_some()
            lost.append(initiator.statistics().lost)

        await hears(data(10), data(13))
        await hears(data(12))
        await hears(fragment(14, 0, 10, b"x"), data(15), data(16))
        await hears(encode(ConnectionId(B)))
        await hears(data(2**40), fragment(2**40 + 1, 0, 10, b"x"))
        assert lost == [2, 2, 3, 3, 3]
        assert initiator.statistics().timeouts == 1
        assert memory.reserved > 0
    assert memory.reserved == 0


async def test_d_27_what_waited_in_the_socket_while_the_program_did_not_receive_is_not_late() -> None:
    def sent(*sequences: int) -> None:
        for sequence in sequences:
            pair[0].send(encode(Media(sequence, 0, 0, memoryview(b"%d" % sequence))))

    settings = ReceiverSettings(ordered=True, window_s=0.1)
    with ExitStack() as stack:
        pair = connected(stack)
        async with session(pair, settings=settings) as (_, initiator):
            sent(1)
            found = [(await initiator.receive()).take()]
            sent(3)
            with trio.move_on_after(0.02):
                await initiator.receive()  # holds it, since 2 may still come
            sent(6, 2, 4)
            await trio.sleep(0.5)
            found += [(await initiator.receive()).take() for _ in range(4)]
            assert found == [b"1", b"2", b"3", b"4", b"6"]
            assert initiator.counters[Count.LATE] == 0


async def test_d_27_a_gap_is_passed_over_in_time_while_nothing_else_comes() -> None:
    with ExitStack() as stack:
        pair = connected(stack)
        async with session(pair, settings=ReceiverSettings(ordered=True, window_s=0.05)) as (_, initiator):
            for sequence in (1, 3):
                pair[0].send(encode(Media(sequence, 0, 0, memoryview(b"%d" % sequence))))
            assert [(await initiator.receive()).take() for _ in range(2)] == [b"1", b"3"]
