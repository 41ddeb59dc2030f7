"""Sockets for a stream: the hole of a call, or a plain one for --direct."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

from punchd.errors import PunchdError
from punchd.feed import ending
from punchd.punch.hole import Hole
from punchd.punch.mail import Box, Mailroom
from punchd.punch.messages import Bye, Message
from punchd.punch.outcomes import EndedError, Exit

GOODBYE_S = 1.0

Use = Callable[[trio.socket.SocketType], Awaitable[None]]


async def over_hole(hole: Hole, mailroom: Mailroom, box: Box, use: Use) -> None:
    """Use a hole, as long as the other side has not given up; when this side gives up, say so.

    Raises:
        EndedError: it did not end well.

    Resource handling: closes the hole's socket.
    """
    failure: PunchdError | None = None
    is_over = False

    def hear(message: Message) -> None:
        nonlocal failure
        if isinstance(message, Bye) and message.is_cut:
            failure = failure or ending.given_up()
            scope.cancel()

    try:
        with hole.connected.socket as sock, trio.CancelScope() as scope:
            box.take = hear
            for message in hole.late:
                hear(message)
            try:
                await use(sock)
            except PunchdError as error:
                failure = failure or error
        is_over = failure is None
    finally:
        if not is_over:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + GOODBYE_S):
                await mailroom.post(box.peer, box.call_id, Bye(is_cut=True))
    if failure is not None:
        raise failure


@asynccontextmanager
async def direct(host: str, port: int, *, is_waiting: bool) -> AsyncIterator[trio.socket.SocketType]:
    """A socket bound to a place (of this host), or connected to it.

    Raises:
        EndedError: there is no such place.
    """
    flags = socket.AI_PASSIVE if is_waiting else 0
    try:
        [family, *_, address], *_ = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM, flags=flags)
    except OSError as error:
        raise EndedError(Exit.USAGE, f"--direct {host}: {error.strerror or error}") from None
    with trio.socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            await (sock.bind if is_waiting else sock.connect)(address)
        except OSError as error:
            raise EndedError(Exit.USAGE, f"--direct {host}:{port}: {error.strerror}") from None
        yield sock
