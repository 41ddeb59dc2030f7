"""Standard input and output at one end of a hole."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from punchd.punch.datagrams import Talk
from punchd.punch.hole import Hole
from punchd.punch.mail import Box, Mailroom
from punchd.punch.messages import Message
from punchd.punch.relay import relay
from punchd.punch.stdio import Stdio

# What a call is for, where it is not this talk: it gets the hole, and closes it.
Carry = Callable[[Hole, Mailroom, Box], Awaitable[None]]


async def talk(hole: Hole, mailroom: Mailroom, box: Box, stdio: Stdio) -> None:
    """Until both sides have ended.

    Raises:
        EndedError: it broke.

    Resource handling: closes the hole.
    """
    stream = hole.secured.stream
    if stream is not None:
        await relay(stream, stdio)
        return

    async def post(message: Message) -> None:
        await mailroom.post(box.peer, box.call_id, message)

    datagrams = Talk(hole.connected.socket, stdio, post)
    for message in hole.late:
        datagrams.take(message)
    box.take = datagrams.take
    await datagrams.run()
