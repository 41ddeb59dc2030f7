"""What an application sends: lines, and descriptors of sockets that it passes in.

Theory of operation. A descriptor comes no later than the first byte of its line, and `recvmsg` never returns bytes
beyond the message that carried one, but it may return bytes of earlier lines together with it. So descriptors are not
tied to a read: they wait in a queue, and a line that asks for one (`sock=1`) takes its head, the mirror image of the
rule for clients. As lines are taken before more is read, one place in the queue is enough. But there is room for as
many as one message can carry: what there is no room for the kernel closes on the spot, and that may take as long as
the application likes (`punchd.kernel.closing`). For the same reason a byte that is sent out of band comes in its place
like all others: otherwise the kernel drops it, and the descriptors with it.

What is against the rule ends the connection, since nobody can tell any more which descriptor belongs where: two at
once, and one that no line has taken when the bytes that came with it are all whole lines.

Source: line protocol §5, §13.13; unix(7).
"""

from __future__ import annotations

import re
import socket
from array import array
from collections.abc import Iterator

import trio

from punchd.control.lines import LineSplitter
from punchd.errors import Code, ProtocolError

READ_SIZE = 4096  # bytes
MOST_DESCRIPTORS = 253  # of one message: SCM_MAX_FD in net/scm.h
_ROOM = socket.CMSG_SPACE(MOST_DESCRIPTORS * array("i").itemsize)
_ASKS = re.compile(rb"(?:initiate|respond)\|.*[|;]sock=")


class Incoming:
    """One connection's input. Owns the descriptors that came until they are taken."""

    def __init__(self, stream: trio.socket.SocketType) -> None:
        self._stream = stream
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        self._splitter = LineSplitter()
        self._waiting: list[int] = []

    async def lines(self) -> list[bytes | ProtocolError]:
        """The lines that the next read completes, maybe none; a ProtocolError, if any, is the last item.

        Every line is to be taken before this is called again.

        Raises:
            EOFError: the application is gone, or will send nothing more.
        """
        if self._waiting and self._is_between_lines:
            return [ProtocolError(Code.BAD_MESSAGE, "a descriptor came, and no line with sock=1 for it")]
        try:
            data, control, flags, _ = await self._stream.recvmsg(READ_SIZE, _ROOM, socket.MSG_CMSG_CLOEXEC)
        except OSError:
            raise EOFError from None
        self._waiting += _descriptors(control)
        if len(self._waiting) > 1 or flags & socket.MSG_CTRUNC:
            return [ProtocolError(Code.BAD_MESSAGE, "more descriptors came than lines with sock=1 for them")]
        if not data:
            raise EOFError
        self._is_between_lines = data.endswith(b"\n")
        return self._splitter.feed(data)

    def take(self) -> int | None:
        """The descriptor that waits, if any; the caller owns it."""
        return self._waiting.pop() if self._waiting else None

    def leftovers(self) -> list[int]:
        """What nobody took, when there will be no more lines; the caller owns them."""
        left, self._waiting = self._waiting, []
        return left

    _is_between_lines = True


def asks_for_socket(line: bytes) -> bool:
    """Whether a line, right or wrong in the rest, is one that a descriptor came with."""
    return _ASKS.match(line) is not None


def _descriptors(control: list[tuple[int, int, bytes]]) -> Iterator[int]:
    for level, kind, payload in control:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found = array("i")
            found.frombytes(payload[: len(payload) - len(payload) % found.itemsize])
            yield from found
