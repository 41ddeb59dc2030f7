"""What the server counts, for Prometheus. No ids, no addresses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from punchd.rendezvous import pulses, stun_server
from punchd.rendezvous.access import Deed

PREFIX = "punchd_rendezvous"


@dataclass(slots=True)
class Counts:
    """All that is counted beside what `punchd.web` counts."""

    pulses: pulses.Counts = field(default_factory=pulses.Counts)
    stun: stun_server.Counters = field(default_factory=stun_server.Counters)
    requests: Counter[str] = field(default_factory=Counter)  # by route
    limited: Counter[Deed] = field(default_factory=Counter)


class RendezvousCollector(Collector):
    """`online` says how many clients are."""

    def __init__(self, counts: Counts, online: Callable[[], int]) -> None:
        self._counts = counts
        self._online = online

    def collect(self) -> Iterable[Metric]:
        """What prometheus-client asks for."""
        counts = self._counts
        yield GaugeMetricFamily(f"{PREFIX}_clients_online", "clients whose pulses come in time", self._online())
        replies = CounterMetricFamily(f"{PREFIX}_pulses", "datagrams by what became of them", labels=["result"])
        taken = counts.pulses
        for result, number in (
            ("accepted", taken.accepted),
            ("verify", taken.verify),
            ("cookie", taken.cookies),
            ("unknown", taken.unknown),
            ("malformed", taken.malformed),
            ("unanswered", taken.unanswered),
        ):
            replies.add_metric([result], number)
        yield replies
        yield CounterMetricFamily(f"{PREFIX}_pulse_replies_limited", "replies to unknown keys not sent", taken.limited)
        yield CounterMetricFamily(f"{PREFIX}_pulse_replies_unsent", "replies the kernel did not take", taken.unsent)
        yield CounterMetricFamily(f"{PREFIX}_pulse_sources_shunned", "sources not heard for a while", taken.shunned)
        yield CounterMetricFamily(f"{PREFIX}_pulses_unheard", "datagrams dropped for their source", taken.unheard)
        requests = CounterMetricFamily(f"{PREFIX}_requests", "HTTP requests by route", labels=["route"])
        for route, number in sorted(counts.requests.items()):
            requests.add_metric([route], number)
        yield requests
        limited = CounterMetricFamily(f"{PREFIX}_limited", "requests refused with 429, by limit", labels=["limit"])
        for deed in Deed:
            limited.add_metric([deed.value], counts.limited[deed])
        yield limited
        stun = CounterMetricFamily(f"{PREFIX}_stun", "STUN datagrams and connections by result", labels=["result"])
        for result in ("answered", "ignored", "limited", "lost", "accepted", "refused"):
            stun.add_metric([result], getattr(counts.stun, result))
        yield stun
