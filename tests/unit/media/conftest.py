"""What tests on real sockets share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.unit.media.pairs import Pair, connected


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two sockets that are connected to each other, in blocking mode."""
    with ExitStack() as stack:
        yield connected(stack)


@pytest.fixture
def nothing_is_left_open() -> Iterator[None]:
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) <= len(before)
