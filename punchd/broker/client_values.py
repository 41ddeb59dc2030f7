"""What a broker's HTTP side gives, as values. Tokens and passphrases are not in a `repr`.

Source: broker specification §6.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from punchd.broker.client_events import StreamHealth, StreamState
from punchd.broker.messages import Light
from punchd.broker.server_messages import State


@dataclass(frozen=True, slots=True)
class Created:
    """A new session.

    Attributes:
        token: the admin's. Said once; it is the key to the media, too.
        peer_tokens: one a stream, for both its peers.
        url: of the session for people, without a token: https://HOST/s/NAME.
        expires_ms: Unix milliseconds.
    """

    name: str
    token: str = field(repr=False)
    peer_tokens: Mapping[str, str] = field(repr=False)
    url: str
    streams: tuple[str, ...]
    latency_ms: int
    ttl_s: int
    expires_ms: int


@dataclass(frozen=True, slots=True)
class SessionStatus:
    """How a session is, once. `health`, `tally` and `warnings` are for admins, and empty for peers.

    Attributes:
        created: RFC 3339, UTC.
        expires_ms: Unix milliseconds.
        warnings: words like "family_mismatch".
    """

    name: str
    state: State
    streams: Mapping[str, StreamState]
    connected: int
    total: int
    latency_ms: int
    created: str
    expires_ms: int
    health: Mapping[str, StreamHealth]
    tally: Mapping[str, Light]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Minted:
    """A token for a peer; `url` holds it, `exp` is Unix seconds."""

    token: str = field(repr=False)
    stream: str
    exp: int
    url: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ConnectionString:
    """What to type into a tool; `value` has the passphrase."""

    stream: str
    format: str
    role: str
    value: str = field(repr=False)
