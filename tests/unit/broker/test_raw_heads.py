"""Heads, bodies and upgrades that a client without an HTTP library can send, against a running broker.

What is no request at all is listed once, with the shell's tests; here it has to be answered in the broker's words. The
rest is what only the broker can answer: its routes, its tokens, its upgrade.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Any

import pytest
from trio.testing import MockClock

from tests.unit.broker.contract import TAP, check_answer
from tests.unit.broker.peer import ROUNDS, Peer, settle
from tests.unit.broker.running import Running, parse, running
from tests.unit.web.raw_websocket import TEXT, closing, frame
from tests.unit.web.test_http_heads import BAD_CHUNKS, MALFORMED

HOST = b"Host: broker.example\r\n"
CHUNKED = b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
KEY, VERSION = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13"
UPGRADE = ("Host: broker.example", "Connection: Upgrade", "Upgrade: websocket", VERSION, KEY)
GOOD = b"GET /api/health HTTP/1.1\r\n" + HOST + b"\r\n"
JSON = b"Content-Type: application/json\r\n"


async def all_answers(sock: socket.socket, methods: tuple[str, ...] = ()) -> list[tuple[int, str]]:
    """Status and error code of all that comes until the server closes. What is answered with 200 is health."""
    data = bytearray()
    for _ in range(ROUNDS):
        await settle()
        try:
            while more := sock.recv(65_536, socket.MSG_DONTWAIT):
                data += more
        except BlockingIOError:
            continue
        except ConnectionResetError:
            pass
        break
    else:
        raise AssertionError(f"the connection is still open after {bytes(data)!r}")
    TAP.sent(bytes(data))
    found: list[tuple[int, str]] = []
    while data:
        method = methods[len(found)] if len(found) < len(methods) else "GET"
        answer = parse(bytes(data), method)
        assert answer is not None, bytes(data)
        path = "/api/health" if answer.status == 200 else "-"
        check_answer(method, path, answer.status, answer.headers, answer.body)
        found.append((answer.status, answer.error if answer.status >= 400 else ""))
        del data[: data.index(b"\r\n\r\n") + 4 + len(answer.body)]
    return found


async def sent(server: Running, data: bytes, methods: tuple[str, ...] = ()) -> list[tuple[int, str]]:
    """What comes of bytes and the end of what a client sends."""
    with contextlib.closing(server.connect()) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        return await all_answers(sock, methods)


def code_of(status: int) -> str:
    return "PAYLOAD_TOO_LARGE" if status in (413, 414, 431) else "INVALID_REQUEST"


async def test_b_042_b_044_all_that_is_no_request_is_answered_once_in_our_words_and_the_connection_ends() -> None:
    table = [*MALFORMED, *((CHUNKED + body, status) for body, status in BAD_CHUNKS)]
    assert len(table) >= 90
    async with running() as server:
        for data, status in table:
            assert await sent(server, data + GOOD) == [(status, code_of(status))], data[:200]
            assert await sent(server, GOOD) == [(200, "")]


def post(fields: bytes, body: bytes, target: bytes = b"/api/session") -> bytes:
    return b"POST " + target + b" HTTP/1.1\r\n" + HOST + fields + b"\r\n" + body


def sized(body: bytes, fields: bytes = JSON) -> bytes:
    return post(fields + b"Content-Length: %d\r\n" % len(body), body)


INVALID, MEDIA = "INVALID_REQUEST", "UNSUPPORTED_MEDIA_TYPE"
# Bytes, and what is answered to them: a good request comes behind each, and is answered where the list says so.
REQUESTS: list[tuple[bytes, list[tuple[int, str]]]] = [
    # routes and methods
    (b"GET /api/session HTTP/1.1\r\n" + HOST + b"\r\n", [(405, "METHOD_NOT_ALLOWED"), (200, "")]),
    (b"PATCH /api/health HTTP/1.1\r\n" + HOST + b"\r\n", [(405, "METHOD_NOT_ALLOWED"), (200, "")]),
    (b"TRACE /api/health HTTP/1.1\r\n" + HOST + b"\r\n", [(405, "METHOD_NOT_ALLOWED"), (200, "")]),
    (b"GET /api/health/ HTTP/1.1\r\n" + HOST + b"\r\n", [(404, "NOT_FOUND"), (200, "")]),
    (b"GET //api/health HTTP/1.1\r\n" + HOST + b"\r\n", [(404, "NOT_FOUND"), (200, "")]),
    (b"GET /api/./health HTTP/1.1\r\n" + HOST + b"\r\n", [(404, "NOT_FOUND"), (200, "")]),
    (b"GET /api/x/../health HTTP/1.1\r\n" + HOST + b"\r\n", [(404, "NOT_FOUND"), (200, "")]),
    (b"GET /api%2Fhealth HTTP/1.1\r\n" + HOST + b"\r\n", [(200, ""), (200, "")]),
    (b"GET /api/health%0a HTTP/1.1\r\n" + HOST + b"\r\n", [(400, INVALID)]),
    (b"GET /api/health?%zz HTTP/1.1\r\n" + HOST + b"\r\n", [(400, INVALID)]),
    (b"GET /api/health?" + b"x" * 8000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", [(200, ""), (200, "")]),
    (b"GET http://elsewhere.example/api/health HTTP/1.1\r\n" + HOST + b"\r\n", [(200, ""), (200, "")]),
    (b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", [(404, "NOT_FOUND"), (200, "")]),
    (b"GET /api/health HTTP/1.0\r\n\r\n", [(200, "")]),
    (b"GET /api/health HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n", [(200, "")]),
    (b"\r\n\r\n" + GOOD, [(200, ""), (200, "")]),
    # tokens
    (b"GET /api/session/show HTTP/1.1\r\n" + HOST + b"\r\n", [(401, "AUTH_FAILED"), (200, "")]),
    (b"GET /api/session/ HTTP/1.1\r\n" + HOST + b"\r\n", [(401, "AUTH_FAILED"), (200, "")]),
    (b"GET /api/session/a%2Fb HTTP/1.1\r\n" + HOST + b"\r\n", [(404, "NOT_FOUND"), (200, "")]),
    *(
        (
            b"GET /api/session/show HTTP/1.1\r\n" + HOST + b"Authorization:" + value + b"\r\n\r\n",
            [(401, "AUTH_FAILED"), (200, "")],
        )
        for value in (
            b"", b" Bearer", b" Bearer ", b" Basic eDp5", b" Bearer a b", b" Bearer p_a.b, Bearer p_a.b", b" Bearer\tx",
            b" Bearer " + b"x" * 600, b" Bearer \xff", b" p_a.b", b" Bearer=p_a.b",
        )
    ),
    # bodies
    (post(b"", b""), [(415, MEDIA), (200, "")]),
    (sized(b"{}", b""), [(415, MEDIA), (200, "")]),
    (sized(b"{}", b"Content-Type: text/json\r\n"), [(415, MEDIA), (200, "")]),
    (sized(b"{}", b"Content-Type: application/jsonx\r\n"), [(415, MEDIA), (200, "")]),
    (sized(b"{}", JSON), [(400, INVALID), (200, "")]),
    (sized(b"", JSON), [(400, INVALID), (200, "")]),
    (sized(b'{"name":"x"', JSON), [(400, INVALID), (200, "")]),
    (sized(b"\xef\xbb\xbf" + b'{"name":"x"}', JSON), [(400, INVALID), (200, "")]),
    (sized('{"name":"x"}'.encode("utf-16"), JSON), [(400, INVALID), (200, "")]),
    (sized(b'{"name":"x","name":"y"}', JSON), [(400, INVALID), (200, "")]),
    (sized(b"[" * 10_000, JSON), [(400, INVALID), (200, "")]),
    (sized(b'{"name":"x","ttl":' + b"9" * 5000 + b"}", JSON), [(400, INVALID), (200, "")]),
    (sized(b" " * 16_385, JSON), [(413, "PAYLOAD_TOO_LARGE"), (200, "")]),
    (sized(b" " * 65_536, JSON), [(413, "PAYLOAD_TOO_LARGE"), (200, "")]),
    (post(JSON + b"Content-Length: 65537\r\n", b""), [(413, "PAYLOAD_TOO_LARGE")]),
    (post(JSON + b"Transfer-Encoding: chunked\r\n", b"2\r\n{}\r\n0\r\n\r\n"), [(400, INVALID), (200, "")]),
    (post(JSON + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n", b"\x1f\x8b"), [(400, INVALID), (200, "")]),
    # what a proxy that counts otherwise would take for one request, or for two
    (post(JSON + b"Content-Length: 0\r\n", GOOD), [(400, INVALID), (200, ""), (200, "")]),
    (post(JSON + b"Content-Length: 5\r\nContent-Length: 0\r\n", GOOD), [(400, INVALID)]),
    (post(JSON + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", b"0\r\n\r\n" + GOOD), [(400, INVALID)]),
    (post(JSON + b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n" + GOOD), [(400, INVALID), (200, ""), (200, "")]),
    (post(JSON + b"Transfer-Encoding : chunked\r\n", b"0\r\n\r\n"), [(400, INVALID)]),
    (post(JSON + b"Transfer-Encoding:\x0bchunked\r\n", b"0\r\n\r\n"), [(400, INVALID)]),
    (b"GET /api/health HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\nGET /", [(200, ""), (200, "")]),
    (b"GET /api/health HTTP/1.1\r\n" + HOST + b"X: a\n b\r\n\r\n", [(400, INVALID)]),
    (b"GET /api/health HTTP/1.1\r\n" + HOST + b"X: a\r\n\tb\r\n\r\n", [(400, INVALID)]),
]  # fmt: skip


async def test_b_030_b_031_b_042_b_044_what_the_broker_itself_refuses_leaves_the_connection_as_it_should_be() -> None:
    async with running() as server:
        for data, expected in REQUESTS:
            assert await sent(server, data + GOOD) == expected, data[:200]
        assert len(server.broker.sessions) == 0


def upgrade(target: str, *fields: str, line: str = "GET {} HTTP/1.1") -> bytes:
    return "\r\n".join([line.format(target), *fields, "", ""]).encode("latin-1")


def without(name: str, *more: str) -> tuple[str, ...]:
    return (*(field for field in UPGRADE if not field.startswith(name)), *more)


UPGRADES: list[tuple[tuple[str, ...], int]] = [
    (UPGRADE, 101),
    (without("Host"), 400),
    ((*UPGRADE, "Host: other.example"), 400),
    # Connection
    (without("Connection"), 426),
    (without("Connection", "Connection: keep-alive"), 426),
    (without("Connection", "Connection: upgraded"), 426),
    (without("Connection", "Connection: keep-alive, uPGRADE"), 101),
    (without("Connection", "Connection: keep-alive", "Connection: Upgrade"), 101),
    (without("Connection", "Connection: close, Upgrade"), 101),
    # Upgrade
    (without("Upgrade"), 426),
    (without("Upgrade", "Upgrade:"), 426),
    (without("Upgrade", "Upgrade: h2c"), 426),
    (without("Upgrade", "Upgrade: websockets"), 426),
    (without("Upgrade", "Upgrade: WebSocket"), 101),
    (without("Upgrade", "Upgrade: websocket/13"), 426),
    # Sec-WebSocket-Version
    (without("Sec-WebSocket-Version"), 400),
    (without("Sec-WebSocket-Version", "Sec-WebSocket-Version: 8"), 400),
    (without("Sec-WebSocket-Version", "Sec-WebSocket-Version: 14"), 400),
    (without("Sec-WebSocket-Version", "Sec-WebSocket-Version: 013"), 400),
    (without("Sec-WebSocket-Version", "Sec-WebSocket-Version: 13, 8"), 400),
    (without("Sec-WebSocket-Version", "Sec-WebSocket-Version: +13"), 400),
    ((*UPGRADE, VERSION), 400),
    # Sec-WebSocket-Key
    (without("Sec-WebSocket-Key"), 400),
    (without("Sec-WebSocket-Key", "Sec-WebSocket-Key:"), 400),
    (without("Sec-WebSocket-Key", "Sec-WebSocket-Key: dGhl"), 400),
    (without("Sec-WebSocket-Key", f"{KEY[:-4]}===="), 400),
    (without("Sec-WebSocket-Key", "Sec-WebSocket-Key: " + "A" * 24), 400),
    (without("Sec-WebSocket-Key", "Sec-WebSocket-Key: " + "A" * 1000), 400),
    (without("Sec-WebSocket-Key", "Sec-WebSocket-Key: \xe4" + "A" * 21 + "=="), 400),
    ((*UPGRADE, KEY), 400),
    # what is offered and not wanted
    ((*UPGRADE, "Sec-WebSocket-Protocol: chat"), 101),
    ((*UPGRADE, "Sec-WebSocket-Extensions: permessage-deflate"), 101),
    ((*UPGRADE, "Sec-WebSocket-Extensions: ;;;"), 101),
    ((*UPGRADE, "Origin: null"), 101),
    # a body
    ((*UPGRADE, "Content-Length: 0"), 101),
    ((*UPGRADE, "Content-Length: 2"), 400),
    ((*UPGRADE, "Transfer-Encoding: chunked"), 400),
    ((*UPGRADE, "Expect: 100-continue"), 101),
]
LINES = [
    ("GET {} HTTP/1.0", 400),
    ("HEAD {} HTTP/1.1", 426),
    ("POST {} HTTP/1.1", 405),
    ("PUT {} HTTP/1.1", 405),
    ("CONNECT {} HTTP/1.1", 501),
    ("GET {}&t=p_x.y HTTP/1.1", 101),  # the first of them counts
    ("GET {}#x HTTP/1.1", 400),
    ("GET {}&x=%00 HTTP/1.1", 101),
    ("get {} HTTP/1.1", 400),
    ("GET http://elsewhere.example{} HTTP/1.1", 101),
]


async def test_b_042_b_044_b_051_an_upgrade_that_is_none_is_a_plain_answer() -> None:
    cases = [(*case, "GET {} HTTP/1.1") for case in UPGRADES] + [(UPGRADE, status, line) for line, status in LINES]
    async with running() as server:
        made = await server.create()
        for fields, status, line in cases:
            with contextlib.closing(server.connect()) as sock:
                body = b"2\r\n{}\r\n0\r\n\r\n" if "Transfer-Encoding: chunked" in fields else b"{}"
                has_body = any(field in fields for field in ("Content-Length: 2", "Transfer-Encoding: chunked"))
                head = upgrade(f"/api/ws/show?t={made['token']}", *fields, line=line)
                sock.sendall(head + (body if has_body else b""))
                answer = await server.read(sock, line.split()[0], "/api/ws/show")
                assert answer.status == status, (fields, line)
                assert "sec-websocket-protocol" not in answer.headers
                assert "sec-websocket-extensions" not in answer.headers
                if status == 101:
                    peer = Peer(sock)
                    peer.feed(answer.body)
                    peer.write(closing(1000))
                    peer._asked_to_close = True
                    assert await peer.ended() == 1000
                assert status != 426 or answer.headers["upgrade"] == "websocket"


@pytest.mark.parametrize(
    "target", ["/api/ws/{}", "/api/ws/show/{}", "/api/session/{}", "/api/session/show/{}", "/s/{}"]
)
async def test_b_112_a_token_in_a_path_is_nothing_but_a_name(target: str) -> None:
    async with running() as server:
        made = await server.create()
        found = await sent(server, upgrade(target.format(made["token"]), *UPGRADE))
        assert [status for status, _ in found] in ([401], [404])


async def test_b_044_bytes_one_by_one_and_requests_ahead_give_the_same_answers() -> None:
    wrong = b"GET /nowhere HTTP/1.1\r\n" + HOST + b"\r\n"
    stream = GOOD + wrong + sized(b"{}") + b"GET / HTTP/9.9\r\n" + HOST + b"\r\n" + GOOD
    expected = [(200, ""), (404, "NOT_FOUND"), (400, INVALID), (505, INVALID)]
    async with running() as server:
        assert await sent(server, stream) == expected
        with contextlib.closing(server.connect()) as sock:
            for byte in stream[: stream.index(b"9.9\r\n") + 40]:
                sock.sendall(bytes([byte]))
            sock.shutdown(socket.SHUT_WR)
            assert await all_answers(sock) == expected


async def test_b_042_a_head_or_a_body_that_does_not_come_to_its_end_is_given_up(mock_clock: MockClock) -> None:
    async with running() as server:
        socks = [server.connect() for _ in range(4)]
        socks[0].sendall(b"GET /api/heal")
        socks[1].sendall(post(JSON + b"Content-Length: 5\r\n", b"{"))
        socks[2].sendall(upgrade("/api/ws/show", *UPGRADE)[:-1])
        await settle()
        mock_clock.jump(25)
        assert [await all_answers(sock) for sock in socks[:3]] == [[(408, INVALID)]] * 3
        assert await all_answers(socks[3]) == []


async def test_a_client_that_stops_in_the_middle_is_not_answered_and_leaves_nothing() -> None:
    async with running() as server:
        for data in (b"GET /", GOOD[:-1], post(JSON + b"Content-Length: 50\r\n", b"{}"), CHUNKED + b"5\r\nhe"):
            assert await sent(server, data) == []
        made: dict[str, Any] = await server.create()
        head = upgrade(f"/api/ws/show?t={made['token']}", *UPGRADE)
        for more in (b"", frame(TEXT, b"{}")[:3]):
            with contextlib.closing(server.connect()) as sock:
                sock.sendall(head + more)
                sock.shutdown(socket.SHUT_WR)
                peer = Peer(sock)
                answer = await server.read(sock, "GET", "/api/ws/show")
                peer.feed(answer.body)
                assert answer.status == 101
                assert await peer.ended() in (None, 1011)
        await settle()
        assert len(server.broker.sockets) == 0
