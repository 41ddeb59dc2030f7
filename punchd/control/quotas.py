"""How much one application, one user and all of them together may ask for. Pure: time comes in as an argument."""

from __future__ import annotations

from collections import Counter

from punchd.config import Limits
from punchd.control.policy import ALL, Rule
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

    def takes(self, now: float) -> bool:
        """Whether one more would have to wait for nothing."""
        return max(self._due, now) - self._slack_s <= now

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
        self._buckets: dict[int, Bucket] = {}  # of lines
        self._beginnings: dict[int, Bucket] = {}
        self._starts: dict[int, Bucket] = {}  # of users whose rule limits attempts a minute

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

    def begin(self, uid: int, of_connection: int, rule: Rule = ALL, now: float = 0.0) -> None:
        """Count an attempt of that user, whom `rule` is about, on a connection that has `of_connection` of them.

        Raises:
            DeniedError: busy. Nothing was counted then.
        """
        limits = self._limits
        if of_connection >= limits.attempts_per_connection:
            raise DeniedError(Code.BUSY, f"{limits.attempts_per_connection} attempts of this connection are running")
        most = limits.attempts_per_user if rule.attempts is None else min(rule.attempts, limits.attempts_per_user)
        if self._attempts[uid] >= most:
            raise DeniedError(Code.BUSY, f"{most} attempts of uid {uid} are running")
        if self._attempts.total() >= limits.attempts:
            raise DeniedError(Code.BUSY, f"{limits.attempts} attempts are running")
        if rule.attempts_per_minute is not None:
            self._pace(uid, rule.attempts_per_minute, now)
        self._attempts[uid] += 1

    def end(self, uid: int) -> None:
        _count_down(self._attempts, uid)

    def request(self, uid: int, now: float) -> float:
        """Count a request line of that user, or a connection; seconds to wait before it may be carried out."""
        limits = self._limits
        rate, burst = limits.user_requests_per_second, limits.user_request_burst
        return _bucket_of(self._buckets, uid, now, rate, burst).take(now)

    def beginning(self, uid: int, now: float) -> float:
        """Count an attempt or a probe that is about to begin; seconds to wait before it may.

        They cost the daemon ten times what other lines cost, and they all run in one loop.
        """
        limits = self._limits
        rate, burst = limits.user_attempts_per_second, limits.user_attempt_burst
        return _bucket_of(self._beginnings, uid, now, rate, burst).take(now)

    def _pace(self, uid: int, per_minute: int, now: float) -> None:
        bucket = _bucket_of(self._starts, uid, now, per_minute / 60, per_minute)
        if not bucket.takes(now):
            raise DeniedError(Code.BUSY, f"uid {uid} may begin {per_minute} attempts a minute")
        bucket.take(now)


def _bucket_of(buckets: dict[int, Bucket], uid: int, now: float, rate: float, burst: int) -> Bucket:
    found = buckets.get(uid)
    if found is None:
        _make_room(buckets, now)
        found = buckets[uid] = Bucket(rate, burst)
    return found


def _make_room(buckets: dict[int, Bucket], now: float) -> None:
    """Full buckets say nothing and are forgotten; if none is, the one that will be so first."""
    if len(buckets) < MAX_BUCKETS:
        return
    for user in [user for user, bucket in buckets.items() if bucket.full_at <= now]:
        del buckets[user]
    if len(buckets) >= MAX_BUCKETS:
        del buckets[min(buckets, key=lambda user: buckets[user].full_at)]


def _count_down(counter: Counter[int], uid: int) -> None:
    counter[uid] -= 1
    if counter[uid] <= 0:
        del counter[uid]
