"""Exemptions as trio scopes: made on entry, undone on exit, whatever the exit is.

Theory of operation. A backend makes and undoes one exemption at a time, synchronously, and either does so at once or
says that another program holds a lock. This class gives it a worker thread (one, so a backend need not be
thread-safe), waits in trio between tries, and counts.

    enter   the wait can be cancelled, the change itself cannot: it is known whether there is something to undo
    exit    the last scope of a port undoes it: shielded from cancellation, for UNDO_PATIENCE_S at most, since the
            line protocol promises a final answer within the attempt's timeout + 2 s. What could not be undone by
            then is *owed*: tried again with every later scope and at the end, and counted against the limit

A lock file cannot be waited for in an event loop, and a thread that waits for it cannot be cancelled; hence tries,
each a few microseconds long.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import trio

from punchd.errors import KernelError

RETRY_S = 0.01  # between two looks at a lock that is held; iptables' own changes take 1-10 ms
MAKE_PATIENCE_S = 5.0  # for somebody else's lock; a third of the time a round of an attempt has
UNDO_PATIENCE_S = 1.0  # see above
CLOSE_PATIENCE_S = 1.0  # for all that is owed when the daemon ends

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Exemption:
    """ICMP time exceeded about TCP segments from this port is not for the kernel's ears.

    Attributes:
        family: socket.AF_INET or socket.AF_INET6.
        port: the local TCP port, 1-65535.
        nonce: the attempt's, at most 16 bytes; a name in rules and logs, no secret.
    """

    family: int
    port: int
    nonce: bytes

    def __post_init__(self) -> None:
        if self.family not in {socket.AF_INET, socket.AF_INET6}:
            raise ValueError(f"firewall: expected AF_INET or AF_INET6, got {self.family}")
        if not 0 < self.port < 65536:
            raise ValueError(f"firewall: expected a port of 1-65535, got {self.port}")
        if len(self.nonce) > 16:
            raise ValueError(f"firewall: expected a nonce of at most 16 bytes, got {len(self.nonce)}")


class Firewall(Protocol):
    """The host's firewall, as far as punchd touches it."""

    @property
    def name(self) -> str:
        """`nft`, `iptables` or `none`."""

    @property
    def families(self) -> frozenset[int]:
        """The address families in which exemptions take effect; empty for `none`."""

    def exempt(self, port: int, family: int, nonce: bytes) -> AbstractAsyncContextManager[None]:
        """Inside this scope time exceeded about TCP from the port is dropped; scopes of one port add up.

        Args: as the attributes of `Exemption`.

        Resource handling: when the scope is left, by return, exception or cancellation, the exemption is gone, or
        owed (logged) if another program blocks the firewall for longer than UNDO_PATIENCE_S.

        Error handling: entering raises KernelError when the kernel refuses, too many exemptions are held, or another
        program holds the lock for longer than MAKE_PATIENCE_S; ValueError for what is no port or family. Leaving
        raises nothing of its own.
        """

    def close(self) -> None:
        """Undo what is owed and let go of everything. Blocks, for CLOSE_PATIENCE_S at most. After the last scope."""


class Backend(Protocol):
    """Who carries exemptions out. Called by one thread at a time, not always the same. May block for milliseconds."""

    name: str
    families: frozenset[int]
    limit: int  # most exemptions at a time

    def make(self, exemption: Exemption) -> bool:
        """Make it, or renew it if it is there. False: another program holds the lock, nothing was done.

        Raises:
            KernelError: it is not made.
        """

    def undo(self, exemption: Exemption) -> bool:
        """Undo it; what is gone already is fine. False and errors as in `make`."""

    def close(self) -> None: ...


class NoFirewall:
    """`none`: exemptions that change nothing; techniques see by its families that they need not ask."""

    name = "none"
    families: frozenset[int] = frozenset()

    @asynccontextmanager
    async def exempt(self, port: int, family: int, nonce: bytes) -> AsyncIterator[None]:
        Exemption(family, port, nonce)  # the same mistakes are mistakes here
        yield

    def close(self) -> None:
        return


