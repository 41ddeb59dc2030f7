"""What goes into the attempt machine and what comes out of it: events and actions, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass

from punchd.endpoint import Endpoint
from punchd.errors import Code
from punchd.wire.token import Card, Token

# --- events --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Begin:
    """The attempt starts. Given once, first."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """The application handed in a token."""

    token: Token


@dataclass(frozen=True, slots=True)
class Said:
    """The running technique has something to tell the peer."""

    card: Card


@dataclass(frozen=True, slots=True)
class Holed:
    """The running technique holds a connected socket, proven in both directions."""

    local: Endpoint
    remote: Endpoint


@dataclass(frozen=True, slots=True)
class Broke:
    """The running technique gave up, or could not start."""

    reason: Code
    text: str


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The application wants no more of it."""


@dataclass(frozen=True, slots=True)
class Vanished:
    """The application is gone; nobody is there to relay or to read."""


@dataclass(frozen=True, slots=True)
class ShutDown:
    """The daemon stops."""


Event = Begin | Arrived | Said | Holed | Broke | Cancelled | Vanished | ShutDown


# --- actions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StartTechnique:
    """Run the named technique's half; `offer` is the initiator's card, on the responder's side."""

    round: int
    technique: str
    offer: Card | None
    reversed_roles: bool = False


@dataclass(frozen=True, slots=True)
class StopTechnique:
    """Cancel the running technique, if one runs; whatever it still reports does not count."""


@dataclass(frozen=True, slots=True)
class Deliver:
    """The peer's technique said this to the running one."""

    card: Card


@dataclass(frozen=True, slots=True)
class Relay:
    """Hand this to the application for the peer."""

    round: int
    technique: str
    token: Token


@dataclass(frozen=True, slots=True)
class Trying:
    round: int
    technique: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The round is over without a socket."""

    round: int
    technique: str
    reason: Code
    text: str


@dataclass(frozen=True, slots=True)
class Ignored:
    round: int
    technique: str
    reason: Code


@dataclass(frozen=True, slots=True)
class Succeed:
    """The verdict is ok: the technique's socket goes to the application."""

    round: int
    technique: str
    local: Endpoint
    remote: Endpoint


@dataclass(frozen=True, slots=True)
class Fail:
    """The verdict is an error."""

    code: Code
    text: str


Action = StartTechnique | StopTechnique | Deliver | Relay | Trying | Failed | Ignored | Succeed | Fail
