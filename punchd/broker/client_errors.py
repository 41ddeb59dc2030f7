"""What can go wrong between a program and its session broker. Each message is one line to show to a person.

BrokerError
├── UnreachableError     no answer: name, route, refusal, silence; it may be better in a moment
├── InsecureError        TLS: whoever answers there did not prove to be that server
├── NotBrokerError       an answer that no broker gives
│   └── VersionError     a broker, but one whose protocol is another
├── RefusedError         the broker says no, and why
└── EndedError           the broker ended our part in a session, and does not want us back
"""

from __future__ import annotations

from punchd.errors import PunchdError


class BrokerError(PunchdError):
    """Whatever the client of a broker raises on purpose; `ConfigError` besides, for arguments that cannot be right."""


class UnreachableError(BrokerError):
    """Nobody answered; the message names the broker and the reason."""


class InsecureError(BrokerError):
    """TLS failed, mostly because of the server's certificate. Not tried again: it is no matter of time."""


class NotBrokerError(BrokerError):
    """What answers there does not speak HTTP, or not as a broker does."""


class VersionError(NotBrokerError):
    """The broker speaks another major version of the protocol.

    Attributes:
        version: what it said.
    """

    def __init__(self, text: str, version: str) -> None:
        super().__init__(text)
        self.version = version


class RefusedError(BrokerError):
    """The broker refused a request, or to open a WebSocket.

    Attributes:
        status: of HTTP.
        code: the broker's word for it: "AUTH_FAILED", "SESSION_NOT_FOUND", "SESSION_EXISTS", "RATE_LIMITED", ...
        retry_after_s: when to ask again, if the broker said so; at most 60.
    """

    def __init__(self, text: str, status: int, code: str, retry_after_s: float | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s


class EndedError(BrokerError):
    """The connection was closed with 1000 although the session goes on.

    A newer connection of the same peer took its place, or its token was revoked.
    """
