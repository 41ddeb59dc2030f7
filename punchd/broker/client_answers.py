"""What a broker's HTTP answers say: JSON to values, and refusals to errors. Pure.

Members that are not known are ignored.

Source: broker specification §6.2, C-01.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from punchd.broker import client_version, strict_json
from punchd.broker.client_decode import healths, line, name_of, overview, shown, stream, table, text, whole, word
from punchd.broker.client_errors import BrokerError, NotBrokerError, RefusedError, UnreachableError
from punchd.broker.client_values import ConnectionString, Created, Minted, SessionStatus
from punchd.broker.messages import Light
from punchd.broker.names import MAX_LATENCY_MS, MAX_TTL_S
from punchd.errors import DecodeError

LATEST_MS = 1 << 50  # Unix milliseconds beyond this are no time

_BUSY = frozenset({502, 503, 504})
_CODE = re.compile(r"[A-Z_]{1,40}")


def members(body: bytes) -> dict[str, Any]:
    """The object of a body."""
    return table(strict_json.decode(body), "answer")


def version(body: bytes) -> str:
    return line(members(body), "version")


def created(body: bytes) -> Created:
    found = members(body)
    listed = found.get("streams")
    if not isinstance(listed, list):
        raise DecodeError("streams: expected a list of names")
    given = table(found.get("peerTokens"), "peerTokens")
    return Created(
        name=name_of(found.get("session")),
        token=_token(found.get("token")),
        peer_tokens={name_of(name): _token(token) for name, token in given.items()},
        url=line(found, "url"),
        streams=tuple(map(name_of, listed)),
        latency_ms=whole(found, "latency", 0, MAX_LATENCY_MS),
        ttl_s=whole(found, "ttl", 0, MAX_TTL_S),
        expires_ms=whole(found, "expiresAt", 0, LATEST_MS),
    )


def status(body: bytes) -> SessionStatus:
    found = members(body)
    seen = overview(found)
    tally = table(found.get("tally", {}), "tally")
    warnings = found.get("warnings", [])
    if not isinstance(warnings, list) or not all(isinstance(one, str) for one in warnings):
        raise DecodeError("warnings: expected a list of words")
    return SessionStatus(
        name=name_of(found.get("session")),
        state=seen.state,
        streams=seen.streams,
        connected=seen.connected,
        total=seen.total,
        latency_ms=whole(found, "latency", 0, MAX_LATENCY_MS),
        created=line(found, "created"),
        expires_ms=whole(found, "expiresAt", 0, LATEST_MS),
        health=healths(found, "health") if "health" in found else {},
        tally={name_of(name): word(light, "tally", Light) for name, light in tally.items()},
        warnings=tuple(map(shown, warnings)),
    )


def minted(body: bytes) -> Minted:
    found = members(body)
    token = _token(found.get("token"))
    return Minted(token, stream(found), whole(found, "exp", 0, LATEST_MS), line(found, "url"))


def connection_string(body: bytes) -> ConnectionString:
    found = members(body)
    return ConnectionString(stream(found), line(found, "format"), line(found, "role"), text(found, "value"))


def refusal(
    who: str, status: int, fields: Mapping[str, str], body: bytes, *, retry_after_s: float | None
) -> BrokerError:
    """What an answer that is no success means.

    Args:
        who: how the message begins.
        fields: names in lower case.
    """
    try:
        client_version.check(who, fields.get(client_version.FIELD))
    except NotBrokerError as error:
        return error
    try:
        found = members(body)
        code, message = text(found, "error"), line(found, "message")
    except DecodeError:
        return stranger(who, status, fields)
    if not _CODE.fullmatch(code):
        return stranger(who, status, fields, "error: expected a code")
    return RefusedError(f"{who}: refused: {message} ({status} {code})", status, code, retry_after_s)


def stranger(who: str, status: int, fields: Mapping[str, str], expected: str = "expected JSON") -> BrokerError:
    """An answer that no broker gives."""
    if status in _BUSY:
        return UnreachableError(f"{who}: expected its answer, got a proxy's status {status}")
    kind = fields.get("content-type", "no content type")[:60]
    where = f", location {fields['location'][:100]!r}" if "location" in fields else ""
    return NotBrokerError(f"{who}: {expected}, got status {status} ({kind!r}){where}: is this a session broker?")


def _token(value: Any) -> str:
    if not isinstance(value, str) or not value or not value.isascii() or not value.isprintable():
        raise DecodeError("token: expected text")
    return value
