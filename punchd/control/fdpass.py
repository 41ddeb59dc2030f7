"""Writing answers to an application, some of them with a descriptor.

Theory of operation. A descriptor travels with the first byte of its line, in the same `sendmsg`; everything before it
was sent by then, since one task writes the lines in order. If the kernel takes only part of a line the rest follows
without a descriptor.

An application that does not read must not cost memory or descriptors. What waits here is bounded in bytes and in time,
and the writer notices both while it waits for the kernel. What waits in the kernel is bounded by a small send buffer: a
descriptor in flight counts against the *sender's* RLIMIT_NOFILE (ETOOMANYREFS), and a message costs the kernel some
768 bytes however short it is, so that eleven fit (measured).

Source: line protocol §4 (Output), §5; unix(7).
"""

from __future__ import annotations

import os
import socket
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import trio

SEND_BUFFER = 4096  # bytes; the kernel doubles it, socket(7)


class SlowReaderError(Exception):
    """The application does not read its answers; the connection is to be dropped."""


@dataclass(slots=True)
class _Letter:
    data: bytes
    fd: int | None
    written: Callable[[], None] | None


class Outbox:
    """The answers of one connection, in order. Owns the descriptors put into it until they are sent."""

    def __init__(self, stream: trio.socket.SocketType, *, max_bytes: int, max_wait_s: float) -> None:
        self._socket = stream
        self._max_bytes = max_bytes
        self._max_wait_s = max_wait_s
        self._letters: deque[_Letter] = deque()
        self._bytes = 0
        self._stirred = trio.Event()
        self._emptied = trio.Event()
        self._emptied.set()
        self._closed = False
        self._sending = trio.CancelScope()  # while the kernel takes nothing
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)

    def put(self, line: str, fd: int | None = None, written: Callable[[], None] | None = None) -> None:
        """Queue a line; `fd` goes with it and is closed once it is sent, or cannot be. `written` is called then."""
        letter = _Letter(line.encode("ascii") + b"\n", fd, written)
        self._bytes += len(letter.data)
        if self._closed:
            self._dispose(letter)
            return
        self._letters.append(letter)
        if self._emptied.is_set():
            self._emptied = trio.Event()
        self._stirred.set()
        if self._bytes > self._max_bytes:
            self._sending.cancel()

    async def run(self) -> None:
        """Write until cancelled.

        Raises:
            SlowReaderError: more than the allowed bytes wait, or something waits longer than allowed.
            OSError: the application is gone.
        """
        try:
            while True:
                while self._letters:
                    await self._write(self._letters[0])
                    self._dispose(self._letters.popleft())
                self._emptied.set()
                self._stirred = trio.Event()
                await self._stirred.wait()
        finally:
            self.close()

    async def drain(self, at_most_s: float) -> None:
        """Wait until all is written, but not longer than that."""
        with trio.move_on_after(at_most_s):
            await self._emptied.wait()

    def close(self) -> None:
        """Throw away what was not written."""
        self._closed = True
        while self._letters:
            self._dispose(self._letters.popleft())
        self._emptied.set()

    async def _write(self, letter: _Letter) -> None:
        deadline = trio.current_time() + self._max_wait_s
        view = memoryview(letter.data)
        ancillary = []
        if letter.fd is not None:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [letter.fd]).tobytes())]
        while view:
            self._refuse_too_much()
            with trio.CancelScope(deadline=deadline) as self._sending:
                sent = await self._socket.sendmsg([view], ancillary)
                view, ancillary = view[sent:], []
                continue
            self._refuse_too_much()
            raise SlowReaderError(f"nothing was read for {self._max_wait_s:g} s")

    def _refuse_too_much(self) -> None:
        if self._bytes > self._max_bytes:
            raise SlowReaderError(f"{self._bytes} bytes are waiting, at most {self._max_bytes} may")

    def _dispose(self, letter: _Letter) -> None:
        self._bytes -= len(letter.data)
        if letter.fd is not None:
            os.close(letter.fd)
        if letter.written is not None:
            letter.written()
