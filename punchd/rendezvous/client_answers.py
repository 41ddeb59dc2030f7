"""What a rendezvous server's answers say: JSON to values. Pure.

Members that are not known are ignored, those that are needed must be what the specification says.

Source: seed 001, "Routes"; rendezvous specification §5, §8.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from punchd.endpoint import Endpoint
from punchd.errors import DecodeError
from punchd.rendezvous.identity import PUBLIC_KEY_SIZE, SIGNATURE_SIZE, Binding
from punchd.rendezvous.pulse import ID_SIZE, KEY_SIZE
from punchd.rendezvous.views import SeenAddress

_SHOWN_CHARACTERS = 200  # of what a server says, in an error message
_LATEST_S = 1 << 40  # Unix seconds beyond this are no time


@dataclass(frozen=True, slots=True)
class Membership:
    """What /register gives: who we are. Its `repr` does not show the key."""

    client_id: bytes
    key: bytes

    def __repr__(self) -> str:
        return f"Membership({self.client_id.hex()})"


@dataclass(frozen=True, slots=True)
class Signal:
    """A text from the client with the id `sender`; the server kept it for `age_s` whole seconds."""

    sender: bytes
    text: str
    age_s: int


@dataclass(frozen=True, slots=True)
class Presence:
    """How a client is: whether it is online, and the seconds since its last pulse; None before the first."""

    is_online: bool
    last_online_s: int | None


@dataclass(frozen=True, slots=True)
class Objection:
    """Why a request was refused: a word for programs, a sentence for people."""

    code: str
    message: str


def membership(body: bytes) -> Membership:
    found = _object(body)
    return Membership(_hex(found, "client_id", ID_SIZE), _hex(found, "private_id", KEY_SIZE))


def timestamp(body: bytes) -> int:
    """The server's time of day, Unix seconds."""
    return _whole(_object(body), "timestamp", _LATEST_S)


def addresses(body: bytes) -> tuple[SeenAddress, ...]:
    """Where a client is, IPv4 first. A server of the seed names one address and no age."""
    found = _object(body)
    listed = found.get("addresses")
    if listed is None:
        return (SeenAddress(_endpoint(found), 0.0),)
    if not isinstance(listed, list) or not 1 <= len(listed) <= 2:
        raise DecodeError("addresses: expected a list of one or two")
    return tuple(SeenAddress(_endpoint(one), float(_whole(one, "age", _LATEST_S))) for one in map(_table, listed))


def presence(body: bytes) -> Presence:
    found = _object(body)
    status = found.get("status")
    if status not in ("ONLINE", "PENDING"):
        raise DecodeError(f"status: expected ONLINE or PENDING, got {_brief(status)}")
    last = found.get("last_online")
    return Presence(status == "ONLINE", None if last is None else _whole(found, "last_online", _LATEST_S))


def signals(body: bytes) -> list[Signal]:
    listed = _object(body).get("signals")
    if not isinstance(listed, list):
        raise DecodeError("signals: expected a list")
    return [
        Signal(_hex(one, "from", ID_SIZE), _text(one, "data"), _whole(one, "age", _LATEST_S))
        for one in map(_table, listed)
    ]


def binding(body: bytes) -> Binding:
    """What an alias stands for. Whether its owner signed that is for the caller to ask."""
    found = _object(body)
    return Binding(
        _hex(found, "client_id", ID_SIZE),
        _hex(found, "public_key", PUBLIC_KEY_SIZE),
        _whole(found, "signed_at", _LATEST_S),
        _hex(found, "signature", SIGNATURE_SIZE),
    )


def objection(body: bytes) -> Objection:
    """The body of an error."""
    found = _object(body)
    message = "".join(letter if letter.isprintable() else " " for letter in _text(found, "message"))
    code = _text(found, "error")
    if not re.fullmatch(r"[A-Z_]{1,40}", code):
        raise DecodeError("error: expected a code")
    return Objection(code, message[:_SHOWN_CHARACTERS])


def _object(body: bytes) -> dict[str, Any]:
    try:
        return _table(json.loads(body))
    except (ValueError, RecursionError):  # ValueError: not UTF-8, not JSON, a number of 5,000 digits
        raise DecodeError("expected JSON") from None


def _table(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DecodeError("expected a JSON object")
    return value


def _hex(table: dict[str, Any], name: str, size: int) -> bytes:
    text = table.get(name)
    if not isinstance(text, str) or not re.fullmatch(f"[0-9A-Fa-f]{{{size * 2}}}", text):
        raise DecodeError(f"{name}: expected {size * 2} hexadecimal digits")
    return bytes.fromhex(text)


def _whole(table: dict[str, Any], name: str, most: int) -> int:
    value = table.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < most:
        raise DecodeError(f"{name}: expected a number that is not negative")
    return int(value)  # the seed's code sends its timestamps with a fraction (D-05)


def _text(table: dict[str, Any], name: str) -> str:
    value = table.get(name)
    if not isinstance(value, str):
        raise DecodeError(f"{name}: expected a text")
    return value


def _endpoint(table: dict[str, Any]) -> Endpoint:
    host, port = _text(table, "host"), _whole(table, "port", 65_536)
    try:
        return Endpoint(ip_address(host), port)
    except ValueError:
        raise DecodeError(f"host: expected an IP address, got {_brief(host)}") from None


def _brief(value: object) -> str:
    return repr(value[:60]) if isinstance(value, str) else type(value).__name__
