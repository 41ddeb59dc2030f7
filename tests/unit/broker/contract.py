"""Every HTTP answer against the OpenAPI document, every secret against what was sent and logged.

One for the whole run: each test adds to it what it saw, and `conftest.py` looks at the logs at the end.
"""

from __future__ import annotations

import json
import logging
import re
from typing import Any

from jsonschema import Draft202012Validator

from punchd.broker import openapi
from punchd.broker.answers import HttpCode

DOCUMENT = openapi.document("https://broker.example")
_FROM_THE_PARSER = {400, 408, 413, 414, 431, 500, 501, 503, 505}
_PATHS = {
    re.compile(re.escape(path).replace(r"\{name\}", "[^/]*")): operations
    for path, operations in DOCUMENT["paths"].items()
}


_ERROR = Draft202012Validator({"$ref": "#/components/schemas/Error", "components": DOCUMENT["components"]})


def _resolve(node: dict[str, Any]) -> dict[str, Any]:
    """What a `$ref` into the document means."""
    if "$ref" in node:
        found: Any = DOCUMENT
        for part in node["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        return dict(found)
    return node


def validate(schema: dict[str, Any], value: Any) -> None:
    Draft202012Validator({**schema, "components": DOCUMENT["components"]}).validate(value)


def check_answer(method: str, path: str, status: int, headers: dict[str, str], body: bytes) -> None:
    """One answer, whatever it is an answer to: the document has it, and it is as the document says."""
    assert headers["punch-version"] == "1.0.0"
    if status == 101:
        return
    assert headers["x-content-type-options"] == "nosniff"
    is_file = path.startswith("/page/") and status in (200, 304)
    assert headers["cache-control"] == ("no-cache" if is_file else "no-store")
    assert not headers.get("location", "/").startswith("http:")
    error: dict[str, Any] = DOCUMENT["paths"]["/api/health"]["get"]["responses"]["default"]
    operations: dict[str, Any] = next((ones for one, ones in _PATHS.items() if one.fullmatch(path)), {})
    operation = operations.get(method.lower()) or (operations.get("get") if method == "HEAD" else None)
    responses: dict[str, Any] = {} if operation is None else operation["responses"]
    told = responses.get(str(status))
    if told is None:
        assert (status in _FROM_THE_PARSER) or operation is None, (method, path, status)
        told = error
    for name, header in told.get("headers", {}).items():
        schema = _resolve(header)["schema"]
        value: Any = headers[name.lower()]
        validate(schema, int(value) if schema.get("type") == "integer" else value)
    if status in (204, 304) or method == "HEAD":
        assert body == b""
    elif "content" in told:
        content = told["content"][headers["content-type"]]
        is_json = "json" in headers["content-type"]
        validate(content["schema"], json.loads(body.decode()) if is_json else body.decode())
    if status >= 400 and method != "HEAD" and path != "/api/health":
        TAP.codes.add(json.loads(body)["error"])


def check_error(body: bytes) -> None:
    """The body of an answer of 400 or more, whatever was asked."""
    members = json.loads(body.decode())
    _ERROR.validate(members)
    TAP.codes.add(members["error"])


class Tap(logging.Handler):
    """What was seen in the whole run."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.secrets: set[str] = set()  # what tokens are signed with: never sent, never logged
        self.unlogged: set[str] = set()  # tokens, passphrases and the like: sent, and never logged
        self.addresses: set[str] = set()  # of peers: only `punchd.security` may name them
        self.codes: set[str] = set()
        self.close_codes: set[int] = set()
        self.lines: list[tuple[str, str]] = []  # (logger, words)

    def emit(self, record: logging.LogRecord) -> None:
        formatter = logging.Formatter("%(message)s")
        self.lines.append((record.name, f"{formatter.format(record)} {record.args!r}"))

    def token(self, token: str) -> None:
        """A token that must not be logged, neither whole nor in parts."""
        self.unlogged |= {token, *token.removeprefix("p_").split(".")}

    def sent(self, data: bytes) -> None:
        """Bytes that the server sent: no secret in them."""
        for secret in self.secrets:
            assert secret.encode() not in data

    def leaks(self) -> list[str]:
        """Lines of the log that say too much."""
        said = [line for _, line in self.lines]
        by_others = [line for name, line in self.lines if name != "punchd.security"]
        taboo = {one for one in self.secrets | self.unlogged if len(one) >= 16} | {"t=p_", "Bearer "}
        found = [line for line in said for one in taboo if one in line]
        return found + [line for line in by_others for one in self.addresses if one in line]

    def stray_codes(self) -> set[str]:
        """Error codes that the document has not."""
        return self.codes - {code.value for code in HttpCode}


TAP = Tap()
