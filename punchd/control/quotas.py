"""How much one application, one user and all of them together may ask for. Pure: time comes in as an argument."""

from __future__ import annotations

from collections import Counter

from punchd.config import Limits
from punchd.errors import Code, DeniedError

MAX_BUCKETS = 1024  # users with a bucket; one user may own tens of thousands of uids (subuid(5))


class Bucket:
    """A token bucket that tells how long to wait instead of saying no (GCRA).

    Args:
        rate: requests per second.
        burst: requests that may come at once.
    """

    def __init__(self, rate: float, burst: int) -> None:
        self._interval_s = 1 / rate
        self._slack_s = (burst - 1) / rate
        self._due = float("-inf")  # when the bucket is full again

    def take(self, now: float) -> float:
        """Count one request; seconds to wait before it may be carried out, 0 if there is nothing to wait for."""
        start = max(self._due, now)
        self._due = start + self._interval_s
        return max(0.0, start - self._slack_s - now)

    @property
    def full_at(self) -> float:
        """From when on this bucket is like a new one."""
        return self._due


class Quotas:
    """Counts connections and attempts of all users, and refuses what is too much."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._connections: Counter[int] = Counter()
        self._attempts: Counter[int] = Counter()
        self._buckets: dict[int, Bucket] = {}

    def connect(self, uid: int) -> None:
        """Count a connection of that user.

        Raises:
            DeniedError: busy. Nothing was counted then.
        """
        if self._connections.total() >= self._limits.connections:
            raise DeniedError(Code.BUSY, f"{self._limits.connections} connections are open")
        if self._connections[uid] >= self._limits.connections_per_user:
            raise DeniedError(Code.BUSY, f"{self._limits.connections_per_user} connections of uid {uid} are open")
        self._connections[uid] += 1

    def disconnect(self, uid: int) -> None:
        _count_down(self._connections, uid)

    def begin(self, uid: int, of_connection: int) -> None:
        """Count an attempt of that user, on a connection that has `of_connection` of them.

        Raises:
            DeniedError: busy. Nothing was counted then.
        """
        limits = self._limits
        if of_connection >= limits.attempts_per_connection:
            raise DeniedError(Code.BUSY, f"{limits.attempts_per_connection} attempts of this connection are running")
        if self._attempts[uid] >= limits.attempts_per_user:
            raise DeniedError(Code.BUSY, f"{limits.attempts_per_user} attempts of uid {uid} are running")
        if self._attempts.total() >= limits.attempts:
            raise DeniedError(Code.BUSY, f"{limits.attempts} attempts are running")
        self._attempts[uid] += 1

    def end(self, uid: int) -> None:
        _count_down(self._attempts, uid)

    def request(self, uid: int, now: float) -> float:
        """Count a request line of that user; seconds to wait before it may be carried out."""
        bucket = self._buckets.get(uid)
        if bucket is None:
            self._make_room(now)
            bucket = Bucket(self._limits.user_requests_per_second, self._limits.user_request_burst)
            self._buckets[uid] = bucket
        return bucket.take(now)

    def _make_room(self, now: float) -> None:
        """Full buckets say nothing and are forgotten; if none is, the one that will be so first."""
        if len(self._buckets) < MAX_BUCKETS:
            return
        self._buckets = {user: bucket for user, bucket in self._buckets.items() if bucket.full_at > now}
        if len(self._buckets) >= MAX_BUCKETS:
            del self._buckets[min(self._buckets, key=lambda user: self._buckets[user].full_at)]


def _count_down(counter: Counter[int], uid: int) -> None:
    counter[uid] -= 1
    if counter[uid] <= 0:
        del counter[uid]
