"""What an attempt tells while it runs: frozen values, one `emit`, for logs, `--trace` and tests.

Events never hold a token, a key or a payload. They are for people and for tests; no decision is taken from them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from punchd.endpoint import Endpoint


@dataclass(frozen=True, slots=True)
class AttemptStarted:
    nonce: str  # hex
    role: str
    peer: str  # address and ports


@dataclass(frozen=True, slots=True)
class RoundStarted:
    round: int
    technique: str


@dataclass(frozen=True, slots=True)
class MappingLearned:
    """What STUN said of the own port."""

    local: Endpoint
    public: str  # address and ports
    behaviour: str
    rtt_ms: int


@dataclass(frozen=True, slots=True)
class Opened:
    """Low-TTL packets went out, so that the own NAT lets the peer's answers in."""

    local: Endpoint
    ports: str  # the peer's
    ttl: int


@dataclass(frozen=True, slots=True)
class Aimed:
    """Packets with the normal TTL go out towards the peer's ports, for the reason given."""

    ports: str
    why: str


@dataclass(frozen=True, slots=True)
class Told:
    """A token was handed out for the peer."""

    kind: str
    round: int


@dataclass(frozen=True, slots=True)
class Heard:
    """The first valid packet of the peer, and where it really came from."""

    source: Endpoint
    kind: str


@dataclass(frozen=True, slots=True)
class Explained:
    """What a technique would say if it had to give up now. The last one becomes the text of the failure."""

    text: str


@dataclass(frozen=True, slots=True)
class Punched:
    technique: str
    local: Endpoint
    remote: Endpoint


@dataclass(frozen=True, slots=True)
class RoundFailed:
    round: int
    technique: str
    reason: str
    text: str


@dataclass(frozen=True, slots=True)
class AttemptEnded:
    verdict: str
    text: str


Event = (
    AttemptStarted
    | RoundStarted
    | MappingLearned
    | Opened
    | Aimed
    | Told
    | Heard
    | Explained
    | Punched
    | RoundFailed
    | AttemptEnded
)


def describe(event: Event) -> str:
    """One line: the event's name and its fields."""
    shown = " ".join(f"{field.name}={getattr(event, field.name)}" for field in fields(event))
    return f"{type(event).__name__} {shown}"
