"""The routes of a rendezvous server as calls: what is asked, and what its answers mean.

What may be better in a moment is tried again by itself: silence for up to 15 s, in which a server can be restarted;
"too many requests" (429) for as long as the server says so, at its pace. Callers cancel.

A request that was sent again may have been served twice. For all of these that does no harm: a signal may come twice
(the application must expect that of any signal), a client that was registered twice disappears by itself.

Source: rendezvous specification §5, §8.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import TypeVar

import trio

from punchd.errors import DecodeError
from punchd.rendezvous import client_answers as answers
from punchd.rendezvous import identity
from punchd.rendezvous.client_answers import Membership, Presence, Signal
from punchd.rendezvous.client_errors import (
    IdentityLostError,
    InsecureError,
    NotRendezvousError,
    PeerGoneError,
    RefusedError,
    RendezvousError,
    UnreachableError,
)
from punchd.rendezvous.identity import Binding
from punchd.rendezvous.views import SeenAddress
from punchd.web.client_http import HttpClient, Reply, retry_after_s
from punchd.web.client_stream import Server
from punchd.web.client_url import Url

PATIENCE_S = 15.0  # with a server that does not answer
FIRST_PAUSE_S = 0.25
MOST_PAUSE_S = 4.0
_BUSY = frozenset({502, 503, 504})  # of a proxy whose server is being restarted, or a server that is full

_ValueT = TypeVar("_ValueT")


def server(url: Url) -> Server:
    """Of which our HTTP client tells in these words."""
    return Server(url, "rendezvous server", UnreachableError, InsecureError, NotRendezvousError)


class Requests:
    """A server's routes, over one connection. `key` is that of the caller.

    Every call raises UnreachableError, InsecureError or NotRendezvousError if there is no usable answer, RefusedError
    if there is one that says no, and IdentityLostError if the server does not know the key.
    """

    def __init__(self, server: Server, http: HttpClient) -> None:
        self._who = str(server)
        self._http = http

    async def register(self, *, patience_s: float) -> tuple[Membership, int]:
        """A new client, and the server's Unix time."""
        route = "POST /register"
        reply = self._only(200, route, await self._ask(route, patience_s=patience_s))
        return self._read(route, reply, answers.membership), self._read(route, reply, answers.timestamp)

    async def verify(self, key: bytes) -> int:
        """Say that we are there; the server's Unix time. Tried once: it belongs to a pulse, which comes again."""
        route = "POST /verify"
        return self._read(route, self._only(200, route, await self._ask(route, key, patience_s=0.0)), answers.timestamp)

    async def log_out(self, key: bytes) -> None:
        """Tried once."""
        self._only(200, "POST /logout", await self._ask("POST /logout", key, patience_s=0.0))

    async def look_up(self, key: bytes, client_id: bytes) -> tuple[SeenAddress, ...] | None:
        """Where a client is, IPv4 first; nothing without a pulse of late; None if there is no such client."""
        route = f"GET /peer/{client_id.hex()}/udp"
        reply = await self._ask(route, key)
        if reply.status != 404:
            return self._read(route, self._only(200, route, reply), answers.addresses)
        return () if self._read(route, reply, answers.objection).code == "NO_ADDRESS" else None

    async def status(self, key: bytes, client_id: bytes) -> Presence | None:
        """How a client is; None if there is no such client."""
        route = f"GET /peer/{client_id.hex()}/udp/status"
        reply = await self._ask(route, key)
        if reply.status == 404:
            self._read(route, reply, answers.objection)
            return None
        return self._read(route, self._only(200, route, reply), answers.presence)

    async def send(self, key: bytes, client_id: bytes, text: str) -> None:
        """A signal for a client.

        Raises:
            PeerGoneError: there is no such client.
        """
        route = f"POST /peer/{client_id.hex()}/signal"
        reply = await self._ask(route, key, text.encode())
        if reply.status == 404:
            self._read(route, reply, answers.objection)
            raise PeerGoneError(f"{self._who}: there is no client {client_id.hex()} any more")
        self._only(202, route, reply)

    async def signals(self, key: bytes, wait_s: int) -> list[Signal]:
        """What waits for us, or comes within `wait_s`. Tried once."""
        route = f"GET /signals?wait={wait_s}"
        reply = await self._ask(route, key, wait_s=wait_s, patience_s=0.0)
        if reply.status == 404:
            raise RefusedError(f"{self._who}: {route}: expected signals, but this server has none", 404, "NOT_FOUND")
        return self._read(route, self._only(200, route, reply), answers.signals)

    async def bind(self, key: bytes, binding: Binding) -> None:
        """The address of `binding` is this client's from now on."""
        route = f"PUT /alias/{identity.address(binding.fingerprint)}"
        claim = {
            "public_key": binding.public_key.hex(),
            "timestamp": binding.timestamp,
            "signature": binding.signature.hex(),
        }
        self._only(200, route, await self._ask(route, key, json.dumps(claim).encode()))

    async def resolve(self, key: bytes, fingerprint: bytes) -> Binding | None:
        """The binding of an address, proven by the address itself; None if there is none."""
        route = f"GET /alias/{identity.address(fingerprint)}"
        reply = await self._ask(route, key)
        if reply.status == 404:
            self._read(route, reply, answers.objection)
            return None
        found = self._read(route, self._only(200, route, reply), answers.binding)
        if found.fingerprint != fingerprint or not found.is_authentic():
            raise NotRendezvousError(
                f"{self._who}: {route}: expected what the owner of the address signed, got a forgery"
            )
        return found

    # --- one request -------------------------------------------------------------------------------------------------

    async def _ask(
        self,
        route: str,
        key: bytes | None = None,
        body: bytes = b"",
        *,
        wait_s: float = 0.0,
        patience_s: float | None = None,
    ) -> Reply:
        method, path = route.split(" ", 1)
        bearer = None if key is None else key.hex()
        patience_s = PATIENCE_S if patience_s is None else patience_s
        give_up_at = trio.current_time() + patience_s
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                reply = await self._http.ask(method, path, bearer=bearer, body=body, wait_s=wait_s)
            except UnreachableError:
                if trio.current_time() + pause_s > give_up_at:
                    raise
                # Not all at once, when a server comes back that has many clients.
                await trio.sleep(random.uniform(pause_s / 2, pause_s))  # noqa: S311 (no secret)
                pause_s = min(2 * pause_s, MOST_PAUSE_S)
                continue
            asked_s = retry_after_s(reply.fields.get("retry-after"))
            is_in_time = trio.current_time() + asked_s <= give_up_at
            if reply.status != 429 and not (reply.status in _BUSY and is_in_time):
                return reply
            await trio.sleep(asked_s)

    def _only(self, status: int, route: str, reply: Reply) -> Reply:
        """`reply`, if it has the status that it should have."""
        if reply.status == status:
            return reply
        try:
            objection = answers.objection(reply.body)
        except DecodeError:
            raise self._is_none(route, reply) from None
        if reply.status == 401 and objection.code == "AUTH_FAILED":
            raise IdentityLostError(f"{self._who}: expected to be known there, but it has forgotten this client")
        why = f"{objection.message} ({reply.status} {objection.code})"
        if reply.status == 503 and objection.code == "UNHEALTHY":  # its store is away, and comes back
            raise UnreachableError(f"{self._who}: {route}: {why}")
        raise RefusedError(f"{self._who}: {route}: refused: {why}", reply.status, objection.code)

    def _read(self, route: str, reply: Reply, decode: Callable[[bytes], _ValueT]) -> _ValueT:
        try:
            return decode(reply.body)
        except DecodeError as error:
            raise self._is_none(route, reply, str(error)) from None

    def _is_none(self, route: str, reply: Reply, expected: str = "expected JSON") -> RendezvousError:
        if reply.status in _BUSY:
            return UnreachableError(f"{self._who}: {route}: expected its answer, got a proxy's status {reply.status}")
        kind = reply.fields.get("content-type", "no content type")[:60]
        where = f", location {reply.fields['location'][:100]!r}" if "location" in reply.fields else ""
        got = f"status {reply.status} ({kind!r}){where}"
        return NotRendezvousError(f"{self._who}: {route}: {expected}, got {got}: is this a rendezvous server?")
