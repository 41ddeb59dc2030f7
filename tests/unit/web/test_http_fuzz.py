"""Malformed requests by the thousand: the server never raises, leaves nothing behind, and answers the next good one.

Requests are made of pieces that parsers disagree about, then cut, repeated, and damaged byte by byte. Every run has the
same seed: a failure can be had again by its number.
"""

from __future__ import annotations

import logging
import random

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from punchd.web.head import RefusedError
from punchd.web.http import RequestReader
from punchd.web.limits import Limits
from tests.unit.web.raw_websocket import frame
from tests.unit.web.site import GET, LAST_GET, PATIENCE_S, Site, emptied, field, serving, status

LIMITS = Limits(
    head_s=5,
    idle_s=0.2,
    body_s=5,
    write_s=5,
    linger_s=1,
    ping_s=1,
    close_s=0.2,
    head_bytes=4096,
    body_bytes=4096,
    connects_per_second=1_000_000,
)

METHODS = [b"CONNECT", b"PRI", b"get", b"G\0T", b"", b"M-SEARCH", b"BREW", b"x" * 300]
TARGETS = [b"*", b"/%", b"/%ff", b"/%00", b"//", b"/a#b", b"http://b/", b"a:1", b"", b"/\xff", b"/" + b"x" * 3000]
VERSIONS = [b"HTTP/1.0", b"HTTP/1.", b"HTTP/11", b"HTTP/1.2", b"HTTP/2.0", b"http/1.1", b"", b"RTSP/1.0"]
SEPARATORS = [b"  ", b"\t", b"", b"\0"]
ENDS = [b"\n", b"\r", b"\r\r\n", b"\n\r", b"\r\n\r\n"]
FIELDS = [
    b"Host: a", b"Host: b", b"Host:", b"Host: a b", b"Host : a", b" Host: a", b"A", b": b", b"A: \0", b"A: b\r\n c",
    b"A: \xff", b"A" * 5000 + b": b", b"A: " + b"b" * 5000, b"Expect: 100-continue", b"Expect: 1",
    b"Content-Length: 5", b"Content-Length: 0", b"Content-Length: -1", b"Content-Length: 5, 5", b"Content-Length: 1e1",
    b"Content-Length: 99999999999999999999999", b"Content-Length: 4097", b"content-length:5",
    b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: identity",
    b"Transfer-Encoding:\tchunked", b"Transfer-Encoding: xchunked", b"Transfer_Encoding: chunked",
    b"Connection: close", b"Connection: keep-alive", b"Connection: Upgrade", b"Upgrade: websocket", b"Upgrade: h2c",
]  # fmt: skip
SOCKET = [
    b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
]  # fmt: skip
CHUNKS = [
    b"5\r\nhello\r\n0\r\n\r\n", b"5;a=b\r\nhello\r\n0\r\nA: b\r\n\r\n", b"5\nhello\n0\n\n", b"g\r\n", b"0\r\n\r\n",
    b"ffffffffffffffff\r\n", b"5\r\nhelloo\r\n", b"0\r\nA : b\r\n\r\n", b"1\r\nx\r\n" * 200 + b"0\r\n\r\n", b"1001\r\n",
]  # fmt: skip
FRAMES = [
    frame(1, b"hi"), frame(2, b"x" * 5000), frame(3), frame(8, b"\x03\xe8"), frame(1, b"\xff"), frame(9, b"x"),
    frame(1, b"a", fin=False), frame(0, b"b"), frame(1, b"no", masked=False), b"\xff" * 100, b"\0" * 100,
]  # fmt: skip


