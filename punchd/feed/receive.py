"""`punch media receive`: from a stream to a file or a pipe."""

from __future__ import annotations

import os
import stat
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import trio

from punchd.errors import ConfigError
from punchd.feed import ending, report
from punchd.feed.options import ReceiveOptions
from punchd.feed.progress import Progress
from punchd.media.moves import Why
from punchd.media.settings import ReceiverSettings, Timing
from punchd.media.sockets import HasFileno, SessionEndedError, beside
from punchd.media.statistics import Received
from punchd.media.trio_initiator import Initiator
from punchd.punch.news import News
from punchd.punch.outcomes import EndedError, Exit
from punchd.punch.stdio import Stdio

_EXITS = {Why.UNANSWERED: Exit.NOT_ONLINE, Why.REFUSED: Exit.REFUSED, Why.GLARE: Exit.REFUSED}

Write = Callable[[memoryview], Awaitable[None]]


async def receive(sock: HasFileno, chosen: ReceiveOptions, news: News) -> None:
    """Ask on that socket, which is connected, and write all that comes until the sender says that it was all.

    Raises:
        EndedError: no sender, it is gone or has given up, or nobody takes what is written.
        ConfigError: the file cannot be written.
    """
    settings = ReceiverSettings(ordered=chosen.window_s > 0, window_s=chosen.window_s)
    try:
        async with Initiator.open(sock, settings=settings, timing=Timing(idle_s=chosen.idle_s)) as initiator:
            try:
                with opened(chosen.target) as write:  # not before: if nobody sends, what is there stays
                    await _carry(initiator, write, news)
            finally:
                if not ending.is_end(initiator.id):
                    initiator.reidentify(ending.GIVEN_UP)
    except SessionEndedError as error:
        raise EndedError(_EXITS.get(error.why, Exit.BROKEN), str(error)) from None


async def _carry(initiator: Initiator, write: Write, news: News) -> None:
    made: int | None = None
    final: Received | None = None
    progress = Progress(news, lambda: report.received(final or initiator.statistics(), made))
    news.say("receiving", "receiving", path=initiator.statistics().path)
    try:
        async with beside(progress.run):
            while made is None:
                for delivery in await initiator.receive_some():
                    await _write(write, delivery.payload)
                    progress.moved()
                made = ending.read_end(initiator.id)
                if initiator.id == ending.GIVEN_UP:
                    raise ending.given_up()
            final = initiator.statistics()
            await _confirm(initiator, final.logical_sends)
    finally:
        members = progress.end()
    if members["lost"]:
        news.warn(f"{members['lost']} of {made} logical sends were lost")


async def _write(write: Write, payload: memoryview) -> None:
    try:
        await write(payload)
    except OSError as error:
        raise EndedError(Exit.BROKEN, f"writing failed: {error.strerror}") from None


async def _confirm(initiator: Initiator, sends: int) -> None:
    """Say what has come, again whenever the sender seems not to have heard it. What comes now is dropped."""
    answer = ending.got(sends)
    with trio.move_on_after(ending.LINGER_S):
        while True:
            if ending.read_end(initiator.id) is not None:
                initiator.reidentify(answer)  # has no effect if there were too many changes lately
            with trio.move_on_after(ending.AGAIN_S):
                await initiator.receive_some()


@contextmanager
def opened(path: str | None) -> Iterator[Write]:
    """How to write to a file or, if there is none, to standard output."""
    if path is None:
        stdout = Stdio()
        yield stdout.send_all
        return
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    try:
        yield _to_file(fd) if stat.S_ISREG(os.fstat(fd).st_mode) else Stdio(sink=fd).send_all
    finally:
        os.close(fd)


def _to_file(fd: int) -> Write:
    """Regular files cannot be waited for, and do not block for long."""

    async def write(payload: memoryview) -> None:
        while payload:
            payload = payload[os.write(fd, payload) :]
        await trio.lowlevel.checkpoint_if_cancelled()

    return write
