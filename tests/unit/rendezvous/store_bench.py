"""A store of either kind under a clock that tests turn."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from punchd.rendezvous.settings import Limits
from punchd.rendezvous.store import Store
from punchd.rendezvous.views import Policy

START = 1_700_000_012.345678


class Clock:
    """Seconds since 1970, for both kinds of time."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now

    def at(self, seconds: float) -> None:
        """So many seconds after the start."""
        self.now = START + seconds


@dataclass
class Bench:
    """Makes stores of one kind, under one clock."""

    clock: Clock
    make: Callable[[Policy, Limits], AbstractAsyncContextManager[Store]]

    def store(self, policy: Policy | None = None, limits: Limits | None = None) -> AbstractAsyncContextManager[Store]:
        return self.make(policy or Policy(), limits or Limits())
