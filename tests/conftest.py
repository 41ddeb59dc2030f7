"""Which tests run where.

marker   runs                            otherwise
long     with --long (./dev test --long) skipped: minutes of the same questions that the short tests ask
netns    as root                         skipped: it builds network namespaces
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.readable import open_for_all

# How long an example takes says something about the machine, not about the code.
settings.register_profile("punchd", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("punchd")

NEEDS_LONG = pytest.mark.skip(reason="takes minutes; run it with: ./dev test --long")
NEEDS_ROOT = pytest.mark.skip(reason="builds network namespaces; run it as root with: sudo ./dev test")


def pytest_configure() -> None:
    open_for_all(Path(__file__).resolve().parents[1])


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the tests marked `long` as well")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("long") and not config.getoption("--long"):
            item.add_marker(NEEDS_LONG)
        if item.get_closest_marker("netns") and os.geteuid() != 0:
            item.add_marker(NEEDS_ROOT)
