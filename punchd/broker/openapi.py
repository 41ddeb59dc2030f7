"""The OpenAPI 3.1 document of the HTTP API, and the schema of the messages as it is shipped.

The seed's own document is not public beyond its first operations; what is known of it is kept, and what is ours beyond
the seed is marked `x-punch-ext`. Every answer of the tests is held against this document.

Source: seed 000 §8.1, §11; seed 003; broker specification §6.4, B-043, B-123, C-03.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from punchd.broker.answers import PUNCH_VERSION, HttpCode
from punchd.broker.connect import FORMATS
from punchd.broker.names import (
    DEFAULT_LATENCY_MS,
    DEFAULT_TTL_S,
    MAX_JSON_DEPTH,
    MAX_LATENCY_MS,
    MAX_PORT,
    MAX_STREAMS,
    MAX_TOKEN_CHARS,
    MAX_TTL_S,
    MIN_LATENCY_MS,
    MIN_LOCAL_PORT,
    MIN_TTL_S,
)
from punchd.broker.page import HTML, KINDS

SCHEMA_BYTES = (files("punchd.broker") / "punch-messages.schema.json").read_bytes()

_TEXT: dict[str, Any] = {"type": "string"}
_COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
_TOKEN: dict[str, Any] = {
    "type": "string",
    "pattern": r"^p_[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$",
    "maxLength": MAX_TOKEN_CHARS,
}
_WORDS = {
    400: "What was sent makes no sense",
    401: "The token is missing, not genuine, for another session, or not good any more",
    403: "Known, but not allowed",
    404: "No such thing",
    405: "The path takes other methods",
    409: "It does not fit what there is",
    413: "The body is too large",
    415: "The body is no JSON",
    426: "A WebSocket is served here",
    429: "Too many requests",
    503: "There is no room, or the server stops",
}


def document(base_url: str) -> dict[str, Any]:
    """The document, for a server that clients call `base_url`."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Punch HTTP API",
            "version": PUNCH_VERSION,
            "description": "Sessions for SRT: producers create them, peers meet over a WebSocket. Bodies are I-JSON "
            f"(RFC 7493), nested at most {MAX_JSON_DEPTH} deep; whole numbers beyond 2^53 are refused in any member.",
        },
        "servers": [{"url": base_url}],
        "security": [{"bearer": []}],
        "tags": [{"name": name} for name in ("health", "session", "connect", "ui", "spec")],
        "paths": _paths(),
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "punch"}},
            "headers": {
                "Punch-Version": {"required": True, "schema": {"type": "string", "const": PUNCH_VERSION}},
                "Retry-After": {"required": True, "schema": {"type": "integer", "minimum": 1}},
                "Allow": {"required": True, "schema": _TEXT},
                "WWW-Authenticate": {"required": True, "schema": _TEXT},
                "Location": {"required": True, "schema": _TEXT},
                "Content-Security-Policy": {"required": True, "schema": _TEXT},
                "ETag": {"required": True, "schema": _TEXT},
            },
            "schemas": _schemas(),
        },
    }


