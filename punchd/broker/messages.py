"""What a client says over its WebSocket: text to values.

    type      members (* required)                                          who may send it
    register  port* 1024-65535, stream, role sender|receiver, meta          a peer; an admin, if the operator lets it
    ready     stream                                                        a peer that is matched
    status    srt* connecting|connected|disconnected|error, stream          the same
    health    rtt* ms, retransmit* %, bitrate* bit/s, dropped, buffer, stream   a registered peer
    tally     state* off|preview|program, stream                            an admin

Besides these the keep-alive: the bare text `punch.ping`, which is no JSON, or `{"type":"punch.ping"}` (C-06).

A message is taken if and only if it is valid under `#/$defs/PeerMessage` of punch-messages.schema.json, and keeps to
what C-44 and §4.1 add: numbers that every reader understands alike, and a bounded `meta`. Unknown members are errors,
as the schema says.

`meta` travels as compact JSON text, because it is only passed on. Its member `punch` is for the broker: it is taken
out, and what makes no sense in it is as good as not there, since `meta` may hold anything.

Pure.

Source: seed 003; broker specification B-001, B-121, C-06, C-07, C-13, C-44 to C-46, §4.1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from punchd.broker import strict_json
from punchd.broker.names import MAX_META_BYTES, MAX_META_DEPTH, MAX_PORT, MIN_LOCAL_PORT, is_name
from punchd.errors import DecodeError

PING, PONG = "punch.ping", "punch.pong"  # bare text frames

_KindT = TypeVar("_KindT", bound=StrEnum)


class InvalidMessage(DecodeError):  # noqa: N818 (the wire's own word)
    """A frame that is no message of a client. Its text is what the client hears."""


class Direction(StrEnum):
    """What a peer means to do with SRT; only advice."""

    SENDER = "sender"
    RECEIVER = "receiver"


class Srt(StrEnum):
    """What a peer's SRT socket does."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    DISCONNECTED = "disconnected"
    ERROR = "error"


class Light(StrEnum):
    """What a tally light shows."""

    OFF = "off"
    PREVIEW = "preview"
    PROGRAM = "program"


@dataclass(frozen=True, slots=True)
class Register:
    """Take one of a stream's two slots.

    Attributes:
        port: the local UDP port that SRT will bind.
        meta: compact JSON of an object for the other peer, without `punch`; None if there is none.
        public_port, public_ip: from `meta.punch`; whether they are believed is the operator's choice.
    """

    port: int
    stream: str | None = None
    role: Direction | None = None
    meta: str | None = None
    public_port: int | None = None
    public_ip: str | None = None


@dataclass(frozen=True, slots=True)
class Ready:
    """The peer has what it needs and will start SRT."""

    stream: str | None = None


@dataclass(frozen=True, slots=True)
class Status:
    """The state of the peer's SRT socket."""

    srt: Srt
    stream: str | None = None


@dataclass(frozen=True, slots=True)
class Health:
    """How the peer's SRT does: milliseconds, percent, bits per second, packets, and a buffer that is not judged."""

    rtt: float
    retransmit: float
    bitrate: float
    dropped: float | None = None
    buffer: float | None = None
    stream: str | None = None


@dataclass(frozen=True, slots=True)
class Tally:
    """Set a stream's light."""

    state: Light
    stream: str | None = None


@dataclass(frozen=True, slots=True)
class KeepAlive:
    """Nothing but traffic. The bare form is answered with PONG, the other one not: 003 has no answer to it."""

    is_bare: bool


ClientMessage = Register | Ready | Status | Health | Tally


