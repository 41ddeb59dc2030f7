"""What the machines of a call hear and say: events and actions, and the words for where a call stands. Pure.

The machines: calls.py. Who carries the actions out: conductor.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

from punchd.punch.messages import Code, Message


class State(Enum):
    CALLING = auto()
    PUNCHING = auto()
    SETTLING = auto()
    OVER = auto()


class Reason(Enum):
    """Why a call was given up."""

    NO_CONNECTION = auto()
    NO_ANSWER = auto()
    REFUSED = auto()
    CANCELLED = auto()
    DAEMON = auto()


# --- events ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Heard:
    """A signal of this call."""

    message: Message


@dataclass(frozen=True, slots=True)
class Taken:
    """The daemon follows the offer that it was asked to."""


@dataclass(frozen=True, slots=True)
class NoOffer:
    """The daemon says that it was none."""


@dataclass(frozen=True, slots=True)
class Relayed:
    """The attempt has a token for the other side."""

    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Punched:
    """The attempt has a socket."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The attempt has none; `is_daemon`: since there is no daemon any more."""

    text: str
    is_daemon: bool = False


@dataclass(frozen=True, slots=True)
class Secured:
    """TLS: both sides are who they should be, and both hold the socket. Plain: this side is ready."""


@dataclass(frozen=True, slots=True)
class Unsecured:
    """It came to nothing. With a code it is a verdict; without, the socket broke."""

    text: str
    code: Code | None = None


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Whoever runs this side has had enough."""


Event = Heard | Taken | NoOffer | Relayed | Punched | Failed | Secured | Unsecured | Cancelled

# --- actions ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Send:
    """To the other side."""

    message: Message


@dataclass(frozen=True, slots=True)
class Initiate:
    """Start an attempt towards the connector."""


@dataclass(frozen=True, slots=True)
class Respond:
    """Try a token as an offer: `Taken`, `NoOffer` or `Failed` follows."""

    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Deliver:
    """Hand a token to the running attempt."""

    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Secure:
    """Make TLS of the socket: `Secured` or `Unsecured` follows."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Close the socket, and stop securing it."""


@dataclass(frozen=True, slots=True)
class Done:
    """The socket is good."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Nothing will come of it; close what there is."""

    reason: Reason
    text: str


Action = Send | Initiate | Respond | Deliver | Secure | Drop | Done | GiveUp
