"""A talk over UDP: what keeps it alive and what ends it. Time is virtual."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio
import trio.testing

from punchd.punch.datagrams import KEEP_S, SILENCE_S, Talk
from punchd.punch.messages import Bye, Message, Ready
from punchd.punch.outcomes import EndedError
from punchd.punch.stdio import Stdio


@pytest.fixture
def autojump_clock() -> trio.testing.MockClock:
    """It jumps only when real descriptors had time to become ready, too."""
    return trio.testing.MockClock(autojump_threshold=0.02)


@dataclass
class Running:
    """A talk, the other end of its socket, its input and output."""

    talk: Talk
    far: trio.socket.SocketType
    keyboard: int
    screen: int
    posted: list[Message]
    ended: list[EndedError | None] = field(default_factory=list)
    cancel: Callable[[], None] = lambda: None


@asynccontextmanager
async def running() -> AsyncIterator[Running]:
    near, far = trio.socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    (source, keyboard), (screen, sink) = os.pipe(), os.pipe()
    posted: list[Message] = []

    async def post(message: Message) -> None:
        posted.append(message)

    found = Running(Talk(near, Stdio(source, sink), post), far, keyboard, screen, posted)

    async def run() -> None:
        try:
            await found.talk.run()
        except EndedError as error:
            found.ended.append(error)
        else:
            found.ended.append(None)

    with far:
        async with trio.open_nursery() as nursery:
            found.cancel = nursery.cancel_scope.cancel
            nursery.start_soon(run)
            yield found
            nursery.cancel_scope.cancel()
    for fd in (source, sink, screen):
        os.close(fd)
    if found.keyboard >= 0:
        os.close(found.keyboard)


def end_input(running: Running) -> None:
    os.close(running.keyboard)
    running.keyboard = -1


async def test_chunks_go_as_datagrams_and_datagrams_come_as_chunks(autojump_clock: trio.testing.MockClock) -> None:
    async with running() as one:
        assert await one.far.recv(2000) == b""  # the first one for the NAT
        os.write(one.keyboard, b"x" * 3000)
        assert [len(await one.far.recv(2000)) for _ in range(3)] == [1200, 1200, 600]
        await one.far.send(b"")
        await one.far.send(b"hello")
        await trio.lowlevel.wait_readable(one.screen)
        assert os.read(one.screen, 100) == b"hello"


async def test_silence_is_kept_from_the_nats_and_ends_the_talk_after_a_minute(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running() as one:
        times = []
        for _ in range(4):
            assert await one.far.recv(2000) == b""
            times.append(trio.current_time())
        assert [round(later - times[0], 1) for later in times] == [0.0, KEEP_S, 2 * KEEP_S, 3 * KEEP_S]
        await one.far.send(b"")
        heard_at = trio.current_time()
        await trio.sleep(SILENCE_S - 1)
        assert one.ended == []
        await trio.sleep(2)
        assert str(one.ended[0]) == "nothing was heard for 60 s"
        assert heard_at - times[0] == pytest.approx(45, abs=0.5)
        assert one.posted[-1:] in ([], [Bye(is_cut=True)])


async def test_a_screen_that_somebody_has_stopped_is_no_silence(autojump_clock: trio.testing.MockClock) -> None:
    async with running() as one:
        for _ in range(10):  # ten times what the pipe and the socket hold
            with trio.move_on_after(1):
                while True:
                    await one.far.send(b"x" * 1200)
        await trio.sleep(3 * SILENCE_S)
        assert one.ended == []
        one.talk.take(Bye())
        end_input(one)
        await trio.sleep(1)
        assert one.ended == [None]


async def test_both_have_to_say_bye_and_what_a_bye_has_overtaken_still_comes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running() as one:
        one.talk.take(Ready())
        one.talk.take(Bye())
        await trio.sleep(0.2)
        await one.far.send(b"late")
        await trio.sleep(5)
        assert os.read(one.screen, 100) == b"late"
        assert os.read(one.screen, 100) == b""
        assert one.ended == []
        end_input(one)
        await trio.sleep(1)
        assert one.posted == [Bye()]
        assert one.ended == [None]


async def test_the_end_of_our_input_is_not_the_end_of_what_we_hear(autojump_clock: trio.testing.MockClock) -> None:
    async with running() as one:
        end_input(one)
        await trio.sleep(5)
        assert one.posted == [Bye()]
        await one.far.send(b"still here")
        await trio.lowlevel.wait_readable(one.screen)
        assert os.read(one.screen, 100) == b"still here"
        assert one.ended == []


async def test_a_side_that_is_cut_off_ends_the_other_at_once(autojump_clock: trio.testing.MockClock) -> None:
    async with running() as one:
        one.talk.take(Bye(is_cut=True))
        await trio.sleep(1)
        assert one.ended == [None]


async def test_who_is_interrupted_says_so(autojump_clock: trio.testing.MockClock) -> None:
    async with running() as one:
        await trio.sleep(1)
        one.cancel()
    assert one.posted == [Bye(is_cut=True)]
