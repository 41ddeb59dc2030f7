"""What the broker keeps, as its HTTP and WebSocket sides see it. `sessions.py` keeps it in this process,
`redis_sessions.py` where several servers share it.

Everything that may have to ask another process is async; a store that knows the answer gives it without a checkpoint.
What a session has to say reaches a connection through its `Outlet`, in the order in which the session said it.

Errors: where others have to be asked, what HTTP asks raises StoreError if they do not answer; what connections do
waits, and closes them if that lasts.

Cancellation: a call that is cancelled either took place as a whole or not at all.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from punchd.broker import tokens
from punchd.broker.creation import Creation
from punchd.broker.health import HealthEntry
from punchd.broker.messages import ClientMessage, Direction, Light
from punchd.broker.moves import Connected
from punchd.broker.passphrases import Passphrases
from punchd.broker.server_messages import CloseCode, ErrorCode, Overview
from punchd.broker.session import Session
from punchd.broker.state import Plan
from punchd.broker.tokens import Grant, Keys, Ledger, Role
from punchd.endpoint import Endpoint, IPAddress


class NotCreated(Enum):
    """Why there is no new session."""

    EXISTS = "exists"
    FULL = "full"  # the server has as many as it may have
    SOURCE_FULL = "source full"


@dataclass(frozen=True, slots=True)
class Created:
    """A new session and its first tokens."""

    plan: Plan
    admin_token: str = field(repr=False)
    peer_tokens: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class View:
    """What may be known of a session. `warnings` are words for programs."""

    plan: Plan
    overview: Overview
    health: Mapping[str, HealthEntry]
    tally: Mapping[str, Light]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Side:
    """One peer of a matched stream: whom it is told of, and what it said itself."""

    seen_ip: IPAddress = field(repr=False)
    local_port: int
    direction: Direction | None
    remote: Endpoint = field(repr=False)


@dataclass(frozen=True, slots=True)
class Match:
    """Both peers of a stream, the first to register first."""

    sides: tuple[Side, Side]
    latency_ms: int
    passphrase: str = field(repr=False)


class Outlet(Protocol):
    """A connection of this process. Nothing here waits, and nothing is said after `close`."""

    def deliver(self, text: str, code: ErrorCode | None = None) -> None:
        """Send a frame; `code` if it is an `error`."""
        ...

    def report(self, text: str) -> None:
        """Send a `health_report`, now or at the end of the second, unless a newer one comes."""
        ...

    def close(self, code: CloseCode) -> None:
        """Close it, after what was sent."""
        ...

    def probe(self) -> None:
        """Find out whether it is alive: `Store.answered` if so, `Store.leave` if not."""
        ...

    def registered(self) -> None:
        """It need not register any more."""
        ...


class Store(Protocol):
    """All sessions. A name stands for the open session of that name; digests are `tokens.digest`."""

    async def create(self, creation: Creation, source: bytes) -> Created | NotCreated:
        """A new session, of a source (see `punchd.web.rate.source_key`)."""
        ...

    async def issued(self, name: str) -> Container[bytes] | None:
        """The digests of its good tokens; None if there is no such session."""
        ...

    async def view(self, name: str) -> View | None:
        """What is known of it."""
        ...

    async def match(self, name: str, stream: str) -> Match | None:
        """The peers of a stream; None if there are not both of them."""
        ...

    async def mint(self, name: str, stream: str, exp: int) -> tuple[str, Grant] | None:
        """A new token for a peer of a stream that the session has; None if there is no such session.

        Raises:
            LimitError: it has too many.
        """
        ...

    async def revoke(self, name: str, digest: bytes) -> bool:
        """Make a token worthless and drop its connections; whether it was good."""
        ...

    async def close(self, name: str) -> bool:
        """An admin closes it; whether it was open."""
        ...

    async def has_room(self, name: str) -> bool:
        """Whether it takes another connection."""
        ...

    async def enter(self, name: str, event: Connected, outlet: Outlet) -> None:
        """A connection was opened. If the session is gone, or its token no good any more, it is told and closed."""
        ...

    async def hear(self, name: str, connection: str, message: ClientMessage) -> bool:
        """A connection said something. False if its token says too much, over all servers: then it was dropped."""
        ...

    def answered(self, name: str, connection: str) -> None:
        """A connection that was probed is alive. Does not wait."""
        ...

    def leave(self, name: str, connection: str) -> None:
        """A connection is gone, or was given up: nothing reaches its outlet any more. Does not wait."""
        ...

    @property
    def prefix(self) -> str:
        """What names of connections that are opened now begin with: nobody else's do."""
        ...

    @property
    def is_healthy(self) -> bool:
        """Whether it answers."""
        ...

    def __len__(self) -> int:
        """Sessions that are open, of all servers; for metrics."""
        ...

    async def run(self) -> None:
        """What is to be done in the background, until cancelled."""
        ...

    async def finish(self) -> None:
        """All connections are gone; until that has taken place. The caller cancels it when it takes too long."""
        ...


def first_tokens(
    keys: Keys, plan: Plan, former: frozenset[tuple[str | None, int]]
) -> tuple[Ledger, str, dict[str, str]]:
    """A new session's ledger, its admin's token, and one for each stream."""
    ledger, exp = Ledger(former=former), tokens.expiry(plan.expires_ms)
    admin_token, _ = ledger.mint(keys, Grant(plan.name, Role.ADMIN, None, exp))
    peer_tokens = {stream: ledger.mint(keys, Grant(plan.name, Role.PEER, stream, exp))[0] for stream in plan.streams}
    return ledger, admin_token, peer_tokens


def view_of(session: Session, now_ms: int) -> View:
    """What may be known of a session."""
    return View(
        session.plan,
        session.overview(),
        session.health_entries(now_ms),
        {stream: one.tally for stream, one in session.facts.streams.items()},
        ("family_mismatch",) if session.differing_families() else (),
    )


def match_of(session: Session, passphrases: Passphrases, stream: str) -> Match | None:
    """The peers of a stream."""
    pair = session.pair(stream)
    if pair is None:
        return None
    one, other = (
        Side(mine.ip, mine.register.port, mine.register.role, others.endpoint) for mine, others in (pair, pair[::-1])
    )
    return Match((one, other), session.plan.latency_ms, passphrases.of(stream))
