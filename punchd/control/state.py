"""What all connections of one daemon share: settings, techniques, quotas, and which attempts are known."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from punchd.config import Config
from punchd.control.launch import Launcher
from punchd.control.policy import Policy
from punchd.control.quotas import Quotas
from punchd.control.registry import Registry
from punchd.control.requests import Rules
from punchd.errors import Code, DeniedError
from punchd.wire.token import Token

REMEMBER_S = 120.0  # side channels that deliver twice do so within a long poll or two
REMEMBER_MOST = 4096  # attempts; the oldest are forgotten first


@dataclass(slots=True)
class KnownAttempts:
    """Responders' attempts by nonce: those running, and the rounds of those that ended with a socket.

    Without the latter a doubled offer would start a new attempt for a round that is won, and tell the application that
    its socket is dead (race rules 1 and 2).
    """

    _running: set[bytes] = field(default_factory=set)
    _won: OrderedDict[bytes, tuple[int, float]] = field(default_factory=OrderedDict)

    def begin(self, offer: Token, now: float) -> None:
        """Note that an attempt follows this offer.

        Raises:
            DeniedError: duplicate-attempt, or stale: this round was won already.
        """
        if offer.nonce in self._running:
            raise DeniedError(Code.DUPLICATE_ATTEMPT, "this remote attempt is running under another id")
        won_round, until = self._won.get(offer.nonce, (0, 0.0))
        if now < until and offer.round <= won_round:
            raise DeniedError(Code.STALE, f"round {offer.round} of this remote attempt already ended with ok")
        self._running.add(offer.nonce)

    def end(self, nonce: bytes, won_round: int | None, now: float) -> None:
        """The attempt is over; `won_round` is the round that ended with a socket, if one did."""
        self._running.discard(nonce)
        if won_round is None:
            return
        self._won[nonce] = (won_round, now + REMEMBER_S)
        self._won.move_to_end(nonce)
        while len(self._won) > REMEMBER_MOST or next(iter(self._won.values()))[1] <= now:
            self._won.popitem(last=False)


@dataclass(frozen=True, slots=True)
class DaemonState:
    """One daemon's."""

    config: Config
    registry: Registry
    rules: Rules
    launcher: Launcher
    quotas: Quotas
    policy: Policy = field(default_factory=Policy)
    known: KnownAttempts = field(default_factory=KnownAttempts)
