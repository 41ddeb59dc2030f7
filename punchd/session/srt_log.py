"""What SRT tools say on standard error: what of it tells how the connection is, and what is worth showing.

srt-live-transmit says "SRT target connected" at once, but "SRT source connected" only with the first media. libsrt's
own log (`-loglevel:note`; in GStreamer the category srtlib) says "Connection established to:" at once on both sides,
and nothing when it ends; then the tool says "disconnected", if media had flowed.

Two ends with different passphrases fill hundreds of lines a second: BADSECRET says the one that refuses, and CONFUSED
the other one, which hears "shutdown" in place of a handshake.

Measured with srt-tools 1.5.1 and GStreamer 1.22. Pure.
"""

from __future__ import annotations

import re
from enum import Enum, auto


class Heard(Enum):
    """What a line says."""

    CONNECTED = auto()
    DISCONNECTED = auto()
    REFUSED = auto()
    NOISE = auto()  # what goes well, or nobody can use
    WORDS = auto()  # for people


_MEANINGS = (
    (Heard.CONNECTED, re.compile(r"Connection established to:|SRT (?:source|target) connected")),
    (Heard.DISCONNECTED, re.compile(r"SRT (?:source|target) disconnected|Error on SRT socket")),
    (Heard.REFUSED, re.compile(r"BADSECRET|KMREQ result abno|CONFUSED: expected UMSG_HANDSHAKE")),
    (
        Heard.NOISE,
        re.compile(
            r"^\s*$|^Media path: |^[0-9:.]+/SRT:|^[0-9]+:[0-9:.]+ +[0-9]+ 0x|^Additional debug info|^\.\./|"
            r"^(?:Setting pipeline|Pipeline is|New clock|Freeing pipeline|Redistribute latency)"
        ),
    ),
)  # fmt: skip


def hear(line: str) -> Heard:
    """What it says."""
    return next((heard for heard, pattern in _MEANINGS if pattern.search(line)), Heard.WORDS)
