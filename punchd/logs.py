"""Log records as text for people or JSON for machines, on standard error. Tokens, keys and payloads never get here."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime


class TextFormatter(logging.Formatter):
    """One line a record, whatever it quotes: what cannot be printed is escaped, so that nobody writes lines of ours."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        line = super().formatMessage(record)
        return "".join(char if char.isprintable() else repr(char)[1:-1] for char in line)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, logger, message, and error where there was one."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["error"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def set_up(level: str, form: str) -> None:
    """Send all records of `level` (debug, info, warning, error) and above to standard error, as text or json."""
    handler = logging.StreamHandler(sys.stderr)
    text = TextFormatter("punchd: %(levelname)s: %(message)s")
    handler.setFormatter(JsonFormatter() if form == "json" else text)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    handler.addFilter(_ours_or_serious)


def _ours_or_serious(record: logging.LogRecord) -> bool:
    """Libraries have their say from warnings on: pyroute2 logs every netlink message at debug.

    Its part for traffic control, which we do not use, complains at each start inside a sandbox without /proc/net.
    """
    if record.name.startswith("pyroute2.netlink.rtnl.tcmsg"):
        return False
    return record.name.startswith("punchd") or record.levelno >= logging.WARNING
