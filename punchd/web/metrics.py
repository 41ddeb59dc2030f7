"""Counters for Prometheus, on a listener of their own: what a server tells about itself is not for its clients."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from punchd.web.connection import Counts
from punchd.web.messages import Answer, Handler, Problem, Request, Response, problem_response


class WebCollector(Collector):
    """A web server's counts. `prefix` starts their names: "punchd_rendezvous"."""

    def __init__(self, counts: Counts, prefix: str) -> None:
        self._counts = counts
        self._prefix = prefix

    def collect(self) -> Iterable[Metric]:
        """What prometheus-client asks for."""
        counts, prefix = self._counts, self._prefix
        yield GaugeMetricFamily(f"{prefix}_connections", "TCP connections open now", counts.connections)
        yield GaugeMetricFamily(f"{prefix}_websockets", "of those, WebSockets", counts.websockets)
        answers = CounterMetricFamily(f"{prefix}_answers", "HTTP answers by status", labels=["status"])
        for status, number in sorted(counts.answers.items()):
            answers.add_metric([str(status)], number)
        yield answers
        for name, number, words in (
            ("refused_connections", counts.refused_connections, "clients sent away, too many connections"),
            ("shunned_sources", counts.shunned, "sources that connected too often and are not heard for a while"),
            ("failed_handshakes", counts.failed_handshakes, "TLS handshakes that failed or took too long"),
            ("dropped", counts.dropped, "clients that did not read their answers"),
            ("failures", counts.failures, "requests answered with 500"),
        ):
            yield CounterMetricFamily(f"{prefix}_{name}", words, number)


def metrics_handler(registry: CollectorRegistry, problem: Callable[[Problem], Response] = problem_response) -> Handler:
    """Answers GET /metrics with what `registry` holds, in the text format of Prometheus."""

    async def handle(request: Request) -> Answer:
        if request.path != "/metrics":
            return problem(Problem(404, "NOT_FOUND", "there is /metrics only"))
        if request.method not in {"GET", "HEAD"}:
            return problem(Problem(405, "METHOD_NOT_ALLOWED", "expected GET", (("Allow", "GET, HEAD"),)))
        fields = (("Content-Type", CONTENT_TYPE_PLAIN_0_0_4), ("Cache-Control", "no-store"))
        return Response(200, fields, generate_latest(registry))

    return handle
