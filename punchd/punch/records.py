"""What goes through TLS: records, each 2 bytes of length and so many bytes. Pure.

Length 0 is the end of a direction. TLS ends both at once in Python (ssl cannot close one), and TCP's own end proves
nothing, because anybody on the way can make it; so the end is said inside, and a connection that ends without it broke.

Each side's first record is a greeting, a JSON object:

    connector   {"v":1,"call":ID,"target":HOST:PORT}      target only if it wants one
    listener    {"v":1}, or {"v":1,"code":CODE,"text":TEXT} with the reason why not

So what is asked for does not depend on what the rendezvous server made of the call, and a connector knows that its key
was accepted: in TLS 1.3 the client's handshake is over before the server has looked at its certificate.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from punchd.errors import DecodeError
from punchd.punch.messages import VERSION, Code, Reject, printable
from punchd.punch.target import is_target

MAX_RECORD = 65_535
CHUNK = 16_382  # bytes of ours in a record: with the length they fill one TLS record
END = b"\0\0"

_ID = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class Wish:
    """A connector's greeting."""

    call_id: str
    target: str | None = None


def encode(data: bytes) -> bytes:
    """A record of 1 to 65,535 bytes."""
    if not 1 <= len(data) <= MAX_RECORD:
        raise ValueError(f"expected 1 to {MAX_RECORD} bytes, got {len(data)}")
    return len(data).to_bytes(2, "big") + data


class Decoder:
    """Bytes in any portions to records.

    Attributes:
        is_ended: the end was said; what comes behind it is ignored.
    """

    def __init__(self) -> None:
        self.is_ended = False
        self._pending = bytearray()

    def feed(self, data: bytes) -> None:
        self._pending += data

    def take(self) -> bytes | None:
        """The next record; None if there is no whole one, b"" at the end."""
        if self.is_ended:
            return b""
        if len(self._pending) < 2:
            return None
        size = int.from_bytes(self._pending[:2], "big")
        if len(self._pending) < 2 + size:
            return None
        record = bytes(self._pending[2 : 2 + size])
        del self._pending[: 2 + size]
        if not record:
            self.is_ended = True
        return record


def encode_wish(wish: Wish) -> bytes:
    found: dict[str, object] = {"v": VERSION, "call": wish.call_id}
    if wish.target is not None:
        found["target"] = wish.target
    return encode(json.dumps(found).encode())


def decode_wish(record: bytes) -> Wish:
    """Raises DecodeError."""
    found = _object(record)
    call_id, target = found.get("call"), found.get("target")
    if not isinstance(call_id, str) or not _ID.fullmatch(call_id):
        raise DecodeError("greeting: expected the id of a call")
    if target is not None and not (isinstance(target, str) and is_target(target)):
        raise DecodeError("greeting: expected HOST:PORT as target")
    return Wish(call_id, target)


def encode_verdict(verdict: Reject | None) -> bytes:
    found: dict[str, object] = {"v": VERSION}
    if verdict is not None:
        found |= {"code": str(verdict.code), "text": printable(verdict.text)}
    return encode(json.dumps(found).encode())


def decode_verdict(record: bytes) -> Reject | None:
    """Raises DecodeError."""
    found = _object(record)
    if "code" not in found:
        return None
    code, text = found["code"], found.get("text")
    return Reject(
        Code(code) if code in tuple(Code) else Code.FAILED, printable(text if isinstance(text, str) else "no reason")
    )


def _object(record: bytes) -> dict[str, Any]:
    try:
        found = json.loads(record)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or found.get("v") != VERSION:
        raise DecodeError(f"greeting: expected a JSON object of version {VERSION}")
    return found
