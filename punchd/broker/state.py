"""What is known of a session, as values: what it was made with, what the operator wants, and what changes.

Everything that changes stands in `Facts`; `snapshot.py` makes it plain data and back, so that another process can go on
with it. There is no passphrase and no token in it.

Source: broker specification §2, C-07, C-11, C-14, C-23, C-24, C-26, C-27.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from punchd.broker.endpoints import Reported
from punchd.broker.health import Thresholds
from punchd.broker.messages import Register
from punchd.broker.names import CLOSING_MARGIN_MS, DEFAULT_LATENCY_MS, OBSERVERS, PEERS_PER_STREAM
from punchd.broker.server_messages import Reason, State
from punchd.broker.streams import Stream
from punchd.broker.tokens import Role
from punchd.endpoint import IPAddress


@dataclass(frozen=True, slots=True)
class Plan:
    """What a session was made with. Times are Unix milliseconds."""

    name: str
    streams: tuple[str, ...]
    created_ms: int
    expires_ms: int
    latency_ms: int = DEFAULT_LATENCY_MS

    @property
    def closes_ms(self) -> int:
        """From then on nobody sees it open (C-33)."""
        return self.expires_ms - CLOSING_MARGIN_MS


@dataclass(frozen=True, slots=True)
class Policy:
    """What the operator wants.

    Attributes:
        admin_may_register: an admin may be one of the peers (C-14).
        receivers_may_tally: a registered receiver may set its stream's light (C-26).
        reported: how much of what a peer says of its public endpoint is believed (C-07).
        observers: connections of a session beyond its peers' (C-23).
        thresholds: of health.
    """

    admin_may_register: bool = True
    receivers_may_tally: bool = False
    reported: Reported = Reported.OFF
    observers: int = OBSERVERS
    thresholds: Thresholds = field(default_factory=Thresholds)

    def capacity(self, plan: Plan) -> int:
        """Connections that a session may have."""
        return PEERS_PER_STREAM * len(plan.streams) + self.observers


@dataclass(slots=True)
class Member:
    """A connection.

    Attributes:
        stream: that its token names; None for admins.
        token: digest in hex.
        registered: the stream in which it has a slot.
    """

    connection: str
    role: Role
    stream: str | None
    ip: IPAddress = field(repr=False)
    token: str = field(default="", repr=False)
    registered: str | None = None


@dataclass(slots=True)
class Claim:
    """A register that found its stream full, and waits for what the probes of the holders find.

    Attributes:
        awaiting: holders that have not answered.
        until_ms: when their slots are free.
    """

    stream: str
    register: Register = field(repr=False)
    awaiting: set[str]
    until_ms: int


@dataclass(slots=True)
class Facts:
    """All that changes. Dictionaries keep the order in which things came."""

    state: State = State.WAITING
    reason: Reason | None = None  # once it is closed
    streams: dict[str, Stream] = field(default_factory=dict)
    members: dict[str, Member] = field(default_factory=dict)
    claims: dict[str, Claim] = field(default_factory=dict)  # by the connection that claims

    @property
    def admins(self) -> list[str]:
        """Connections of admins."""
        return [member.connection for member in self.members.values() if member.role is Role.ADMIN]

    def forget(self, connection: str) -> None:
        """A connection is gone, and its slot is free."""
        member = self.members.pop(connection, None)
        self.claims.pop(connection, None)
        if member is not None and member.registered is not None:
            self.streams[member.registered].remove(connection)
