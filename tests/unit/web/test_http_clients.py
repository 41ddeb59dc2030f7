"""HTTP clients that are slow, rude or gone, and those that wait."""

from __future__ import annotations

import contextlib
import socket
import struct

import pytest
import trio

from punchd.web.limits import Limits
from punchd.web.messages import Answer, LongPoll, Request, Response, text_response
from tests.unit.web.site import GET, LAST_GET, PATIENCE_S, emptied, read_all, read_answer, serving, status, statuses

SHORT = Limits(head_s=0.3, idle_s=0.3, body_s=0.3, write_s=0.05, linger_s=0.3)
RST = struct.pack("ii", 1, 0)


async def drip(stream: trio.SocketStream, data: bytes) -> bytes:
    """A byte every 50 ms, as long as the server takes them; then what it said."""
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                try:
                    for byte in data:
                        await stream.send_all(bytes([byte]))
                        await trio.sleep(0.05)
                except trio.BrokenResourceError:
                    return

            nursery.start_soon(send)
            answer = await read_all(stream)
            nursery.cancel_scope.cancel()
    return answer


async def test_a_head_that_drips_in_is_given_up_with_408() -> None:
    async with serving(limits=SHORT) as site, await site.connect() as stream:
        answer = await drip(stream, b"GET / HTTP/1.1\r\nX: " + b"x" * 1000)
    assert statuses(answer) == [408]


@pytest.mark.parametrize("fields", [b"Content-Length: 1000", b"Transfer-Encoding: chunked"])
async def test_a_body_that_drips_in_is_given_up_with_408(fields: bytes) -> None:
    async with serving(limits=SHORT) as site, await site.connect() as stream:
        await stream.send_all(b"POST / HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n\r\n")
        answer = await drip(stream, b"1\r\nx\r\n" * 100)
    assert statuses(answer) == [408]


async def test_a_connection_without_a_request_is_closed_without_a_word() -> None:
    async with serving(limits=SHORT) as site:
        assert await site.exchange(b"") == b""
        async with await site.connect() as stream:
            await stream.send_all(GET)
            assert statuses(await read_all(stream)) == [200]


async def test_a_client_that_does_not_read_its_answer_is_dropped() -> None:
    async with serving(limits=SHORT) as site, await site.connect() as stream:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await stream.send_all(b"GET /big?size=1000000 HTTP/1.1\r\nHost: a\r\n\r\n")
        await emptied(site)
        assert site.server.counts.dropped == 1
        with contextlib.suppress(trio.BrokenResourceError):
            assert len(await read_all(stream)) < 1_000_000


async def test_a_client_that_resets_at_any_moment_leaves_nothing() -> None:
    async with serving() as site:
        post = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhe"
        for data in (b"", b"GET", post, GET * 50, b"GET /poll HTTP/1.1\r\nHost: a\r\n\r\n", b"bad\r\n"):
            stream = await site.connect()
            await stream.send_all(data)
            await trio.sleep(0.02)
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
            await stream.aclose()
        await emptied(site)
        assert status(await site.exchange(LAST_GET)) == 200


async def test_a_client_that_ends_its_half_still_gets_the_answer_to_a_plain_request() -> None:
    async def handle(_: Request) -> Answer:
        await trio.sleep(0.05)
        return text_response("done")

    async with serving(handle) as site, await site.connect() as stream:
        await stream.send_all(GET)
        await stream.send_eof()
        assert (await read_all(stream)).endswith(b"done")


# --- long polls -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["fin", "rst"])
async def test_a_long_poll_is_cancelled_when_its_client_goes_away(way: str) -> None:
    waiting, cancelled = trio.Event(), trio.Event()

    async def wait() -> Response:
        waiting.set()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async def handle(_: Request) -> Answer:
        return LongPoll(wait)

    async with serving(handle) as site:
        stream = await site.connect()
        await stream.send_all(GET)
        with trio.fail_after(PATIENCE_S):
            await waiting.wait()
            if way == "rst":
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
            await stream.aclose()
            await cancelled.wait()


async def test_a_handler_is_not_cancelled_when_its_client_goes_away() -> None:
    begun, done = trio.Event(), trio.Event()

    async def handle(_: Request) -> Answer:
        begun.set()
        await trio.sleep(0.2)
        done.set()
        return text_response("nobody reads this")

    async with serving(handle) as site:
        stream = await site.connect()
        await stream.send_all(GET)
        with trio.fail_after(PATIENCE_S):
            await begun.wait()
            await stream.aclose()
            await done.wait()


async def test_a_long_poll_answers_and_the_connection_goes_on() -> None:
    async def wait() -> Response:
        await trio.sleep(0.05)
        return text_response("news")

    async def handle(_: Request) -> Answer:
        return LongPoll(wait)

    async with serving(handle) as site, await site.connect() as stream:
        await stream.send_all(GET + GET)  # the second is sent ahead, while the first waits
        assert (await read_answer(stream)).endswith(b"news")
        assert (await read_answer(stream)).endswith(b"news")


async def test_a_client_that_floods_a_long_poll_is_let_go() -> None:
    async with serving() as site, await site.connect() as stream:
        await stream.send_all(b"GET /poll HTTP/1.1\r\nHost: a\r\n\r\n")
        with trio.fail_after(PATIENCE_S), contextlib.suppress(trio.BrokenResourceError):
            while True:
                await stream.send_all(GET * 100)
        await emptied(site)


async def test_an_answer_that_came_too_late_for_its_client_is_given_back() -> None:
    given_back = trio.Event()

    async def wait() -> Response:
        with trio.CancelScope(shield=True):
            await trio.sleep(0.2)
        return text_response("news")

    async def unsent() -> None:
        given_back.set()

    async def handle(_: Request) -> Answer:
        return LongPoll(wait, unsent=unsent)

    async with serving(handle) as site:
        async with await site.connect() as stream:
            await stream.send_all(GET)
            await trio.sleep(0.05)
        with trio.fail_after(PATIENCE_S):
            await given_back.wait()


async def test_a_long_poll_that_fails_is_answered_with_500(caplog: pytest.LogCaptureFixture) -> None:
    async def wait() -> Response:
        raise ValueError("oops")

    async def handle(_: Request) -> Answer:
        return LongPoll(wait)

    async with serving(handle) as site:
        assert status(await site.exchange(LAST_GET)) == 500
    assert caplog.text.count("ValueError: oops") == 1
