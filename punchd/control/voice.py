"""An attempt's news as answers on its connection. Implements `punchd.attempt.runner.Voice`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import trio

from punchd.attempt.trace import Recorder
from punchd.control.answers import Answer, Error, Ok, Progress, Stage
from punchd.control.requests import Protocol as Transport
from punchd.errors import Code
from punchd.technique import Hole, Technique
from punchd.wire import token as tokens


class Line(Protocol):
    """The connection, as far as an attempt's news is concerned."""

    def answer(self, answer: Answer, fd: int | None = None, written: Callable[[], None] | None = None) -> None:
        """Queue an answer; owns `fd` from now on; `written` is called when the answer is out, or never will be."""

    def forget(self, attempt_id: str) -> None:
        """That id is free again."""

    def release_slot(self) -> None:
        """One attempt less counts against the quotas."""


class AttemptVoice:
    """Speaks for one attempt. The verdict frees the id at once, and the slot when it has left for the application."""

    def __init__(self, line: Line, attempt_id: str, recorder: Recorder) -> None:
        self._line = line
        self._id = attempt_id
        self.recorder = recorder
        self.won = False
        self.is_over = False  # the verdict was given
        self.delivered = trio.Event()  # the descriptor has left, or never will: none of it is ours any more

    def relay(self, round_number: int, technique: str, token: tokens.Token) -> None:
        self._progress(round_number, technique, Stage.RELAY, tokens.encode(token))

    def trying(self, round_number: int, technique: str) -> None:
        self._progress(round_number, technique, Stage.TRYING, "-")

    def failed(self, round_number: int, technique: str, reason: Code, text: str) -> None:
        self._progress(round_number, technique, Stage.FAILED, reason, text)

    def ignored(self, round_number: int, technique: str, reason: Code) -> None:
        self._progress(round_number, technique, Stage.IGNORED, reason)

    def succeeded(self, technique: Technique[Any], hole: Hole) -> None:
        answer = Ok(self._id, technique.name, Transport(technique.protocol), hole.local, hole.remote)
        self._line.answer(answer, hole.fd, self._deliver)
        self._line.forget(self._id)
        self.won = self.is_over = True

    def ended(self, code: Code, text: str) -> None:
        self._line.answer(Error(self._id, code, text), None, self._line.release_slot)
        self._line.forget(self._id)
        self.is_over = True

    def _deliver(self) -> None:
        self._line.release_slot()
        self.delivered.set()

    def _progress(self, number: int, technique: str, stage: Stage, detail: str, text: str | None = None) -> None:
        self._line.answer(Progress(self._id, number, technique, stage, detail, text))
