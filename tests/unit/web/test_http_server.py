"""HTTP over real sockets: answers, their order, refusals, handlers that fail."""

from __future__ import annotations

import json
import logging
import re
import socket
import time
from email.utils import parsedate_to_datetime
from ipaddress import ip_address

import pytest
import trio

from punchd.endpoint import Endpoint
from punchd.web.messages import Answer, Headers, Problem, Request, Response, problem_response, text_response
from punchd.web.server import WebServer
from tests.unit.web.site import (
    GET,
    LAST_GET,
    PATIENCE_S,
    field,
    read_all,
    read_answer,
    reply,
    serving,
    status,
    statuses,
)


async def test_an_answer_has_the_fields_that_clients_go_by() -> None:
    async with serving() as site:
        answer = await site.exchange(LAST_GET)
    assert status(answer) == 200
    assert field(answer, "server") == "punchd"
    assert field(answer, "connection") == "close"
    assert field(answer, "content-type") == "application/json"
    assert abs(parsedate_to_datetime(field(answer, "date") or "").timestamp() - time.time()) < 60
    assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", field(answer, "date") or "")
    body = answer.partition(b"\r\n\r\n")[2]
    assert field(answer, "content-length") == str(len(body))
    assert json.loads(body) == {"method": "GET", "path": "/", "query": {}, "host": "test", "body": "", "tls": False}


async def test_a_connection_serves_one_request_after_the_other() -> None:
    async with serving() as site, await site.connect() as stream:
        for _ in range(3):
            await stream.send_all(GET)
            answer = await read_answer(stream)
            assert status(answer) == 200
            assert field(answer, "connection") is None
        assert site.server.counts.connections == 1


