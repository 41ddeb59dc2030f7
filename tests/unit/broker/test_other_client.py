"""The whole conversation with clients that share no line with the server: http.client, wsproto under trio-websocket.

The server's WebSocket is that of `websockets`, and so is the client of the other tests; what both get wrong in the same
way would not be noticed there.
"""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio
from trio_websocket import CloseReason, ConnectionClosed, ConnectionRejected, WebSocketConnection, wrap_client_stream

from punchd.web.listen import Certificate
from tests.unit.broker.contract import TAP, check_answer
from tests.unit.broker.running import Running, running, settings
from tests.unit.broker.schema import check_server_message
from tests.unit.web.certificates import write_certificate

PATIENCE_S = 60.0


@dataclass(slots=True)
class Client:
    """One WebSocket, and the types of all that came over it."""

    socket: WebSocketConnection
    kinds: list[str] = field(default_factory=list)

    async def say(self, kind: str, **members: Any) -> None:
        await self.socket.send_message(json.dumps({"type": kind, **members}))

    async def until(self, kind: str) -> dict[str, Any]:
        """The next message of a type."""
        while True:
            text = await self.socket.get_message()
            assert isinstance(text, str)
            TAP.sent(text.encode())
            members = {"type": text} if text == "punch.pong" else check_server_message(text)
            if "passphrase" in members:
                TAP.unlogged.add(members["passphrase"])
            self.kinds.append(members["type"])
            if members["type"] == kind:
                return members

    async def closed(self) -> int:
        """The code that the server closed with, once all it sent was read."""
        with pytest.raises(ConnectionClosed) as gone:
            await self.until("nothing")
        reason = gone.value.reason
        assert isinstance(reason, CloseReason)
        TAP.close_codes.add(reason.code)
        return reason.code


@dataclass(slots=True)
class Place:
    """A server, and how it is called."""

    server: Running
    context: ssl.SSLContext | None

    async def ask(self, method: str, target: str, body: Any = None, token: str | None = None) -> tuple[int, Any]:
        return await trio.to_thread.run_sync(self._ask, method, target, body, token)

    def _ask(self, method: str, target: str, body: Any, token: str | None) -> tuple[int, Any]:
        port = self.server.port
        client = (
            http.client.HTTPConnection("localhost", port, PATIENCE_S)
            if self.context is None
            else http.client.HTTPSConnection("localhost", port, timeout=PATIENCE_S, context=self.context)
        )
        fields = {} if token is None else {"Authorization": f"Bearer {token}"}
        if body is not None:
            fields["Content-Type"] = "application/json"
        with closing(client):
            client.request(method, target, None if body is None else json.dumps(body), fields)
            answer = client.getresponse()
            text = answer.read()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        check_answer(method, target.partition("?")[0], answer.status, headers, text)
        return answer.status, json.loads(text) if text else None

    @asynccontextmanager
    async def join(self, session: str, token: str) -> AsyncIterator[Client]:
        """A conversation; the stream is ours, since the library leaves one open whose other end closed it first."""
        plain = await trio.open_tcp_stream("127.0.0.1", self.server.port)
        stream = (
            plain
            if self.context is None
            else trio.SSLStream(plain, self.context, server_hostname="localhost", https_compatible=True)
        )
        try:
            async with trio.open_nursery() as nursery:
                resource = f"/api/ws/{session}?t={token}"
                socket = await wrap_client_stream(nursery, stream, "localhost", resource)
                assert (b"punch-version", b"1.0.0") in socket.handshake_headers
                yield Client(socket)
                nursery.cancel_scope.cancel()
        finally:
            await trio.aclose_forcefully(stream)


