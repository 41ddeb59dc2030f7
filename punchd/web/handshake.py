"""The opening handshake of a WebSocket, and the protocol that it leads to: `websockets` with our close codes.

Source: RFC 6455 §4.2.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from websockets.exceptions import InvalidHandshake, NegotiationError
from websockets.http11 import Request as Opening
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from punchd.web.limits import Limits
from punchd.web.messages import Headers, Problem, Upgrade

_OPENING_FIELDS = (
    "connection", "upgrade", "sec-websocket-key", "sec-websocket-version", "sec-websocket-protocol",
)  # fmt: skip

_library_log = logging.getLogger("punchd.web.frames")
_library_log.setLevel(logging.ERROR)  # below that it logs payloads


class Protocol(ServerProtocol):
    """`websockets` with the application's close codes instead of those of RFC 6455, and without compression."""

    def __init__(self, upgrade: Upgrade, limits: Limits) -> None:
        super().__init__(
            subprotocols=None if upgrade.subprotocol is None else [Subprotocol(upgrade.subprotocol)],
            max_size=upgrade.max_message or limits.message_bytes,
            logger=_library_log,
        )
        self._close_codes: Mapping[int, int] = upgrade.close_codes

    def fail(self, code: int, reason: str = "") -> None:
        """End the connection because the client broke the protocol."""
        super().fail(self.code(code), reason)

    def code(self, code: int) -> int:
        """What the application wants in place of a close code of the shell's."""
        return self._close_codes.get(code, code)


def open_handshake(headers: Headers, upgrade: Upgrade, limits: Limits) -> tuple[Protocol, bytes] | Problem:
    """The protocol and the bytes that answer a GET which asks for a WebSocket, or why it cannot be had."""
    protocol = Protocol(upgrade, limits)
    # Only what the handshake needs: the library has limits and ideas of its own about the rest.
    fields = [f"{name}: {value}\r\n" for name in _OPENING_FIELDS for value in headers.get_all(name)]
    protocol.receive_data(("GET / HTTP/1.1\r\n" + "".join(fields) + "\r\n").encode("latin-1"))
    events = protocol.events_received()
    if not events or not isinstance(events[0], Opening):
        return Problem(400, "BAD_REQUEST", "malformed WebSocket handshake")
    answer = protocol.accept(events[0])
    events[0].headers.clear()  # 1.7 KB: the library's parser keeps the request as long as the connection
    if answer.status_code != 101:
        return _rejection(answer.status_code, protocol.handshake_exc)
    answer.headers["Server"] = "punchd"
    for name, value in upgrade.headers:
        answer.headers[name] = value
    protocol.send_response(answer)
    return protocol, b"".join(protocol.data_to_send())


def _rejection(status: int, error: Exception | None) -> Problem:
    fields: tuple[tuple[str, str], ...] = (("Sec-WebSocket-Version", "13"),)
    if status == 426:
        fields = (("Upgrade", "websocket"), *fields)
    if isinstance(error, NegotiationError):
        return Problem(400, "BAD_REQUEST", "the WebSocket subprotocol is not among those offered", fields)
    what = str(error) if isinstance(error, InvalidHandshake) else "internal error"
    code = "UPGRADE_REQUIRED" if status == 426 else "BAD_REQUEST"
    return Problem(status, code, f"a WebSocket is served here: {what}", fields)
