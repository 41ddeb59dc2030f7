"""What a broker says, as values: the text frames of its WebSocket, and the members that its HTTP answers share. Pure.

Members that are not known are ignored, and so are types that are not: a newer minor version may have more. What is
known must be what the schema says. RELAYING counts as CONNECTED (C-21).

Source: seed 003, `#/$defs/ServerMessage`; broker specification §4.2, §6.2, C-06, C-21.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from ipaddress import ip_address
from typing import Any, TypeVar

from punchd.broker import strict_json
from punchd.broker.client_events import (
    Error,
    HealthReport,
    Peer,
    PeerMatch,
    ServerEvent,
    Session,
    SessionClosed,
    Start,
    StreamHealth,
    StreamState,
    Tally,
)
from punchd.broker.health import HealthStatus
from punchd.broker.messages import PONG, Light
from punchd.broker.names import MAX_LATENCY_MS, MAX_PORT, MIN_LATENCY_MS, MIN_LOCAL_PORT, is_name
from punchd.broker.server_messages import State
from punchd.endpoint import Endpoint
from punchd.errors import DecodeError

MAX_TEXT_CHARS = 500  # of a sentence of the broker's
MAX_COUNT = 1 << 31
MIN_PASSPHRASE_CHARS = 10  # seed 003

Table = Mapping[str, Any]
_WordT = TypeVar("_WordT", bound=StrEnum)


def decode(frame: str) -> ServerEvent | None:
    """The message of a text frame; None for what is not for us: the pong, and types of a later version.

    Raises:
        DecodeError: a message that does not follow the schema, or none at all. Holds nothing secret.
    """
    if frame == PONG:
        return None
    members = table(strict_json.decode(frame), "message")
    kind = members.get("type")
    if not isinstance(kind, str):
        raise DecodeError("type: expected text")
    reader = _READERS.get(kind)
    if reader is None:
        return None
    try:
        return reader(members)
    except DecodeError as error:
        raise DecodeError(f"{kind}: {error}") from None


def overview(members: Table) -> Session:
    """`session`, and what GET has of it."""
    return Session(
        state(members),
        {name_of(name): _stream_state(one) for name, one in table(members.get("streams"), "streams").items()},
        whole(members, "connected", 0, MAX_COUNT),
        whole(members, "total", 0, MAX_COUNT),
    )


def healths(members: Table, name: str) -> dict[str, StreamHealth]:
    """Streams and how they do."""
    return {name_of(stream): _health(table(one, name)) for stream, one in table(members.get(name), name).items()}


def state(members: Table) -> State:
    """A session's state."""
    if members.get("state") == "RELAYING":
        return State.CONNECTED
    return word(members.get("state"), "state", State)


def table(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DecodeError(f"{name}: expected an object")
    return value


def text(members: Table, name: str) -> str:
    value = members.get(name)
    if not isinstance(value, str):
        raise DecodeError(f"{name}: expected text")
    return value


def line(members: Table, name: str) -> str:
    """A text for people: one line, bounded, without control characters."""
    return shown(text(members, name))


def shown(foreign: str) -> str:
    """The same, of any text."""
    return "".join(one if one.isprintable() else " " for one in foreign[:MAX_TEXT_CHARS])


def whole(members: Table, name: str, least: int, most: int) -> int:
    value = strict_json.integer(members.get(name))
    if value is None or not least <= value <= most:
        raise DecodeError(f"{name}: expected a whole number from {least} to {most}")
    return value


def word(value: Any, name: str, kind: type[_WordT]) -> _WordT:
    for one in kind:
        if one.value == value:
            return one
    raise DecodeError(f"{name}: expected one of {', '.join(kind)}")


def stream(members: Table) -> str:
    return name_of(text(members, "stream"))


def name_of(value: Any) -> str:
    """Of a stream or a session."""
    if not isinstance(value, str) or not is_name(value):
        raise DecodeError("expected the name of a stream or a session")
    return value


def _stream_state(value: Any) -> StreamState:
    members = table(value, "streams")
    said = line(members, "state")
    return StreamState("CONNECTED" if said == "RELAYING" else said, whole(members, "peers", 0, MAX_COUNT))


def _health(members: Table) -> StreamHealth:
    return StreamHealth(
        _amount(members, "rtt"),
        _amount(members, "retransmit"),
        _amount(members, "bitrate"),
        word(members.get("status"), "status", HealthStatus),
    )


def _amount(members: Table, name: str) -> float:
    value = members.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or value < 0:
        raise DecodeError(f"{name}: expected a number of 0 or more")
    return value


def _endpoint(members: Table) -> Endpoint:
    try:
        ip = ip_address(text(members, "ip"))
    except ValueError:
        raise DecodeError("ip: expected an IPv4 or IPv6 address") from None
    if ip.version == 6:
        if ip.scope_id is not None:
            raise DecodeError("ip: expected an address without a zone")
        ip = ip.ipv4_mapped or ip
    return Endpoint(ip, whole(members, "port", 1, MAX_PORT))


def _media(members: Table) -> tuple[int, str, int]:
    """localPort, passphrase, latency."""
    passphrase = text(members, "passphrase")
    if len(passphrase) < MIN_PASSPHRASE_CHARS:
        raise DecodeError(f"passphrase: expected {MIN_PASSPHRASE_CHARS} characters or more")
    local_port = whole(members, "localPort", MIN_LOCAL_PORT, MAX_PORT)
    return local_port, passphrase, whole(members, "latency", MIN_LATENCY_MS, MAX_LATENCY_MS)


def _peer(members: Table) -> Peer:
    meta = table(members["meta"], "meta") if "meta" in members else None
    return Peer(stream(members) if "stream" in members else "", _endpoint(members), *_media(members), meta)


def _peer_match(members: Table) -> PeerMatch:
    a, b = (_endpoint(table(members.get(name), name)) for name in ("peer_a", "peer_b"))
    return PeerMatch(stream(members), a, b, *_media(members))


_READERS: Mapping[str, Callable[[Table], ServerEvent]] = {
    "peer": _peer,
    "peer_match": _peer_match,
    "session": overview,
    "start": lambda members: Start(stream(members)),
    "tally": lambda members: Tally(stream(members), word(members.get("state"), "state", Light)),
    "health_report": lambda members: HealthReport(healths(members, "streams")),
    "error": lambda members: Error(line(members, "code"), line(members, "message")),
    "session_closed": lambda members: SessionClosed(line(members, "reason")),
}