def _paths() -> dict[str, Any]:
    name = {"name": "name", "in": "path", "required": True, "schema": _ref("Name")}
    health = {
        "200": _answer("The server serves", "Health"),
        "503": _answer("It stops soon, or its store does not answer", "Health", "Retry-After"),
    }
    minted = {"201": _answer("A token for a peer", "Minted")}
    paths: dict[str, Any] = {
        "/api/health": {
            "get": _operation("getHealth", "health", health, 429, is_open=True),
            "head": _operation("headHealth", "health", health, 429, is_open=True),
        },
        "/api/session": {
            "post": _operation(
                "createSession", "session", {"201": _answer("Created", "Created", "Location")},
                400, 403, 409, 413, 415, 429, 503, is_open=True, body="CreateSession",
            ),
        },
        "/api/session/{name}": {
            "parameters": [name],
            "get": _operation("getSession", "session", {"200": _answer("How it is", "Session")}, 401, 404, 429),
            "delete": _operation(
                "closeSession", "session", {"200": _answer("Closed", "Closed")}, 401, 403, 404, 429
            ),
        },
        "/api/session/{name}/token": {
            "parameters": [name],
            "x-punch-ext": True,
            "post": _operation(
                "mintToken", "session", minted, 400, 401, 403, 404, 409, 413, 415, 429, body="MintToken"
            ),
            "delete": _operation(
                "revokeToken", "session", {"204": _empty("It is worthless now")},
                400, 401, 403, 404, 413, 415, 429, body="RevokeToken",
            ),
        },
        "/api/session/{name}/connect": {
            "parameters": [name],
            "get": _operation(
                "connectString", "connect", {"200": _answer("What to type", "Connect")},
                400, 401, 403, 404, 409, 429,
                query={
                    "stream": _ref("Name"),
                    "format": {"type": "string", "enum": list(FORMATS), "default": "url"},
                    "role": {"type": "string", "enum": ["sender", "receiver"]},
                    "side": {"type": "string", "enum": ["a", "b"], "default": "a"},
                    "port": {"type": "integer", "minimum": MIN_LOCAL_PORT, "maximum": MAX_PORT},
                },
            ),
        },
        "/api/ws/{name}": {
            "parameters": [name],
            "get": _operation(
                "openWebSocket", "session", {"101": _empty("A WebSocket")},
                400, 401, 403, 404, 426, 429, 503, is_open=True, query={"t": _TOKEN},
            ),
        },
        "/": {"get": _operation("getCreatePage", "ui", {"200": _page("Creates a session")}, 429, is_open=True)},
        "/s/{name}": {
            "parameters": [name],
            "get": _operation(
                "getSessionPage", "ui", {"200": _page("The page of a session")}, 404, 429, is_open=True,
                query={"t": _TEXT},
            ),
        },
        "/s/{name}/qr": {
            "parameters": [name],
            "get": _operation(
                "getQrCode", "ui",
                {"200": _answer("The page's address, with the token of the request", "Text", kind=KINDS["svg"])},
                401, 404, 429,
            ) | {"security": [{}, {"bearer": []}]},
        },
        "/page/{name}": {
            "parameters": [name],
            "x-punch-ext": True,
            "get": _operation("getPageFile", "ui", _file(), 404, 429, is_open=True),
        },
        "/spec/openapi.json": {
            "get": _operation("getOpenapi", "spec", {"200": _answer("This document", "Any")}, 429, is_open=True)
        },
        "/spec/punch-messages.schema.json": {
            "get": _operation(
                "getSchema", "spec", {"200": _answer("The messages", "Any", kind="application/schema+json")},
                429, is_open=True,
            )
        },
    }  # fmt: skip
    return paths


def _file() -> dict[str, Any]:
    good = _empty("A script, a style or a picture of the page", "ETag")
    content = {kind: {"schema": _ref("Text")} for kind in KINDS.values()}
    return {"200": {**good, "content": content}, "304": _empty("It is as it was", "ETag")}


def _page(words: str) -> dict[str, Any]:
    return _answer(words, "Text", "Content-Security-Policy", kind=HTML)


def _operation(
    name: str,
    tag: str,
    good: dict[str, Any],
    *bad: int,
    is_open: bool = False,
    body: str | None = None,
    query: dict[str, Any] | None = None,
) -> dict[str, Any]:
    found: dict[str, Any] = {"operationId": name, "tags": [tag]}
    if is_open:
        found["security"] = []
    if query is not None:
        found["parameters"] = [{"name": one, "in": "query", "schema": schema} for one, schema in query.items()]
    if body is not None:
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref(body)}}}
    away = (503,) if 429 in bad and "503" not in good else ()  # whoever counts requests may have to ask a store
    answers = {str(status): _error(status) for status in (*bad, 405, *away)}
    found["responses"] = {**good, **answers, "default": _answer("Not even understood", "Error")}
    return found


