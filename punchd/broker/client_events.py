"""What happens in a session, as its members hear it: the broker's messages, and what becomes of the connection.

Words of which a later version may have more (`code`, `reason`, a stream's `state`) are plain text. Passphrases and
addresses are not in a `repr`.

Pure. Text to values: `client_decode.py`.

Source: seed 003; broker specification §4.2, C-08 to C-12, C-17, C-21.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from punchd.broker.health import HealthStatus
from punchd.broker.messages import Light
from punchd.broker.server_messages import State
from punchd.endpoint import Endpoint


@dataclass(frozen=True, slots=True)
class Peer:
    """The stream is matched: where the other peer is. A new one replaces it, and asks for a new `ready`.

    Attributes:
        stream: "" if the broker does not say.
        endpoint: of the other peer, for SRT.
        local_port: the UDP port that SRT is to bind here; what we registered.
        passphrase: of the stream, for SRT's encryption.
        latency_ms: what the producer suggests.
        meta: what the other peer said of itself. Anybody's words: not to be trusted.
    """

    stream: str
    endpoint: Endpoint = field(repr=False)
    local_port: int
    passphrase: str = field(repr=False)
    latency_ms: int
    meta: Mapping[str, Any] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class PeerMatch:
    """Admins: both peers of a stream; `a` registered first, and `local_port` is its own."""

    stream: str
    a: Endpoint = field(repr=False)
    b: Endpoint = field(repr=False)
    local_port: int
    passphrase: str = field(repr=False)
    latency_ms: int


@dataclass(frozen=True, slots=True)
class StreamState:
    """A stream: WAITING, READY, CONNECTED or CLOSED, and how many peers are registered."""

    state: str
    peers: int


@dataclass(frozen=True, slots=True)
class Session:
    """How the session is. The reserved RELAYING counts as CONNECTED.

    Attributes:
        connected, total: peers that are registered, and that there can be.
    """

    state: State
    streams: Mapping[str, StreamState]
    connected: int
    total: int


@dataclass(frozen=True, slots=True)
class Start:
    """Both peers of the stream are ready: start SRT now."""

    stream: str


@dataclass(frozen=True, slots=True)
class Tally:
    """A stream's tally light."""

    stream: str
    state: Light


@dataclass(frozen=True, slots=True)
class StreamHealth:
    """How a stream does: milliseconds, percent, bits per second, and the judgement."""

    rtt: float
    retransmit: float
    bitrate: float
    status: HealthStatus


@dataclass(frozen=True, slots=True)
class HealthReport:
    """How streams do: those of which there is news."""

    streams: Mapping[str, StreamHealth]


@dataclass(frozen=True, slots=True)
class Error:
    """The broker objects to what we said: SESSION_FULL, SESSION_EXPIRED, STREAM_TAKEN, AUTH_FAILED, INVALID_MESSAGE,
    SERVER_ERROR, or a word of a later version."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class SessionClosed:
    """The session is over, and with it the iteration: admin_closed, ttl_expired, error."""

    reason: str


@dataclass(frozen=True, slots=True)
class Malformed:
    """The broker said something that does not follow the protocol; it was not taken. `why` is a line for a log."""

    why: str


@dataclass(frozen=True, slots=True)
class Reconnecting:
    """The connection is lost, or leads over an address family that the other peer does not have; there will be another.

    Attributes:
        reason: a line to show to a person.
        wait_s: seconds until it is tried.
        tries: that failed since the connection was lost.
    """

    reason: str
    wait_s: float
    tries: int


@dataclass(frozen=True, slots=True)
class Reconnected:
    """There is a connection again, and our registration was said again.

    A peer's round starts anew: `Peer` comes (again) when the other one is there, and a status has to be said again.
    """


ServerEvent = Peer | PeerMatch | Session | Start | Tally | HealthReport | Error | SessionClosed
Event = ServerEvent | Malformed | Reconnecting | Reconnected
