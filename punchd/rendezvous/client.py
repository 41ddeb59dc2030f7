"""The client of a rendezvous server, for trio programs.

    async with Rendezvous.open("https://rendezvous.example:5025") as service:
        await service.bind(identity)                     # others find us by our address
        peer = await service.resolve(fingerprint)        # and we them
        await service.send(peer, token)
        signal = await service.receive()

Opening registers; inside the block pulses keep the registration and the public address fresh, and signals are fetched
as they come. All of that goes on by itself through lost pulses, restarts of a server that keeps its clients elsewhere,
and changes of the network: within one pulse interval, mostly at once.

A server that keeps its clients in memory forgets them when it is restarted. The old id is then of no use to anybody who
knows it, so nothing is repaired in silence: whoever waits or calls gets IdentityLostError, and `renew` registers anew
when the application says so.

What goes on in the background is in client_session.py. Calls retry what may be better in a moment (see
client_requests.py); nothing takes a timeout: cancel. Several tasks may use one `Rendezvous`.

Left out: WebSockets (the long poll does as well, through every proxy), and pulses over IPv4 and IPv6 at the same time:
they go to one address of the server, the resolver's first, and to the next one when it does not answer.

Source: rendezvous specification §2, §5, §6, §8, D-07, D-22, D-24.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from punchd.endpoint import Endpoint
from punchd.rendezvous.client_answers import Presence, Signal
from punchd.rendezvous.client_errors import (
    IdentityLostError,
    InsecureError,
    NotRendezvousError,
    PeerGoneError,
    RefusedError,
    RendezvousError,
    UnreachableError,
)
from punchd.rendezvous.client_requests import PATIENCE_S
from punchd.rendezvous.client_session import Session
from punchd.rendezvous.identity import fingerprint
from punchd.rendezvous.keeper import Timing
from punchd.rendezvous.views import SeenAddress
from punchd.web import client_url
from punchd.web.client_stream import tls_context

if TYPE_CHECKING:
    import ssl

    from punchd.rendezvous.identity import Identity

__all__ = [
    "Rendezvous", "Presence", "SeenAddress", "Signal", "Timing",
    "RendezvousError", "IdentityLostError", "InsecureError", "NotRendezvousError", "PeerGoneError", "RefusedError",
    "UnreachableError",
]  # fmt: skip

UDP_PORT = 5024
BIND_TRIES = 3


class Rendezvous:
    """A registered client. Made by `open`; ids are 16 bytes.

    Calls raise, besides what each one names:
        IdentityLostError: the server does not know this client any more; see `renew`.
        UnreachableError: no answer for 15 s.
        InsecureError, NotRendezvousError: what answers is not the server.
        RefusedError: the server refused the request.
        trio.ClosedResourceError: the block was left.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._requests = session.requests
        self._bound: dict[bytes, tuple[Identity, bytes]] = {}  # by public key; and the id that it stands for
        self._binding = trio.Lock()

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        url: str,
        *,
        udp: tuple[str, int] | None = None,
        tls: ssl.SSLContext | None = None,
        signed: bool = True,
        timing: Timing | None = None,
    ) -> AsyncIterator[Rendezvous]:
        """Register, and keep the registration while the block runs; leaving it logs out, within a second.

        Args:
            url: of the server's HTTP side, `https://HOST:PORT`. With http:// everybody on the way reads the key.
            udp: host and port for the pulses; by default the URL's host, 5024.
            tls: for https; by default the system's certificate authorities, TLS 1.2 or newer.
            signed: whether pulses are signed (rendezvous specification §6). A server that knows only the seed's plain
                ones does not answer those.
            timing: of the pulses; the server must know of a change.

        Raises:
            ConfigError: `url` is none.
            UnreachableError, InsecureError, NotRendezvousError, RefusedError: could not register; tried once.
        """
        where = client_url.parse(url, "rendezvous URL")
        session = Session(
            where, udp or (where.host, UDP_PORT), tls_context(where, tls), timing or Timing(), is_signed=signed
        )
        failure: Exception | None = None
        try:
            async with trio.open_nursery() as nursery:
                try:
                    await session.start(nursery)
                    yield cls(session)
                except Exception as error:  # noqa: BLE001 (raised again, outside the nursery, which would wrap it)
                    failure = error
                nursery.cancel_scope.cancel()
        finally:
            await session.end()
        if failure is not None:
            raise failure

    @property
    def client_id(self) -> bytes:
        """Our id; after it was lost, the one that was."""
        return self._session.client_id

    async def renew(self) -> None:
        """Register anew after the identity was lost, and bind the addresses that were bound. Peers must be told the id.

        Does nothing while there is an identity. After an error, call it again: it goes on where it failed.
        """
        async with self._binding:
            if self._session.is_lost:
                await self._session.register(PATIENCE_S)
            for identity, client_id in list(self._bound.values()):
                if client_id != self.client_id:
                    await self._bind(identity)

    async def look_up(self, client_id: bytes) -> tuple[SeenAddress, ...] | None:
        """Where a client's pulses come from: at most one address of each IP version, IPv4 first.

        Empty if none came of late; None if there is no such client.
        """
        with self._session.identity() as me:
            return await self._requests.look_up(me.key, client_id)

    async def status(self, client_id: bytes) -> Presence | None:
        """How a client is; None if there is no such client."""
        with self._session.identity() as me:
            return await self._requests.status(me.key, client_id)

    async def mapped(self) -> Endpoint:
        """Our own public UDP address as the server sees it; waits until it accepts a pulse from the present network."""
        version = await self._session.wait_heard()
        for seen in await self.look_up(self.client_id) or ():
            if seen.endpoint.ip.version == version:
                return seen.endpoint
        raise NotRendezvousError(f"{self._session.name}: expected the address that our pulse came from, got none")

    async def bind(self, identity: Identity) -> None:
        """Make the address of `identity` stand for this client, whatever it stood for; `renew` binds it again."""
        async with self._binding:
            await self._bind(identity)

    async def resolve(self, print_of_key: bytes) -> bytes | None:
        """The client that an address (its fingerprint) stands for, proven by its key; None if nobody is there."""
        with self._session.identity() as me:
            found = await self._requests.resolve(me.key, print_of_key)
            return None if found is None else found.client_id

    async def send(self, client_id: bytes, text: str) -> None:
        """Send a signal: a text of 1 to 1,024 bytes in UTF-8. It may arrive twice, or never.

        Waits while the server says that there are too many: of ours, or for a client that does not fetch them.

        Raises:
            PeerGoneError: there is no such client.
        """
        with self._session.identity() as me:
            await self._requests.send(me.key, client_id, text)

    async def receive(self) -> Signal:
        """The next signal. Those of one sender come in order; what came before the identity was lost still comes.

        Cancellation: nothing is lost.
        """
        return await self._session.receive()

    async def _bind(self, identity: Identity) -> None:
        session = self._session
        with session.identity() as me:
            signed_at = session.unix_s()
            for tries in range(1, BIND_TRIES + 1):
                try:
                    await self._requests.bind(me.key, identity.bind(me.client_id, signed_at))
                except RefusedError as error:
                    if error.code != "STALE" or tries == BIND_TRIES:
                        raise
                    # Our clock is off, or there is a newer binding: an earlier run's, of this very second.
                    session.set_clock(await self._requests.verify(me.key))
                    newest = await self._requests.resolve(me.key, fingerprint(identity.public_key))
                    signed_at = max(session.unix_s(), 0 if newest is None else newest.timestamp + 1)
                else:
                    self._bound[identity.public_key] = (identity, me.client_id)
                    return
