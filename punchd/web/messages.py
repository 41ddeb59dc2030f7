"""An HTTP request and the answers to it, as values. What a handler takes and gives; no sockets, no framing.

A handler answers a request with one of three things:

- `Response`: the answer.
- `LongPoll`: an answer that is worth waiting for. Only this wait is cancelled when the client goes away, because
  only its author knows that nothing is lost by that; a handler itself always runs to its end.
- `Upgrade`: the connection becomes a WebSocket.

Source: RFC 9110 (semantics), RFC 9112 (what may stand in a field).
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from punchd.endpoint import Endpoint

if TYPE_CHECKING:
    from punchd.web.websocket import WebSocket

MAX_REASON_BYTES = 123  # of a close frame: 125 of a control frame less two for the code (RFC 6455 §5.5)

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # token, RFC 9110 §5.6.2
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")  # field-value without line ends, same RFC §5.5
_BODILESS = frozenset({204, 304})  # RFC 9110 §6.4.1
# The shell frames the message, so these are its own.
_SHELLS_OWN = frozenset({"connection", "content-length", "date", "keep-alive", "server", "transfer-encoding"})


class Headers(Mapping[str, str]):
    """The fields of a request: names in lower case, the first of several wins, `get_all` has every one."""

    __slots__ = ("_fields",)

    def __init__(self, fields: Iterable[tuple[str, str]] = ()) -> None:
        """`fields`: (name in lower case, value) in the order of the request."""
        self._fields = tuple(fields)

    def __getitem__(self, name: str) -> str:
        for known, value in self._fields:
            if known == name:
                return value
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(dict(self._fields))

    def __len__(self) -> int:
        return len(dict(self._fields))

    def __repr__(self) -> str:
        return f"Headers({', '.join(self)})"  # names only: values may be secrets, and a repr may be logged

    def get_all(self, name: str) -> list[str]:
        """Every value of `name` (in lower case), in the order of the request."""
        return [value for known, value in self._fields if known == name]


@dataclass(frozen=True, slots=True)
class Request:
    """One request, whole and within the limits.

    Attributes:
        method: as it came: "GET", "HEAD", ... A handler answers HEAD as it would GET; the shell leaves the body away.
        target: as it came, in origin form or absolute form, percent-encoded.
        path: of the target, percent-decoded: "/", "/peer/ab". "*" of `OPTIONS *`.
        query: percent-decoded; the first of several equal names wins.
        headers: see Headers.
        body: empty if there was none.
        peer: who sent it; an IPv4-mapped IPv6 address is given as IPv4.
        is_tls: whether it came through TLS.
    """

    method: str
    target: str = field(repr=False)  # query and body may hold secrets, and a repr may be logged
    path: str
    query: Mapping[str, str] = field(repr=False)
    headers: Headers
    body: bytes = field(repr=False)
    peer: Endpoint
    is_tls: bool = False


@dataclass(frozen=True, slots=True)
class Response:
    """The answer to one request. The shell adds Date, Server, Content-Length and Connection.

    Attributes:
        pause_s: how long the shell then reads nothing from the client, and up to as long again, so that many who are
            told the same do not come back together. For who asks too often: a refusal costs as much as an answer.

    Raises:
        ValueError: a status, a field or a body that must not be sent.
    """

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    pause_s: float = 0.0

    def __post_init__(self) -> None:
        if not 200 <= self.status <= 599:
            raise ValueError(f"status of a response: expected 200 to 599, got {self.status}")
        if self.body and self.status in _BODILESS:
            raise ValueError(f"a response with status {self.status} has no body")
        for name, value in self.headers:
            if not _NAME.fullmatch(name) or name.lower() in _SHELLS_OWN:
                raise ValueError(f"field of a response: {name[:60]!r} cannot be set")
            if not _VALUE.fullmatch(value):
                raise ValueError(f"field {name} of a response: its value has characters that must not be sent")

    @property
    def may_have_body(self) -> bool:
        """Whether this status goes with a body, be it an empty one."""
        return self.status not in _BODILESS


@dataclass(frozen=True, slots=True)
class Upgrade:
    """The connection becomes a WebSocket (RFC 6455), if the request asks for one; else the client hears what is wrong.

    Attributes:
        run: the conversation. The socket is closed with 1000 when it returns, with 1011 when it raises.
        subprotocol: the one chosen of those that the client offers in Sec-WebSocket-Protocol.
        headers: more fields of the answer, such as Set-Cookie.
        close_codes: what to send instead of the code of RFC 6455 when the client breaks the protocol: 1002 (framing),
            1007 (not UTF-8), 1009 (too big); or when the server stops: 1001.
        max_message: bytes of a message; None is the server's limit.
        cancel_when_closed: whether `run` is cancelled once the conversation is over. Without it, `run` learns that
            from `receive`, `send` or `wait_closed`, and has to come to an end by itself.
        audience: whoever is told the same things has the same: what is sent to them takes turns as if it were to one
            client (`turns`). None: every client has turns of its own.
    """

    run: Callable[[WebSocket], Awaitable[None]]
    subprotocol: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    close_codes: Mapping[int, int] = field(default_factory=dict)
    max_message: int | None = None
    cancel_when_closed: bool = False
    audience: bytes | None = None


@dataclass(frozen=True, slots=True)
class LongPoll:
    """An answer to wait for.

    Attributes:
        wait: cancelled when the client goes away (also when it shuts down its sending half), or when the server stops.
        stopping: what the client hears when the server stops; None is 503.
        unsent: called when `wait` has answered, and the answer did not get out: the client went away meanwhile, or did
            not read it. What was taken for it can be given to somebody else.
    """

    wait: Callable[[], Awaitable[Response]]
    stopping: Response | None = None
    unsent: Callable[[], Awaitable[None]] | None = None


Answer = Response | LongPoll | Upgrade
Handler = Callable[[Request], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Problem:
    """What the shell itself has to object, for a client to read.

    Attributes:
        status: 4xx or 5xx.
        code: a word for programs: "BAD_REQUEST".
        message: one sentence for people; nothing secret.
        headers: fields that go with the status.
    """

    status: int
    code: str
    message: str
    headers: tuple[tuple[str, str], ...] = ()


def json_response(value: Any, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    """`value` as JSON (RFC 8259: no NaN), never to be cached.

    Raises:
        ValueError, TypeError: `value` is nothing that JSON has.
    """
    body = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    return Response(status, (("Content-Type", "application/json"), ("Cache-Control", "no-store"), *headers), body)


def problem_response(problem: Problem) -> Response:
    """`{"ok":false,"error":CODE,"message":TEXT}`. What a server answers with unless it brings its own."""
    value = {"ok": False, "error": problem.code, "message": problem.message}
    return json_response(value, problem.status, problem.headers)


def text_response(text: str, status: int = 200, content_type: str = "text/plain; charset=utf-8") -> Response:
    """`text` in UTF-8, as plain text or as `content_type` says."""
    return Response(status, (("Content-Type", content_type), ("X-Content-Type-Options", "nosniff")), text.encode())


def html_response(page: str, status: int = 200) -> Response:
    """A page that runs no scripts and loads nothing from elsewhere; its style may stand in it."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
    fields = (
        ("Content-Type", "text/html; charset=utf-8"),
        ("Content-Security-Policy", policy),
        ("X-Content-Type-Options", "nosniff"),
    )
    return Response(status, fields, page.encode())
