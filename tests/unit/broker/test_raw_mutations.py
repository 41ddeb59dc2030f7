"""Conversations damaged at random, many at once: the broker answers as its documents say, or ends them with 1011.

A conversation is what an HTTP client or a peer would send, whole or not; it is cut, repeated, mixed with others and
changed byte by byte, sent in one piece, and ended with FIN. The seed is fixed: what fails can be had again.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import random
import socket
from typing import Any

import pytest
import trio

from punchd.broker.sessions import Sessions
from tests.unit.broker.contract import TAP, check_error
from tests.unit.broker.peer import ROUNDS, Peer, settle
from tests.unit.broker.running import Running, parse, running, settings
from tests.unit.broker.test_raw_frames import BROKEN
from tests.unit.broker.test_raw_heads import CHUNKED, HOST, JSON, UPGRADE, sized, upgrade
from tests.unit.web.raw_websocket import PING, TEXT, closing, frame

AT_ONCE = 50
COUNTS = [10_000, pytest.param(300_000, marks=[pytest.mark.long, pytest.mark.timeout(1800)])]
# Objects that may be there in the end beside those after a third of it: trio forgets deadlines by the thousand.
GROWN = 5000
TROUBLE = (b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b";", b",", b"%", b'"', b"{", b"\xff", b"\x80", b"\xc0\xaf")


def conversations(made: dict[str, Any]) -> list[bytes]:
    """What clients of the session `made` send."""
    admin, peer = made["token"], made["peerTokens"]["default"]
    bearer = f"Authorization: Bearer {admin}\r\n".encode()
    view = b"GET /api/session/show HTTP/1.1\r\n" + HOST + bearer + b"\r\n"
    said = [
        b'{"type":"register","port":5000}',
        b'{"type":"ready"}',
        b'{"type":"status","srt":"connected"}',
        b"punch.ping",
    ]
    opening = upgrade(f"/api/ws/show?t={peer}", *UPGRADE)
    return [
        b"GET /api/health HTTP/1.1\r\n" + HOST + b"\r\n",
        b"HEAD / HTTP/1.1\r\n" + HOST + b"\r\n",
        view,
        view.replace(b"show", b"show/connect?format=url&side=a", 1),
        sized(b'{"name":"show","streams":["a","b"],"ttl":60}'),
        sized(b'{"ttl":5}', JSON + bearer).replace(b"/api/session", b"/api/session/show/token"),
        sized(b'{"token":"x"}', JSON + bearer).replace(b"POST /api/session", b"DELETE /api/session/show/token"),
        CHUNKED.replace(b"/", b"/api/session", 1) + b'9\r\n{"name":1\r\n1\r\n}\r\n0\r\n\r\n',
        upgrade(f"/api/ws/show?t={admin}", *UPGRADE) + frame(TEXT, b'{"type":"tally","state":"off"}') + closing(1000),
        opening + b"".join(frame(TEXT, text) for text in said) + frame(PING, b"x") + closing(1000),
        opening + frame(TEXT, said[0][:9], fin=False) + frame(0, said[0][9:]),
    ]


def damaged(chance: random.Random, good: list[bytes]) -> bytes:
    """One of them, or two, with none to five changes."""
    data = bytearray(chance.choice(good))
    if chance.random() < 0.2:
        data += chance.choice([*good, *BROKEN.values()][: 40 + len(good)])[:20_000]
    for _ in range(chance.choice((0, 1, 1, 1, 2, 5))):
        place = chance.randrange(len(data) + 1)
        match chance.randrange(6):
            case 0:
                data[place:place] = chance.choice(TROUBLE)
            case 1:
                del data[place : place + chance.choice((1, 2, 30))]
            case 2:
                data[place : place + 1] = bytes([chance.randrange(256)])
            case 3 if place < len(data):
                data[place] ^= 1 << chance.randrange(8)
            case 4:
                data[place:place] = data[chance.randrange(len(data) + 1) :][: chance.choice((4, 100))]
            case _:
                del data[chance.randrange(len(data) + 1) :]
    is_the_end = b"DELETE /api/session/show " in data or b"DELETE /api/session/show?" in data  # of what is watched
    return damaged(chance, good) if is_the_end else bytes(data)


class Heard:
    """What one client heard."""

    def __init__(self, sock: socket.socket, sent: bytes) -> None:
        self.sock = sock
        self.sent = sent
        self.data = bytearray()

    def pull(self) -> bool:
        """Read what is there; whether the server has closed."""
        try:
            while more := self.sock.recv(65_536, socket.MSG_DONTWAIT):
                self.data += more
        except BlockingIOError:
            return False
        except ConnectionResetError:
            pass
        return True

    def check(self) -> list[int]:
        """The statuses of all answers. What is wrong with one is a failure."""
        TAP.sent(bytes(self.data))
        statuses = []
        while self.data:
            answer = parse(bytes(self.data), "GET")
            is_head = answer is None or answer.body.startswith(b"HTTP/1.1 ") or not answer.body
            answer = parse(bytes(self.data), "HEAD") if is_head else answer
            assert answer is not None, (self.sent, bytes(self.data))
            assert answer.headers["punch-version"] == "1.0.0"
            assert answer.status < 500 or answer.status in (501, 505), (self.sent, answer)
            statuses.append(answer.status)
            if answer.status == 101:
                self._converse(answer.body)
                break
            if answer.status >= 400 and answer.body:
                check_error(answer.body)
            del self.data[: self.data.index(b"\r\n\r\n") + 4 + len(answer.body)]
        return statuses

    def _converse(self, frames: bytes) -> None:
        peer = Peer(self.sock)
        peer._asked_to_close = True  # it may have, and then it hears its own code again
        peer.feed(frames)
        assert peer.protocol.parser_exc is None or isinstance(peer.protocol.parser_exc, EOFError)
        is_closed_by_client = b"\x88" in self.sent
        assert peer.close_code in (None, 1000, 1011) or is_closed_by_client, (self.sent, peer.close_code)


@pytest.mark.parametrize("count", COUNTS)
async def test_b_042_b_044_b_069_damaged_conversations_end_well_and_leave_nothing(count: int) -> None:
    chance = random.Random(1935)
    before = len(TAP.lines)
    seen: dict[int, int] = {}
    objects = 0
    async with running(settings({"sessions_per_source": 10**6, "connects_per_second": 10**6})) as server:
        made = await server.create()
        good = conversations(made)
        watcher = await server.join("show", made["token"])
        await settle()
        at_rest = _use(server)
        for turn in range(count // AT_ONCE):
            for status in await _turn(server, [damaged(chance, good) for _ in range(AT_ONCE)]):
                seen[status] = seen.get(status, 0) + 1
            if turn % 20 == 0:
                await watcher.heard()
                await _close_all_but(server, "show")
                assert _use(server) == at_rest
            if turn == count // AT_ONCE // 3:
                objects = _objects()
        await watcher.heard()
        assert watcher.is_open
        await _close_all_but(server, "show")
        assert _use(server) == at_rest
        assert _objects() - objects < GROWN
        assert (await server.ask("GET", "/api/session/show", token=made["token"])).status == 200
    said = [line for _, line in TAP.lines[before:]]
    assert [line for line in said if "failed" in line or "internal error" in line or "Traceback" in line] == []
    assert {101, 200, 400, 401, 404, 405, 409, 415, 426} <= set(seen), seen
    del TAP.lines[before:]


async def _turn(server: Running, sent: list[bytes]) -> list[int]:
    """Many conversations at once, until the server has ended each."""
    clients: list[Heard] = []
    for data in sent:
        clients.append(Heard(server.connect(f"127.0.3.{len(clients) + 1}"), data))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            clients[-1].sock.sendall(data)
            clients[-1].sock.shutdown(socket.SHUT_WR)
    waiting = clients
    for _ in range(ROUNDS):
        await settle()
        waiting = [client for client in waiting if not client.pull()]
        if not waiting:
            break
    assert waiting == [], waiting[0].sent
    for client in clients:
        client.sock.close()
    server.opened[:] = [sock for sock in server.opened if sock.fileno() >= 0]
    return [status for client in clients for status in client.check()]


async def _close_all_but(server: Running, name: str) -> None:
    """End the sessions that damaged requests created."""
    sessions = server.broker.sessions
    assert isinstance(sessions, Sessions)
    for one in [*sessions._live]:
        if one != name:
            await sessions.close(one)
    await settle()


def _use(server: Running) -> tuple[int, int, int, int]:
    """Sessions, WebSockets, tasks and descriptors."""
    tasks = trio.lowlevel.current_statistics().tasks_living
    return len(server.broker.sessions), len(server.broker.sockets), tasks, len(os.listdir("/proc/self/fd"))


def _objects() -> int:
    """That Python knows of; what the tests remember of the log is not counted."""
    TAP.lines[:] = [line for line in TAP.lines if "failed" in line[1] or "error" in line[1]]
    gc.collect()
    return sum(type(one) is not logging.LogRecord for one in gc.get_objects())