@pytest.fixture(params=["plain", "tls"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    certificate = context = None
    chosen = settings()
    if request.param == "tls":
        chain, key = write_certificate(tmp_path, "broker")
        certificate, context = Certificate(chain, key), ssl.create_default_context(cafile=str(chain))
        chosen = settings(insecure_dev=False, tls_cert=str(chain), tls_key=str(key))
    with trio.fail_after(PATIENCE_S):
        async with running(chosen, certificate=certificate) as server:
            yield Place(server, context)


async def test_b_055_b_056_b_057_b_058_b_070_another_implementation_plays_admin_and_both_peers(place: Place) -> None:
    status, made = await place.ask("POST", "/api/session", {"name": "show", "streams": ["wide"]})
    assert status == 201
    token = made["peerTokens"]["wide"]
    async with (
        place.join("show", made["token"]) as admin,
        place.join("show", token) as one,
        place.join("show", token) as two,
    ):
        assert (await admin.until("session"))["connected"] == 0
        await one.say("register", port=5000, role="sender", meta={"name": "ä" * 100})
        await one.until("session")
        await two.say("register", port=6000)
        told, other = await one.until("peer"), await two.until("peer")
        assert (told["port"], other["port"], other["meta"]) == (6000, 5000, {"name": "ä" * 100})
        assert told["passphrase"] == other["passphrase"]
        assert (await place.ask("GET", "/api/session/show/connect?port=5000", None, token))[0] == 200
        for peer in (one, two):
            await peer.say("ready")
        for peer in (one, two):
            assert (await peer.until("start"))["stream"] == "wide"
        await one.say("status", srt="connected")
        while (await admin.until("session"))["state"] != "CONNECTED":
            pass
        await two.say("health", rtt=40, retransmit=0.1, bitrate=4e6, dropped=0)
        assert (await admin.until("health_report"))["streams"]["wide"]["status"] == "healthy"
        await admin.say("tally", stream="wide", state="program")
        for client in (admin, one, two):
            assert (await client.until("tally"))["state"] == "program"
        await one.socket.send_message("punch.ping")
        await one.until("punch.pong")
        await two.socket.ping(b"payload")  # waits for the pong with the same payload
        assert (await place.ask("GET", "/api/session/show", None, token))[1]["state"] == "CONNECTED"
        assert (await place.ask("DELETE", "/api/session/show", None, made["token"]))[0] == 200
        assert [await client.closed() for client in (admin, one, two)] == [1000, 1000, 1000]
    end = ["session", "session_closed"]
    for peer in (one, two):
        heard = [kind for kind in peer.kinds if kind != "punch.pong"]
        assert heard == ["session", "peer", "session", "start", "session", "health_report", "tally", *end]
    assert admin.kinds == [
        "session", "session", "peer_match", "session", "session", "health_report", "tally", *end,
    ]  # fmt: skip


async def test_b_051_b_069_another_implementation_is_refused_and_closed_as_the_protocol_says(place: Place) -> None:
    _, made = await place.ask("POST", "/api/session", {"name": "show"})
    with pytest.RaisesGroup(ConnectionRejected, flatten_subgroups=True) as refused:
        async with place.join("show", "p_x.y"):
            pass
    [answer] = refused.value.exceptions
    while isinstance(answer, ExceptionGroup):
        [answer] = answer.exceptions
    assert isinstance(answer, ConnectionRejected)
    assert answer.status_code == 401
    headers = {name.decode(): value.decode() for name, value in answer.headers or ()}
    check_answer("GET", "/api/ws/show", answer.status_code, headers, answer.body or b"")
    async with place.join("show", made["token"]) as admin, place.join("show", made["peerTokens"]["default"]) as peer:
        await peer.say("register", port=5000)
        await peer.until("session")
        await peer.socket.aclose(1001, "going away")
        assert peer.socket.closed is not None
        assert peer.socket.closed.code == 1001  # our own code, as RFC 6455 §5.5.1 has it
        while (await admin.until("session"))["connected"] != 0 or len(admin.kinds) < 3:
            pass
        await admin.socket.send_message(b"\0\1")
        assert (await admin.until("error"))["code"] == "INVALID_MESSAGE"
        await admin.socket.send_message("x" * 20_000)
        assert await admin.closed() == 1011
