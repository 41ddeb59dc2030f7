"""WebSocket conversations over real sockets: handshake, messages, the end in every way."""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import Callable

import pytest
import trio
from websockets.exceptions import ConnectionClosed
from websockets.trio.client import connect

from punchd.web.limits import Limits
from punchd.web.messages import Answer, Handler, Request, Upgrade
from punchd.web.websocket import WebSocket, WebSocketClosedError
from tests.unit.web.raw_websocket import (
    BINARY,
    CLOSE,
    CONT,
    OPENING,
    PING,
    PONG,
    TEXT,
    closing,
    frame,
    raw_websocket,
)
from tests.unit.web.site import GET, PATIENCE_S, echo, emptied, field, read_answer, serving, status

BROKER = {1002: 1011, 1007: 1011, 1009: 1011}


def upgrading(run: Callable[[WebSocket], object], **options: object) -> Handler:
    async def handle(_: Request) -> Answer:
        return Upgrade(run, **options)  # type: ignore[arg-type]

    return handle


class Ending:
    """An application that echoes, and what it hears at the end."""

    def __init__(self) -> None:
        self.error: WebSocketClosedError | None = None
        self.socket: WebSocket | None = None
        self.told = trio.Event()

    async def __call__(self, ws: WebSocket) -> None:
        self.socket = ws
        try:
            await echo(ws)
        except WebSocketClosedError as error:
            self.error = error
            raise
        finally:
            self.told.set()

    async def codes(self) -> tuple[int, str, int | None]:
        """Received, its reason, sent."""
        with trio.fail_after(PATIENCE_S):
            await self.told.wait()
        assert self.error is not None
        assert self.socket is not None
        assert (self.socket.close_code, self.socket.close_reason) == (self.error.code, self.error.reason)
        return self.error.code, self.error.reason, self.error.sent


# --- the handshake ----------------------------------------------------------------------------------------------------


async def test_the_handshake_is_answered_and_offers_no_compression() -> None:
    async with serving() as site:
        fields = b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
        async with raw_websocket(site, fields) as ws:
            assert field(ws.answer, "sec-websocket-accept") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455 §1.3
            assert field(ws.answer, "sec-websocket-extensions") is None
            assert field(ws.answer, "server") == "punchd"
            assert field(ws.answer, "date") is not None
            assert site.server.counts.websockets == 1


@pytest.mark.parametrize(
    ("change", "status_code", "name", "value"),
    [
        ((b"Upgrade: websocket\r\n", b""), 426, "upgrade", "websocket"),
        ((b"Connection: keep-alive, Upgrade\r\n", b""), 426, "connection", "Upgrade"),
        ((b"Version: 13", b"Version: 12"), 400, "sec-websocket-version", "13"),
        ((b"Sec-WebSocket-Version: 13\r\n", b""), 400, "sec-websocket-version", "13"),
        ((b"dGhlIHNhbXBsZSBub25jZQ==", b"dGhl"), 400, "connection", None),
        ((b"GET", b"POST"), 400, "connection", None),
        ((b"HTTP/1.1", b"HTTP/1.0"), 400, "connection", "keep-alive"),
    ],
)
async def test_a_handshake_that_is_none_is_a_plain_answer_and_the_connection_goes_on(
    change: tuple[bytes, bytes], status_code: int, name: str, value: str | None
) -> None:
    async with serving() as site, await site.connect() as stream:
        await stream.send_all(OPENING.replace(*change) + b"\r\n")
        answer = await read_answer(stream)
        assert status(answer) == status_code
        assert field(answer, name) == value
        await stream.send_all(GET)
        assert status(await read_answer(stream)) == 200


async def test_the_chosen_subprotocol_and_more_fields_are_in_the_answer() -> None:
    chosen = upgrading(echo, subprotocol="b", headers=(("Punch-Version", "1.0.0"),))
    async with serving(chosen) as site:
        async with raw_websocket(site, b"Sec-WebSocket-Protocol: a, b\r\n") as ws:
            assert field(ws.answer, "sec-websocket-protocol") == "b"
            assert field(ws.answer, "punch-version") == "1.0.0"
        async with await site.connect() as stream:  # it is not on offer
            await stream.send_all(OPENING + b"Sec-WebSocket-Protocol: a\r\n\r\n")
            assert status(await read_answer(stream)) == 400


async def test_messages_that_come_with_the_handshake_are_not_lost() -> None:
    async with serving() as site, raw_websocket(site, rest=frame(TEXT, b"early")) as ws:
        assert await ws.frame() == (TEXT, b"early")


