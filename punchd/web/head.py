"""What the head of a request means: grammar by llhttp (through httptools), and what a server must not leave open.

One Content-Length or one `Transfer-Encoding: chunked`, never both, never in HTTP/1.0. One Host, and one that could be
a host. A target that decodes. llhttp must see the end of the head where `http.py` sees it.

Source: RFC 9110, RFC 9112; RFC 3986 for the target.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

import httptools

from punchd.errors import PunchdError
from punchd.web.limits import Limits
from punchd.web.messages import Headers, Problem

_REQUEST_LINE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ [!-~]+ HTTP/([0-9])\.([0-9])\r\n")
# A line that is neither NAME: VALUE nor empty. llhttp refuses it, http-parser (in Debian 12's httptools) does not.
_NO_FIELD = re.compile(rb"\r\n(?![!#$%&'*+.^_`|~0-9A-Za-z-]+:|\r\n|\Z)")
_HOST_TEXT = r"(?:\[[0-9A-Fa-f:.]+\]|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+)(?::[0-9]{0,5})?"
_HOST = re.compile(_HOST_TEXT)
_ABSOLUTE = re.compile(rf"(?i:https?)://({_HOST_TEXT})([/?].*)?")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_LENGTH = re.compile(r"[0-9]{1,18}")


class RefusedError(PunchdError):
    """A request that is not taken. The connection ends with this answer.

    Attributes:
        problem: what the client is told.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.problem = Problem(status, code, message)


@dataclass(frozen=True, slots=True)
class Head:
    """What stands before the body. The fields with the names of Request's are those.

    Attributes:
        length: bytes of the body; None if it comes in chunks.
        is_http11: HTTP/1.1, else 1.0.
        keep_alive: whether the client wants the connection to go on.
        expects_continue: whether it waits for `100 Continue` before it sends the body.
    """

    method: str
    target: str
    path: str
    query: Mapping[str, str]
    headers: Headers
    length: int | None
    is_http11: bool
    keep_alive: bool
    expects_continue: bool


def parse_head(raw: bytes, limits: Limits) -> Head:
    """The head in `raw`, which ends with its empty line.

    Raises:
        RefusedError: it is not taken.
    """
    found = _Fields()
    parser = httptools.HttpRequestParser(found)
    try:
        parser.feed_data(raw)
    except httptools.HttpParserUpgrade:
        pass  # offered, not ordered: an Upgrade that nobody wants is passed over (RFC 9110 §7.8)
    except httptools.HttpParserError as error:
        raise _grammar(raw, error) from None
    method = parser.get_method()
    version = parser.get_http_version()
    if not raw.startswith(b"%b %b HTTP/%b\r\n" % (method, found.url, version.encode())):
        raise _grammar(raw, "expected METHOD TARGET HTTP/1.1 with single spaces")
    if version not in {"1.1", "1.0"}:
        raise RefusedError(505, "VERSION_NOT_SUPPORTED", f"expected HTTP/1.1, got HTTP/{version}")
    if _NO_FIELD.search(raw) or not found.url.isascii():
        raise _grammar(raw, "expected fields of the form NAME: VALUE, and a target in ASCII")
    if not found.is_complete:
        raise bad("the head does not end where its empty line is")
    if len(found.url) > limits.target_bytes:
        raise target_too_long(limits)
    if len(found.fields) > limits.fields:
        raise fields_too_large(f"expected at most {limits.fields} fields")
    is_http11 = version == "1.1"
    headers = Headers(found.fields)
    target = found.url.decode("ascii")
    path, query, host = _target(method, target)
    _check_host(headers, is_http11=is_http11)
    if host is not None:  # overrides the field, RFC 9112 §3.2.2
        headers = Headers([("host", host), *((name, value) for name, value in found.fields if name != "host")])
    return Head(
        method.decode("ascii"),
        target,
        path,
        query,
        headers,
        _body_length(headers, limits, is_http11=is_http11),
        is_http11,
        _keeps_alive(headers, is_http11=is_http11),
        is_http11 and _expects_continue(headers),
    )


