"""The page of counters, and what importing the light modules costs."""

from __future__ import annotations

import subprocess
import sys

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from punchd.web.metrics import WebCollector, metrics_handler
from tests.unit.web.site import LAST_GET, field, serving, status


async def test_the_counters_are_served_in_the_text_format() -> None:
    registry = CollectorRegistry()
    async with serving() as site, serving(metrics_handler(registry)) as metrics:
        registry.register(WebCollector(site.server.counts, "punchd_test"))
        await site.exchange(LAST_GET)
        await site.exchange(b"bad\r\n\r\n")
        answer = await metrics.exchange(LAST_GET.replace(b"/ ", b"/metrics "))
        assert status(await metrics.exchange(LAST_GET)) == 404
        assert field(await metrics.exchange(LAST_GET.replace(b"GET /", b"POST /metrics")), "allow") == "GET, HEAD"
    assert (field(answer, "content-type") or "").startswith("text/plain; version=0.0.4")
    text = answer.partition(b"\r\n\r\n")[2].decode()
    values = {
        (sample.name, sample.labels.get("status")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert values["punchd_test_answers_total", "200"] == 1
    assert values["punchd_test_answers_total", "400"] == 1
    assert values["punchd_test_connections", None] == 0
    assert values["punchd_test_failures_total", None] == 0


@pytest.mark.parametrize("module", ["messages", "rate", "limits"])
def test_what_pure_code_imports_brings_no_server_along(module: str) -> None:
    code = f"import sys, punchd.web.{module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"trio", "httptools", "websockets", "prometheus_client", "ssl", "socket", "asyncio", "logging"}
    assert not heavy & set(loaded)
