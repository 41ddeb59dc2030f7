"""What the broker says over a WebSocket: values to text.

    type            to whom
    peer            each of the two peers of a stream that is matched: where the other one is
    peer_match      admins: where both are
    session         all connections of the session: its state
    start           both peers, when both are ready
    tally           the peers of the stream, and admins
    health_report   admins: all streams; peers: their own
    error           whoever did it
    session_closed  all connections

A `peer` and a `peer_match` have a passphrase, which they get here and nowhere earlier (`passphrases.py`). Another
process that is to send a message may be given `members(message)`, and finishes it with `finish`.

Source: seed 003, `#/$defs/ServerMessage`; broker specification B-120, C-02, C-08 to C-10, C-12, C-17, C-18, §4.2.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any

from punchd.broker import strict_json
from punchd.broker.health import HealthEntry
from punchd.broker.messages import Light
from punchd.endpoint import Endpoint


class State(StrEnum):
    """Of a session; of a stream. RELAYING of the schema is reserved, and never said (C-21)."""

    WAITING = "WAITING"
    READY = "READY"
    CONNECTED = "CONNECTED"
    CLOSED = "CLOSED"


class ErrorCode(StrEnum):
    """The codes of `error`; HTTP has others (C-02)."""

    SESSION_FULL = "SESSION_FULL"
    SESSION_EXPIRED = "SESSION_EXPIRED"
    STREAM_TAKEN = "STREAM_TAKEN"
    AUTH_FAILED = "AUTH_FAILED"
    INVALID_MESSAGE = "INVALID_MESSAGE"
    SERVER_ERROR = "SERVER_ERROR"


class Reason(StrEnum):
    """Why a session is closed."""

    ADMIN_CLOSED = "admin_closed"
    TTL_EXPIRED = "ttl_expired"
    ERROR = "error"


class CloseCode(IntEnum):
    """The only two of version 1.0.0. Clients reconnect after the second (C-04, C-05)."""

    NORMAL = 1000
    ERROR = 1011


# Of a later version of the protocol, seed 000 §8.2: never sent, and nothing is done upon them; a client tells people.
RESERVED_CLOSE_CODES: Mapping[int, str] = {
    4400: "invalid message",
    4401: "authentication failed",
    4404: "session not found or already closed",
    4408: "idle or registration timeout",
    4409: "stream slot already taken",
    4429: "message rate limit exceeded",
}


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """Where the other peer is: `endpoint`. `local_port` is what the receiver itself registered."""

    stream: str
    endpoint: Endpoint = field(repr=False)
    local_port: int
    latency: int
    meta: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class PeerMatch:
    """Where both peers are; `a` registered first. `local_port` is that of `a` (C-09)."""

    stream: str
    a: Endpoint = field(repr=False)
    b: Endpoint = field(repr=False)
    local_port: int
    latency: int


@dataclass(frozen=True, slots=True)
class Overview:
    """The session: its state, and of each stream the state and how many peers are registered.

    `connected` and `total` are sums over the streams (C-17).
    """

    state: State
    streams: Mapping[str, tuple[State, int]]

    @property
    def connected(self) -> int:
        return sum(peers for _, peers in self.streams.values())

    @property
    def total(self) -> int:
        return 2 * len(self.streams)


@dataclass(frozen=True, slots=True)
class Start:
    """Both peers are ready: start SRT."""

    stream: str


@dataclass(frozen=True, slots=True)
class TallyLight:
    """A stream's light."""

    stream: str
    state: Light


@dataclass(frozen=True, slots=True)
class HealthReport:
    """How streams do: those of which there is news."""

    streams: Mapping[str, HealthEntry]


@dataclass(frozen=True, slots=True)
class ErrorMessage:
    """What went wrong, for the one who did it."""

    code: ErrorCode
    text: str


@dataclass(frozen=True, slots=True)
class SessionClosed:
    """The session is over."""

    reason: Reason


ServerMessage = PeerInfo | PeerMatch | Overview | Start | TallyLight | HealthReport | ErrorMessage | SessionClosed


def encode(message: ServerMessage, passphrase: str | None = None) -> str:
    """The text frame.

    Raises:
        ValueError: a `peer` or a `peer_match` without its passphrase.
    """
    return finish(members(message), passphrase)


def needs_passphrase(message: ServerMessage) -> str | None:
    """The stream whose passphrase `encode` wants; None if it wants none."""
    return message.stream if isinstance(message, PeerInfo | PeerMatch) else None


def finish(found: Mapping[str, Any], passphrase: str | None = None) -> str:
    """The text frame of what `members` gave, here or in another process.

    Raises:
        ValueError: a `peer` or a `peer_match` without its passphrase.
    """
    if found["type"] in ("peer", "peer_match"):
        if passphrase is None:
            raise ValueError(f"a {found['type']} message needs its passphrase")
        return strict_json.encode({**found, "passphrase": passphrase})
    return strict_json.encode(found)


def members(message: ServerMessage) -> dict[str, Any]:
    """The JSON members, without the passphrase."""
    match message:
        case PeerInfo(stream, endpoint, local_port, latency, meta):
            found = {"type": "peer", "stream": stream, **_endpoint(endpoint)}
            found |= {"localPort": local_port, "latency": latency}
            return found if meta is None else {**found, "meta": json.loads(meta)}
        case PeerMatch(stream, a, b, local_port, latency):
            found = {"type": "peer_match", "stream": stream, "peer_a": _endpoint(a), "peer_b": _endpoint(b)}
            return {**found, "localPort": local_port, "latency": latency}
        case Overview():
            return {"type": "session", **overview_members(message)}
        case Start(stream):
            return {"type": "start", "stream": stream}
        case TallyLight(stream, light):
            return {"type": "tally", "stream": stream, "state": light.value}
        case HealthReport(streams):
            return {"type": "health_report", "streams": {name: entry.members() for name, entry in streams.items()}}
        case ErrorMessage(code, text):
            return {"type": "error", "code": code.value, "message": text}
        case SessionClosed(reason):
            return {"type": "session_closed", "reason": reason.value}


def overview_members(overview: Overview) -> dict[str, Any]:
    """The members that `session` and the answer to GET share."""
    streams = {name: {"state": state.value, "peers": peers} for name, (state, peers) in overview.streams.items()}
    return {
        "state": overview.state.value,
        "streams": streams,
        "connected": overview.connected,
        "total": overview.total,
    }


def _endpoint(endpoint: Endpoint) -> dict[str, Any]:
    return {"ip": str(endpoint.ip), "port": endpoint.port}