def _target(method: bytes, target: str) -> tuple[str, dict[str, str], str | None]:
    """Path, query and, from an absolute form, the host."""
    host = None
    if method == b"CONNECT":
        raise RefusedError(501, "NOT_IMPLEMENTED", "this is no proxy: CONNECT is not served")
    if target == "*" and method == b"OPTIONS":
        return "*", {}, None
    if not target.startswith("/"):
        absolute = _ABSOLUTE.fullmatch(target)
        if absolute is None:
            raise bad("the target: expected a path, or an address with http:// or https://")
        host = absolute[1]
        target = absolute[2] or "/"
        if target[0] == "?":
            target = "/" + target
    if "#" in target:
        raise bad("the target has a fragment (#), which is never sent")
    path, _, query = target.partition("?")
    path = _decode(path)
    if _CONTROL.search(path):
        raise bad("the target has an encoded control character")
    values: dict[str, str] = {}
    for item in query.split("&"):
        if item:
            name, _, value = item.replace("+", " ").partition("=")
            values.setdefault(_decode(name), _decode(value))
    return path, values, host


def _decode(text: str) -> str:
    if "%" not in text:
        return text
    if _BAD_ESCAPE.search(text):
        raise bad("the target: expected two hexadecimal digits after %")
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise bad("the target: its percent-encoded bytes are not UTF-8") from None


def _check_host(headers: Headers, *, is_http11: bool) -> None:
    hosts = headers.get_all("host")
    if (is_http11 and not hosts) or len(hosts) > 1:
        raise bad(f"expected one Host field, got {len(hosts)}")
    if hosts and not _HOST.fullmatch(hosts[0]):
        raise bad("the Host field is no HOST or HOST:PORT")


def _body_length(headers: Headers, limits: Limits, *, is_http11: bool) -> int | None:
    encodings = headers.get_all("transfer-encoding")
    lengths = headers.get_all("content-length")
    if encodings:
        if lengths or not is_http11 or len(encodings) > 1:
            raise bad("Transfer-Encoding stands alone, once, and in HTTP/1.1 only")
        if encodings[0].lower() != "chunked":
            raise RefusedError(501, "NOT_IMPLEMENTED", "Transfer-Encoding: expected chunked")
        return None
    if not lengths:
        return 0
    if len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0]):
        raise bad("expected one Content-Length, a decimal number")
    if int(lengths[0]) > limits.body_bytes:
        raise body_too_large(limits)
    return int(lengths[0])


def _keeps_alive(headers: Headers, *, is_http11: bool) -> bool:
    options = {option.strip(" \t") for option in ",".join(headers.get_all("connection")).lower().split(",")}
    return "close" not in options and (is_http11 or "keep-alive" in options)


def _expects_continue(headers: Headers) -> bool:
    expected = headers.get("expect")
    if expected is not None and expected.lower() != "100-continue":
        raise RefusedError(417, "EXPECTATION_FAILED", "Expect: expected 100-continue")
    return expected is not None


def _grammar(raw: bytes, what: object) -> RefusedError:
    """What to say about a head that llhttp does not like, or likes for another protocol."""
    line = _REQUEST_LINE.match(raw)
    if line is not None and (line[1] != b"1" or line[2] not in b"01"):
        version = f"{line[1].decode()}.{line[2].decode()}"
        return RefusedError(505, "VERSION_NOT_SUPPORTED", f"expected HTTP/1.1, got HTTP/{version}")
    if line is not None and isinstance(what, httptools.HttpParserInvalidMethodError):
        return RefusedError(501, "NOT_IMPLEMENTED", "the method is not known")
    return bad(f"malformed request: {what}")


class _Fields:
    """What httptools calls back."""

    __slots__ = ("fields", "is_complete", "url")

    def __init__(self) -> None:
        self.url = b""
        self.fields: list[tuple[str, str]] = []
        self.is_complete = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.decode("ascii").lower(), value.decode("latin-1").strip(" \t")))

    def on_headers_complete(self) -> None:
        self.is_complete = True


def bad(text: str) -> RefusedError:
    """400: the bytes are no request."""
    return RefusedError(400, "BAD_REQUEST", text)


def fields_too_large(text: str) -> RefusedError:
    """431: too many fields, or too long ones."""
    return RefusedError(431, "HEADERS_TOO_LARGE", text)


def target_too_long(limits: Limits) -> RefusedError:
    """414."""
    return RefusedError(414, "URI_TOO_LONG", f"expected a target of at most {limits.target_bytes} bytes")


def body_too_large(limits: Limits) -> RefusedError:
    """413."""
    return RefusedError(413, "BODY_TOO_LARGE", f"expected a body of at most {limits.body_bytes} bytes")
