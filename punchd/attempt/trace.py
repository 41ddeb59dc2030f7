"""The explanation of an attempt: what happened when, in order, as one text file when it has ended.

For people who ask why it did not connect. Holds no token, no key and no payload.
"""

from __future__ import annotations

import logging
from pathlib import Path

import trio

from punchd.events import AttemptEnded, AttemptStarted, Event, RoundFailed, RoundStarted, describe

MAX_EVENTS = 2000  # of one attempt; a longer one is cut, and says so before its verdict

log = logging.getLogger("punchd.attempt")


class Recorder:
    """Takes the events of one attempt: into the log at once, into a file at the end."""

    def __init__(self, directory: str | None) -> None:
        self._directory = directory
        self._started_at = trio.current_time()
        self._name = "attempt"
        self._lines: list[str] = []

    def emit(self, event: Event) -> None:
        if isinstance(event, AttemptStarted):
            self._name = f"{event.nonce}-{event.role}"
        public = isinstance(event, (AttemptStarted, AttemptEnded, RoundStarted, RoundFailed))
        text = describe(event)
        log.log(logging.INFO if public else logging.DEBUG, "%s %s", self._name, text)
        if self._directory is None:
            return
        line = f"{trio.current_time() - self._started_at:9.4f} s  {text}"
        if len(self._lines) < MAX_EVENTS:
            self._lines.append(line)
        elif isinstance(event, AttemptEnded):
            self._lines += ["cut here: more events than are kept", line]
        if isinstance(event, AttemptEnded):
            self._write(Path(self._directory) / f"{self._name}.txt")

    def _write(self, path: Path) -> None:
        try:
            path.write_text("\n".join(self._lines) + "\n")
        except OSError as error:
            log.warning("trace: %s: %s", path, error.strerror)
