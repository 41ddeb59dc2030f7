"""How often a tuple's caches may be flushed: four times at once, then once a second.

A flush costs the session all that it has half received, and anybody who can forge a datagram of the tuple can cause
one. Legitimate ones are rare. This keeps such a stranger from making reassembly impossible, not from doing harm: that
takes an authenticated carrier below.

Source: media specification D26.
"""

from __future__ import annotations

BURST = 4
PER_SECOND = 1.0


class FlushLimit:
    """A token bucket."""

    __slots__ = ("_at", "_tokens")

    def __init__(self) -> None:
        self._tokens = float(BURST)
        self._at = 0.0

    def allows(self, now: float) -> bool:
        """Whether one more may happen; it then counts."""
        self._tokens = min(BURST, self._tokens + max(now - self._at, 0.0) * PER_SECOND)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
