"""Unix time for sessions, which runs with the monotonic clock: a step of the wall clock is seen when it is looked for.

Sessions end at a Unix time that their clients were told. Timers run on the monotonic clock, so a wall clock that is
stepped by more than 5 s is followed, and what is due is to be looked at anew; a smaller one is not, since NTP slews.

Source: broker specification C-33.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import trio

STEP_S = 5.0
CHECK_S = 1.0


class Clock:
    """Both clocks. `wall` is in Unix seconds."""

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._ahead_s = wall() - trio.current_time()  # of the monotonic clock

    def now(self) -> float:
        """Seconds of trio's clock, which never goes back."""
        return trio.current_time()

    def now_ms(self) -> int:
        """Unix milliseconds."""
        return round((trio.current_time() + self._ahead_s) * 1000)  # of `at(ms)` it is `ms` again

    def at(self, unix_ms: float) -> float:
        """The moment of a Unix time on trio's clock."""
        return unix_ms / 1000 - self._ahead_s

    def has_stepped(self) -> bool:
        """Whether the wall clock was stepped; from now on it is followed."""
        ahead_s = self._wall() - trio.current_time()
        if abs(ahead_s - self._ahead_s) <= STEP_S:
            return False
        self._ahead_s = ahead_s
        return True
