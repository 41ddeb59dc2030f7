"""What an attempt tells while it runs: frozen values, one `emit`, for logs, `--trace` and tests.

Events never hold a token, a key or a payload. They are for people and for tests; no decision is taken from them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from punchd.endpoint import Endpoint, IPAddress


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
class TtlChosen:
    """The low TTL of the round that begins."""

    ttl: int
    why: str


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
class Passed:
    """A packet of the attempt went by.

    Attributes:
        way: "sent", "came", or "injected" into the own stack.
        what: kind and numbers, no payload.
        port: the peer's.
        ttl: as it left or came; None: the system's, or not known.
    """

    way: str
    what: str
    port: int
    ttl: int | None = None


@dataclass(frozen=True, slots=True)
class Complained:
    """An ICMP error about a packet of ours."""

    what: str
    router: IPAddress
    port: int  # the peer's that the packet was for


@dataclass(frozen=True, slots=True)
class Tried:
    """What came of a connection to that port of the peer."""

    port: int
    result: str


@dataclass(frozen=True, slots=True)
class Unrecorded:
    """A trace was asked for, but this round's packets cannot be seen."""

    why: str


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
    | TtlChosen
    | Opened
    | Aimed
    | Told
    | Heard
    | Passed
    | Complained
    | Tried
    | Unrecorded
    | Explained
    | Punched
    | RoundFailed
    | AttemptEnded
)


def describe(event: Event) -> str:
    """One line: the event's name and its fields, but for those that are None."""
    values = ((field.name, getattr(event, field.name)) for field in fields(event))
    shown = " ".join(f"{name}={value}" for name, value in values if value is not None)
    return f"{type(event).__name__} {shown}"
