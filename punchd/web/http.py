"""HTTP/1.1 between bytes and values: where a message ends, and what an answer looks like. No I/O and no clock.

Theory of operation. `head.py` says what a head means; this file decides where a message ends. Two readers of one
connection that disagree about that let a client smuggle a request past the first of them (RFC 9112 §11.2), hence a
head ends at the first empty line, every line ends in CR LF, and nothing is repaired. Chunks are taken apart here, since
httptools does not tell where in its input a message ended: extensions are bounded and ignored, trailers are bounded and
dropped.

Requests leave one by one, in order; what a client sends ahead stays bytes until its turn comes. The same bytes give
the same answer however they are cut into segments.

Every refusal is final: where the next request would begin is then unknown, so the connection has to end.

Source: RFC 9110, RFC 9112.
"""

from __future__ import annotations

import re
from http import HTTPStatus

from punchd.web.head import Head, RefusedError, bad, body_too_large, fields_too_large, parse_head, target_too_long
from punchd.web.limits import Limits
from punchd.web.messages import Response

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_LINE_BYTES = 256  # of a line that tells a chunk's size; the size itself has eight digits at most
_HEAD_END = re.compile(rb"\r\n\r\n|(?<!\r)\n")
_METHOD_START = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?")
_TRAILER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*")
_PHRASES = {status.value: status.phrase for status in HTTPStatus}


class RequestReader:
    """The requests of one connection: `head`, then `body`, then the next `head`.

    Both return None while bytes are missing (then `feed`), and raise RefusedError for a request that is not taken.
    Holds at most a head, or a body with its framing, beside what the last `feed` brought.
    """

    __slots__ = ("_body", "_buffer", "_chunks", "_limits", "_scanned")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._buffer = bytearray()
        self._scanned = 0
        self._body: int | None = 0
        self._chunks: _Chunks | None = None

    def __len__(self) -> int:
        """Bytes that were fed and not used."""
        return len(self._buffer)

    def feed(self, data: bytes | bytearray) -> None:
        """More bytes from the client."""
        self._buffer += data

    def rest(self) -> bytes:
        """What follows the last request: the beginning of another protocol."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest

    def head(self) -> Head | None:
        """The next head, once it is whole."""
        buffer, limits = self._buffer, self._limits
        while buffer.startswith(b"\r\n"):  # some clients end a body with one more, RFC 9112 §2.2
            del buffer[:2]
        if not buffer or buffer == b"\r":
            return None
        if buffer[0] not in _METHOD_START:
            raise bad(f"expected the method of an HTTP request, got the byte 0x{buffer[0]:02x}")
        end = _HEAD_END.search(buffer, self._scanned)
        if (end.end() if end else len(buffer)) > limits.head_bytes:
            raise _too_large(bytes(buffer[: limits.head_bytes]), limits)
        if end is None:
            self._scanned = max(0, len(buffer) - 3)
            return None
        if len(end[0]) == 1:
            raise bad("a line of the head ends in LF; expected CR LF")
        raw = bytes(buffer[: end.end()])
        del buffer[: end.end()]
        self._scanned = 0
        head = parse_head(raw, limits)
        self._body = head.length
        self._chunks = None if head.length is not None else _Chunks(limits)
        return head

    def body(self) -> bytes | None:
        """The body that belongs to the last head, once it is whole; b"" if it has none."""
        if self._chunks is not None:
            return self._chunks.take(self._buffer)
        length = self._body or 0
        if len(self._buffer) < length:
            return None
        body = bytes(self._buffer[:length])
        del self._buffer[:length]
        return body


class _Chunks:
    """A chunked body (RFC 9112 §7.1), joined."""

    __slots__ = ("_body", "_in_trailers", "_left", "_limits", "_spent")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._body = bytearray()
        self._left = 0  # of the present chunk, with the CR LF behind it
        self._spent = 0  # bytes of extensions and trailers
        self._in_trailers = False

    def take(self, buffer: bytearray) -> bytes | None:
        """Use up what `buffer` begins with; the body once it is whole."""
        while True:
            if self._left > 2:
                data = buffer[: self._left - 2]
                del buffer[: len(data)]
                self._body += data
                self._left -= len(data)
            if self._left == 2:
                if len(buffer) < 2:
                    return None
                if buffer[:2] != b"\r\n":
                    raise bad("expected CR LF at the end of a chunk")
                del buffer[:2]
                self._left = 0
            if self._left:
                return None
            line = self._line(buffer)
            if line is None:
                return None
            if self._in_trailers:
                if not line:
                    return bytes(self._body)
                if not _TRAILER.fullmatch(line):
                    raise bad("malformed trailer")
                self._spend(len(line))
            else:
                self._begin(line)

    def _line(self, buffer: bytearray) -> bytes | None:
        limit = self._limits.head_bytes if self._in_trailers else _LINE_BYTES
        end = buffer.find(b"\n", 0, limit)
        if end < 0:
            if len(buffer) >= limit:
                raise bad(f"a line of the chunked body: expected at most {limit} bytes")
            return None
        if end == 0 or buffer[end - 1] != 0x0D:
            raise bad("a line of the chunked body ends in LF; expected CR LF")
        line = bytes(buffer[: end - 1])
        del buffer[: end + 1]
        return line

    def _begin(self, line: bytes) -> None:
        match = _CHUNK.fullmatch(line)
        if match is None:
            raise bad("expected the size of a chunk in hexadecimal")
        self._spend(len(line) - len(match[1]))
        size = int(match[1], 16)
        if len(self._body) + size > self._limits.body_bytes:
            raise body_too_large(self._limits)
        self._in_trailers = size == 0
        self._left = size + 2 if size else 0

    def _spend(self, size: int) -> None:
        self._spent += size
        if self._spent > self._limits.head_bytes:
            raise bad("too much beside the data of the chunked body")


def encode(response: Response, *, date: str, connection: str | None, is_head: bool = False) -> bytes:
    """An answer as bytes.

    Args:
        response: what to say.
        date: for the Date field, as of RFC 9110 §5.6.7.
        connection: for the Connection field ("close", "keep-alive"); None leaves it out.
        is_head: answers HEAD: with the length of the body but without it.
    """
    lines = [f"HTTP/1.1 {response.status} {_PHRASES.get(response.status, '')}\r\nDate: {date}\r\nServer: punchd\r\n"]
    for name, value in response.headers:
        lines.append(f"{name}: {value}\r\n")
        if name.lower() == "upgrade":  # is a field of this one hop, RFC 9110 §7.8
            connection = "Upgrade" if connection is None else f"Upgrade, {connection}"
    if response.may_have_body:
        lines.append(f"Content-Length: {len(response.body)}\r\n")
    lines.append("\r\n" if connection is None else f"Connection: {connection}\r\n\r\n")
    head = "".join(lines).encode("latin-1")
    return head if is_head else head + response.body


def _too_large(begin: bytes, limits: Limits) -> RefusedError:
    if begin.find(b"\r\n") < 0:
        return target_too_long(limits)
    return fields_too_large(f"expected at most {limits.head_bytes} bytes of request line and fields")
