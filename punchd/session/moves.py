"""What the join machine has its shell do: frozen values. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from punchd.broker.client_events import Peer
from punchd.broker.messages import Health, Srt
from punchd.punch.outcomes import Exit


@dataclass(frozen=True, slots=True)
class HoldPort:
    """Bind the port again, ask STUN from it and keep its mapping; anew if it is held."""


@dataclass(frozen=True, slots=True)
class Register:
    """Register with the broker.

    Attributes:
        public_port: what STUN says; None: not known.
        run: counts the tool's runs; the other side sees from it that there is a new one.
    """

    public_port: int | None
    run: int


@dataclass(frozen=True, slots=True)
class SayReady:
    """Tell the broker that we are."""


@dataclass(frozen=True, slots=True)
class SayStatus:
    """Tell the broker how SRT is."""

    srt: Srt


@dataclass(frozen=True, slots=True)
class SayHealth:
    """Tell the broker how SRT does."""

    health: Health


@dataclass(frozen=True, slots=True)
class ShowStrings:
    """Show the user what to type into their own tool, and ask when that is done."""

    peer: Peer = field(repr=False)


@dataclass(frozen=True, slots=True)
class RunTool:
    """Let go of the port and run the tool."""

    peer: Peer = field(repr=False)


@dataclass(frozen=True, slots=True)
class StopTool:
    """End the tool; its end is told as any other."""


@dataclass(frozen=True, slots=True)
class Tell:
    """News: a word for programs, a line for people. `is_warning` shows it among those."""

    event: str
    line: str
    more: Mapping[str, Any] = field(default_factory=dict)
    is_warning: bool = False


@dataclass(frozen=True, slots=True)
class End:
    """It is over. `text` says why, if that is an error."""

    code: Exit
    text: str


Action = HoldPort | Register | SayReady | SayStatus | SayHealth | ShowStrings | RunTool | StopTool | Tell | End