def decode(frame: str | bytes) -> ClientMessage | KeepAlive:
    """The message of a frame: text, or the bytes of a binary one, which is refused.

    Raises:
        InvalidMessage: it is none.
    """
    if frame == PING:
        return KeepAlive(is_bare=True)
    if isinstance(frame, bytes):
        raise InvalidMessage("expected a text frame, got a binary one")
    try:
        members = strict_json.decode(frame)
    except DecodeError as error:
        raise InvalidMessage(str(error)) from None
    if not isinstance(members, dict):
        raise InvalidMessage("expected a JSON object")
    kind = members.pop("type", None)
    if kind == PING and not members:
        return KeepAlive(is_bare=False)
    reader = _READERS.get(kind) if isinstance(kind, str) else None
    if reader is None:
        raise InvalidMessage(f"type: expected one of {', '.join(_READERS)}")
    known, build = reader
    for name in members:
        if name not in known:
            raise InvalidMessage(f"{kind}: has no member {name[:64]!r}; expected {', '.join(known)}")
    return build(members)


def _register(members: Mapping[str, Any]) -> Register:
    port = _port(members.get("port"), MIN_LOCAL_PORT)
    if port is None:
        raise InvalidMessage(f"port: expected an integer from {MIN_LOCAL_PORT} to {MAX_PORT}")
    role = _word(members, "role", Direction) if "role" in members else None
    if "meta" not in members:
        return Register(port, _stream(members), role)
    meta = members["meta"]
    if not isinstance(meta, dict):
        raise InvalidMessage("meta: expected an object")
    if strict_json.depth(meta) > MAX_META_DEPTH:
        raise InvalidMessage(f"meta: nested deeper than {MAX_META_DEPTH} levels")
    if len(strict_json.encode(meta).encode()) > MAX_META_BYTES:
        raise InvalidMessage(f"meta: expected at most {MAX_META_BYTES} bytes of compact JSON")
    claim = meta.pop("punch", None)
    text = strict_json.encode(meta) if meta or claim is None else None
    if not isinstance(claim, dict):
        return Register(port, _stream(members), role, text)
    ip = claim.get("publicIp")
    public_ip = ip if isinstance(ip, str) else None
    return Register(port, _stream(members), role, text, _port(claim.get("publicPort"), 1), public_ip)


def _ready(members: Mapping[str, Any]) -> Ready:
    return Ready(_stream(members))


def _status(members: Mapping[str, Any]) -> Status:
    return Status(_word(members, "srt", Srt), _stream(members))


def _tally(members: Mapping[str, Any]) -> Tally:
    return Tally(_word(members, "state", Light), _stream(members))


def _health(members: Mapping[str, Any]) -> Health:
    return Health(
        rtt=_amount(members, "rtt"),
        retransmit=_amount(members, "retransmit"),
        bitrate=_amount(members, "bitrate"),
        dropped=_amount(members, "dropped") if "dropped" in members else None,
        buffer=_amount(members, "buffer") if "buffer" in members else None,
        stream=_stream(members),
    )


def _stream(members: Mapping[str, Any]) -> str | None:
    if "stream" not in members:
        return None
    stream = members["stream"]
    if not isinstance(stream, str) or not is_name(stream):
        raise InvalidMessage("stream: expected a name of 1 to 64 letters, digits, '.', '_' and '-'")
    return stream


def _word(members: Mapping[str, Any], name: str, kind: type[_KindT]) -> _KindT:
    value = members.get(name)
    if isinstance(value, str):
        for word in kind:
            if word.value == value:
                return word
    raise InvalidMessage(f"{name}: expected one of {', '.join(kind)}")


def _amount(members: Mapping[str, Any], name: str) -> float:
    value = members.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or value < 0:
        raise InvalidMessage(f"{name}: expected a number of 0 or more")
    return value


def _port(value: Any, least: int) -> int | None:
    """A port of at least `least`; None if it is none."""
    port = strict_json.integer(value)
    return port if port is not None and least <= port <= MAX_PORT else None


# type → its members, and what reads them.
_READERS: Mapping[str, tuple[tuple[str, ...], Callable[[Mapping[str, Any]], ClientMessage]]] = {
    "register": (("port", "stream", "role", "meta"), _register),
    "ready": (("stream",), _ready),
    "status": (("srt", "stream"), _status),
    "health": (("rtt", "retransmit", "bitrate", "dropped", "buffer", "stream"), _health),
    "tally": (("state", "stream"), _tally),
}
