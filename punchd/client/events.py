"""What an attempt tells the application while it runs: frozen values, the same for both flavours of the library.

Only `Relay` asks for something; a program that handles `Relay` and `Connected` and ignores the rest is complete.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from punchd.control.requests import Protocol
from punchd.endpoint import Endpoint

SocketT = TypeVar("SocketT")


@dataclass(frozen=True, slots=True)
class Relay:
    """Hand `token` to the other side's application: unchanged, at once, in order.

    Attributes:
        round: 1 to 255, counted by the initiator's daemon.
        technique: what this round tries, for example "udp".
        token: 19 to 200 characters of base64url. Left out of repr(): tokens hold keys and do not belong in logs.
    """

    round: int
    technique: str
    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Trying:
    """A round has begun."""

    round: int
    technique: str


@dataclass(frozen=True, slots=True)
class Failed:
    """A round did not work out; the attempt goes on with the next one.

    Attributes:
        code: why, for example "timeout" or "peer-skip"; unknown words are possible.
        text: the same for people, where the daemon has more to say.
    """

    round: int
    technique: str
    code: str
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Ignored:
    """A token or line from this side was not taken; the attempt goes on unharmed.

    `round` and `technique` are the ones of the last news, 0 and "-" before any. `code` is for example "stale" or
    "bad-token".
    """

    round: int
    technique: str
    code: str
    text: str | None = None


@dataclass(frozen=True, slots=True)
class News:
    """Progress of a kind that this version of the library does not know. May be ignored."""

    round: int
    technique: str
    stage: str
    detail: str = field(repr=False)  # unknown, so it might be a token


Event = Relay | Trying | Failed | Ignored | News


@dataclass(frozen=True, slots=True)
class Connected(Generic[SocketT]):
    """The last event: a socket connected to the other side's application.

    Whoever receives this owns the socket and closes it. It outlives the attempt, the connection to the daemon and
    the daemon. Nothing has been sent on it. It proves that some host answers at `remote`, not who that is:
    authenticate end to end. For UDP: do not start datagrams with the four bytes `PCH1` (they are filtered out),
    and send something at least every 15 s or so, since many NATs forget a silent UDP mapping after 30 s.

    Attributes:
        socket: TCP: SOCK_STREAM, established. UDP: SOCK_DGRAM, connected to `remote`.
        technique: what worked, for example "udp".
        local: the own end, as bound (the NAT may show others another one).
        remote: the other side's public end, the peer of the socket.
    """

    socket: SocketT
    technique: str
    protocol: Protocol
    local: Endpoint
    remote: Endpoint