def _answer(words: str, schema: str, *headers: str, kind: str = "application/json") -> dict[str, Any]:
    return {**_empty(words, *headers), "content": {kind: {"schema": _ref(schema)}}}


def _empty(words: str, *headers: str) -> dict[str, Any]:
    named = ("Punch-Version", *headers)
    return {"description": words, "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in named}}


def _error(status: int) -> dict[str, Any]:
    needed = {401: ("WWW-Authenticate",), 405: ("Allow",), 429: ("Retry-After",), 503: ("Retry-After",)}
    return _answer(_WORDS[status], "Error", *needed.get(status, ()))


def _schemas() -> dict[str, Any]:
    codes = {"type": "string", "enum": [code.value for code in HttpCode]}
    state = {"type": "string", "enum": ["WAITING", "READY", "CONNECTED", "CLOSED"]}
    amount = {"type": "number", "minimum": 0}
    entry = _object(rtt=amount, retransmit=amount, bitrate=amount, status={"enum": ["healthy", "warning", "critical"]})
    plan: dict[str, dict[str, Any]] = {
        "latency": {"type": "integer", "minimum": MIN_LATENCY_MS, "maximum": MAX_LATENCY_MS},
        "created": {"type": "string", "format": "date-time"},
        "expiresAt": {"type": "integer", "description": "Unix milliseconds"},
    }
    streams = {"type": "array", "items": _ref("Name"), "minItems": 1, "maxItems": MAX_STREAMS, "uniqueItems": True}
    ttl = {"type": "integer", "minimum": MIN_TTL_S, "maximum": MAX_TTL_S}
    session = _object(
        session=_ref("Name"),
        state=state,
        streams=_map(_object(state=state, peers={"type": "integer", "minimum": 0, "maximum": 2})),
        connected=_COUNT,
        total=_COUNT,
        **plan,
    )
    session["properties"] |= {
        "health": _map(entry),
        "tally": _map({"enum": ["off", "preview", "program"]}),
        "warnings": {"type": "array", "items": {"enum": ["family_mismatch"]}},
    }
    return {
        "Name": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"},
        "Any": {"type": "object"},
        "Text": _TEXT,
        "Error": _object(error=codes, code=codes, message=_TEXT),
        "Health": _object(status={"enum": ["ok", "draining", "unavailable"]}, version={"const": PUNCH_VERSION}),
        "CreateSession": {
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": _ref("Name"),
                "streams": {**streams, "default": ["default"]},
                "latency": {**plan["latency"], "default": DEFAULT_LATENCY_MS},
                "ttl": {**ttl, "default": DEFAULT_TTL_S},
                "turnstileToken": {},
            },
        },
        "Created": _object(
            session=_ref("Name"), token=_TOKEN, url=_TEXT, qr=_TEXT, streams=streams, ttl=ttl,
            state={"const": "WAITING"}, peerTokens=_map(_TOKEN), ws=_TEXT, **plan,
        ),
        "Session": session,
        "Closed": _object(session=_ref("Name"), state={"const": "CLOSED"}),
        "MintToken": {
            "type": "object",
            "properties": {"stream": _ref("Name"), "ttl": ttl, "label": _TEXT},
        },
        "Minted": _object(token=_TOKEN, stream=_ref("Name"), exp=_COUNT, url=_TEXT),
        "RevokeToken": {"type": "object", "required": ["token"], "properties": {"token": _TEXT}},
        "Connect": _object(
            stream=_ref("Name"), format={"enum": list(FORMATS)}, role={"enum": ["sender", "receiver"]}, value=_TEXT
        ),
    }  # fmt: skip


def _object(**properties: Any) -> dict[str, Any]:
    """Every one of them required, and no others."""
    required = list(properties)
    return {"type": "object", "required": required, "properties": properties, "additionalProperties": False}


def _map(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": schema}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}
