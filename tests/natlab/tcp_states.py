"""The TCP state machine of a strict NAT, as a table.

A NAT in the middle sees both directions, and no more of the sockets. It knows a connection by its SYNs: in SYN_SENT
the inside host has sent one; in BOTH_SYN the outside has sent one as well (simultaneous open, RFC 9293 §3.5, which
RFC 5382 REQ-2 wants NATs to let pass); in HALF_OPEN the outside has answered with SYN-ACK. A segment that is not in
the row of its state is dropped: a bare ACK that wants to open a mapping, a SYN-ACK that answers nothing.

Sequence numbers are not looked at, so a second SYN with another one is a retransmission here. Enterprise firewalls
that do look exist (`rewrites_sequence` is the more common trouble).
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from .packet import ACK, RST, SYN


class TcpState(Enum):
    """What is known of a connection."""

    CLOSED = "closed"
    SYN_SENT = "syn-sent"
    BOTH_SYN = "both-syn"
    HALF_OPEN = "half-open"
    ESTABLISHED = "established"


class Event(Enum):
    """A segment and its direction."""

    SYN_OUT = "SYN out"
    SYN_IN = "SYN in"
    SYN_ACK_OUT = "SYN-ACK out"
    SYN_ACK_IN = "SYN-ACK in"
    OTHER_OUT = "other out"  # ACK, data, FIN
    OTHER_IN = "other in"
    RST = "RST"


_S, _E = TcpState, Event

TRANSITIONS: Final[dict[TcpState, dict[Event, TcpState]]] = {
    _S.CLOSED: {_E.SYN_OUT: _S.SYN_SENT},
    _S.SYN_SENT: {
        _E.SYN_OUT: _S.SYN_SENT,
        _E.SYN_IN: _S.BOTH_SYN,
        _E.SYN_ACK_IN: _S.HALF_OPEN,
        _E.RST: _S.CLOSED,
    },
    _S.BOTH_SYN: {
        _E.SYN_OUT: _S.BOTH_SYN,
        _E.SYN_IN: _S.BOTH_SYN,
        _E.SYN_ACK_OUT: _S.BOTH_SYN,
        _E.SYN_ACK_IN: _S.BOTH_SYN,
        _E.OTHER_OUT: _S.ESTABLISHED,
        _E.OTHER_IN: _S.ESTABLISHED,
        _E.RST: _S.CLOSED,
    },
    _S.HALF_OPEN: {
        _E.SYN_OUT: _S.HALF_OPEN,
        _E.SYN_ACK_IN: _S.HALF_OPEN,
        _E.OTHER_OUT: _S.ESTABLISHED,
        _E.RST: _S.CLOSED,
    },
    _S.ESTABLISHED: {event: _S.ESTABLISHED for event in Event if event is not _E.RST} | {_E.RST: _S.CLOSED},
}
"""Where each segment leads; a segment that is missing is dropped and changes nothing."""


def event(flags: int, *, outbound: bool) -> Event:
    """What a segment with these TCP flags is to the table."""
    if flags & RST:
        return Event.RST
    if flags & SYN and flags & ACK:
        return Event.SYN_ACK_OUT if outbound else Event.SYN_ACK_IN
    if flags & SYN:
        return Event.SYN_OUT if outbound else Event.SYN_IN
    return Event.OTHER_OUT if outbound else Event.OTHER_IN
