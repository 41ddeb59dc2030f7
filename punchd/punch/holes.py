"""The local daemon's part: probes and attempts.

Each call has a connection of its own to the daemon: its limits are by connection, one that ends takes no other call
with it, and a daemon that was restarted is found again by the next call.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import trio

from punchd import __version__
from punchd.client.errors import AttemptError, ClientError
from punchd.client.options import AttemptOptions, PortOptions
from punchd.client.trio_client import Attempt, Daemon
from punchd.control.answers import OkProbe
from punchd.control.requests import Protocol
from punchd.errors import Code, DecodeError
from punchd.punch.messages import Call
from punchd.punch.outcomes import EndedError, Exit

MOST_AT_ONCE = 8  # attempts; others wait. A daemon gives a user 16 connections, and there may be another `punch`
MOST_TIMEOUT_S = 120.0  # of an attempt, by the line protocol


class Puncher:
    """Where the daemon is, and what it is asked for.

    Args:
        path: of its socket; None: where the client library looks.
        techniques: what to try, in this order; None: all of the protocol that the daemon has.
        stun: a STUN server to ask instead of the daemon's.
        spare_stun: one to ask if the daemon knows none.
    """

    def __init__(
        self,
        path: str | None,
        protocol: Protocol,
        *,
        techniques: tuple[str, ...] | None = None,
        stun: tuple[str, int] | None = None,
        spare_stun: tuple[str, int] | None = None,
    ) -> None:
        self.protocol = protocol
        self._path = path
        self._techniques = techniques
        self._stun = stun
        self._spare_stun = spare_stun
        self._places = trio.CapacityLimiter(MOST_AT_ONCE)

    @asynccontextmanager
    async def daemon(self) -> AsyncIterator[Daemon]:
        """A connection to the daemon, as soon as there is a place for one.

        Raises:
            EndedError: there is no daemon, or it ends. Errors of attempts are the caller's.
        """
        async with self._places:
            try:
                async with Daemon.connect(self._path, client=f"punch/{__version__}") as daemon:
                    yield daemon
            except AttemptError:
                raise
            except ClientError as error:
                raise EndedError(Exit.DAEMON, str(error)) from None

    async def probe(self, daemon: Daemon) -> OkProbe:
        """The own public side, by the spare STUN server if the daemon knows none.

        Raises:
            EndedError: nothing tells it.
        """
        try:
            return await self._probe(daemon)
        except AttemptError as error:
            if error.code != Code.NO_ADDRESS or self._stun is not None or self._spare_stun is None:
                raise EndedError(Exit.DAEMON, f"punchd: {error}") from None
            self._stun = self._spare_stun
        try:
            return await self._probe(daemon)
        except AttemptError as error:
            self._stun = None
            raise EndedError(Exit.DAEMON, f"punchd: {error}") from None

    def initiate(self, daemon: Daemon, call: Call, timeout_s: float) -> AbstractAsyncContextManager[Attempt]:
        """An attempt towards whoever calls."""
        names = self._names(daemon)
        return daemon.initiate(call.ip, call.ports, techniques=names, **self._options(timeout_s))

    def respond(
        self, daemon: Daemon, token: str, own: OkProbe | None, timeout_s: float
    ) -> AbstractAsyncContextManager[Attempt]:
        """An attempt that follows an offer, on the port that was probed, if there is one.

        The token's address is not checked: what we know of the other side is from the same server as the token.
        """
        options = self._options(timeout_s)
        if own is not None:
            options["lport"] = own.lport
        return daemon.respond(token, peer=None, techniques=self._names(daemon), **options)

    async def _probe(self, daemon: Daemon) -> OkProbe:
        try:
            return await daemon.probe(self.protocol, **self._port_options())
        except DecodeError as error:  # a name that is longer than a request line takes
            raise EndedError(Exit.DAEMON, str(error)) from None

    def _port_options(self) -> PortOptions:
        return {} if self._stun is None else {"stun": self._stun}

    def _options(self, timeout_s: float) -> AttemptOptions:
        options: AttemptOptions = {"timeout_ms": int(1000 * min(max(timeout_s, 1.0), MOST_TIMEOUT_S))}
        if self._stun is not None:
            options["stun"] = self._stun
        return options

    def _names(self, daemon: Daemon) -> tuple[str, ...]:
        """What to try: `auto` would also bring sockets of the other protocol."""
        if self._techniques is not None:
            return self._techniques
        usable = () if daemon.greeting is None else daemon.greeting.techniques
        names = tuple(name for name in usable if name.partition("-")[0] == self.protocol)
        if not names:
            what = "CAP_NET_RAW and CAP_NET_ADMIN? Over UDP it needs none: --udp"
            needs = f"does it lack {what}" if self.protocol is Protocol.TCP else "see its --techniques"
            raise EndedError(Exit.DAEMON, f"punchd offers no technique for {self.protocol.upper()}; {needs}")
        return names
