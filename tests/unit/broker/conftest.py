"""The canary harness: no log line of any test here holds a secret, and no close code is one that may not be."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.unit.broker.contract import TAP


@pytest.fixture(autouse=True)
def _tapped() -> Iterator[None]:
    logger = logging.getLogger("punchd")
    before = logger.level
    logger.addHandler(TAP)
    logger.setLevel(logging.DEBUG)
    yield
    logger.removeHandler(TAP)
    logger.setLevel(before)


@pytest.fixture(autouse=True, scope="session")
def _canary() -> Iterator[None]:
    """B-043, B-069, B-085, B-104, B-112, B-113, B-117: over everything that the run said."""
    yield
    assert TAP.leaks() == []
    assert TAP.stray_codes() == set()
    assert TAP.close_codes <= {1000, 1011}
