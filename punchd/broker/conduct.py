"""How a connection behaves, and when it has to go: messages that were dropped, that made no sense, or that pile up.

    dropped     beyond the token's rate, or a keep-alive within 5 s of the last: 200 within 10 s are borne
    violations  answered with INVALID_MESSAGE: 20 within 60 s are borne
    waiting     sent and not read: 256 messages or 1 MiB are borne

One connection's; the rate of messages is its token's, which may have several connections. Being told of the rate
counts as no violation, and comes once a second at most.

Pure: `now` is in seconds of a clock that never goes back.

Source: broker specification §9, C-06, C-48.
"""

from __future__ import annotations

from math import inf

from punchd.broker.settings import Limits

DROPS_S = 10.0
VIOLATIONS_S = 60.0
NOTICE_S = 1.0
KEEP_ALIVE_S = 5.0


class Conduct:
    """What is counted of one connection."""

    __slots__ = ("_drops", "_drops_since", "_keep_alive_at", "_limits", "_notice_at", "_violations", "_waiting")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._drops = 0
        self._drops_since = -inf
        self._notice_at = -inf
        self._keep_alive_at = -inf
        # Lists, because they are empty nearly always, and an empty deque has 600 bytes.
        self._violations: list[float] = []
        self._waiting: list[int] = []  # sizes of messages

    def keeps_alive(self, now: float) -> bool:
        """A keep-alive came; whether it is to be answered."""
        if now < self._keep_alive_at:
            return False
        self._keep_alive_at = now + KEEP_ALIVE_S
        return True

    def drop(self, now: float) -> bool:
        """A message was dropped; whether that is still borne."""
        if now - self._drops_since >= DROPS_S:
            self._drops, self._drops_since = 0, now
        self._drops += 1
        return self._drops <= self._limits.dropped_messages

    def may_notice(self, now: float) -> bool:
        """Whether it may be told of the rate again."""
        if now < self._notice_at:
            return False
        self._notice_at = now + NOTICE_S
        return True

    def violate(self, now: float) -> bool:
        """It is told INVALID_MESSAGE; whether that is still borne."""
        while self._violations and now - self._violations[0] >= VIOLATIONS_S:
            del self._violations[0]
        self._violations.append(now)
        return len(self._violations) <= self._limits.violations

    def queue(self, size: int, unsent: int) -> bool:
        """A message of `size` bytes was sent, and `unsent` bytes wait now; whether that is still borne."""
        if not unsent:
            self._waiting.clear()
            return True
        self._waiting.append(size)
        total = sum(self._waiting) if len(self._waiting) > self._limits.outbound_messages else 0
        while total and total - self._waiting[0] >= unsent:  # the first of them is on its way
            total -= self._waiting.pop(0)
        return len(self._waiting) <= self._limits.outbound_messages and unsent <= self._limits.outbound_bytes
