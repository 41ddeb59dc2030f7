"""The client against brokers that say things in another order, of another version, or go away."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from punchd.broker.client import (
    Broker,
    BrokerError,
    EndedError,
    Error,
    NotBrokerError,
    Peer,
    Reconnected,
    Reconnecting,
    RefusedError,
    Session,
    SessionClosed,
    State,
    UnreachableError,
    VersionError,
)
from punchd.broker.client_machine import DEAD_S, KEEP_ALIVE_S, PROBE_S
from tests.unit.broker.fake_broker import CLOSED, PEER, SESSION, TOKEN, Conversation, events, fake, saying


@pytest.mark.parametrize("messages", [(PEER, SESSION), (SESSION, PEER)])
async def test_b_060_peer_and_session_are_taken_in_either_order(messages: tuple[Any, ...]) -> None:
    async with fake(saying(*messages)) as url:
        kinds = [type(event) for event in await events(url)]
    assert sorted(kinds, key=str) == [Peer, Session, SessionClosed]


async def test_b_065_the_peer_may_come_at_once_or_an_hour_later(autojump_clock: MockClock) -> None:
    del autojump_clock

    async def late(at: Conversation) -> None:
        await at.accept()
        await at.hear()
        for _ in range(90):
            await trio.sleep(40)
            await at.say("punch.pong")
        await at.say(PEER, CLOSED)
        await at.hear()

    for script in (saying(PEER), late):
        async with fake(script) as url:
            assert [type(event) for event in await events(url)] == [Peer, SessionClosed]


async def test_c_21_relaying_of_a_later_version_counts_as_connected() -> None:
    relaying = {**SESSION, "state": "RELAYING", "streams": {"wide": {"state": "RELAYING", "peers": 2}}}
    async with fake(saying(relaying)) as url:
        session = (await events(url))[0]
    assert isinstance(session, Session)
    assert session.state is State.CONNECTED
    assert session.streams["wide"].state == "CONNECTED"


@pytest.mark.parametrize("code", [1011, 1001, 4404, 4408, 4999, None])
async def test_b_072_b_073_c_05_after_any_code_but_1000_it_comes_back_and_registers_again(
    autojump_clock: MockClock, code: int | None
) -> None:
    del autojump_clock

    async def closing(at: Conversation) -> None:
        await at.accept()
        await at.hear()
        await at.say({"type": "error", "code": "SERVER_ERROR", "message": "oops"})
        await at.close(code)

    async with fake(closing, saying(PEER)) as url:
        told = await events(url)
    assert [type(event) for event in told] == [Error, Reconnecting, Reconnected, Peer, SessionClosed]
    lost = told[1]
    assert isinstance(lost, Reconnecting)
    assert str(code or "no code") in lost.reason
    assert ("session not found or already closed" in lost.reason) is (code == 4404)
    assert lost.reason.endswith(": oops")
    assert 0.5 <= lost.wait_s <= 1


async def test_c_05_without_a_close_frame_it_comes_back_with_a_pause_that_doubles(autojump_clock: MockClock) -> None:
    del autojump_clock

    async def cut(at: Conversation) -> None:
        await at.accept()

    async with fake(*[cut] * 8, saying()) as url:
        told = await events(url)
    pauses = [event.wait_s for event in told if isinstance(event, Reconnecting)]
    assert len(pauses) == 8
    for pause, most in zip(pauses, (1, 2, 4, 8, 16, 30, 30, 30), strict=True):
        assert most / 2 <= pause <= most


async def test_c_05_after_1000_it_stays_away_and_says_why() -> None:
    async def replaced(at: Conversation) -> None:
        await at.accept()
        await at.hear()
        await at.say({"type": "error", "code": "STREAM_TAKEN", "message": "replaced by a newer connection"})
        await at.close(1000)

    async with fake(replaced) as url:
        with pytest.raises(EndedError, match="for good: replaced by a newer connection"):
            await events(url)


@pytest.mark.parametrize(("status", "code"), [(404, "SESSION_NOT_FOUND"), (403, "AUTH_FAILED")])
async def test_it_does_not_come_back_to_a_session_that_is_gone(
    autojump_clock: MockClock, status: int, code: str
) -> None:
    del autojump_clock

    async def cut(at: Conversation) -> None:
        await at.accept()

    async def gone(at: Conversation) -> None:
        await at.refuse(status, code)

    async with fake(cut, gone) as url:
        with pytest.raises(RefusedError) as caught:
            await events(url)
    assert (caught.value.status, caught.value.code) == (status, code)


async def test_b_046_a_broker_that_came_back_with_another_version_is_left(autojump_clock: MockClock) -> None:
    del autojump_clock

    async def cut(at: Conversation) -> None:
        await at.accept()

    async def newer(at: Conversation) -> None:
        await at.accept("2.0.0")
        await at.hear()

    async with fake(cut, newer) as url:
        with pytest.raises(VersionError):
            await events(url)


async def test_a_session_is_created_on_a_connection_of_its_own_so_that_it_is_asked_for_once() -> None:
    connections: list[Conversation] = []
    made = {
        "session": "show", "token": "p_a.b", "peerTokens": {}, "url": "x", "streams": [], "latency": 200, "ttl": 1,
        "expiresAt": 1,
    }  # fmt: skip

    async def http(at: Conversation) -> None:
        for _ in range(2):
            head = await at.read_http()
            connections.append(at)
            await at.answer(200, json.dumps(made).encode() if head.startswith(b"POST") else b'{"version":"1.0.0"}')

    async with fake(http, http) as url, Broker.open(url) as broker:
        await broker.version()
        assert (await broker.create("show")).name == "show"
    first, second = connections
    assert first is not second


async def test_busy_and_absent_brokers_are_asked_again_when_they_said(autojump_clock: MockClock) -> None:
    del autojump_clock

    async def cut(at: Conversation) -> None:
        await at.accept()

    async def busy(at: Conversation) -> None:
        await at.refuse(429, "RATE_LIMITED", retry_after="17")

    async def html(at: Conversation) -> None:
        await at.read_request()
        await at.answer(502, b"<html>")

    async with fake(cut, busy, html, saying()) as url:
        told = await events(url)
    waits = [event.wait_s for event in told if isinstance(event, Reconnecting)]
    assert len(waits) == 3
    assert 17 <= waits[1] <= 17 * 1.5
    assert [type(event) for event in told][-2:] == [Reconnected, SessionClosed]


async def test_the_first_connection_is_tried_once() -> None:
    async def html(at: Conversation) -> None:
        await at.read_request()
        await at.answer(503, b"<html>")

    async with fake(html) as url:
        with pytest.raises(UnreachableError, match="a proxy's status 503"):
            await events(url)


@pytest.mark.parametrize(
    ("version", "error"),
    [("2.0.0", VersionError), ("0.9", VersionError), ("x", NotBrokerError), ("1.0.0", None), ("1.99.0", None),
     (None, None)],
)  # fmt: skip
async def test_b_046_another_major_version_is_refused_and_a_newer_minor_one_is_not(
    version: str | None, error: type[BrokerError] | None
) -> None:
    async def upgrade(at: Conversation) -> None:
        await at.accept(version)
        await at.hear()
        await at.say({"type": "novelty", "of": "1.99"}, {**PEER, "colour": "red"}, CLOSED)
        await at.hear()

    async def http(at: Conversation) -> None:
        await at.read_http()
        fields = {} if version is None else {"Punch_Version": version}
        await at.answer(200, b'{"status":"ok","version":"1.0.0"}', **fields)

    async def refusal(at: Conversation) -> None:
        fields = {} if version is None else {"Punch_Version": version}
        await at.refuse(404, "SESSION_NOT_FOUND", **fields)

    async with fake(upgrade, http, refusal) as url:
        if error is None:
            assert [type(event) for event in await events(url)] == [Peer, SessionClosed]
        else:
            with pytest.raises(error, match="ersion"):
                await events(url)
        async with Broker.open(url) as broker:
            if error is None:
                assert await broker.version() == "1.0.0"
            else:
                with pytest.raises(error, match="ersion"):
                    await broker.version()
        with pytest.raises(error or RefusedError):
            await events(url)


async def test_b_050_the_token_goes_in_a_header_and_to_a_broker_that_does_not_look_there_percent_encoded() -> None:
    targets: list[tuple[str, str | None]] = []

    async def header(at: Conversation) -> None:
        await at.refuse(401, "AUTH_FAILED")
        targets.append((at.request.path, at.request.headers.get("Authorization")))

    async def query(at: Conversation) -> None:
        await at.accept()
        targets.append((at.request.path, at.request.headers.get("Authorization")))
        if len(targets) == 3:
            await at.say(CLOSED)
            await at.hear()

    async with fake(header, query, query) as url:
        await events(url)
    path = "/api/ws/show"
    known = (f"{path}?t=p_abc.def~%2F%2B", None)
    assert targets == [(path, f"Bearer {TOKEN}"), known, known]


async def test_b_053_it_registers_at_once_and_after_each_reconnection(autojump_clock: MockClock) -> None:
    del autojump_clock
    took: list[float] = []

    async def slow(at: Conversation) -> None:
        await trio.sleep(5)
        await at.accept()
        began = trio.current_time()
        assert (await at.heard()) == {"type": "register", "port": 5000}
        took.append(trio.current_time() - began)
        if len(took) == 2:
            await at.say(CLOSED)
            await at.hear()

    async with fake(slow, slow) as url:
        await events(url)
    assert took == [0, 0]


async def test_b_063_when_nothing_else_flows_it_says_punch_ping_every_30_s(autojump_clock: MockClock) -> None:
    del autojump_clock
    times: list[float] = []

    async def script(at: Conversation) -> None:
        await at.accept()
        began = trio.current_time()
        await at.hear()
        for _ in range(5):
            assert await at.hear() == "punch.ping"
            times.append(trio.current_time() - began)
            await at.say("punch.pong")
        await at.say(CLOSED)
        await at.hear()

    async with fake(script) as url:
        assert [type(event) for event in await events(url)] == [SessionClosed]
    assert times == pytest.approx([KEEP_ALIVE_S * number for number in range(1, 6)])


async def test_c_06_b_063_a_broker_that_objects_to_punch_ping_gets_websocket_pings(autojump_clock: MockClock) -> None:
    del autojump_clock

    async def script(at: Conversation) -> None:
        await at.accept()
        await at.hear()
        assert await at.hear() == "punch.ping"
        await at.say({"type": "error", "code": "INVALID_MESSAGE", "message": "not JSON"})
        with trio.move_on_after(200):
            assert await at.hear() == ""
        assert at.pings == 7  # the first at once, then every 30 s
        await at.say(CLOSED)
        await at.hear()

    async with fake(script) as url:
        assert [type(event) for event in await events(url)] == [SessionClosed]


async def test_a_silent_broker_is_pinged_and_then_dead(autojump_clock: MockClock) -> None:
    del autojump_clock
    pinged: list[float] = []

    async def deaf(at: Conversation) -> None:
        await at.accept()
        began = trio.current_time()
        while await at.stream.receive_some(1000):  # reads, and says nothing; not even pongs
            pinged.append(trio.current_time() - began)

    async with fake(deaf, saying()) as url:
        told = await events(url)
    assert pinged[-2:] == pytest.approx([KEEP_ALIVE_S, PROBE_S])
    lost = told[0]
    assert isinstance(lost, Reconnecting)
    assert lost.reason == f"the broker was silent for {DEAD_S:g} s"
