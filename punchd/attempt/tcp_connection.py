"""A TCP connection that a round is making. The round's port owns it until it is handed over."""

from __future__ import annotations

import errno
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass

import trio

from punchd.kernel import tcp as sockets


@dataclass(eq=False, slots=True)
class RoundConnection:
    """Implements `punchd.technique.Connection`."""

    socket: socket.socket
    port: int

    async def result(self) -> int:
        while (current := self.socket).fileno() >= 0:
            with suppress(trio.ClosedResourceError, OSError):  # replaced, just now or just before its news was read
                return await sockets.established(current)
        return errno.EBADF  # there is no socket: replacing it failed

    def is_unanswered(self) -> bool:
        return self.socket.fileno() < 0 or sockets.is_unanswered(self.socket)

    def is_synchronized(self) -> bool:
        return self.socket.fileno() >= 0 and sockets.is_synchronized(self.socket)

    def announce(self) -> None:
        sockets.announce(self.socket)

    def drop(self) -> None:
        if self.socket.fileno() < 0:
            return
        if not sockets.is_synchronized(self.socket):
            trio.lowlevel.notify_closing(self.socket)
            sockets.close_silently(self.socket)  # a RST of ours would spoil the NATs for a later round
            return
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()
