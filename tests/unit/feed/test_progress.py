"""What is told of a stream under way, by a clock that tests move."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import trio
import trio.testing

from punchd.feed import report
from punchd.feed.progress import Progress
from punchd.media.statistics import Sent
from punchd.punch.news import News

NOTHING = Sent(0.0, 0, 0, 0, 0, 8e6, 1200, "gso+numpy")


class Moving:
    """A stream that is told to have sent so many bytes, and what its progress says."""

    def __init__(self, *, is_json: bool = True, whole: int | None = None) -> None:
        self.sent = 0
        self.lines: list[str] = []
        self.news = News(self.lines.append, is_json)
        self.progress = Progress(self.news, lambda: report.sent(replace(NOTHING, bytes=self.sent), None), whole)

    def move(self, size: int) -> None:
        self.sent += size
        self.progress.moved()

    def goodputs(self, event: str) -> list[int]:
        events: list[dict[str, Any]] = [json.loads(line) for line in self.lines]
        return [one["goodput_bps"] for one in events if one["event"] == event]


async def test_the_mean_is_from_the_first_movement_to_the_last(autojump_clock: trio.testing.MockClock) -> None:
    moving = Moving()
    await trio.sleep(100)  # nobody typed anything
    moving.move(1_000_000)  # was held back until then, by a window or by a reader that reads much at once
    for _ in range(4):
        await trio.sleep(0.5)
        moving.move(1000)
    await trio.sleep(5)  # the end is told
    assert moving.progress.end()["goodput_bps"] == 8 * 4000 / 2
    assert moving.goodputs("total") == [16_000]


async def test_what_comes_all_at_once_is_measured_from_the_beginning(autojump_clock: trio.testing.MockClock) -> None:
    moving = Moving()
    await trio.sleep(0.5)
    moving.move(1000)
    moving.move(0)
    assert moving.progress.end()["goodput_bps"] == 16_000
    nothing = Moving()
    assert nothing.progress.end()["goodput_bps"] == 0
    await trio.sleep(1)
    assert nothing.progress.end()["goodput_bps"] == 0


async def test_programs_get_an_object_a_second_with_what_moved_in_it(autojump_clock: trio.testing.MockClock) -> None:
    moving = Moving()
    with trio.move_on_after(3.5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(moving.progress.run)
            await trio.sleep(0.9)
            moving.move(1000)
            await trio.sleep(0.6)
            moving.move(500)
    assert moving.goodputs("statistics") == [8000, 4000, 0]


async def test_a_terminal_gets_a_line_that_is_written_over(
    autojump_clock: trio.testing.MockClock, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.isatty", lambda fd: fd == 2)
    moving = Moving(is_json=False, whole=2000)
    with trio.move_on_after(2.5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(moving.progress.run)
            for pause_s in (0.5, 1.0):
                await trio.sleep(pause_s)
                moving.move(1000)
    moving.progress.end()
    assert capfd.readouterr().err == (
        "\r[##########..........]  50%, 1.0 kB, 8.0 kbit/s (gso+numpy)\x1b[K"
        "\r[####################] 100%, 2.0 kB, 8.0 kbit/s (gso+numpy)\x1b[K"
        "\r\x1b[K"
    )
    assert moving.lines == ["punch: 2.0 kB, 8.0 kbit/s (gso+numpy)"]


@pytest.mark.parametrize(("is_json", "is_quiet"), [(True, False), (False, True)])
async def test_no_line_where_programs_read_or_nothing_is_wanted(
    is_json: bool,
    is_quiet: bool,
    autojump_clock: trio.testing.MockClock,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.isatty", lambda fd: True)
    moving = Moving()
    progress = Progress(replace(moving.news, is_json=is_json, is_quiet=is_quiet), lambda: report.sent(NOTHING, None))
    with trio.move_on_after(1.5):
        await progress.run()
    progress.end()
    assert capfd.readouterr().err == ""
    assert len(moving.lines) == 2 * is_json