@dataclass(slots=True)
class _Port:
    """One port and what is known of its exemption.

    Attributes:
        scopes: how many need it.
        made: it is in the kernel; written by the worker thread only.
        owed: undoing was given up and is to be tried again.
    """

    exemption: Exemption
    scopes: int = 0
    made: bool = False
    owed: bool = False

    def __str__(self) -> str:
        return f"port {self.exemption.port} ({_version(self.exemption.family)})"


class Exemptions:
    """A backend's exemptions as scopes. Implements `Firewall`; owns the backend."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._one_at_a_time = trio.CapacityLimiter(1)
        self._ports: dict[tuple[int, int], _Port] = {}  # by family and number

    @property
    def name(self) -> str:
        return self._backend.name

    @property
    def families(self) -> frozenset[int]:
        return self._backend.families

    @asynccontextmanager
    async def exempt(self, port: int, family: int, nonce: bytes) -> AsyncIterator[None]:
        held = self._admit(Exemption(family, port, nonce))
        held.scopes += 1
        try:
            await self._make(held)
            await self._settle()
            yield
        finally:
            held.scopes -= 1
            if not held.scopes:
                await self._undo(held)

    def close(self) -> None:
        deadline = time.monotonic() + CLOSE_PATIENCE_S
        for held in self._ports.values():
            while not self._is_undone_now(held):
                if time.monotonic() > deadline:
                    log.error("firewall %s: the exemption of %s stays behind", self.name, held)
                    break
                time.sleep(RETRY_S)
        self._backend.close()

    def _admit(self, exemption: Exemption) -> _Port:
        if exemption.family not in self.families:
            raise KernelError(f"firewall {self.name}: {_version(exemption.family)} is not available on this host")
        key = exemption.family, exemption.port
        if key not in self._ports:
            if len(self._ports) >= self._backend.limit:
                raise KernelError(f"firewall {self.name}: {self._backend.limit} ports are exempt, no more can be")
            self._ports[key] = _Port(exemption)
        return self._ports[key]

    async def _make(self, held: _Port) -> None:
        def make() -> bool:
            done = self._backend.make(held.exemption)
            held.made |= done
            return done

        try:
            with trio.fail_after(MAKE_PATIENCE_S):
                await self._retry(make)
        except trio.TooSlowError:
            raise KernelError(
                f"firewall {self.name}: another program has held its lock for {MAKE_PATIENCE_S:g} s"
            ) from None

    async def _undo(self, held: _Port) -> None:
        why = "another program holds the lock"
        with trio.CancelScope(shield=True, relative_deadline=UNDO_PATIENCE_S):
            try:
                if held.made:
                    await self._retry(lambda: self._is_undone(held))
            except KernelError as error:
                why = str(error)
        held.owed = held.made and not held.scopes
        if held.owed:
            log.warning("firewall %s: the exemption of %s is ended later: %s", self.name, held, why)
        self._forget(held)

    async def _settle(self) -> None:
        """Try once to undo what is owed."""
        for held in [held for held in self._ports.values() if held.owed]:
            await trio.to_thread.run_sync(self._is_undone_now, held, limiter=self._one_at_a_time)
            self._forget(held)

    async def _retry(self, change: Callable[[], bool]) -> None:
        # Nothing tells an event loop when another process lets go of a lock.
        while not await trio.to_thread.run_sync(change, limiter=self._one_at_a_time):  # noqa: ASYNC110
            await trio.sleep(RETRY_S)

    def _is_undone(self, held: _Port) -> bool:
        """In the thread: undo, unless a scope has come that needs it. False: the lock is held."""
        if held.scopes or not held.made:
            return True
        held.made = not self._backend.undo(held.exemption)
        return not held.made

    def _is_undone_now(self, held: _Port) -> bool:
        """The same, and a refusal of the kernel is just one more reason to try later."""
        try:
            return self._is_undone(held)
        except KernelError:
            return False

    def _forget(self, held: _Port) -> None:
        held.owed &= held.made and not held.scopes
        key = held.exemption.family, held.exemption.port
        if not held.scopes and not held.made and self._ports.get(key) is held:  # a new one may have its place
            del self._ports[key]


def _version(family: int) -> str:
    return "IPv6" if family == socket.AF_INET6 else "IPv4"
