"""What is told while `punch` works: lines for people, or JSON objects, one a line, for programs. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class News:
    """Where news go to.

    Attributes:
        write: takes each line.
        label: of the call that the news are about, where there are several at a time.
    """

    write: Callable[[str], None]
    is_json: bool = False
    is_quiet: bool = False  # errors only
    label: str = ""

    def of_call(self, call_id: str, *, is_one_of_many: bool) -> News:
        """For news of a call: its first four digits stand in front, the JSON has all."""
        return replace(self, label=call_id) if is_one_of_many or self.is_json else self

    def say(self, event: str, line: str, /, **more: Any) -> None:
        """Tell of an event: a word for programs, a line for people, and what programs find in it besides."""
        if not self.is_quiet:
            self._write(event, line, more)

    def warn(self, text: str) -> None:
        self.say("warning", f"warning: {text}", text=text)

    def fail(self, code: int, text: str) -> None:
        """Tell why it ends; also in quiet."""
        self._write("error", text, {"code": int(code), "text": text})

    def _write(self, event: str, text: str, more: dict[str, Any]) -> None:
        if self.is_json:
            call = {"call": self.label} if self.label else {}
            line = json.dumps({"event": event} | call | more)
        else:
            label = f"[{self.label[:4]}] " if self.label else ""
            line = f"punch: {label}{text}"
        self.write(line)
