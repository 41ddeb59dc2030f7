"""The STUN servers to ask, their names resolved.

Names of the configuration are looked up when they are needed, all at once, and remembered for a while; a name server
that does not answer costs an attempt at most `LOOKUP_S`. Literal addresses never wait.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from ipaddress import ip_address

import trio

from punchd.endpoint import Endpoint

LOOKUP_S = 1.0  # half of the two seconds that a round has for its preparation
REMEMBER_S = 300.0
REMEMBER_FAILURE_S = 10.0
# Names that applications choose. libc goes on waiting for a name server after nobody else does, and a thread with it;
# without a bound of its own an application could take the threads that everything else needs.
FOREIGN_LOOKUPS = 8

_SILENCE = "STUN server %s: no name server answered within %g s"

log = logging.getLogger(__name__)

HostPort = tuple[str, int]


class StunServers:
    """Resolves the configured servers and those of single requests."""

    def __init__(self, configured: Sequence[HostPort]) -> None:
        self._configured = tuple(configured)
        self._known: dict[HostPort, tuple[float, tuple[Endpoint, ...]]] = {}
        self._foreign = trio.Semaphore(FOREIGN_LOOKUPS)

    async def of_family(self, version: int) -> list[Endpoint]:
        """The configured servers' endpoints of one IP version, in the order of the configuration."""
        found: dict[HostPort, tuple[Endpoint, ...]] = {}

        async def look(server: HostPort) -> None:
            found[server] = await self.resolve(server)

        async with trio.open_nursery() as nursery:
            for server in self._configured:
                nursery.start_soon(look, server)
        endpoints = (endpoint for server in self._configured for endpoint in found[server])
        return [endpoint for endpoint in dict.fromkeys(endpoints) if endpoint.ip.version == version]

    async def resolve(self, server: HostPort) -> tuple[Endpoint, ...]:
        """The first address of each family of one server; empty if the name cannot be resolved now."""
        host, port = server
        try:
            return (Endpoint(ip_address(host), port),)
        except ValueError:
            pass
        until, endpoints = self._known.get(server, (0.0, ()))
        if trio.current_time() < until:
            return endpoints
        if server not in self._configured:  # an application's own names are not remembered: they are not bounded
            return await self._look_up_foreign(host, port)
        endpoints = await self._look_up(host, port)
        remember_s = REMEMBER_S if endpoints else REMEMBER_FAILURE_S
        self._known[server] = (trio.current_time() + remember_s, endpoints)
        return endpoints

    async def _look_up_foreign(self, host: str, port: int) -> tuple[Endpoint, ...]:
        """One of few at a time, and it counts until libc has given up, which may be long after `LOOKUP_S`."""
        found: list[tuple[Endpoint, ...]] = []
        ended = trio.Event()

        async def look() -> None:
            try:
                found.append(await _ask(host, port))
            finally:
                self._foreign.release()
                ended.set()

        with trio.move_on_after(LOOKUP_S):
            await self._foreign.acquire()
            trio.lowlevel.spawn_system_task(look)
            await ended.wait()
        if not found:
            log.warning(_SILENCE, host, LOOKUP_S)
        return found[0] if found else ()

    async def _look_up(self, host: str, port: int) -> tuple[Endpoint, ...]:
        with trio.move_on_after(LOOKUP_S):
            return await _ask(host, port)
        log.warning(_SILENCE, host, LOOKUP_S)
        return ()


async def _ask(host: str, port: int) -> tuple[Endpoint, ...]:
    """The first address of each family, however long that takes; empty, and a line in the log, if there is none."""
    answers = []
    try:
        answers = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except OSError as error:
        log.warning("STUN server %s: %s", host, error.strerror)
    except UnicodeError as error:  # "a..b" is no name; the codec of host names says it in its own way
        log.warning("STUN server %s: %s", host, error)
    first: dict[int, Endpoint] = {}
    for *_, sockaddr in answers:
        endpoint = Endpoint.from_sockaddr(sockaddr)
        first.setdefault(endpoint.ip.version, endpoint)
    return tuple(first.values())
