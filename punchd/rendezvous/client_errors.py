"""What can go wrong between a program and its rendezvous server. Each message is one line to show to a person.

RendezvousError
├── UnreachableError     no answer: name, route, refusal, silence; it may be better in a moment
├── InsecureError        TLS: whoever answers there did not prove to be that server
├── NotRendezvousError   an answer that no rendezvous server gives
├── RefusedError         the server says no, and why
├── PeerGoneError        it does not know the client that was meant
└── IdentityLostError    it does not know us any more
"""

from __future__ import annotations

from punchd.errors import PunchdError


class RendezvousError(PunchdError):
    """Whatever the client of a rendezvous server raises on purpose."""


class UnreachableError(RendezvousError):
    """Nobody answered; the message names the server and the reason."""


class InsecureError(RendezvousError):
    """TLS failed, mostly because of the server's certificate. Not tried again: it is no matter of time."""


class NotRendezvousError(RendezvousError):
    """What answers there does not speak HTTP, or not as a rendezvous server does."""


class RefusedError(RendezvousError):
    """The server refused a request.

    Attributes:
        status: of HTTP.
        code: the server's word for it: "RATE_LIMITED", "FULL", "TOO_LARGE", ...
    """

    def __init__(self, text: str, status: int, code: str) -> None:
        super().__init__(text)
        self.status = status
        self.code = code


class PeerGoneError(RendezvousError):
    """No client has the id that a signal was for."""


class IdentityLostError(RendezvousError):
    """The server forgot this client: it was restarted, or heard nothing of us for too long.

    The old id is gone for good. A new one (`Rendezvous.renew`) must be told to whoever knew the old one, so it is the
    application that decides.
    """