async def test_an_old_client_hears_whether_the_connection_goes_on() -> None:
    async with serving() as site, await site.connect() as stream:
        await stream.send_all(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert field(await read_answer(stream), "connection") == "keep-alive"
        await stream.send_all(b"GET / HTTP/1.0\r\n\r\n")
        assert field(await read_all(stream), "connection") == "close"


async def test_requests_sent_ahead_are_answered_in_order_even_behind_a_slow_one() -> None:
    running = 0

    async def handle(request: Request) -> Answer:
        nonlocal running
        running += 1
        assert running == 1
        await trio.sleep(0.05 if request.path == "/0" else 0)
        running -= 1
        return text_response(f"<{request.path}>")

    paths = [f"/{number}" for number in range(200)]
    data = b"".join(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode() for path in paths)
    async with serving(handle) as site, await site.connect() as stream:
        await stream.send_all(data + LAST_GET)
        answers = await read_all(stream)
    assert re.findall(rb"<([^>]*)>", answers) == [path.encode() for path in paths] + [b"/"]


async def test_head_has_the_length_of_the_body_and_no_body() -> None:
    async with serving() as site, await site.connect() as stream:
        await stream.send_all(b"HEAD /big?size=1000 HTTP/1.1\r\nHost: a\r\n\r\n" + LAST_GET)
        head, _, rest = (await read_all(stream)).partition(b"\r\n\r\n")
    assert b"Content-Length: 1000" in head
    assert status(rest) == 200


async def test_an_answer_without_body_has_no_length() -> None:
    async with serving() as site, await site.connect() as stream:
        await stream.send_all(b"GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n" + LAST_GET)
        head, _, rest = (await read_all(stream)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 204 No Content\r\n")
    assert b"Content-Length" not in head
    assert status(rest) == 200


async def test_a_client_that_waits_for_100_continue_hears_it_before_the_answer() -> None:
    fields = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
    async with serving() as site, await site.connect() as stream:
        await stream.send_all(fields)
        with trio.fail_after(PATIENCE_S):
            assert await stream.receive_some(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        await stream.send_all(b"hello")
        assert json.loads((await read_answer(stream)).partition(b"\r\n\r\n")[2])["body"] == "hello"
        await stream.send_all(fields + b"again")  # came along: nothing to wait for
        assert status(await read_answer(stream)) == 200


async def test_a_body_that_is_announced_too_large_is_refused_before_it_is_sent() -> None:
    async with serving() as site:
        answer = await site.exchange(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 65537\r\nExpect: 100-continue\r\n\r\n"
        )
    assert statuses(answer) == [413]


async def test_a_malformed_request_gets_one_clear_answer_after_those_before_it_and_the_connection_ends() -> None:
    async with serving() as site:
        answers = await site.exchange(GET + b"GET / HTTP/1.1\r\nHost: a\r\nA : b\r\n\r\n" + GET)
    assert statuses(answers) == [200, 400]
    head, _, body = answers[answers.index(b"HTTP/1.1 400") :].partition(b"\r\n\r\n")
    assert b"Connection: close" in head
    assert json.loads(body) == {
        "ok": False,
        "error": "BAD_REQUEST",
        "message": "malformed request: Invalid header token",
    }


async def test_a_refusal_gets_through_to_a_client_that_is_still_sending() -> None:
    async with serving() as site, await site.connect() as stream:
        await stream.send_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n")
        await trio.sleep(0.05)
        for _ in range(10):
            await stream.send_all(b"x" * 100_000)
        assert statuses(await read_all(stream)) == [413]


async def test_refusals_look_as_the_server_wants_them() -> None:
    def problem(it: Problem) -> Response:
        return Response(it.status, (("Punch-Version", "1.0.0"), *it.headers), it.code.encode())

    with socket.create_server(("127.0.0.1", 0)) as listener:
        stop = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(WebServer(reply, problem=problem).serve, [listener], stop)
            async with await trio.open_tcp_stream(*listener.getsockname()) as stream:
                await stream.send_all(b"bad\r\n\r\n")
                answer = await read_all(stream)
            stop.set()
    assert field(answer, "punch-version") == "1.0.0"
    assert answer.endswith(b"\r\n\r\nBAD_REQUEST")


# --- handlers that fail ---------------------------------------------------------------------------------------------


async def test_what_a_handler_raises_is_logged_once_without_secrets_and_the_client_hears_500(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = b"GET /fail?t=s3cret HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer s3cret\r\n\r\n"
    async with serving() as site, await site.connect() as stream:
        await stream.send_all(secret)
        answer = await read_answer(stream)
        await stream.send_all(GET)
        assert status(await read_answer(stream)) == 200
        assert site.server.counts.failures == 1
    assert status(answer) == 500
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"] == "INTERNAL_ERROR"
    assert b"oops" not in answer
    errors = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(errors) == 1
    assert "ValueError: oops" in caplog.text
    assert "s3cret" not in caplog.text


async def test_a_handler_that_gives_no_answer_is_a_failure_too(caplog: pytest.LogCaptureFixture) -> None:
    async def handle(_: Request) -> Answer:
        return None  # type: ignore[return-value]

    async with serving(handle) as site:
        assert status(await site.exchange(LAST_GET)) == 500
    assert "NoneType, which is no answer" in caplog.text


async def test_no_log_record_has_the_value_of_a_field(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    key = b"Authorization: Bearer s3cret\r\n"
    opening = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    requests = [
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n" + key + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: a b\r\n" + key + b"\r\n",
        b"GET /?t=s3cret HTTP/1.1\r\nHost: a\r\nA\r\n" + key + b"\r\n",
        b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: close\r\n" + key + b"\r\n",
        b"GET /ws HTTP/1.1\r\nHost: a\r\n"
        + key
        + opening
        + b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n\x83\x00",
    ]
    async with serving() as site:
        for request in requests:
            await site.exchange(request)
    assert "s3cret" not in caplog.text


def test_the_repr_of_a_request_shows_no_values() -> None:
    headers = Headers([("authorization", "Bearer s3cret")])
    peer = Endpoint(ip_address("192.0.2.1"), 1)
    shown = repr(Request("GET", "/a?t=s3cret", "/a", {"t": "s3cret"}, headers, b"s3cret", peer))
    assert "s3cret" not in shown
    assert "authorization" in shown


@pytest.mark.parametrize(
    "make",
    [
        lambda: Response(101),
        lambda: Response(204, (), b"x"),
        lambda: Response(200, (("A\r\nB", "c"),)),
        lambda: Response(200, (("A", "b\r\nSet-Cookie: c"),)),
        lambda: Response(200, (("Content-Length", "5"),)),
        lambda: Response(200, (("transfer-encoding", "chunked"),)),
        lambda: Response(200, (("A", "\u20ac"),)),
    ],
)
def test_an_answer_that_would_break_the_framing_cannot_be_made(make: object) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match="response"):
        make()


def test_problems_are_json_with_the_fields_that_go_with_them() -> None:
    answer = problem_response(Problem(405, "METHOD_NOT_ALLOWED", "expected GET", (("Allow", "GET"),)))
    assert ("Allow", "GET") in answer.headers
    assert ("Cache-Control", "no-store") in answer.headers
    assert json.loads(answer.body) == {"ok": False, "error": "METHOD_NOT_ALLOWED", "message": "expected GET"}
