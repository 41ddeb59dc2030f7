"""What comes out of the handshake machines: actions, as frozen values, to be carried out in their order.

A packet tuple (source and destination address and port) is a key that the shell makes; here it is only compared.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum, auto

from punchd.media.options import NO_OPTIONS, Options

PacketTuple = Hashable


class Why(Enum):
    """Why a session ended, or did not begin."""

    REFUSED = auto()  # by the other side, in its own words
    UNANSWERED = auto()  # so many SYNs, and no SYN-ACK
    GLARE = auto()  # the other side asks as well, and this side yields
    IDLE = auto()  # nothing was heard for too long
    REPLACED = auto()  # the same tuple asked for another session
    EVICTED = auto()  # there was no room
    CLOSED = auto()  # the caller's wish


@dataclass(frozen=True, slots=True)
class Send:
    """A datagram to the far end of `peer`."""

    peer: PacketTuple
    data: bytes


@dataclass(frozen=True, slots=True)
class Flush:
    """Forget which sequence numbers were seen, and all fragments, of that tuple."""

    peer: PacketTuple


@dataclass(frozen=True, slots=True)
class Identified:
    """From now on media of that tuple belong to session `id`; empty: to one without an id.

    A sender goes on in another range of sequence numbers: media that are still on their way name no session.
    """

    peer: PacketTuple
    id: bytes


@dataclass(frozen=True, slots=True)
class Established:
    """The handshake is complete on this side. `options` are the other side's."""

    peer: PacketTuple
    id: bytes
    options: Options = NO_OPTIONS


@dataclass(frozen=True, slots=True)
class MediaMayFlow:
    """The responder may send media. How much, `Responder.allowance` says each time."""

    peer: PacketTuple


@dataclass(frozen=True, slots=True)
class Ended:
    """It is over. `text` is the other side's, escaped."""

    peer: PacketTuple
    why: Why
    text: str = field(default="")


Action = Send | Flush | Identified | Established | MediaMayFlow | Ended
