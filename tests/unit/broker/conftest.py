"""The canary harness: no log line of any test here holds a secret, and no close code is one that may not be."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.unit.broker import running
from tests.unit.broker.contract import TAP
from tests.unit.rendezvous.redis_server import RedisServer, needs_redis, redis_server


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


@pytest.fixture(scope="session")
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture(params=["memory", pytest.param("redis", marks=needs_redis)])
def each_store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Brokers of `running` keep their sessions in memory; once more, in Redis."""
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("redis")
        server.ask("FLUSHALL")
        monkeypatch.setattr(running, "SHARED", server.url)
