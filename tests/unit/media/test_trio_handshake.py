"""The handshake, identity and silence, between both ends on real sockets of loopback."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from punchd.media.counters import Count
from punchd.media.datagrams import Ack, ConnectionId, Media, Syn, SynAck, encode, parse
from punchd.media.moves import Why
from punchd.media.options import Options
from punchd.media.settings import ResponderSettings, Timing
from punchd.media.sockets import SessionEndedError
from punchd.media.trio_initiator import Initiator
from punchd.media.trio_responder import Responder
from tests.unit.media.pairs import (
    PATIENCE_S,
    QUICK,
    Pair,
    carried,
    drained,
    drained_blocking,
    session,
    until,
)
from tests.unit.media.parts import A, B

pytestmark = pytest.mark.usefixtures("nothing_is_left_open")


async def test_msp_c17_an_initiator_that_nobody_answers_gives_up_after_its_tries(pair: Pair) -> None:
    with pytest.raises(SessionEndedError, match="does not answer") as caught:
        async with Initiator.open(pair[1], timing=QUICK):
            pass
    assert caught.value.why is Why.UNANSWERED
    pair[0].setblocking(False)
    assert [type(parse(pair[0].recv(100))) for _ in range(3)] == [Syn] * 3
    with pytest.raises(BlockingIOError):
        pair[0].recv(100)


async def test_msp_c18_a_refusal_ends_the_attempt_with_the_responders_words(pair: Pair) -> None:
    async with Responder.open(pair[0], rate_bps=None, admit=lambda *_: b"not today"):
        with trio.fail_after(PATIENCE_S), pytest.raises(SessionEndedError, match="refused it: not today"):
            async with Initiator.open(pair[1]):
                pass


async def test_msp_c24_the_syn_is_repeated_until_there_is_a_responder(pair: Pair) -> None:
    async def answer() -> None:
        lost: list[bytes] = []
        while len(lost) < 2:
            await trio.sleep(0.02)
            lost += drained_blocking(pair[0])
        async with Responder.open(pair[0], rate_bps=None) as responder:
            await (await responder.accept()).send(b"late")
            await trio.sleep_forever()

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            async with Initiator.open(pair[1], timing=Timing(first_retry_s=0.05)) as initiator:
                assert (await initiator.receive()).take() == b"late"
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("optimistic", "most"), [(False, 67), (True, 3 * 67)])
async def test_d_05_who_has_not_shown_that_it_gets_what_is_sent_gets_three_times_its_bytes(
    pair: Pair, optimistic: bool, most: int
) -> None:
    pair[1].setblocking(False)
    settings = ResponderSettings(optimistic=optimistic, timing=Timing(first_retry_s=60.0))
    async with Responder.open(pair[0], rate_bps=None, settings=settings) as responder, trio.open_nursery() as nursery:

        async def send() -> None:
            await (await responder.accept()).send(b"x" * 60_000)

        nursery.start_soon(send)
        pair[1].send(encode(Syn(A)))
        await trio.testing.wait_all_tasks_blocked(0.1)
        came = drained(pair[1])
        assert [type(parse(one)) for one in came] == [SynAck, ConnectionId][: 1 + optimistic]
        assert sum(map(len, came)) <= most
        pair[1].send(encode(Ack(A)))
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert sum(isinstance(parse(one), Media) for one in drained(pair[1])) == 52


async def test_d_05_over_a_path_that_is_validated_media_follow_the_syn_ack_at_once(pair: Pair) -> None:
    settings = ResponderSettings(optimistic=True, path_validated=True)
    async with Responder.open(pair[0], rate_bps=None, settings=settings) as responder:
        pair[1].send(encode(Syn(A)))
        with trio.fail_after(PATIENCE_S):
            await (await responder.accept()).send(b"x" * 60_000)


async def test_d_29_both_sides_repeat_the_connection_id_to_keep_the_nats_open(pair: Pair) -> None:
    async with session(pair, timing=QUICK, responding=ResponderSettings(timing=QUICK)) as (stream, initiator):
        with trio.move_on_after(0.5):
            await initiator.receive()
        assert initiator.id == stream.id
    ids = [one for one in drained_blocking(pair[0]) if isinstance(parse(one), ConnectionId)]
    assert len(ids) == 0  # the responder has read them, since it lives of them
    async with Responder.open(pair[0], rate_bps=None, settings=ResponderSettings(timing=QUICK)):
        pair[1].send(encode(Syn(B)))
        pair[1].send(encode(Ack(B)))
        await trio.sleep(0.5)
    came = [parse(one) for one in drained_blocking(pair[1])]
    assert came.count(ConnectionId(B)) >= 4


async def test_silence_ends_a_session_and_a_send_says_so(pair: Pair) -> None:
    quiet = Timing(idle_s=0.2, keep_alive_s=60.0)
    async with session(pair, timing=quiet, responding=ResponderSettings(timing=quiet)) as (stream, initiator):
        with pytest.raises(SessionEndedError, match="nothing was heard"):
            await initiator.receive()
        await until(lambda: stream.ended is not None)
        with pytest.raises(SessionEndedError, match="nothing was heard"):
            await stream.send(b"x")


async def test_msp_c37_either_side_may_name_the_session_anew(pair: Pair) -> None:
    async with session(pair) as (stream, initiator):
        assert await carried(stream, initiator, [b"1"]) == [b"1"]
        stream.reidentify(B)
        assert list(await initiator.receive_some()) == []
        assert initiator.id == stream.id == B
        assert await carried(stream, initiator, [b"2"]) == [b"2"]
        initiator.reidentify(A)
        await until(lambda: stream.id == A)
        assert await carried(stream, initiator, [b"3"]) == [b"3"]
        assert initiator.statistics().lost == 0


async def test_msp_c29_msp_c47_a_sender_that_restarts_in_the_same_numbers_loses_nothing(pair: Pair) -> None:
    """The sender is written out here: no other makes the same numbers twice."""
    sender = pair[0]
    async with trio.open_nursery() as nursery:
        started = trio.Event()

        async def answer() -> None:
            sender.setblocking(False)
            await trio.lowlevel.wait_readable(sender)
            sender.recv(100)
            sender.send(encode(SynAck(True, A)))
            started.set()

        nursery.start_soon(answer)
        with trio.fail_after(PATIENCE_S):
            async with Initiator.open(pair[1]) as initiator:
                await started.wait()
                found: list[bytes] = []
                for name in (A, B, A):
                    sender.send(encode(ConnectionId(name)))
                    for number in (0, 1, 2, 1):
                        sender.send(encode(Media(number, 0, 0, memoryview(name + b"%d" % number))))
                    while len(found) % 3 or not found or found[-1][:36] != name:
                        found += [one.take() for one in await initiator.receive_some()]
                    await initiator_idle(initiator)
                assert found == [name + b"%d" % number for name in (A, B, A) for number in range(3)]
                assert initiator.counters[Count.DUPLICATES] == 3


async def initiator_idle(initiator: Initiator) -> None:
    with trio.move_on_after(0.1):
        raise AssertionError(f"got {(await initiator.receive()).take()!r}")


async def test_a_stream_that_has_ended_before_it_was_accepted_is_never_accepted(pair: Pair) -> None:
    async with Responder.open(pair[0], rate_bps=None) as responder:
        for name in (A, B):
            pair[1].send(encode(Syn(name)))
            pair[1].send(encode(Ack(name)))
            await trio.testing.wait_all_tasks_blocked(0.05)
        with trio.fail_after(PATIENCE_S):
            assert (await responder.accept()).id == B
        with trio.move_on_after(0.05) as scope:
            await responder.accept()
        assert scope.cancelled_caught


async def test_several_tasks_may_accept_and_each_stream_is_one_tasks(pair: Pair) -> None:
    found: list[bytes] = []

    async def accept(responder: Responder) -> None:
        found.append((await responder.accept()).id)

    with trio.fail_after(PATIENCE_S):
        async with Responder.open(pair[0], rate_bps=None) as responder, trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(accept, responder)
            for name in (A, B):
                await trio.testing.wait_all_tasks_blocked()
                pair[1].send(encode(Syn(name)))
                pair[1].send(encode(Ack(name)))
                await until(lambda name=name: name in found)  # type: ignore[misc]
    assert found == [A, B]


async def test_d_14_an_optimistic_stream_that_nobody_has_accepted_has_no_buffer_yet(pair: Pair) -> None:
    """So a flood of SYNs costs none. What was said before is known when it is accepted."""
    settings = ResponderSettings(optimistic=True)
    async with Responder.open(pair[0], rate_bps=None, settings=settings) as responder:
        for name, options in ((A, Options(rate=5_000_000)), (B, Options(rate=8_000_000))):
            pair[1].send(encode(Syn(name, options)))
            await trio.testing.wait_all_tasks_blocked()
        assert responder._streams == {}
        with trio.fail_after(PATIENCE_S):
            stream = await responder.accept()
    assert (stream.id, stream.options.rate, stream.statistics().rate_bps) == (B, 8_000_000, 8e6)


async def test_msp_c28_an_initiator_that_names_the_session_anew_forgets_what_it_saw_and_repeats_the_name(
    pair: Pair,
) -> None:
    sender = pair[0]
    sender.setblocking(False)
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:

            async def answer() -> None:
                await trio.lowlevel.wait_readable(sender)
                sender.send(encode(SynAck(True, A)))

            nursery.start_soon(answer)
            async with Initiator.open(pair[1], desired=A) as initiator:
                for name in (b"another", B):
                    sender.send(encode(Media(1, 0, 0, memoryview(b"x"))))
                    assert (await initiator.receive()).take() == b"x"
                    initiator.reidentify(name)
                names: list[bytes] = []

                def take() -> int:
                    names.extend(found.id for found in map(parse, drained(sender)) if isinstance(found, ConnectionId))
                    return names.count(B)

                await until(lambda: take() >= 3)
    assert names.count(B) >= 3
