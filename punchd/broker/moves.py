"""What goes into a session and what comes out of it: events and actions, as frozen values.

A connection is a text that no other connection of any process has. Whoever runs a session hands each action to the
process that holds the connection; the order of a connection's actions is to be kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from punchd.broker.messages import ClientMessage
from punchd.broker.server_messages import CloseCode, ErrorCode, ErrorMessage, Reason, ServerMessage
from punchd.broker.tokens import Role
from punchd.endpoint import IPAddress

# --- events --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Connected:
    """A WebSocket was opened with a good token.

    Attributes:
        role, stream: of the token; the stream is None for admins.
        ip: where it comes from (`endpoints.observed_ip`).
        token: its digest in hex, so that it can be revoked.
    """

    connection: str
    role: Role
    stream: str | None
    ip: IPAddress = field(repr=False)
    token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Received:
    """A connection said something."""

    connection: str
    message: ClientMessage = field(repr=False)


@dataclass(frozen=True, slots=True)
class Left:
    """A connection is gone, or its process has given it up."""

    connection: str


@dataclass(frozen=True, slots=True)
class Answered:
    """A connection that was probed is alive."""

    connection: str


@dataclass(frozen=True, slots=True)
class Revoked:
    """A token is no longer good: its digest in hex."""

    token: str


@dataclass(frozen=True, slots=True)
class Deleted:
    """An admin closes the session."""


@dataclass(frozen=True, slots=True)
class Failed:
    """Whoever runs the session cannot go on."""


Event = Connected | Received | Left | Answered | Revoked | Deleted | Failed


# --- actions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Send:
    """Send one message to these connections. It may need a passphrase (`server_messages.needs_passphrase`)."""

    to: tuple[str, ...]
    message: ServerMessage


@dataclass(frozen=True, slots=True)
class Close:
    """Close a connection, after what was sent to it. The session has forgotten it: no `Left` is needed."""

    connection: str
    code: CloseCode


@dataclass(frozen=True, slots=True)
class Probe:
    """Find out whether a connection is alive (`Keeper.probe`): `Answered` if so, else end it and say `Left`."""

    connection: str


@dataclass(frozen=True, slots=True)
class Registered:
    """The connection has a slot: its time to register is no longer limited (`Keeper.register`)."""

    connection: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The session is closed: forget it, its ledger and its passphrases. Always the last action."""

    reason: Reason


Action = Send | Close | Probe | Registered | Ended


def send(to: Iterable[str], message: ServerMessage | None) -> list[Action]:
    """Send something to some; no action, if nobody is there or there is nothing to say."""
    connections = tuple(to)
    return [Send(connections, message)] if connections and message is not None else []


def error(connection: str, code: ErrorCode, text: str) -> list[Action]:
    """Tell a connection what it did wrong."""
    return [Send((connection,), ErrorMessage(code, text))]
