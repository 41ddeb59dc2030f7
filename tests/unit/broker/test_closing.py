"""Every way in which the server closes a connection: with which code, and what it says right before (C-05's table)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from trio.testing import MockClock

from punchd.broker import messages
from punchd.broker.session import Session
from tests.unit.broker.peer import Peer, settle
from tests.unit.broker.running import Running, running, settings
from tests.unit.broker.test_sockets_times import after
from tests.unit.web.raw_websocket import CONT, TEXT, frame


@dataclass(frozen=True, slots=True)
class Scene:
    """A pair of peers and an admin, and what a test may do to them."""

    server: Running
    made: dict[str, Any]
    one: Peer
    two: Peer
    admin: Peer
    clock: MockClock
    patch: pytest.MonkeyPatch


Act = Callable[[Scene], Awaitable[Peer]]  # does it; the connection that is closed


def _fail(*_: object) -> None:
    raise ValueError("oops")


async def delete(at: Scene) -> Peer:
    await at.server.ask("DELETE", "/api/session/show", token=at.made["token"])
    return at.one


async def time_is_over(at: Scene) -> Peer:
    at.one.send("punch.ping")
    at.admin.send("punch.ping")
    await after(at.clock, 60)
    return at.one


async def replace(at: Scene) -> Peer:
    again = await at.server.join("show", at.made["peerTokens"]["default"], "127.0.0.11")
    again.say("register", port=5011)
    return at.one


async def fail_the_session(at: Scene) -> Peer:
    at.patch.setattr(Session, "_tally", _fail)
    at.admin.say("tally", state="off")
    return at.one


async def fail_a_message(at: Scene) -> Peer:
    at.patch.setattr(messages, "decode", _fail)
    at.one.say("ready")
    return at.one


async def keep_silent(at: Scene) -> Peer:
    await after(at.clock, 50)
    at.two.send("punch.ping")
    await after(at.clock, 41)
    return at.one


async def register_too_late(at: Scene) -> Peer:
    late = await at.server.join("show", at.made["peerTokens"]["default"])
    await after(at.clock, 31)
    return late


async def flood(at: Scene) -> Peer:
    for _ in range(300):
        at.one.say("status", srt="connecting")
    return at.one


async def talk_nonsense(at: Scene) -> Peer:
    for _ in range(21):
        at.one.send("nonsense")
    return at.one


async def revoke(at: Scene) -> Peer:
    body = {"token": at.made["peerTokens"]["default"]}
    await at.server.ask("DELETE", "/api/session/show/token", body, token=at.made["token"])
    return at.one


async def stop_the_server(at: Scene) -> Peer:
    at.server.stop.set()
    return at.one


async def send_no_utf8(at: Scene) -> Peer:
    at.one.write(frame(TEXT, b"\xff\xfe"))
    return at.one


async def send_a_broken_frame(at: Scene) -> Peer:
    at.one.write(frame(CONT, b"{}"))
    return at.one


TABLE: list[tuple[Act, int, dict[str, str] | None]] = [
    (delete, 1000, {"type": "session_closed", "reason": "admin_closed"}),
    (time_is_over, 1000, {"type": "session_closed", "reason": "ttl_expired"}),
    (replace, 1000, {"type": "error", "code": "STREAM_TAKEN"}),
    (revoke, 1000, {"type": "error", "code": "AUTH_FAILED"}),
    (fail_the_session, 1011, {"type": "session_closed", "reason": "error"}),
    (fail_a_message, 1011, {"type": "error", "code": "SERVER_ERROR"}),
    (keep_silent, 1011, {"type": "error", "code": "INVALID_MESSAGE"}),
    (register_too_late, 1011, {"type": "error", "code": "INVALID_MESSAGE"}),
    (flood, 1011, {"type": "error", "code": "INVALID_MESSAGE"}),
    (talk_nonsense, 1011, {"type": "error", "code": "INVALID_MESSAGE"}),
    (stop_the_server, 1011, {"type": "error", "code": "SERVER_ERROR"}),
    (send_no_utf8, 1011, None),  # RFC 6455 says why
    (send_a_broken_frame, 1011, None),
]


@pytest.mark.parametrize(("act", "code", "last"), TABLE, ids=[act.__name__ for act, _, _ in TABLE])
async def test_b_070_b_071_c_05_each_cause_has_its_code_and_the_error_comes_right_before(
    act: Act, code: int, last: dict[str, str] | None, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {"message_burst": 50, "messages_per_second": 1}
    async with running(settings(limits if act is flood else None)) as server:
        made = await server.create(ttl=60 if act is time_is_over else 1800)
        one, two = await server.pair(made)
        admin = await server.join("show", made["token"])
        closed = await act(Scene(server, made, one, two, admin, mock_clock, monkeypatch))
        told = await closed.heard()
        for _ in range(3):
            await after(mock_clock, 1)  # what is closed in a hurry is not waited for longer
            await settle()
        assert await closed.ended() == code
        if last is not None:
            assert {name: told[-1][name] for name in last} == last
        await settle()
