"""What a producer asks for when it creates a session: the body of `POST /api/session`.

    name*            a name
    streams          1 to 16 distinct names; ["default"]
    latency          20 to 8000 ms; 200
    ttl              1 to 86400 s; 1800
    turnstileToken   anything; only a text can be a good one

What is out of range is refused, never clamped: a producer is not to be surprised when the show is on (C-37). Other
members are ignored, since a later client may send more (C-46).

Pure.

Source: seed 000 §4.3, §5.4; broker specification §6.2, B-001, B-004, B-006, B-021, B-022, B-041, C-11, C-13, C-16.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from punchd.broker import strict_json
from punchd.broker.names import (
    DEFAULT_LATENCY_MS,
    DEFAULT_STREAM,
    DEFAULT_TTL_S,
    MAX_LATENCY_MS,
    MAX_STREAMS,
    MAX_TTL_S,
    MIN_LATENCY_MS,
    MIN_TTL_S,
    is_name,
)
from punchd.broker.state import Plan
from punchd.errors import DecodeError


@dataclass(frozen=True, slots=True)
class Creation:
    """A request that makes sense. `turnstile` is None where no text was given."""

    name: str
    streams: tuple[str, ...] = (DEFAULT_STREAM,)
    latency_ms: int = DEFAULT_LATENCY_MS
    ttl_s: int = DEFAULT_TTL_S
    turnstile: str | None = field(default=None, repr=False)

    def plan(self, now_ms: int) -> Plan:
        """The session, if it is created now (Unix milliseconds)."""
        return Plan(self.name, self.streams, now_ms, now_ms + self.ttl_s * 1000, self.latency_ms)


def read(body: bytes) -> Creation:
    """The request of a body.

    Raises:
        DecodeError: it is none; the text names the field.
    """
    members = strict_json.decode(body)
    if not isinstance(members, dict):
        raise DecodeError("expected a JSON object")
    name = members.get("name")
    if not isinstance(name, str) or not is_name(name):
        raise DecodeError("name: expected 1 to 64 letters, digits, '.', '_' and '-', a letter or digit first")
    turnstile = members.get("turnstileToken")
    return Creation(
        name,
        _streams(members.get("streams", [DEFAULT_STREAM])),
        _within(members, "latency", DEFAULT_LATENCY_MS, MIN_LATENCY_MS, MAX_LATENCY_MS),
        _within(members, "ttl", DEFAULT_TTL_S, MIN_TTL_S, MAX_TTL_S),
        turnstile if isinstance(turnstile, str) else None,
    )


def _streams(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_STREAMS:
        raise DecodeError(f"streams: expected a list of 1 to {MAX_STREAMS} names")
    if not all(isinstance(one, str) and is_name(one) for one in value):
        raise DecodeError("streams: expected names of 1 to 64 letters, digits, '.', '_' and '-'")
    if len(set(value)) != len(value):
        raise DecodeError("streams: a name stands twice")
    return tuple(value)


def _within(members: Mapping[str, Any], name: str, default: int, least: int, most: int) -> int:
    number = strict_json.integer(members.get(name, default))
    if number is None or not least <= number <= most:
        raise DecodeError(f"{name}: expected a whole number from {least} to {most}")
    return number
