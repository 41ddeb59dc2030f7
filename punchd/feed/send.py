"""`punch media send`: from a file or a pipe to a stream."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import trio

from punchd.errors import ConfigError
from punchd.feed import ending, report
from punchd.feed.options import SendOptions
from punchd.feed.pieces import Cutter
from punchd.feed.progress import Progress
from punchd.media.datagrams import HEADER_SIZE
from punchd.media.settings import ResponderSettings, Timing
from punchd.media.sockets import HasFileno, SessionEndedError, beside
from punchd.media.stream import Stream
from punchd.media.trio_responder import Responder
from punchd.punch.news import News
from punchd.punch.outcomes import EndedError, Exit
from punchd.punch.stdio import Stdio

READ_SIZE = 1 << 18
IDLE_S = 45.0  # three keep-alives of the receiver's
ASKED_S = 30.0  # until a receiver at the other end of a hole has asked


async def send(sock: HasFileno, chosen: SendOptions, news: News, *, is_punched: bool) -> None:
    """Wait until somebody asks on that socket, and send all.

    Args:
        is_punched: whether the socket is connected to somebody who is known to be there.

    Raises:
        EndedError: the receiver is gone or has given up, or nobody asked.
        ConfigError: the file cannot be read.
    """
    timing = Timing(idle_s=IDLE_S)
    settings = ResponderSettings(timing=timing, path_validated=is_punched, max_open=1)
    responding = Responder.open(sock, rate_bps=chosen.rate_bps, settings=settings, datagram_size=chosen.datagram_size)
    with opened(chosen.source) as (source, whole):
        async with responding as responder:
            try:
                with trio.fail_after(ASKED_S if is_punched else float("inf")):
                    stream = await responder.accept()
            except trio.TooSlowError:
                raise EndedError(Exit.NO_CONNECTION, f"nobody has asked for media for {ASKED_S:.0f} s") from None
            await _carry(stream, source, whole, chosen, news)


async def _carry(stream: Stream, source: int, whole: int | None, chosen: SendOptions, news: News) -> None:
    progress = Progress(news, lambda: report.sent(stream.statistics(), ending.read_got(stream.id)), whole)
    news.say("sending", f"sending to {stream.peer[0]} port {stream.peer[1]}", path=stream.statistics().path)
    try:
        with trio.CancelScope() as scope:
            async with beside(progress.run, lambda: _watch(stream, scope)):
                await _pour(stream, Stdio(source), chosen, progress)
                await _say_end(stream, news)
        if stream.ended is not None:
            raise stream.ended
        if stream.id == ending.GIVEN_UP:
            raise ending.given_up()
    except (SessionEndedError, OSError) as error:
        raise EndedError(Exit.BROKEN, str(error)) from None
    except ValueError as error:
        raise EndedError(Exit.USAGE, str(error)) from None
    finally:
        if stream.ended is None and not ending.is_end(stream.id):
            stream.reidentify(ending.GIVEN_UP)
        progress.end()


async def _pour(stream: Stream, stdin: Stdio, chosen: SendOptions, progress: Progress) -> None:
    cutter = Cutter(chosen.size, stream.statistics().datagram_size - HEADER_SIZE)
    is_over = False
    while not is_over:
        data = await _read(stdin)
        is_over = not data
        cut = cutter.feed(data)
        if cut.data:
            await stream.send_pieces(cut.data, cut.size)
            progress.moved()


async def _watch(stream: Stream, scope: trio.CancelScope) -> None:
    """An input may be silent for longer than a receiver lives."""
    with suppress(SessionEndedError):
        while stream.id != ending.GIVEN_UP:
            await stream.wait_for_change()
    scope.cancel()


async def _read(stdin: Stdio) -> bytes:
    try:
        return await stdin.receive_some(READ_SIZE)
    except OSError as error:
        raise EndedError(Exit.BROKEN, f"reading failed: {error.strerror}") from None


async def _say_end(stream: Stream, news: News) -> None:
    await trio.sleep(ending.DRAIN_S)
    stream.reidentify(ending.end(stream.statistics().logical_sends))
    with trio.move_on_after(ending.ANSWER_S):
        while ending.read_got(stream.id) is None:
            await stream.wait_for_change()
        return
    news.warn("the receiver has not said that it heard of the end")


@contextmanager
def opened(path: str | None) -> Iterator[tuple[int, int | None]]:
    """The file's descriptor, and its size if it has one."""
    if path is None:
        yield 0, None
        return
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    try:
        found = os.fstat(fd)
        if stat.S_ISDIR(found.st_mode):
            raise ConfigError(f"{path}: expected a file, got a directory")
        yield fd, found.st_size if stat.S_ISREG(found.st_mode) else None
    finally:
        os.close(fd)
