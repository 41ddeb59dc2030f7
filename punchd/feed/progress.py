"""Tells how a stream goes, once a second and at its end."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import trio

from punchd.feed import report
from punchd.punch.news import News

EVERY_S = 1.0


class Progress:
    """Programs get an object a second, terminals a line that is written over, logs only the end.

    Args:
        read: the numbers so far.
        whole: bytes that there are altogether, if that is known.
    """

    def __init__(self, news: News, read: Callable[[], dict[str, Any]], whole: int | None = None) -> None:
        self._news = news
        self._read = read
        self._whole = whole
        self._is_live = not news.is_json and not news.is_quiet and os.isatty(2)
        self._began_at = self._told_at = self._moved_at = trio.current_time()
        self._first: tuple[float, int] | None = None  # when and with how many bytes it began to move
        self._bytes_told = 0

    def moved(self) -> None:
        """Something was sent or came."""
        self._moved_at = trio.current_time()
        if self._first is None:
            self._first = self._moved_at, self._read()["bytes"]

    async def run(self) -> None:
        """For ever."""
        due = trio.current_time()
        while True:
            due += EVERY_S
            await trio.sleep_until(due)
            members = self._now()
            if self._news.is_json:
                self._news.say("statistics", "", **members)
            elif self._is_live:
                self._write(f"\r{report.line(members, self._whole)}\x1b[K")

    def end(self) -> dict[str, Any]:
        """The sum."""
        members = self._read()
        members["goodput_bps"] = self._mean(members["bytes"])
        if self._is_live:
            self._write("\r\x1b[K")
        self._news.say("total", report.line(members), **members)
        return members

    def _mean(self, whole: int) -> int:
        """From the first movement to the last: without what came with the first, which was on its way before it."""
        began_at, before = self._first or (self._began_at, 0)
        if whole == before:
            began_at, before = self._began_at, 0  # all at once
        passed_s = self._moved_at - began_at
        return round(8 * (whole - before) / passed_s) if passed_s > 0 else 0

    def _now(self) -> dict[str, Any]:
        now = trio.current_time()
        members = self._read()
        passed_s = max(now - self._told_at, 1e-9)
        members["goodput_bps"] = round(8 * (members["bytes"] - self._bytes_told) / passed_s)
        self._told_at, self._bytes_told = now, members["bytes"]
        return members

    def _write(self, text: str) -> None:
        with suppress(OSError):
            os.write(2, text.encode())
