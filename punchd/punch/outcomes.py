"""How a run of `punch` ends. Exit codes are part of the interface: docs/punch.md."""

from __future__ import annotations

from enum import IntEnum

from punchd.errors import PunchdError


class Exit(IntEnum):
    DONE = 0
    NO_CONNECTION = 1
    USAGE = 2
    RENDEZVOUS = 3
    NOT_ONLINE = 4
    REFUSED = 5
    DAEMON = 6
    BROKEN = 7
    HUNG_UP = 129
    INTERRUPTED = 130
    TERMINATED = 143


class EndedError(PunchdError):
    """A command, or one call of it, is over without having done what it was for.

    Attributes:
        code: what the process ends with.
    """

    def __init__(self, code: Exit, text: str) -> None:
        super().__init__(text)
        self.code = code
