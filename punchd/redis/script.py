"""What a server has inside Redis: Lua scripts, each of which takes place as a whole or not at all; a channel. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha1


class Script:
    """A script and the name that Redis knows it by."""

    def __init__(self, source: str) -> None:
        self.source = source.encode()
        self.sha = sha1(self.source, usedforsecurity=False).hexdigest().encode()


@dataclass(frozen=True, slots=True)
class Use:
    """What a server has a connection for.

    Attributes:
        channel: what it listens to.
        probe: a key that it may write, to see whether Redis takes commands that do.
        logger: where outages are told of.
        meanwhile: what they mean, for that line.
    """

    channel: bytes
    probe: bytes
    logger: str
    meanwhile: str
