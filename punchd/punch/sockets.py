"""Plain TCP: a punched socket as a stream, and connections to what is forwarded."""

from __future__ import annotations

import socket
import struct
from contextlib import suppress

import trio

from punchd.errors import PunchdError

DIAL_S = 5.0
# A peer that vanished is found out after 90 s, and NATs that forget idle connections do not.
IDLE_S, INTERVAL_S, PROBES = 30, 15, 4
VANISHED_MS = 90_000


class TargetError(PunchdError):
    """What is to be forwarded to does not answer."""


def keep_alive(sock: trio.socket.SocketType) -> None:
    """Have the kernel look after the connection."""
    with suppress(OSError):  # a socket pair of the tests
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, IDLE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, INTERVAL_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, VANISHED_MS)


def cut(stream: trio.abc.AsyncResource) -> None:
    """Have the kernel reset a TCP connection when it is closed, so that the other end takes it for no proper end.

    Does nothing to streams of other kinds.
    """
    if isinstance(stream, trio.SocketStream):
        with suppress(OSError):
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def dial(target: str) -> trio.SocketStream:
    """A connection to HOST:PORT.

    Raises:
        TargetError: there is none.
    """
    host, _, port = target.rpartition(":")
    try:
        with trio.fail_after(DIAL_S):
            return await trio.open_tcp_stream(host.strip("[]"), int(port))
    except (OSError, trio.TooSlowError) as error:
        raise TargetError(f"{target}: {_reason(error)}") from None


def _reason(error: BaseException) -> str:
    """The first of trio's reasons, one for each address that it has tried."""
    while isinstance(error.__cause__, BaseExceptionGroup):
        error = error.__cause__.exceptions[0]
    return "no answer" if isinstance(error, trio.TooSlowError) else getattr(error, "strerror", None) or str(error)
