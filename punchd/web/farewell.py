"""How a TCP connection ends: with the last words delivered, or at once.

A socket that is closed while unread bytes wait in it sends RST, and an RST makes the other side's kernel throw away
what its application has not read yet, such as the answer 413 to somebody who is still sending a body. So the last words
are followed by FIN, and what still comes is read away for a while (RFC 9112 §9.6).
"""

from __future__ import annotations

import contextlib
import socket
import struct

import trio

GONE = (trio.BrokenResourceError, trio.ClosedResourceError)  # what a stream raises for a client that is gone

_READ_BYTES = 65_536
_READS = 64  # 4 MiB at most
_RST = struct.pack("ii", 1, 0)  # struct linger of socket(7): on, 0 s


async def part(stream: trio.SocketStream | trio.SSLStream[trio.SocketStream], patience_s: float) -> None:
    """Say that nothing more comes, and read away what does until the client closes too."""
    with trio.move_on_after(patience_s), contextlib.suppress(*GONE):
        if isinstance(stream, trio.SSLStream):
            transport = stream.transport_stream
            with contextlib.suppress(trio.BrokenResourceError):  # the client's data comes instead of its close_notify
                await stream.unwrap()
        else:
            transport = stream
        await transport.send_eof()
        for _ in range(_READS):
            if not await transport.receive_some(_READ_BYTES):
                break


def drop(sock: trio.socket.SocketType) -> None:
    """Close with RST, so that the kernel keeps nothing for a client that does not read. Closed ones stay closed."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
    sock.close()
