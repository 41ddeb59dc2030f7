"""The HTTP answers, written in one place: what a client may rely on.

Every answer has Punch-Version, also those of the shell to what is no request. Errors are
`{"error": CODE, "message": TEXT, "code": CODE}`: seed 000 §8.1 has the first two, §5 speaks of the third (C-01).

Source: seed 000 §8.1, §11; broker specification §6, C-01 to C-03.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from punchd.broker.server_messages import overview_members
from punchd.broker.settings import ANY_ORIGIN, Settings
from punchd.broker.store import Created, View
from punchd.web.messages import Problem, Request, Response, json_response

PUNCH_VERSION = "1.0.0"
VERSION_HEADER = ("Punch-Version", PUNCH_VERSION)
BUSY_S = 10  # Retry-After where nobody knows when there is room
STOPPING_S = 1
OK, DRAINING, UNAVAILABLE = "ok", "draining", "unavailable"  # of health


class HttpCode(StrEnum):
    """What `error` says. The WebSocket has other codes (C-02)."""

    INVALID_REQUEST = "INVALID_REQUEST"
    AUTH_FAILED = "AUTH_FAILED"
    TURNSTILE_FAILED = "TURNSTILE_FAILED"
    SESSION_NOT_FOUND = "SESSION_NOT_FOUND"
    STREAM_NOT_FOUND = "STREAM_NOT_FOUND"
    NOT_FOUND = "NOT_FOUND"
    METHOD_NOT_ALLOWED = "METHOD_NOT_ALLOWED"
    SESSION_EXISTS = "SESSION_EXISTS"
    NOT_READY = "NOT_READY"
    LIMIT_REACHED = "LIMIT_REACHED"
    PAYLOAD_TOO_LARGE = "PAYLOAD_TOO_LARGE"
    UNSUPPORTED_MEDIA_TYPE = "UNSUPPORTED_MEDIA_TYPE"
    UPGRADE_REQUIRED = "UPGRADE_REQUIRED"
    RATE_LIMITED = "RATE_LIMITED"
    SERVER_ERROR = "SERVER_ERROR"
    SESSION_FULL = "SESSION_FULL"


# The shell's words in ours; what is not here is INVALID_REQUEST.
_CODES: Mapping[str, HttpCode] = {
    "HEADERS_TOO_LARGE": HttpCode.PAYLOAD_TOO_LARGE,
    "URI_TOO_LONG": HttpCode.PAYLOAD_TOO_LARGE,
    "BODY_TOO_LARGE": HttpCode.PAYLOAD_TOO_LARGE,
    "UPGRADE_REQUIRED": HttpCode.UPGRADE_REQUIRED,
    "NOT_FOUND": HttpCode.NOT_FOUND,
    "METHOD_NOT_ALLOWED": HttpCode.METHOD_NOT_ALLOWED,
    "BUSY": HttpCode.SESSION_FULL,
    "STOPPING": HttpCode.SERVER_ERROR,
    "INTERNAL_ERROR": HttpCode.SERVER_ERROR,
}


class Dress:
    """The fields that every answer has."""

    def __init__(self, settings: Settings) -> None:
        self._origins = frozenset(settings.cors_origins)
        self.common: tuple[tuple[str, str], ...] = (VERSION_HEADER, ("X-Content-Type-Options", "nosniff"))
        if settings.is_secure:
            self.common += (("Strict-Transport-Security", "max-age=31536000"),)

    def problem(self, problem: Problem) -> Response:
        """What the shell itself objects."""
        code = _CODES.get(problem.code, HttpCode.INVALID_REQUEST)
        plain = error(problem.status, code, problem.message, problem.headers)
        return replace(plain, headers=(*plain.headers, *self.common))

    def fields(self, request: Request, methods: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
        """Of an answer to `request`, whose path takes `methods`."""
        if not self._origins:
            return self.common
        origin = request.headers.get("origin")
        if origin is None or (origin not in self._origins and ANY_ORIGIN not in self._origins):
            return (*self.common, ("Vary", "Origin"))
        shared = (
            ("Vary", "Origin"),
            ("Access-Control-Allow-Origin", origin),
            ("Access-Control-Expose-Headers", "Punch-Version, Retry-After"),
        )
        if request.method != "OPTIONS":
            return (*self.common, *shared)
        return (
            *self.common,
            *shared,
            ("Access-Control-Allow-Methods", ", ".join(methods)),
            ("Access-Control-Allow-Headers", "Authorization, Content-Type"),
            ("Access-Control-Max-Age", "600"),
        )


def error(status: int, code: HttpCode, message: str, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    return json_response({"error": code.value, "message": message, "code": code.value}, status, headers)


def retry(status: int, code: HttpCode, message: str, wait_s: float) -> Response:
    """An error that waiting so long may cure."""
    return error(status, code, message, (("Retry-After", str(max(1, math.ceil(wait_s)))),))


def invalid(message: str) -> Response:
    return error(400, HttpCode.INVALID_REQUEST, message)


def auth_failed(message: str, status: int = 401) -> Response:
    fields = (("WWW-Authenticate", 'Bearer realm="punch"'),) if status == 401 else ()
    return error(status, HttpCode.AUTH_FAILED, message, fields)


def not_found() -> Response:
    return error(404, HttpCode.NOT_FOUND, "there is nothing of that name here; see /spec/openapi.json")


def no_session() -> Response:
    return error(404, HttpCode.SESSION_NOT_FOUND, "no open session has this name")


def no_stream() -> Response:
    return error(404, HttpCode.STREAM_NOT_FOUND, "the session has no stream of this name")


def health(status: str) -> Response:
    """`status` is OK, DRAINING or UNAVAILABLE."""
    value = {"status": status, "version": PUNCH_VERSION}
    return json_response(value) if status == OK else json_response(value, 503, (("Retry-After", str(STOPPING_S)),))


def created(new: Created, base_url: str) -> Response:
    plan = new.plan
    value = {
        "session": plan.name,
        "token": new.admin_token,
        "url": f"{base_url}/s/{plan.name}",
        "qr": f"{base_url}/s/{plan.name}/qr",
        "streams": list(plan.streams),
        "latency": plan.latency_ms,
        "ttl": (plan.expires_ms - plan.created_ms) // 1000,
        "state": "WAITING",
        "created": _rfc3339(plan.created_ms),
        "expiresAt": plan.expires_ms,
        "peerTokens": dict(new.peer_tokens),
        "ws": f"{base_url.replace('http', 'ws', 1)}/api/ws/{plan.name}",
    }
    return json_response(value, 201, (("Location", f"/api/session/{plan.name}"),))


def session(view: View, *, is_admin: bool, stream: str | None) -> Response:
    """How a session is, for an admin or for a peer of `stream`, whose own tally it may see (C-26)."""
    value: dict[str, Any] = {
        "session": view.plan.name,
        **overview_members(view.overview),
        "latency": view.plan.latency_ms,
        "created": _rfc3339(view.plan.created_ms),
        "expiresAt": view.plan.expires_ms,
    }
    if is_admin:
        value["health"] = {name: entry.members() for name, entry in view.health.items()}
        value["tally"] = {name: light.value for name, light in view.tally.items()}
        if view.warnings:
            value["warnings"] = list(view.warnings)
    elif stream is not None and stream in view.tally:
        value["tally"] = {stream: view.tally[stream].value}
    return json_response(value)


def _rfc3339(unix_ms: int) -> str:
    return datetime.fromtimestamp(unix_ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
