"""Standard input and output as one stream.

Both stay in the mode that they have, mostly blocking: it belongs to whoever else has the same file open, a shell above
all. So we wait until they can be read or written without blocking, and write no more than a pipe takes at once.
Regular files cannot be waited for (epoll says EPERM), and do not block for long.

When the other side has ended and standard input is a terminal, there is nothing to wait for: nobody would think of
typing an end. Programs and files get to say all that they have.
"""

from __future__ import annotations

import os
import select
from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio

READ_SIZE = 65_536
_WRITE_SIZE = select.PIPE_BUF  # a pipe that is ready takes so many bytes


class Stdio(trio.abc.HalfCloseableStream):
    """See above. Closing it closes nothing: the descriptors are the process's.

    Args:
        is_last: whether the end of this stream is that of the output, too; otherwise others will write to it.
    """

    def __init__(self, source: int = 0, sink: int = 1, *, is_last: bool = True) -> None:
        self._source, self._sink = source, sink
        self._is_last = is_last
        self._over = trio.Event()  # nothing more is to be written

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """What there is, at most 64 KiB; b"" at the end.

        Raises:
            OSError: as `read` does.
        """
        if os.isatty(self._source):
            return await self._receive_from_terminal(max_bytes or READ_SIZE)
        while True:
            await _ready(trio.lowlevel.wait_readable, self._source)
            with suppress(BlockingIOError):  # somebody else was faster
                return os.read(self._source, max_bytes or READ_SIZE)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Raises OSError as `write` does: BrokenPipeError when nobody reads any more."""
        with memoryview(data) as view:
            sent = 0
            while sent < len(view):
                await _ready(trio.lowlevel.wait_writable, self._sink)
                with suppress(BlockingIOError):
                    sent += os.write(self._sink, view[sent : sent + _WRITE_SIZE])

    async def wait_send_all_might_not_block(self) -> None:
        await _ready(trio.lowlevel.wait_writable, self._sink)

    async def send_eof(self) -> None:
        """Whoever reads our output sees its end, even if this process goes on."""
        await trio.lowlevel.checkpoint()
        self._over.set()
        if self._is_last and not os.isatty(self._sink):
            null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(null, self._sink, inheritable=True)
            os.close(null)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()

    async def _receive_from_terminal(self, size: int) -> bytes:
        is_ready = False
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                nonlocal is_ready
                await trio.lowlevel.wait_readable(self._source)
                is_ready = True
                nursery.cancel_scope.cancel()

            nursery.start_soon(wait)
            await self._over.wait()
            nursery.cancel_scope.cancel()
        return os.read(self._source, size) if is_ready else b""


async def _ready(wait: Callable[[int], Awaitable[None]], fd: int) -> None:
    try:
        await wait(fd)
    except PermissionError:  # a regular file or a device that is always ready
        await trio.lowlevel.checkpoint()
