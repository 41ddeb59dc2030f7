"""HOST:PORT, as targets of forwarding are written. Pure."""

from __future__ import annotations

import re

_TARGET = re.compile(r"(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253}):[1-9][0-9]{0,4}")


def is_target(text: str) -> bool:
    """Whether `text` is HOST:PORT."""
    return bool(_TARGET.fullmatch(text)) and int(text.rpartition(":")[2]) <= 65_535