# --- messages ---------------------------------------------------------------------------------------------------------


async def test_another_implementation_talks_to_it() -> None:
    async with serving() as site, connect(f"ws://127.0.0.1:{site.port}/ws") as ws:
        for message in ("text ä", b"\x00binary", "", b"", "x" * 65_536, ["frag", "ments"]):
            await ws.send(message)
            with trio.fail_after(PATIENCE_S):
                got = await ws.recv()
            assert got == ("".join(message) if isinstance(message, list) else message)
        await ws.ping()


async def test_a_message_may_be_cut_inside_a_character_and_around_pings() -> None:
    async with serving() as site, raw_websocket(site) as ws:
        await ws.send(frame(TEXT, b"\xc3", fin=False) + frame(PING, b"?") + frame(CONT, b"", fin=False))
        assert await ws.frame() == (PONG, b"?")
        for byte in frame(CONT, b"\xa4"):
            await ws.send(bytes([byte]))
        assert await ws.frame() == (TEXT, "ä".encode())


async def test_messages_before_the_end_are_still_delivered() -> None:
    got: list[str | bytes] = []
    closed = trio.Event()

    async def slow(ws: WebSocket) -> None:
        await ws.wait_closed()
        while True:
            try:
                got.append(await ws.receive())
            except WebSocketClosedError:
                closed.set()
                raise

    async with serving(upgrading(slow)) as site, raw_websocket(site) as ws:
        await ws.send(frame(TEXT, b"1") + frame(BINARY, b"2") + closing(1000))
        with trio.fail_after(PATIENCE_S):
            await closed.wait()
    assert got == ["1", b"2"]


# --- the client breaks the rules ----------------------------------------------------------------------------------

VIOLATIONS = [
    ("text that is not UTF-8", frame(TEXT, b"\xff"), 1007),
    ("UTF-8 that ends early", frame(TEXT, b"\xc3"), 1007),
    ("a surrogate", frame(TEXT, b"\xed\xa0\x80"), 1007),
    ("bad UTF-8 in fragments", frame(TEXT, b"a", fin=False) + frame(CONT, b"\xff"), 1007),
    ("a reason that is not UTF-8", closing(1000, b"\xff"), 1007),
    ("an unknown opcode", frame(3), 1002),
    ("an unknown control opcode", frame(11), 1002),
    ("no mask", frame(TEXT, b"a", masked=False), 1002),
    ("a reserved bit", frame(TEXT, b"a", rsv=4), 1002),
    ("a long ping", frame(PING, b"x" * 126), 1002),
    ("a ping in fragments", frame(PING, fin=False), 1002),
    ("a fragment of nothing", frame(CONT, b"a"), 1002),
    ("a message inside another", frame(TEXT, b"a", fin=False) + frame(TEXT, b"b"), 1002),
    ("a close frame of one byte", frame(CLOSE, b"\x03"), 1002),
    ("a code that is not for frames", closing(1005), 1002),
    ("a code that is not assigned", closing(999), 1002),
    ("a big message", frame(BINARY, b"x" * 65_537), 1009),
    ("a big message in fragments", frame(TEXT, b"x" * 65_000, fin=False) + frame(CONT, b"x" * 537), 1009),
    ("a huge frame that is only announced", b"\x82\xff" + struct.pack("!Q", 2**62), 1009),
]


@pytest.mark.parametrize(("data", "code"), [item[1:] for item in VIOLATIONS], ids=[item[0] for item in VIOLATIONS])
@pytest.mark.parametrize("mapped", [False, True])
async def test_whoever_breaks_the_protocol_gets_a_close_frame_with_the_code_the_application_wants(
    data: bytes, code: int, mapped: bool
) -> None:
    ending = Ending()
    wanted = BROKER.get(code, code) if mapped else code
    async with serving(upgrading(ending, close_codes=BROKER if mapped else {})) as site, raw_websocket(site) as ws:
        await ws.send(frame(TEXT, b"good"))
        assert await ws.frame() == (TEXT, b"good")
        await ws.send(data + frame(TEXT, b"unheard") * 1000)
        assert await ws.close_code() == wanted
        assert (await ending.codes())[2] == wanted


