"""Cloudflare Turnstile: whether whoever creates a session has passed a captcha.

Fails closed: when the service does not answer, there is no session, and the user is not told that it was his fault.
One connection a question, since questions are rare; names are resolved by the system, in a thread.

Source: seed 000 §5.4; broker specification B-039 to B-041, C-39; developers.cloudflare.com/turnstile.
"""

from __future__ import annotations

import json
import logging
import ssl
from collections.abc import Awaitable, Callable
from enum import Enum

import h11
import trio

from punchd.endpoint import IPAddress

HOST, PORT, PATH = "challenges.cloudflare.com", 443, "/turnstile/v0/siteverify"
PATIENCE_S = 5.0
_ANSWER_BYTES = 16_384
_RECEIVE_BYTES = 4096

log = logging.getLogger(__name__)


class Verdict(Enum):
    """What a verifier says of a token."""

    PASSED = "passed"
    REFUSED = "refused"
    UNKNOWN = "unknown"  # the service does not answer


Verifier = Callable[[str, IPAddress], Awaitable[Verdict]]


class Turnstile:
    """A `Verifier` that asks the service over HTTPS.

    Args:
        secret: the site's.
        place: host and port, if another one is to be asked.
        context: for TLS; None is the system's authorities.
    """

    def __init__(
        self, secret: str, place: tuple[str, int] = (HOST, PORT), context: ssl.SSLContext | None = None
    ) -> None:
        self._secret = secret
        self._place = place
        self._context = context or ssl.create_default_context()

    def __repr__(self) -> str:
        return "Turnstile(***)"

    async def __call__(self, token: str, ip: IPAddress) -> Verdict:
        """Ask about one token, once."""
        question = json.dumps({"secret": self._secret, "response": token, "remoteip": str(ip)}).encode()
        try:
            with trio.fail_after(PATIENCE_S):
                status, body = await self._ask(question)
            answer = json.loads(body)
        except (OSError, ValueError, RecursionError, h11.RemoteProtocolError, trio.TooSlowError, ssl.SSLError) as error:
            log.warning("Turnstile does not answer: %s", type(error).__name__)
            return Verdict.UNKNOWN
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            log.warning("Turnstile does not answer: the connection broke")
            return Verdict.UNKNOWN
        if status != 200 or not isinstance(answer, dict) or not isinstance(answer.get("success"), bool):
            log.warning("Turnstile does not answer: status %d", status)
            return Verdict.UNKNOWN
        return Verdict.PASSED if answer["success"] else Verdict.REFUSED

    async def _ask(self, question: bytes) -> tuple[int, bytes]:
        host, port = self._place
        stream = await trio.open_ssl_over_tcp_stream(host, port, ssl_context=self._context, https_compatible=True)
        async with stream:
            connection = h11.Connection(h11.CLIENT)
            fields = [
                ("Host", host),
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(question))),
                ("Connection", "close"),
            ]
            for event in (h11.Request(method="POST", target=PATH, headers=fields), h11.Data(question)):
                await stream.send_all(connection.send(event) or b"")
            connection.send(h11.EndOfMessage())
            status, body = 0, b""
            while True:
                answer = connection.next_event()
                if answer is h11.NEED_DATA:
                    connection.receive_data(bytes(await stream.receive_some(_RECEIVE_BYTES)))
                elif isinstance(answer, h11.Response):
                    status = answer.status_code
                elif isinstance(answer, h11.Data):
                    body += bytes(answer.data)
                    if len(body) > _ANSWER_BYTES:
                        raise ValueError("the answer is too long")
                elif isinstance(answer, h11.EndOfMessage | h11.ConnectionClosed):
                    return status, body
