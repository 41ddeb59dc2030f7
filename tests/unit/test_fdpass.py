"""Answers with descriptors: what arrives with which byte, who holds what, and what a reader that never reads costs."""

from __future__ import annotations

import fcntl
import os
import resource
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from punchd.control.fdpass import Outbox, SlowReaderError
from tests.unit.daemon_fixture import HANG_S, Application, descriptors

OK_LINE = "ok|an-id-of-16-long|tcp-repair|tcp|2001:db8:1111:2222:3333:4444:5555:6666|65535|2001:db8::1|65535"


class Trickle:
    """A stream that takes one byte a call, as a full buffer would make it."""

    def __init__(self, stream: trio.socket.SocketType) -> None:
        self._stream = stream
        self.calls: list[int] = []

    def setsockopt(self, *args: Any) -> None:
        self._stream.setsockopt(*args)

    async def sendmsg(self, buffers: Iterable[memoryview], ancillary: list[Any]) -> int:
        self.calls.append(len(ancillary))
        return await self._stream.sendmsg([next(iter(buffers))[:1]], ancillary)


@asynccontextmanager
async def link() -> AsyncIterator[tuple[trio.socket.SocketType, Application]]:
    ours, theirs = trio.socket.socketpair()
    with ours, Application(theirs) as application:
        yield ours, application


def pipe_end() -> tuple[int, int]:
    """A descriptor to give away, and one that is at its end when nobody holds the other any more."""
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    return write_end, read_end


def is_closed_everywhere(read_end: int) -> bool:
    try:
        return os.read(read_end, 1) == b""
    except BlockingIOError:
        return False


async def test_the_descriptor_comes_with_the_first_byte_of_its_line() -> None:
    async with link() as (ours, application), trio.open_nursery() as nursery:
        outbox = Outbox(ours, max_bytes=65536, max_wait_s=HANG_S)
        given, watch = pipe_end()
        outbox.put("progress|a|1|udp|trying|-")
        outbox.put("ok|a", given)
        outbox.put("error|-|x|y")
        nursery.start_soon(outbox.run)
        seen = b""
        came_at = None
        while not seen.endswith(b"y\n"):
            seen += await application.receive(1)
            if application.fds and came_at is None:
                came_at = len(seen) - 1
        assert seen == b"progress|a|1|udp|trying|-\nok|a\nerror|-|x|y\n"
        assert came_at == seen.index(b"ok|a")
        assert len(application.fds) == 1
        os.close(watch)
        nursery.cancel_scope.cancel()


async def test_a_line_that_goes_out_in_parts_carries_its_descriptor_once_and_with_the_first_part() -> None:
    async with link() as (ours, application), trio.open_nursery() as nursery:
        stream: Any = Trickle(ours)
        outbox = Outbox(stream, max_bytes=65536, max_wait_s=HANG_S)
        given, watch = pipe_end()
        outbox.put("error|-|x|y")
        outbox.put("ok|a", given)
        nursery.start_soon(outbox.run)
        assert await application.line() == "error|-|x|y"
        assert await application.line() == "ok|a"
        assert len(application.fds) == 1
        line_before = len("error|-|x|y\n")
        assert stream.calls == [0] * line_before + [1] + [0] * (len("ok|a\n") - 1)
        os.close(watch)
        nursery.cancel_scope.cancel()