def malformed(chance: random.Random) -> bytes:
    """A request that is almost right: a good one with none to three defects."""
    pick = chance.choice
    words = [
        pick([b"GET", b"POST", b"HEAD"]),
        b" ",
        pick([b"/", b"/a?b=%20", b"/fail", b"/nothing"]),
        b" ",
        b"HTTP/1.1",
    ]
    fields, body, end = [b"Host: a"], b"", b"\r\n"
    match chance.randrange(4):
        case 0:
            fields, body = [*fields, b"Content-Length: 5"], pick([b"hello", b"hell", b"hello!"])
        case 1:
            fields, body = [*fields, b"Transfer-Encoding: chunked"], pick(CHUNKS)
        case 2:
            words[0], words[2] = b"GET", b"/ws"
            fields, body = [*fields, *SOCKET], b"".join(chance.choices(FRAMES, k=chance.randrange(4)))
        case _:
            pass
    for _ in range(pick([0, 1, 1, 1, 2, 3])):
        match chance.randrange(9):
            case 0:
                words[0] = pick(METHODS)
            case 1:
                words[2] = pick(TARGETS)
            case 2:
                words[4] = pick(VERSIONS)
            case 3:
                words[pick([1, 3])] = pick(SEPARATORS)
            case 4:
                end = pick(ENDS)
            case 5:
                del fields[chance.randrange(len(fields) + 1) :]
            case _:
                fields.insert(chance.randrange(len(fields) + 1), pick(FIELDS))
    data = bytearray(b"".join(line + end for line in [b"".join(words), *fields, b""]) + body)
    for _ in range(pick([0, 0, 0, 1, 1, 5])):
        place = chance.randrange(len(data) + 1)
        match chance.randrange(4):
            case 0:
                data[place:place] = bytes([chance.randrange(256)])
            case 1:
                del data[place : place + chance.randrange(1, 5)]
            case 2:
                data[place : place + 1] = pick([b"\r", b"\n", b"\0", b" ", b":", b"%", b"\xff"])
            case _:
                data[place:place] = data[: chance.randrange(50)]
    return bytes(data) * pick([1, 1, 1, 2, 30])


async def throw(port: int, data: bytes, chance: random.Random) -> None:
    """Send `data` in one to four pieces, and leave: politely, at once, or after listening."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    ending = chance.randrange(3)
    cuts = sorted(chance.randrange(len(data) + 1) for _ in range(chance.randrange(4)))
    try:
        for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            await stream.send_all(data[start:end])
        if ending:
            await stream.send_eof()
        if ending == 1:
            with trio.fail_after(PATIENCE_S):
                answers = b"".join([part async for part in stream])
            assert not answers or answers.startswith(b"HTTP/1.1 "), answers[:200]
    except trio.BrokenResourceError:
        pass  # the server may be quicker to refuse than we are to send
    finally:
        await trio.aclose_forcefully(stream)


async def bombard(number: int) -> None:
    chance = random.Random(20_261_121)
    async with serving(limits=LIMITS) as site:
        tasks: int | None = None
        for done in range(0, number, 100):
            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(throw_ten, site, chance.getrandbits(64))
            answer = await site.exchange(LAST_GET)
            assert status(answer) == 200, f"after {done + 100} requests"
            assert field(answer, "content-type") == "application/json"
            await emptied(site)
            now = trio.lowlevel.current_statistics().tasks_living
            tasks = tasks or now
            assert now <= tasks, f"after {done + 100} requests"


async def throw_ten(site: Site, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(10):
        await throw(site.port, malformed(chance), chance)


def unexpected(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Log records other than those of the handler that always fails."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and "a handler failed" not in record.getMessage()
    ]


@pytest.mark.timeout(300)
async def test_three_thousand_malformed_requests(caplog: pytest.LogCaptureFixture) -> None:
    await bombard(3_000)
    assert unexpected(caplog) == []


@pytest.mark.long
@pytest.mark.timeout(3600)
async def test_a_hundred_thousand_malformed_requests(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("punchd.web.connection").addFilter(not_expected := _NotExpected())
    try:
        await bombard(100_000)
    finally:
        logging.getLogger("punchd.web.connection").removeFilter(not_expected)
    assert unexpected(caplog) == []


class _NotExpected(logging.Filter):
    """Keeps thousands of tracebacks of the handler that always fails out of the report's memory."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "a handler failed" not in record.getMessage()


PIECES = st.lists(
    st.one_of(
        st.sampled_from([*METHODS, *TARGETS, *VERSIONS, *SEPARATORS, *ENDS, *FIELDS, *CHUNKS, b"\r\n", b"\r\n"]),
        st.sampled_from([GET, b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"]),
        st.binary(max_size=8),
    ),
    max_size=20,
).map(b"".join)


@given(st.sampled_from([b"", GET, b"GET / HTTP/1.1\r\n"]), PIECES, st.integers(1, 40))
@settings(max_examples=300, deadline=None)
def test_the_reader_says_the_same_however_its_input_is_cut(begin: bytes, rest: bytes, size: int) -> None:
    def read(pieces: list[bytes]) -> list[object]:
        reader, head = RequestReader(LIMITS), None
        found: list[object] = []
        try:
            for piece in pieces:
                reader.feed(piece)
                while (head := head or reader.head()) and (body := reader.body()) is not None:
                    found.append((head, list(head.headers.items()), body))
                    head = None
        except RefusedError as refused:
            found.append(refused.problem)
        return found

    data = begin + rest
    assert read([data]) == read([data[start : start + size] for start in range(0, len(data), size)])
