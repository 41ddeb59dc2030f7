"""All 56 token cases of the specification against a running server, over HTTP and on the way to a WebSocket."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from punchd.broker import tokens
from punchd.broker.creation import Creation
from punchd.broker.names import is_name
from punchd.broker.sessions import Sessions
from punchd.broker.tokens import Refusal
from tests.unit.broker.running import FixedSecret, running
from tests.unit.broker.test_tokens import CASES

_STREAMS = ("cam-wide", "0", "cam", "x" * 64, "default")


@pytest.mark.parametrize("name", CASES)
async def test_b_031_b_051_b_052_c_30_every_case_is_answered_before_anything_else(name: str) -> None:
    case = CASES[name]
    async with running(wall=lambda: case.now_ms / 1000, secret=FixedSecret(*case.secrets)) as server:
        session = case.session if is_name(case.session) else "s"  # else no path could name it
        if case.is_open:
            await server.broker.sessions.create(Creation(session, _STREAMS), b"\x7f\0\0\1")
            assert isinstance(server.broker.sessions, Sessions)
            server.broker.sessions._live[session].ledger.live.add(tokens.digest(case.token))
        status = 200 if case.refusal in (None, Refusal.SCOPE) else case.refusal.status
        answer, peer = await server.upgrade(f"/api/ws/{session}?t={quote(case.token)}")
        assert answer.status == (101 if status == 200 else status)
        assert (peer is None) is (status != 200)
        if not case.token.isascii() or not case.token.isprintable() or " " in case.token:
            return
        answer = await server.ask("GET", f"/api/session/{session}", token=case.token)
        assert answer.status == status
        if case.refusal is Refusal.SCOPE:
            answer = await server.ask("DELETE", f"/api/session/{session}", token=case.token)
            other = await server.ask("GET", f"/api/session/{session}/connect?stream=other", token=case.token)
            assert (answer.status, other.status) == (403, 403)