async def test_the_daemon_keeps_no_copy_of_a_descriptor_that_is_out() -> None:
    async with link() as (ours, application), trio.open_nursery() as nursery:
        outbox = Outbox(ours, max_bytes=65536, max_wait_s=HANG_S)
        given, watch = pipe_end()
        written = trio.Event()
        outbox.put("ok|a", given, written.set)
        nursery.start_soon(outbox.run)
        with trio.fail_after(HANG_S):
            await written.wait()
        assert not is_closed_everywhere(watch), "the one in flight"
        assert await application.line() == "ok|a"
        received = application.fds.popleft()
        assert fcntl.fcntl(received, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        os.close(received)
        assert is_closed_everywhere(watch)
        os.close(watch)
        nursery.cancel_scope.cancel()


async def test_an_application_that_dies_before_it_reads_the_ok_line_closes_the_descriptor_in_flight() -> None:
    async with link() as (ours, application), trio.open_nursery() as nursery:
        outbox = Outbox(ours, max_bytes=65536, max_wait_s=HANG_S)
        given, watch = pipe_end()
        written = trio.Event()
        outbox.put("ok|a", given, written.set)
        nursery.start_soon(outbox.run)
        with trio.fail_after(HANG_S):
            await written.wait()
        application.stream.close()
        assert is_closed_everywhere(watch)
        os.close(watch)
        nursery.cancel_scope.cancel()


async def test_what_cannot_be_written_any_more_is_closed_and_called_written() -> None:
    async with link() as (ours, _):
        outbox = Outbox(ours, max_bytes=65536, max_wait_s=HANG_S)
        watches = []
        done: list[str] = []
        for name in ("queued", "late"):
            given, watch = pipe_end()
            watches.append(watch)
            if name == "late":
                outbox.close()
            outbox.put("ok|a", given, lambda name=name: done.append(name))  # type: ignore[misc]
        assert done == ["queued", "late"]
        assert all(is_closed_everywhere(watch) for watch in watches)
        with trio.fail_after(HANG_S):
            await outbox.drain(HANG_S)
        for watch in watches:
            os.close(watch)


async def test_an_application_that_is_gone_ends_the_writer_and_everything_queued_is_closed() -> None:
    async with link() as (ours, application):
        outbox = Outbox(ours, max_bytes=65536, max_wait_s=HANG_S)
        application.stream.close()
        given, watch = pipe_end()
        outbox.put("ok|a", given)
        with pytest.raises(BrokenPipeError):
            await outbox.run()
        assert is_closed_everywhere(watch)
        os.close(watch)


async def test_a_reader_that_does_not_read_is_dropped_after_its_time(autojump_clock: trio.testing.MockClock) -> None:
    async with link() as (ours, _):
        outbox = Outbox(ours, max_bytes=1 << 24, max_wait_s=7)
        for _ in range(1000):
            outbox.put("x" * 400)
        before = trio.current_time()
        with pytest.raises(SlowReaderError, match="nothing was read for 7 s"):
            await outbox.run()
        assert trio.current_time() - before == pytest.approx(7)


async def test_a_reader_that_reads_slowly_but_steadily_is_kept(autojump_clock: trio.testing.MockClock) -> None:
    lines = 400
    async with link() as (ours, application), trio.open_nursery() as nursery:
        outbox = Outbox(ours, max_bytes=1 << 24, max_wait_s=7)
        for _ in range(lines):
            outbox.put("x" * 400)
        nursery.start_soon(outbox.run)
        received = 0
        while received < lines * 401:
            await trio.sleep(5)
            received += len(await application.receive(4096))
        assert trio.current_time() > 7 * 10
        nursery.cancel_scope.cancel()


async def test_too_many_unread_bytes_end_it_at_once_and_not_when_the_time_is_over(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The writer is blocked in `sendmsg` when the limit is passed."""
    async with link() as (ours, _), trio.open_nursery() as nursery:
        outbox = Outbox(ours, max_bytes=20_000, max_wait_s=600)
        ended_at: list[float] = []

        async def write() -> None:
            with pytest.raises(SlowReaderError, match="at most 20000"):
                await outbox.run()
            ended_at.append(trio.current_time())

        nursery.start_soon(write)
        started = trio.current_time()
        for _ in range(100):
            outbox.put("x" * 400)
            await trio.sleep(0.1)
        assert ended_at, "40,000 bytes wait and nobody minds"
        assert ended_at[0] - started < 20


async def test_only_a_handful_of_descriptors_is_in_flight_to_an_application_that_never_reads() -> None:
    """What a socket's send buffer holds of the longest `ok` lines and of the shortest."""
    for line in ("ok|a|udp|udp|192.0.2.1|1|192.0.2.2|2", OK_LINE):
        async with link() as (ours, _), trio.open_nursery() as nursery:
            outbox = Outbox(ours, max_bytes=1 << 20, max_wait_s=600)
            written = [0]

            def count(written: list[int] = written) -> None:
                written[0] += 1

            before = descriptors()
            for _ in range(200):
                outbox.put(line, os.open("/dev/null", os.O_RDONLY), count)
            nursery.start_soon(outbox.run)
            await trio.testing.wait_all_tasks_blocked(0.05)
            in_flight = written[0]
            print(f"{len(line)} bytes: {in_flight} descriptors in flight")
            assert 1 <= in_flight <= 16
            assert descriptors() - before == 200 - in_flight, "the rest waits here, and is the quotas' concern"
            nursery.cancel_scope.cancel()
        assert descriptors() <= before


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else: sudo ./dev test")
def test_the_kernel_bounds_what_is_in_flight_by_the_limit_of_open_files() -> None:
    """The claim of fdpass.py about ETOOMANYREFS, on a child without privileges."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
            left, right = socket.socketpair()
            sent, text = 0, "never"
            while sent < 1000:
                try:
                    socket.send_fds(left, [b"x"], [0])
                except OSError as error:
                    text = error.strerror or "?"
                    break
                sent += 1
            os.write(write_end, f"{sent} {text}".encode())
            right.close()
            status = 0
        finally:
            os._exit(status)
    os.close(write_end)
    with open(read_end) as pipe:
        count, _, text = pipe.read().partition(" ")
    assert os.waitpid(child, 0)[1] == 0
    assert text == "Too many references: cannot splice"
    assert int(count) <= 64
