"""Log records as text for people or JSON for machines, on standard error. Tokens, keys and payloads never get here."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime


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
    text = logging.Formatter("punchd: %(levelname)s: %(message)s")
    handler.setFormatter(JsonFormatter() if form == "json" else text)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    handler.addFilter(_ours_or_serious)


def _ours_or_serious(record: logging.LogRecord) -> bool:
    """Libraries have their say from warnings on: pyroute2 logs every netlink message at debug."""
    return record.name.startswith("punchd") or record.levelno >= logging.WARNING
