"""What traceroutes from this host have shown, for as long as it can be trusted.

One for a daemon. A port whose public side STUN has just described is a reason to look (`consider`), and a round that
begins asks what is known (`known`); neither waits. So learning never delays anything, and what begins before the
answer is there uses the configured default.

It is not looked

- from a public address. Without a NAT there is no border between private and public hops, and the first public hop
  says nothing about where a firewall ends. Behind two firewalls without NAT it is at most the second one, where a
  packet with TTL 2 dies. Measured with a round trip of 80 ms: UDP led from there takes 179 ms, with TTL 4 128 ms;
- behind a NAT that counts its ports. The traceroute takes a mapping for each hop, and the ports that were just
  predicted for an attempt would be wrong;
- while another traceroute from the same address runs, or what it found is still fresh.

What was found is forgotten after a while, and when the host's addresses or routes change; a traceroute that ran
meanwhile is not believed. A daemon that gets into another network with the same addresses and the same routes believes
what it knows for REMEMBER_S.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import trio

from punchd.attempt.outlook import KnownSide
from punchd.endpoint import IPAddress, is_global
from punchd.errors import PunchError
from punchd.kernel.traceroute import Hop, first_public_hop, low_ttl, trace
from punchd.nat.mapping import Behaviour

REMEMBER_S = 600.0  # networks change with their routes; this is for what cannot be seen
REMEMBER_SILENCE_S = 60.0  # nothing learnt: maybe the answers were lost
MOST_SOURCES = 64  # addresses of this host that are remembered; the oldest are forgotten first

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Learnt:
    """What a traceroute taught.

    Attributes:
        ttl: the low TTL, 2 to 8.
        hop: the first public hop.
    """

    ttl: int
    hop: IPAddress

    def __str__(self) -> str:
        return f"learnt, {self.hop} is the first public hop"


Look = Callable[[IPAddress, IPAddress, IPAddress | None], Awaitable[Mapping[int, Hop]]]


class LowTtls:
    """The low TTL for each own address.

    Args:
        routes_changed: whether addresses or routes changed since it was last called.
        look: asks the hops; as `traceroute.trace`.
    """

    def __init__(self, routes_changed: Callable[[], bool], look: Look = trace) -> None:
        self._routes_changed = routes_changed
        self._look = look
        self._found: dict[IPAddress, tuple[float, Learnt | None]] = {}  # until when, and what
        self._looking: set[IPAddress] = set()
        self._changes = 0
        self._tasks: trio.Nursery | None = None

    async def run(self) -> None:
        """Look whenever `consider` finds reason to, until cancelled. While this does not run, nothing is learnt."""
        try:
            async with trio.open_nursery() as self._tasks:
                await trio.sleep_forever()
        finally:
            self._tasks = None

    def known(self, source: IPAddress) -> Learnt | None:
        """What is known for packets from `source`."""
        self._forget_if_changed()
        until, learnt = self._found.get(source, (0.0, None))
        return learnt if trio.current_time() < until else None

    def consider(self, side: KnownSide, target: IPAddress) -> None:
        """A port's public side is known: look from its address towards `target`, if there is anything to learn."""
        source = side.local.ip
        if side.mapping is None or side.mapping.behaviour is Behaviour.SEQUENTIAL or is_global(source):
            return
        self._forget_if_changed()
        until, _ = self._found.get(source, (0.0, None))
        if self._tasks is None or source in self._looking or trio.current_time() < until:
            return
        if source.version == target.version and len(self._looking) < MOST_SOURCES:
            self._looking.add(source)
            self._tasks.start_soon(self._learn, source, target, side.mapping.public_ip)

    async def _learn(self, source: IPAddress, target: IPAddress, public: IPAddress) -> None:
        hops: Mapping[int, Hop] = {}
        changes = self._changes
        try:
            hops = await self._look(source, target, public)
        except PunchError as error:
            log.debug("low TTL from %s: %s", source, error)
        finally:
            self._looking.discard(source)
        self._forget_if_changed()
        if changes == self._changes:
            self._remember(source, _lesson(hops, public))

    def _remember(self, source: IPAddress, learnt: Learnt | None) -> None:
        if learnt is not None:
            log.info("low TTL from %s: %d, %s", source, learnt.ttl, learnt)
        else:
            log.info("low TTL from %s: the configured one, no public hop answered", source)
        self._found.pop(source, None)
        self._found[source] = (trio.current_time() + (REMEMBER_S if learnt else REMEMBER_SILENCE_S), learnt)
        if len(self._found) > MOST_SOURCES:
            del self._found[next(iter(self._found))]

    def _forget_if_changed(self) -> None:
        if self._routes_changed():
            self._found.clear()
            self._changes += 1


def _lesson(hops: Mapping[int, Hop], public: IPAddress) -> Learnt | None:
    index, ttl = first_public_hop(hops, public), low_ttl(hops, public)
    return Learnt(ttl, hops[index].address) if index is not None and ttl is not None else None
