"""The second line against secrets in logs: whatever looks like a token is blotted out of every record.

The first is that nobody logs one. Source: broker specification §10, B-112.
"""

from __future__ import annotations

import logging
import re

_TOKEN = re.compile(r"p_[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
BLOT = "p_***"


def redact(record: logging.LogRecord) -> bool:
    """A filter for handlers: lets every record pass, without tokens."""
    message = record.getMessage()
    if _TOKEN.search(message):
        record.msg, record.args = _TOKEN.sub(BLOT, message), ()
    if record.exc_info and record.exc_text is None:
        record.exc_text = logging.Formatter().formatException(record.exc_info)
    if record.exc_text:
        record.exc_text = _TOKEN.sub(BLOT, record.exc_text)
    return True
