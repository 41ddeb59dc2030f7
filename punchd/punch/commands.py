"""`punch listen` and `punch connect`, from the daemon and the rendezvous server to the end.

What a call takes is not loaded before there is somebody to ask: that is half of the time that a start takes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import trio

from punchd.errors import PunchdError
from punchd.punch import meeting

if TYPE_CHECKING:
    from punchd.punch.holes import Puncher
    from punchd.punch.listener import Listener
    from punchd.punch.news import News
    from punchd.punch.settings import Forward, Settings
    from punchd.punch.talk import Carry
    from punchd.rendezvous.identity import Identity


async def listen(
    settings: Settings,
    news: News,
    *,
    is_udp: bool,
    identify: Callable[[], Identity],
    employ: Callable[[Puncher, Identity], Listener],
) -> None:
    """Take calls: for ever, or until the one is over.

    Args:
        identify: loads the own key.
        employ: makes the listener.

    Raises:
        EndedError: no daemon, no rendezvous server, or the one connection broke.
        ConfigError: something is wrong with the key or the URL.
    """
    puncher = meeting.puncher(settings, is_udp=is_udp)
    async with puncher.daemon() as daemon:
        await puncher.probe(daemon)  # now, not when somebody calls
    identity = identify()
    async with meeting.rendezvous(settings, news) as service:
        await service.bind(identity)
        from punchd.punch.mail import Mailroom

        listener = employ(puncher, identity)
        mailroom = Mailroom(service, news, listener.take)

        async def serve() -> None:
            news.say("listening", f"listening at {identity.address}", address=identity.address)
            await listener.run(mailroom)

        await _beside(mailroom.run, serve)


async def connect(
    settings: Settings,
    news: News,
    *,
    is_udp: bool,
    wanted: bytes,
    identify: Callable[[], Identity] | None,
    forwards: list[Forward],
    carry: Carry | None = None,
) -> None:
    """Call somebody: once, or for each connection to a local port, for ever.

    Args:
        wanted: fingerprint of the key to be reached.
        identify: loads the own key; None: plain.
        carry: what the connection is for, if not for standard input and output.

    Raises:
        EndedError: see `Exit`.
        ConfigError: something is wrong with the key or the URL.
    """
    async with meeting.rendezvous(settings, news) as service:
        from punchd.punch import connector, forward
        from punchd.punch.mail import Mailroom

        mailroom = Mailroom(service, news)
        puncher = meeting.puncher(settings, is_udp=is_udp)
        identity = identify() if identify is not None else None
        caller = connector.Caller(mailroom, puncher, identity, wanted, settings.timeout, news)

        async def call() -> None:
            if not forwards:
                return await connector.connect(caller, carry)
            await caller.find()
            return await forward.serve(caller, forwards)

        await _beside(mailroom.run, call)


async def _beside(background: Callable[[], Awaitable[None]], command: Callable[[], Awaitable[None]]) -> None:
    """Run `command` with something in the background that never ends; raise what it raises."""
    failure: PunchdError | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(background)
        try:
            await command()
        except PunchdError as error:
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
