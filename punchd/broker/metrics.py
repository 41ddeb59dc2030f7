"""What the broker counts, for Prometheus. No names, no addresses, no tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from punchd.broker.server_messages import Reason
from punchd.broker.tokens import Refusal
from punchd.broker.windows import Deed

PREFIX = "punch"  # the specification's word: `punch_family_mismatch_total`


@dataclass(slots=True)
class Counts:
    """All that is counted beside what `punchd.web` counts."""

    created: int = 0
    ended: Counter[Reason] = field(default_factory=Counter)
    matches: int = 0
    family_mismatches: int = 0
    messages: Counter[str] = field(default_factory=Counter)  # taken, by type
    dropped: int = 0
    closed: Counter[str] = field(default_factory=Counter)  # connections that the server gave up, by cause
    refused: Counter[Refusal] = field(default_factory=Counter)
    limited: Counter[Deed] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)  # by route

    def count_matches(self, streams: Sequence[str], differing: Callable[[], Iterable[str]]) -> None:
        """Both peers of each of these streams are told of each other; `differing` are those of two families."""
        if streams:
            self.matches += len(streams) // 2
            self.family_mismatches += len({*streams} & {*differing()})


class BrokerCollector(Collector):
    """`sessions` says how many are open."""

    def __init__(self, counts: Counts, sessions: Callable[[], int]) -> None:
        self._counts = counts
        self._sessions = sessions

    def collect(self) -> Iterable[Metric]:
        """What prometheus-client asks for."""
        counts = self._counts
        yield GaugeMetricFamily(f"{PREFIX}_sessions", "sessions that are open", self._sessions())
        yield CounterMetricFamily(f"{PREFIX}_sessions_created", "sessions created", counts.created)
        yield CounterMetricFamily(f"{PREFIX}_matches", "match rounds begun", counts.matches)
        yield CounterMetricFamily(
            f"{PREFIX}_family_mismatch", "match rounds between IPv4 and IPv6", counts.family_mismatches
        )
        yield CounterMetricFamily(f"{PREFIX}_messages_dropped", "messages beyond a token's rate", counts.dropped)
        for name, words, label, numbers in (
            ("sessions_ended", "sessions closed, by reason", "reason", _by_value(counts.ended)),
            ("messages", "messages taken, by type", "type", counts.messages),
            ("connections_closed", "WebSockets that the server gave up, by cause", "cause", counts.closed),
            ("tokens_refused", "tokens refused, by the check that failed", "check", _by_value(counts.refused)),
            ("limited", "requests refused with 429, by limit", "limit", _by_value(counts.limited)),
            ("requests", "HTTP requests, by route", "route", counts.requests),
        ):
            family = CounterMetricFamily(f"{PREFIX}_{name}", words, labels=[label])
            for value, number in sorted(numbers.items()):
                family.add_metric([value], number)
            yield family


def _by_value(numbers: Counter[Reason] | Counter[Refusal] | Counter[Deed]) -> Counter[str]:
    return Counter({one.value: number for one, number in numbers.items()})
