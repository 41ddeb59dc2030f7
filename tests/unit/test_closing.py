"""Descriptors that the daemon never asked for, and whose last close takes as long as their sender likes."""

from __future__ import annotations

import _thread
import socket
from array import array
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from punchd.config import Config, Limits
from punchd.kernel import closing
from tests.unit import passing
from tests.unit.daemon_fixture import RunningServer, server
from tests.unit.passing import let_go, lingering

LINGER_S = 10
PROMPT_S = 5.0  # on a busy machine


@contextmanager
def connection(running: RunningServer) -> Iterator[socket.socket]:
    """An application's, which does not wait: the daemon finds all of it at once."""
    with socket.socket(socket.AF_UNIX) as found:
        found.connect(str(running.path))
        found.setblocking(False)
        yield found


def send_slow(stream: socket.socket, data: bytes, count: int = 1, flags: int = 0) -> None:
    """One message with so many of them; they are in flight only."""
    with ExitStack() as stack:
        fds = array("i", [stack.enter_context(lingering(LINGER_S)).fileno() for _ in range(count)])
        stream.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds.tobytes())], flags)


def more_than_a_line_can_have(stream: socket.socket) -> None:
    send_slow(stream, b"hello|1\n", 4)


def behind_the_last_line_that_is_read(stream: socket.socket) -> None:
    stream.send((b"x" * 2000 + b"\n") * 4)
    send_slow(stream, b"hello|1\n")


def out_of_band(stream: socket.socket) -> None:
    stream.send(b"hello|1\n")
    send_slow(stream, b"x", flags=socket.MSG_OOB)
    stream.send(b"hello|1\n")


@pytest.fixture(autouse=True)
def _all_read() -> Iterator[None]:
    yield
    let_go()


async def answers_promptly(running: RunningServer) -> None:
    begin = trio.current_time()
    with await running.connect() as other:
        for _ in range(5):
            await other.send("cancel|y")
            await other.line()
            await trio.sleep(0.02)
    assert trio.current_time() - begin < PROMPT_S


@pytest.mark.parametrize("way", [more_than_a_line_can_have, behind_the_last_line_that_is_read, out_of_band])
async def test_no_descriptor_that_came_unasked_holds_up_others(tmp_path: Path, way: object) -> None:
    assert callable(way)
    async with server(tmp_path) as running:
        with connection(running) as stream:
            way(stream)
        await answers_promptly(running)
        await running.settle(lambda: not running.state.quotas._connections)


async def test_nor_does_one_of_a_connection_that_is_sent_away(tmp_path: Path) -> None:
    async with server(tmp_path, Config(limits=Limits(connections_per_user=1))) as running:
        with await running.connect() as other:
            await other.send("cancel|y")
            await other.line()
            for number in range(40):  # more than are kept for a moment
                with connection(running) as stream, suppress(BrokenPipeError):
                    if number % 10:
                        stream.send(b"hello|1\n")
                    else:
                        send_slow(stream, b"hello|1\n")
            begin = trio.current_time()
            for _ in range(5):
                await other.send("cancel|y")
                await other.line()
                await trio.sleep(0.05)
            assert trio.current_time() - begin < PROMPT_S


async def test_what_nobody_took_is_gone_with_its_stream() -> None:
    near, far = socket.socketpair()
    with near:
        send_slow(near, b"x")
        assert closing.has_unread(far)
        begin = trio.current_time()
        await closing.close_unread(far)
        assert far.fileno() == -1
        unread = passing.unread[-1]
        unread.settimeout(PROMPT_S)
        while unread.recv(1 << 20):  # to its end, which comes when the kernel has let go of the other one
            pass
        assert trio.current_time() - begin < PROMPT_S


async def test_where_no_thread_can_have_a_table_of_its_own_it_is_the_thread_that_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(closing._libc, "unshare", lambda _: -1)
    near, far = socket.socketpair()
    with near, trio.CancelScope() as scope:
        send_slow(near, b"x")
        assert closing.has_unread(far)
        scope.cancel()
        begin = trio.current_time()
        await closing.close_unread(far)
        assert far.fileno() == -1
        assert trio.current_time() - begin < PROMPT_S


async def test_where_no_thread_can_be_had_closing_waits_for_one(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    start = _thread.start_new_thread
    refused: list[object] = []

    def refuse_twice(*given: Any) -> int:
        if len(refused) < 2:
            refused.append(given)
            raise RuntimeError("can't start new thread")
        started: int = start(*given)
        return started

    monkeypatch.setattr(_thread, "start_new_thread", refuse_twice)
    near, far = socket.socketpair()
    with near:
        await closing.close_unread(far)
    assert len(refused) == 2
    assert far.fileno() == -1


def test_a_stream_of_which_all_was_taken_has_nothing_unread_and_takes_no_more() -> None:
    near, far = socket.socketpair()
    with near, far:
        near.send(b"x")
        far.recv(1)
        assert not closing.has_unread(far)
        with pytest.raises(BrokenPipeError):
            near.send(b"y")
