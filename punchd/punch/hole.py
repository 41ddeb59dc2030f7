"""What comes of a call: a socket, and what was made of it."""

from __future__ import annotations

from dataclasses import dataclass

import trio

from punchd.client.events import Connected
from punchd.client.trio_client import TrioSocket
from punchd.punch.messages import Message
from punchd.punch.news import News
from punchd.rendezvous.identity import address


@dataclass(frozen=True, slots=True)
class Secured:
    """What was made of a socket, for what the call is about.

    Attributes:
        stream: for TCP: TLS, or plain; it owns the socket.
        key: fingerprint of the other side's, proven; None: nothing is known of it.
        target: listener: the connection to what it forwards to.
    """

    stream: trio.abc.HalfCloseableStream | None = None
    key: bytes | None = None
    target: trio.SocketStream | None = None

    def close(self) -> None:
        """All but the hole's socket."""
        if self.target is not None:
            self.target.socket.close()


@dataclass(frozen=True, slots=True)
class Hole:
    """What came of a call. Whoever has it closes the socket and what was made of it.

    Attributes:
        late: signals that came after the call's success and before somebody else took them.
    """

    connected: Connected[TrioSocket]
    secured: Secured
    late: list[Message]

    def tell(self, news: News, seconds: float) -> None:
        """That there is one."""
        key = None if self.secured.key is None else address(self.secured.key)
        text = f"connected by {self.connected.technique} in {seconds:.2f} s to {self.connected.remote}"
        news.say(
            "connected",
            text if key is None else f"{text}, peer key {key}",
            technique=self.connected.technique,
            seconds=round(seconds, 3),
            endpoint=str(self.connected.remote),
            key=key,
        )
