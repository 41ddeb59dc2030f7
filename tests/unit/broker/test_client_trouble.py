"""The client against what is no broker, or a broker that breaks the rules."""

from __future__ import annotations

from math import inf
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock
from websockets.client import ClientProtocol
from websockets.protocol import State
from websockets.uri import parse_uri

from punchd.broker import client_link
from punchd.broker.client import (
    Broker,
    BrokerError,
    Malformed,
    NotBrokerError,
    Reconnected,
    Reconnecting,
    SessionClosed,
    Start,
    UnreachableError,
)
from tests.unit.broker.fake_broker import CLOSED, PEER, SESSION, TOKEN, Conversation, events, fake, saying


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ("{", "not JSON"),
        ("[]", "message: expected an object"),
        ("{}", "type: expected text"),
        ({**PEER, "ip": ""}, "peer: ip: expected an IPv4 or IPv6 address"),
        ({**PEER, "port": 0}, "peer: port: expected a whole number from 1 to 65535"),
        ({**PEER, "passphrase": "short"}, "peer: passphrase: expected 10 characters or more"),
        ({**SESSION, "state": "LOST"}, "session: state: expected one of"),
        ({"type": "start"}, "start: stream: expected text"),
        ('{"type":"tally","type":"tally"}', "duplicate"),
    ],
)
async def test_what_is_no_message_is_told_and_not_taken(message: Any, why: str) -> None:
    async with fake(saying(message, {"type": "start", "stream": "wide"})) as url:
        told, start, _ = await events(url)
    assert isinstance(told, Malformed)
    assert why in told.why
    assert "short" not in told.why
    assert start == Start("wide")


@pytest.mark.parametrize("kind", ["huge", "binary", "not UTF-8", "fragments", "garbage"])
async def test_frames_that_may_not_be_end_the_connection_or_are_told(autojump_clock: MockClock, kind: str) -> None:
    del autojump_clock
    size = client_link.MAX_MESSAGE_BYTES

    async def script(at: Conversation) -> None:
        await at.accept()
        await at.hear()
        match kind:
            case "huge":
                at.protocol.send_text(b"x" * (size + 1))
            case "binary":
                at.protocol.send_binary(b"x")
            case "not UTF-8":
                at.protocol.send_text(b"\xff")
            case "fragments":
                at.protocol.send_text(b"x" * size, fin=False)
                at.protocol.send_continuation(b"x", fin=True)
            case _:
                await at.stream.send_all(b"\xff" * 100)
        await at.say(CLOSED)
        await at.hear()

    async with fake(script, saying()) as url:
        told = await events(url)
    expected = [Malformed] if kind == "binary" else [Reconnecting, Reconnected]
    assert [type(event) for event in told] == [*expected, SessionClosed]


@pytest.mark.parametrize(
    ("answer", "kind", "says"),
    [
        (b"SSH-2.0-x\r\n", NotBrokerError, "expected HTTP, got b'SSH-2.0-x"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", NotBrokerError, "got status 200"),
        (b"HTTP/1.1 301 X\r\nLocation: https://x/\r\nContent-Length: 0\r\n\r\n", NotBrokerError, "location 'https://x/'"),
        (b"HTTP/1.1 101 X\r\n\r\n", NotBrokerError, "expected a WebSocket"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 10_000, NotBrokerError, "expected a WebSocket"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n", NotBrokerError, "body too large"),
        (b"", UnreachableError, "got the end of the connection"),
        (b"HTTP/1.1 10", UnreachableError, "got the end of the connection"),
    ],
)  # fmt: skip
async def test_what_is_no_broker_is_told_in_one_line(answer: bytes, kind: type[BrokerError], says: str) -> None:
    async def script(at: Conversation) -> None:
        await at.read_request()
        await at.stream.send_all(answer)

    async with fake(script) as url:
        with pytest.raises(kind) as caught:
            await events(url)
    text = str(caught.value)
    assert text.startswith(f"broker {url}")
    assert says in text
    assert text.isprintable()
    assert len(text) < 400


async def test_a_broker_that_says_nothing_is_given_up_after_ten_seconds(autojump_clock: MockClock) -> None:
    del autojump_clock

    async def script(at: Conversation) -> None:
        await at.read_request()
        await trio.sleep(100)

    async with fake(script) as url:
        began = trio.current_time()
        with pytest.raises(UnreachableError, match="within 10 s"):
            await events(url)
        assert trio.current_time() - began == pytest.approx(10)


async def test_events_that_nobody_fetches_wait_and_nothing_more_is_read(autojump_clock: MockClock) -> None:
    del autojump_clock
    start = {"type": "start", "stream": "wide"}

    async def flood(at: Conversation) -> None:
        await at.accept()
        for _ in range(2000):
            await at.say(start)
        await at.say(CLOSED)
        await at.hear()

    async with fake(flood) as url, Broker.open(url) as broker, broker.join("show", TOKEN) as joined:
        await trio.sleep(5)
        waiting = len(joined._events)
        assert 256 <= waiting < 256 + 16_384 // 30  # what one read brought more
        assert [event async for event in joined] == [Start("wide")] * 2000 + [SessionClosed("admin_closed")]


async def test_an_application_that_does_not_fetch_events_keeps_its_connection(autojump_clock: MockClock) -> None:
    del autojump_clock

    async def flood(at: Conversation) -> None:
        await at.accept()
        for _ in range(2000):
            await at.say({"type": "start", "stream": "wide"})
        while await at.hear() == "punch.ping":
            await at.say("punch.pong")

    async with fake(flood) as url, Broker.open(url) as broker, broker.join("show", TOKEN) as joined:
        await trio.sleep(500)
        assert {type(event) for event in joined._events} == {Start}


async def test_a_broker_that_pings_and_does_not_read_costs_bounded_memory(autojump_clock: MockClock) -> None:
    del autojump_clock
    reads = 0

    class Deaf:
        tcp = SimpleNamespace(socket=SimpleNamespace(getpeername=lambda: ("127.0.0.1", 1)))

        async def receive_some(self, _most: int) -> bytes:
            nonlocal reads
            reads += 1
            await trio.sleep(inf if reads > 5000 else 0)
            return b"\x89\x7d" + bytes(125)

    protocol = ClientProtocol(parse_uri("ws://broker.example/"), state=State.OPEN)
    link = client_link.Link(cast("Any", None), cast("Any", Deaf()), protocol)
    with trio.move_on_after(10):
        while True:
            assert await link.receive() == [None]
    assert link.unsent <= client_link.MOST_UNSENT_BYTES + 200


async def test_leaving_says_goodbye_and_does_not_wait_long_for_an_answer(autojump_clock: MockClock) -> None:
    del autojump_clock
    codes: list[int | None] = []

    async def polite(at: Conversation) -> None:
        await at.accept()
        await at.hear()
        codes.append(at.close_code)

    async def rude(at: Conversation) -> None:
        await at.accept()
        await trio.sleep(1000)

    async with fake(polite, rude) as url, Broker.open(url) as broker:
        for most_s in (0.0, 1.0):
            async with broker.join("show", TOKEN) as joined:
                began = trio.current_time()
            assert trio.current_time() - began == pytest.approx(most_s)
            assert [event async for event in joined] == []
    assert codes == [1000]
