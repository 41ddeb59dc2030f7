"""`punch listen` and `punch connect`, from the daemon and the rendezvous server to the end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import trio

from punchd.errors import PunchdError
from punchd.punch import meeting
from punchd.punch.mail import Mailroom
from punchd.punch.outcomes import EndedError, Exit
from punchd.rendezvous.client import RendezvousError

if TYPE_CHECKING:
    from punchd.control.requests import Protocol
    from punchd.punch.holes import Puncher
    from punchd.punch.listener import Listener
    from punchd.punch.news import News
    from punchd.punch.settings import Forward, Settings
    from punchd.rendezvous.identity import Identity


async def listen(settings: Settings, puncher: Puncher, listener: Listener, identity: Identity, news: News) -> None:
    """Take calls: for ever, or until the one is over.

    Raises:
        EndedError: no daemon, no rendezvous server, or the one connection broke.
    """
    async with puncher.daemon() as daemon:
        await puncher.probe(daemon)  # now, not when somebody calls
    async with meeting.rendezvous(settings, news) as service:
        try:
            await service.bind(identity)
        except RendezvousError as error:
            raise EndedError(Exit.RENDEZVOUS, str(error)) from None
        mailroom = Mailroom(service, news, listener.take)

        async def serve() -> None:
            news.say("listening", f"listening at {identity.address}", address=identity.address)
            await listener.run(mailroom)

        await _beside(mailroom.run, serve)


async def connect(
    settings: Settings,
    protocol: Protocol,
    news: News,
    *,
    wanted: bytes,
    identify: Callable[[], Identity] | None,
    forwards: list[Forward],
) -> None:
    """Call somebody: once, or for each connection to a local port, for ever.

    Args:
        wanted: fingerprint of the key to be reached.
        identify: loads the own key; None: plain.

    Raises:
        EndedError: see `Exit`.
        ConfigError: something is wrong with the key or the URL.
    """
    async with meeting.rendezvous(settings, news) as service:
        from punchd.punch import connector, forward  # not before there is somebody to ask

        mailroom = Mailroom(service, news)
        puncher = meeting.puncher(settings, protocol)
        identity = identify() if identify is not None else None
        caller = connector.Caller(mailroom, puncher, identity, wanted, settings.timeout, news)

        async def call() -> None:
            if not forwards:
                return await connector.connect(caller)
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
