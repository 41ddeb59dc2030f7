"""How often a source may do something, counted by all servers together; see `windows.py` for what is counted.

One command a deed. A source that was refused is not asked for again until the time that Redis named: an exact log
frees no place earlier, so a flood costs one command a minute and not one a request. What Redis knows of a source is
an HMAC.
"""

from __future__ import annotations

from punchd.broker import redis_scripts
from punchd.broker.redis_changes import Changes
from punchd.broker.redis_instances import Instance
from punchd.broker.settings import Limits
from punchd.broker.windows import MINUTE_S, Deed, most_a_minute

_MS = 1000


class RedisRates:
    """See `windows.Rates`."""

    def __init__(self, instance: Instance, changes: Changes, limits: Limits) -> None:
        self._instance = instance
        self._changes = changes
        self._most = most_a_minute(limits)
        self._size = limits.sources
        self._refused: dict[tuple[Deed, bytes], float] = {}  # until when; the first to be refused first

    async def allow(self, deed: Deed, source: bytes, now: float) -> float:
        """See `windows.Rates`.

        Raises:
            StoreError: it cannot be known.
        """
        key = deed, source
        until = self._refused.get(key, now)
        if until > now:
            return until - now
        self._refused.pop(key, None)
        place = deed.value.encode() + b":" + self._changes.sealer.blind(source)
        arguments = place, self._most[deed], round(MINUTE_S * _MS)
        wait_s = float(await self._instance.call(redis_scripts.RATE, *arguments)) / _MS
        if wait_s > 0:
            while len(self._refused) >= self._size:
                del self._refused[next(iter(self._refused))]
            self._refused[key] = now + wait_s
        return wait_s
