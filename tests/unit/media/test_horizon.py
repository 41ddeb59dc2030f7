"""Until when everything that came has been looked at; and the gaps that are judged by it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from punchd.media.horizon import Horizon

ROOM = 1000


def test_a_buffer_that_is_empty_holds_nothing_that_came_before() -> None:
    horizon = Horizon(ROOM, 1.0)
    horizon.note(10, 2.0)
    assert horizon.until == 1.0
    horizon.emptied(3.0)
    assert horizon.until == 3.0


def test_a_buffer_that_is_never_empty_was_read_when_so_much_was_read_as_it_holds() -> None:
    horizon = Horizon(ROOM, 1.0)
    horizon.note(ROOM - 1, 2.0)
    assert horizon.until == 1.0
    horizon.note(1, 3.0)
    assert horizon.until == 1.0, "since then; what came at 3.0 may still be there"
    horizon.note(ROOM, 4.0)
    assert horizon.until == 3.0


@given(st.lists(st.tuples(st.sampled_from(["come", "read", "idle"]), st.integers(1, ROOM)), max_size=200))
def test_nothing_that_came_before_it_is_still_in_the_buffer(steps: list[tuple[str, int]]) -> None:
    horizon, buffer, now = Horizon(ROOM, 0.0), list[tuple[float, int]](), 0.0
    for what, size in steps:
        now += 1
        if what == "come" and sum(one for _, one in buffer) + size <= ROOM:
            buffer.append((now, size))
        elif what == "read" and buffer:
            horizon.note(buffer.pop(0)[1], now)
        elif what == "read":
            horizon.emptied(now)
        assert all(came >= horizon.until for came, _ in buffer)
        assert horizon.until <= now
