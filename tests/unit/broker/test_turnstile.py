"""The verifier of captchas over real HTTPS, with the service played on loopback."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest
import trio

from punchd.broker import turnstile
from punchd.broker.turnstile import Turnstile, Verdict
from punchd.web.listen import Certificate
from punchd.web.messages import Answer, Request, Response
from tests.unit.broker.contract import TAP
from tests.unit.web.certificates import write_certificate
from tests.unit.web.site import serving

SECRET = "turnstile-secret-canary-0123456789"  # noqa: S105 (a test's)
IP = ip_address("192.0.2.1")


@asynccontextmanager
async def service(folder: Path, status: int, body: bytes, asked: list[Request]) -> AsyncIterator[Turnstile]:
    chain, key = write_certificate(folder, "turnstile")
    TAP.secrets.add(SECRET)

    async def handle(request: Request) -> Answer:
        asked.append(request)
        return Response(status, (("Content-Type", "application/json"),), body)

    async with serving(handle, tls=Certificate(chain, key).context) as site:
        context = ssl.create_default_context(cafile=str(chain))
        yield Turnstile(SECRET, ("localhost", site.port), context)


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (200, b'{"success":true}', Verdict.PASSED),
        (200, b'{"success":false,"error-codes":["timeout-or-duplicate"]}', Verdict.REFUSED),
        (200, b'{"success":1}', Verdict.UNKNOWN),
        (200, b"[]", Verdict.UNKNOWN),
        (200, b"nonsense", Verdict.UNKNOWN),
        (200, b"[" * 10_000, Verdict.UNKNOWN),
        (200, b" " * 20_000, Verdict.UNKNOWN),
        (500, b'{"success":true}', Verdict.UNKNOWN),
    ],
)
async def test_b_039_b_040_c_39_what_the_service_says(
    status: int, body: bytes, verdict: Verdict, tmp_path: Path
) -> None:
    asked: list[Request] = []
    async with service(tmp_path, status, body, asked) as verify:
        assert await verify("token-of-a-user", IP) is verdict
        assert SECRET not in repr(verify)
    [request] = asked
    assert (request.method, request.path) == ("POST", "/turnstile/v0/siteverify")
    assert json.loads(request.body) == {"secret": SECRET, "response": "token-of-a-user", "remoteip": "192.0.2.1"}


async def test_c_39_a_service_that_is_away_or_hangs_or_is_not_the_right_one_knows_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turnstile, "PATIENCE_S", 0.3)
    async with service(tmp_path, 200, b'{"success":true}', []) as good:
        assert await Turnstile(SECRET, good._place)("x", IP) is Verdict.UNKNOWN  # its certificate is not the system's
    assert await good("x", IP) is Verdict.UNKNOWN
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listeners[0]:
        port = listeners[0].socket.getsockname()[1]
        assert await Turnstile(SECRET, ("127.0.0.1", port))("x", IP) is Verdict.UNKNOWN