# --- the end ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "code", "reason"),
    [
        (closing(1000), 1000, ""),
        (closing(1001, b"bye"), 1001, "bye"),
        (closing(4000, "für immer".encode()), 4000, "für immer"),
        (frame(CLOSE), 1005, ""),
    ],
)
async def test_the_application_hears_the_code_and_the_reason_of_the_client(sent: bytes, code: int, reason: str) -> None:
    ending = Ending()
    async with serving(upgrading(ending)) as site, raw_websocket(site) as ws:
        await ws.send(sent)
        assert await ws.close_code() == code  # echoed
        assert await ending.codes() == (code, reason, code)


@pytest.mark.parametrize("way", ["fin", "rst"])
async def test_a_client_that_is_gone_without_a_close_frame_is_1006(way: str) -> None:
    ending = Ending()
    async with serving(upgrading(ending)) as site:
        async with raw_websocket(site) as ws:
            if way == "rst":
                ws.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert await ending.codes() == (1006, "", None)
        await emptied(site)


async def test_the_client_hears_the_code_and_the_reason_of_the_application() -> None:
    seen: list[int | None] = []

    async def refuse(ws: WebSocket) -> None:
        await ws.close(4404, "ä" * 100)
        seen.extend([ws.close_code, ws.close_sent])
        await ws.close(4000)  # nothing more happens

    async with serving(upgrading(refuse)) as site:
        with pytest.raises(ConnectionClosed) as closed:
            async with connect(f"ws://127.0.0.1:{site.port}/ws") as ws:
                await ws.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 4404
    assert closed.value.rcvd.reason == "ä" * 61  # 123 bytes at most, and no half character
    assert seen == [4404, 4404]


async def test_an_application_that_returns_closes_with_1000_and_one_that_fails_with_1011(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def done(_: WebSocket) -> None:
        return

    async def fails(_: WebSocket) -> None:
        raise ValueError("oops")

    async with serving(upgrading(done)) as site, raw_websocket(site) as ws:
        assert await ws.frame() == (CLOSE, b"\x03\xe8")
    assert not caplog.records
    async with serving(upgrading(fails)) as site, raw_websocket(site) as ws:
        assert await ws.frame() == (CLOSE, b"\x03\xf3")
    assert caplog.text.count("ValueError: oops") == 1


async def test_an_application_with_tasks_of_its_own_may_end_by_the_closed_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def run(ws: WebSocket) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo, ws)
            nursery.start_soon(echo, ws)

    async with serving(upgrading(run)) as site, raw_websocket(site) as ws:
        await ws.send(closing(1000))
        assert await ws.close_code() == 1000
    assert not caplog.records


async def test_sending_after_the_end_is_an_error_and_lets_others_run() -> None:
    tries = 0

    async def stubborn(ws: WebSocket) -> None:
        nonlocal tries
        await ws.wait_closed()
        for _ in range(10):
            with pytest.raises(WebSocketClosedError):
                await ws.send("x")
            tries += 1

    async with serving(upgrading(stubborn)) as site:
        async with raw_websocket(site):
            pass
        await emptied(site)
    assert tries == 10


@pytest.mark.parametrize("code", [0, 999, 1005, 1006, 1015, 5000])
async def test_a_code_that_must_not_be_sent_is_a_value_error(code: int, caplog: pytest.LogCaptureFixture) -> None:
    async def run(ws: WebSocket) -> None:
        with pytest.raises(ValueError, match="close code"):
            await ws.close(code)

    async with serving(upgrading(run)) as site, raw_websocket(site) as ws:
        assert await ws.close_code() == 1000
    assert not caplog.records


async def test_an_application_may_ask_to_be_cancelled_at_the_end() -> None:
    async def forever(_: WebSocket) -> None:
        await trio.sleep_forever()

    async with serving(upgrading(forever, cancel_when_closed=True)) as site:
        async with raw_websocket(site) as ws:
            await ws.send(closing(1000))
            assert await ws.close_code() == 1000
        await emptied(site)


async def test_payloads_are_never_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with serving() as site, raw_websocket(site) as ws:
        await ws.send(frame(TEXT, b"s3cret"))
        assert await ws.frame() == (TEXT, b"s3cret")
    assert "s3cret" not in caplog.text


async def test_the_limit_of_a_message_can_be_set_for_each_conversation() -> None:
    async with (
        serving(upgrading(echo, max_message=10), Limits(message_bytes=1)) as site,
        raw_websocket(site) as ws,
    ):
        await ws.send(frame(TEXT, b"x" * 10))
        assert await ws.frame() == (TEXT, b"x" * 10)
        await ws.send(frame(TEXT, b"x" * 11))
        assert await ws.close_code() == 1009
