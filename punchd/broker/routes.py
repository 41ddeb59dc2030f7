"""What a request is to the API: its route, whom it comes from, and the JSON in its body.

Source: broker specification §6.1, §6.2.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from punchd.broker import answers, strict_json
from punchd.broker.answers import HttpCode
from punchd.broker.tokens import Grant, Role
from punchd.broker.windows import Deed
from punchd.endpoint import IPAddress
from punchd.errors import DecodeError
from punchd.web.messages import Answer, Request, Response

MAX_BODY_BYTES = 16_384  # §6.1
_ADMIN = Grant("", Role.ADMIN, None, 0)  # of routes that take no token


@dataclass(frozen=True, slots=True)
class Call:
    """A request to a route: whom it comes from, and what its token says where the route asks for one."""

    request: Request = field(repr=False)
    ip: IPAddress = field(repr=False)
    name: str = ""
    grant: Grant = _ADMIN


@dataclass(frozen=True, slots=True)
class Act:
    """What a method of a route does: as which deed it is counted, and which token it takes."""

    do: Callable[[Call], Awaitable[Answer]]
    deed: Deed = Deed.REQUEST
    needs_token: bool = False
    admin_only: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """A path. `label` is its template, for logs, metrics and the OpenAPI document."""

    label: str
    path: re.Pattern[str]
    acts: Mapping[str, Act]

    @classmethod
    def of(cls, label: str, acts: Mapping[str, Act]) -> Route:
        """The route of a template; `{name}` in it is one segment."""
        return cls(label, re.compile(re.escape(label).replace(r"\{name\}", "([^/]*)")), acts)

    @property
    def methods(self) -> tuple[str, ...]:
        """That are answered."""
        return (*self.acts, *(("HEAD",) if "GET" in self.acts else ()), "OPTIONS")


def body(request: Request) -> bytes | Response:
    """The body, if it is JSON and not too large."""
    if len(request.body) > MAX_BODY_BYTES:
        text = f"expected a body of at most {MAX_BODY_BYTES} bytes"
        return answers.error(413, HttpCode.PAYLOAD_TOO_LARGE, text)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        return answers.error(415, HttpCode.UNSUPPORTED_MEDIA_TYPE, "Content-Type: expected application/json")
    return request.body


def json_object(request: Request) -> dict[str, Any] | Response:
    """The object in the body, or what is wrong with it."""
    data = body(request)
    if isinstance(data, Response):
        return data
    try:
        value = strict_json.decode(data)
    except DecodeError as error:
        return answers.invalid(str(error))
    return value if isinstance(value, dict) else answers.invalid("expected a JSON object")
