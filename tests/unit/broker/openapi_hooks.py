"""What schemathesis cannot know from the document: loaded by its command line, see `test_openapi.py`.

Bodies are I-JSON (RFC 7493): a whole number beyond 2^53 is refused anywhere, which a schema cannot say of members that
it has no name for. And a session's token comes with the session: whoever created one goes on with its token.
"""

from __future__ import annotations

import os
from typing import Any

import schemathesis

from punchd.broker.names import MAX_JSON_INTEGER

_tokens: dict[str, str] = {}


def _is_readable(value: Any) -> bool:
    if isinstance(value, dict | list):
        return all(map(_is_readable, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, int) or abs(value) <= MAX_JSON_INTEGER


@schemathesis.hook
def filter_body(_context: object, body: Any) -> bool:
    return _is_readable(body)


if os.environ.get("PUNCHD_TEST_FOLLOW"):

    @schemathesis.hook
    def before_call(_context: object, case: Any, _kwargs: dict[str, Any]) -> None:
        token = _tokens.get((case.path_parameters or {}).get("name", ""))
        if token is not None:
            case.headers["Authorization"] = f"Bearer {token}"

    @schemathesis.hook
    def after_call(_context: object, case: Any, response: Any) -> None:
        if case.operation.label == "POST /api/session" and response.status_code == 201:
            _tokens[response.json()["session"]] = response.json()["token"]
