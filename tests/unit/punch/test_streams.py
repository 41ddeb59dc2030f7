"""Relay, and standard input and output as a stream."""

from __future__ import annotations

import os
import pty
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio
import trio.testing

from punchd.punch.outcomes import EndedError, Exit
from punchd.punch.relay import relay
from punchd.punch.stdio import Stdio

PATIENCE_S = 20.0


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as found:
        yield found


def pipe(stack: ExitStack) -> tuple[int, int]:
    """Both ends; closed at the end."""
    ends = os.pipe()
    for fd in ends:
        stack.callback(os.close, fd)
    return ends


async def test_each_direction_ends_by_itself_and_in_the_end_both_streams_are_closed() -> None:
    (hole, far_hole), (local, far_local) = (trio.testing.memory_stream_pair() for _ in range(2))
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay, hole, local)
            await far_hole.send_all(b"question")
            await far_hole.send_eof()
            assert await far_local.receive_some(100) == b"question"
            assert await far_local.receive_some(100) == b""
            await far_local.send_all(b"answer")
            await far_local.send_eof()
            assert await far_hole.receive_some(100) == b"answer"
            assert await far_hole.receive_some(100) == b""
    for stream in (hole, local):
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_all(b"x")


@pytest.mark.parametrize("broken", [0, 1])
async def test_what_breaks_ends_both_directions_and_closes_the_other_stream(broken: int) -> None:
    (hole, far_hole), (local, far_local) = (trio.testing.memory_stream_pair() for _ in range(2))

    async def fail() -> None:
        raise trio.BrokenResourceError("reset")

    (hole, local)[broken].receive_stream.receive_some_hook = fail
    with trio.fail_after(PATIENCE_S), pytest.raises(EndedError, match="reset") as raised:
        await relay(hole, local)
    assert raised.value.code is Exit.BROKEN
    assert await (far_local, far_hole)[broken].receive_some(100) == b""


async def tcp_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        one = await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
        return one, await listener.accept()


async def read_all(stream: trio.SocketStream) -> None:
    while await stream.receive_some(100):
        pass


async def test_half_of_it_does_not_look_like_the_whole_to_a_program_behind_it() -> None:
    hole, far_hole = trio.testing.memory_stream_pair()
    local, far_local = await tcp_pair()

    async def fail() -> None:
        raise trio.BrokenResourceError("reset")

    async with far_local:
        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:

                async def run() -> None:
                    with pytest.raises(EndedError, match="reset"):
                        await relay(hole, local)

                nursery.start_soon(run)
                await far_hole.send_all(b"half")
                assert await far_local.receive_some(100) == b"half"
                hole.receive_stream.receive_some_hook = fail
                await far_hole.send_all(b" of it")
            with pytest.raises(trio.BrokenResourceError):
                await read_all(far_local)


@pytest.mark.parametrize("is_proper", [True, False])
async def test_a_plain_hole_that_was_cut_is_told_from_one_that_ended(is_proper: bool) -> None:
    hole, far_hole = await tcp_pair()
    local, far_local = trio.testing.memory_stream_pair()
    async with far_hole:
        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(relay, hole, local)
                await far_local.send_all(b"half")
                assert await far_hole.receive_some(100) == b"half"
                if is_proper:
                    await far_local.send_eof()
                    assert await far_hole.receive_some(100) == b""
                    await far_hole.send_eof()
                else:
                    nursery.cancel_scope.cancel()
            if not is_proper:
                with pytest.raises(trio.BrokenResourceError):
                    await far_hole.receive_some(100)


async def test_descriptors_that_somebody_has_made_nonblocking_and_is_faster_on_are_waited_for(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, sink = pipe(stack)
    for fd in (source, sink):
        os.set_blocking(fd, False)
    stdio = Stdio(source, sink)
    ready = trio.Event()

    async def spuriously_ready(fd: int) -> None:
        await trio.lowlevel.checkpoint()
        if ready.is_set():
            await wait_readable(fd)
        ready.set()

    wait_readable = trio.lowlevel.wait_readable
    monkeypatch.setattr(trio.lowlevel, "wait_readable", spuriously_ready)
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                assert await stdio.receive_some() == b"x"

            nursery.start_soon(read)
            await ready.wait()
            os.write(sink, b"x")


async def test_a_regular_file_is_read_and_written(tmp_path: Path, stack: ExitStack) -> None:
    (tmp_path / "in").write_bytes(b"x" * 100_000)
    source = os.open(tmp_path / "in", os.O_RDONLY)
    sink = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
    stack.callback(os.close, source)
    stack.callback(os.close, sink)
    stdio = Stdio(source, sink)
    while data := await stdio.receive_some():
        await stdio.send_all(data)
    await stdio.send_eof()
    assert (tmp_path / "out").read_bytes() == b"x" * 100_000


async def test_a_reader_that_is_slow_blocks_nobody_else_and_the_mode_of_the_pipes_stays(stack: ExitStack) -> None:
    source, sink = pipe(stack)
    stdio = Stdio(source, sink)
    sent = bytes(range(256)) * 4000  # a pipe takes 64 KiB of it
    found = bytearray()
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stdio.send_all, sent)
            for _ in range(20):
                await trio.lowlevel.checkpoint()
            while len(found) < len(sent):
                found += await stdio.receive_some()
    assert found == sent
    assert os.get_blocking(source)
    assert os.get_blocking(sink)


@pytest.mark.parametrize("is_last", [True, False])
async def test_the_reader_of_our_output_sees_its_end_unless_others_go_on_writing(
    stack: ExitStack, is_last: bool
) -> None:
    source, sink = pipe(stack)
    await Stdio(0, sink, is_last=is_last).send_eof()
    os.set_blocking(source, False)
    if is_last:
        assert os.read(source, 1) == b""
    else:
        with pytest.raises(BlockingIOError):
            os.read(source, 1)
    os.write(sink, b"x")  # it is open, and leads somewhere


async def test_when_nobody_reads_our_output_it_is_an_error(stack: ExitStack) -> None:
    source, sink = os.pipe()
    os.close(source)
    stack.callback(os.close, sink)
    with pytest.raises(BrokenPipeError):
        await Stdio(0, sink).send_all(b"x")


async def test_a_terminal_ends_when_the_other_side_has_and_a_pipe_does_not(stack: ExitStack) -> None:
    master, terminal = pty.openpty()
    for fd in (master, terminal):
        stack.callback(os.close, fd)
    stdio = Stdio(terminal, terminal)
    os.write(master, b"typed\n")
    with trio.fail_after(PATIENCE_S):
        assert await stdio.receive_some() == b"typed\n"
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                assert await stdio.receive_some() == b""

            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            await stdio.send_eof()
    source, sink = pipe(stack)
    piped = Stdio(source, terminal)
    await piped.send_eof()
    os.write(sink, b"more")
    assert await piped.receive_some() == b"more"
