"""How both sides of `punch media` say that they have done, or that they give up. Pure.

The protocol has no word for it. But a session may be named anew at any time, a name may be anything, and whoever does
not know these names takes them for any other:

    sender → receiver    end-SSSSSSSSSSSSSSSS      so many logical sends were made, in 16 hexadecimal digits
    receiver → sender    got-RRRRRRRRRRRRRRRR      so many of them came
    either → the other   given-up                  interrupted, or it cannot go on: the output is closed, the disk full

The sender waits `DRAIN_S` before it says so: what is still under way when the name changes is lost. Both names are
repeated, as all are; a sender that hears no answer within `ANSWER_S` ends without. `given-up` is said once, since
nobody stays to repeat it: if it is lost, silence tells. Nothing else may be called so: ids that we make are UUIDs.
"""

from __future__ import annotations

import re

from punchd.punch.outcomes import EndedError, Exit

DRAIN_S = 0.4  # longer than a path's delays and what reorders there differ
ANSWER_S = 4.0  # three repetitions of the name come in the first second
LINGER_S = 1.5  # the receiver hears the name again if its answer was lost
AGAIN_S = 0.2

GIVEN_UP = b"given-up"

_END = re.compile(rb"end-([0-9a-f]{16})")
_GOT = re.compile(rb"got-([0-9a-f]{16})")


def end(sends: int) -> bytes:
    return b"end-%016x" % sends


def got(sends: int) -> bytes:
    return b"got-%016x" % sends


def read_end(name: bytes) -> int | None:
    """How many logical sends were made; None: the name is any other."""
    match = _END.fullmatch(name)
    return int(match[1], 16) if match else None


def read_got(name: bytes) -> int | None:
    """How many came."""
    match = _GOT.fullmatch(name)
    return int(match[1], 16) if match else None


def is_end(name: bytes) -> bool:
    """Whether one of the sides has said that all was sent."""
    return read_end(name) is not None or read_got(name) is not None


def given_up() -> EndedError:
    """What it is called if the other side has."""
    return EndedError(Exit.BROKEN, "the other side has given up")
