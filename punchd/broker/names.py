"""Names of sessions and streams, and every limit of the broker that is a number of the protocol.

What an operator may set has its default here, too; `Plan` and `Policy` carry what was set.

Source: seed 000 §2, §4.3, §6; seed 003; broker specification B-005, C-13, C-23, C-44, §4, §6.2, §7.
"""

from __future__ import annotations

import re

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)

DEFAULT_STREAM = "default"  # of a session that names none, C-13
MAX_STREAMS = 16  # of a session, §6.2; the reference implementation's PUNCH_MAX_STREAMS
PEERS_PER_STREAM = 2  # seed 000 §2
OBSERVERS = 8  # connections of a session beyond its peers', C-23
MAX_TOKENS = 64  # of a session, revoked ones included, §6.2.5

MIN_LATENCY_MS, MAX_LATENCY_MS, DEFAULT_LATENCY_MS = 20, 8000, 200  # seed 003; the default is C-11's
MIN_TTL_S, MAX_TTL_S, DEFAULT_TTL_S = 1, 86_400, 1800  # seed 000 §4.3
CLOSING_MARGIN_MS = 100  # a session closes this much before it must have, C-33

MIN_LOCAL_PORT, MAX_PORT = 1024, 65_535  # seed 003, Port

MAX_JSON_DEPTH = 16  # objects and arrays in each other, C-44
MAX_JSON_INTEGER = 1 << 53  # beyond it JavaScript and others lose digits, C-44
MAX_META_BYTES = 4096  # as compact JSON, §4.1
MAX_META_DEPTH = 8  # same place; the object `meta` itself is the first

MAX_TOKEN_CHARS = 512  # §7; the longest that the format allows has 293
MIN_SECRET_BYTES = 32  # same place


def is_name(text: str) -> bool:
    """Whether `text` names a session or a stream. The whole of it: `$` would let a line feed pass."""
    return _NAME.fullmatch(text) is not None
