"""The signals of a call, as JSON texts of at most 1,024 bytes (what a rendezvous server carries). Pure.

    {"v":1,"call":"0123456789abcdef","kind":"token","token":"AgH_…"}

    call     connector to listener: here I am, connect to me
             protocol   "tcp" or "udp"
             ip, ports  the connector's public side, as its daemon's `probe` tells it
             cert       its certificate, DER in base64; absent if plain
             plain      true: without TLS
             target     HOST:PORT that it wants to be connected to, if plain; inside TLS otherwise
    token    both ways: a token of punchd's, to be handed to the daemon unchanged
    ready    both ways, in plain calls only: I hold the socket
    reject   both ways: the call has failed; code and text say why
    bye      both ways: I give up the call; or, in a talk over UDP, I have sent everything (cut: and read no more)

`call` names the call: 16 hexadecimal digits, chosen by the connector. Members that are not known are ignored, signals
that do not follow this are not answered. Who sent a signal is the rendezvous server's word, and so is all that stands
in it: nothing here is believed before TLS has proven who the other side is.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from punchd.client.options import to_ports
from punchd.control.requests import Protocol
from punchd.endpoint import IPAddress, PortSet, parse_ip
from punchd.errors import DecodeError
from punchd.punch.target import is_target

VERSION = 1
MAX_BYTES = 1024  # of a signal
MAX_CERTIFICATE = 512  # bytes; ours have about 260
MAX_TEXT = 200  # characters of an explanation

_ID = re.compile(r"[0-9a-f]{16}")
_TOKEN = re.compile(r"[A-Za-z0-9_-]{19,200}")


class Code(StrEnum):
    """Why a call was rejected. Others than these are read as FAILED."""

    FAILED = "failed"  # no hole was punched
    BUSY = "busy"
    NOT_ALLOWED = "not-allowed"
    MODE = "mode"  # one side wants TCP or TLS, the other one does not
    TARGET = "target"  # not served, or not reached
    VERSION = "version"


@dataclass(frozen=True, slots=True)
class Call:
    """See above. Exactly one of `is_plain` and `certificate`."""

    protocol: Protocol
    ip: IPAddress
    ports: PortSet
    certificate: bytes = b""
    target: str | None = None

    @property
    def is_plain(self) -> bool:
        return not self.certificate


@dataclass(frozen=True, slots=True)
class Token:
    token: str = field(repr=False)  # holds a key


@dataclass(frozen=True, slots=True)
class Ready:
    pass


@dataclass(frozen=True, slots=True)
class Reject:
    code: Code
    text: str


@dataclass(frozen=True, slots=True)
class Bye:
    is_cut: bool = False


Message = Call | Token | Ready | Reject | Bye


class OtherVersionError(DecodeError):
    """A call of a newer `punch`.

    Attributes:
        call_id: what to reject.
    """

    def __init__(self, call_id: str) -> None:
        super().__init__(f"signal: expected version {VERSION}")
        self.call_id = call_id


def encode(call_id: str, message: Message) -> str:
    """The signal's text."""
    found: dict[str, object] = {"v": VERSION, "call": call_id}
    match message:
        case Call():
            found |= {"kind": "call", "protocol": str(message.protocol), "ip": str(message.ip)}
            found["ports"] = str(message.ports)
            found |= {"plain": True} if message.is_plain else {"cert": base64.b64encode(message.certificate).decode()}
            if message.target is not None:
                found["target"] = message.target
        case Token():
            found |= {"kind": "token", "token": message.token}
        case Ready():
            found["kind"] = "ready"
        case Reject():
            found |= {"kind": "reject", "code": str(message.code), "text": printable(message.text)}
        case Bye():
            found |= {"kind": "bye", "cut": True} if message.is_cut else {"kind": "bye"}
    return json.dumps(found, separators=(",", ":"))


def decode(text: str) -> tuple[str, Message]:
    """The id of the call, and what is said.

    Raises:
        OtherVersionError: a call of another version.
        DecodeError: anything else that is no signal of ours.
    """
    found = _object(text)
    call_id, kind = _match(found, "call", _ID), found.get("kind")
    if found.get("v") != VERSION or isinstance(found["v"], bool | float):
        raise OtherVersionError(call_id) if kind == "call" else DecodeError(f"signal: expected version {VERSION}")
    match kind:
        case "call":
            return call_id, _call(found)
        case "token":
            return call_id, Token(_match(found, "token", _TOKEN))
        case "ready":
            return call_id, Ready()
        case "reject":
            code, reason = found.get("code"), found.get("text")
            known = Code(code) if code in tuple(Code) else Code.FAILED
            return call_id, Reject(known, printable(reason if isinstance(reason, str) else ""))
        case "bye":
            return call_id, Bye(found.get("cut") is True)
        case _:
            raise DecodeError("signal: expected a kind that is known")


def _call(found: dict[str, Any]) -> Call:
    protocol, ip, ports = (found.get(name) for name in ("protocol", "ip", "ports"))
    if protocol not in ("tcp", "udp") or not isinstance(ip, str) or not isinstance(ports, str) or len(ports) > 100:
        raise DecodeError("call: expected protocol, ip and ports")
    is_plain, certificate = found.get("plain") is True, b""
    if not is_plain:
        certificate = _certificate(found.get("cert"))
    target = found.get("target")
    if "target" in found and not (isinstance(target, str) and is_target(target)):
        raise DecodeError("target: expected HOST:PORT")
    return Call(Protocol(protocol), parse_ip(ip), to_ports(ports), certificate, target)


def _certificate(value: object) -> bytes:
    try:
        found = base64.b64decode(value, validate=True) if isinstance(value, str) and value.isascii() else b""
    except ValueError:
        found = b""
    if not 1 <= len(found) <= MAX_CERTIFICATE:
        raise DecodeError(f"cert: expected 1 to {MAX_CERTIFICATE} bytes in base64")
    return found


def _object(text: str) -> dict[str, Any]:
    if len(text) > MAX_BYTES:
        raise DecodeError(f"signal: expected at most {MAX_BYTES} bytes")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise DecodeError("signal: expected JSON") from None
    if not isinstance(found, dict):
        raise DecodeError("signal: expected a JSON object")
    return found


def _match(found: dict[str, Any], name: str, pattern: re.Pattern[str]) -> str:
    value = found.get(name)
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise DecodeError(f"{name}: expected something else")
    return value


def printable(text: str) -> str:
    """What another side says, fit for one line of a terminal: ASCII, since others may turn a line around."""
    return "".join(char if " " <= char <= "~" else "?" for char in text[:MAX_TEXT])
