"""How much is too much: of requests, messages, nonsense, silence of a reader, sessions and connections."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from punchd.broker.conduct import Conduct
from punchd.broker.settings import Limits
from punchd.broker.windows import Window
from tests.unit.broker.contract import TAP
from tests.unit.broker.peer import settle
from tests.unit.broker.running import SETTINGS, listener, running, settings
from tests.unit.broker.test_sockets_times import after

DEFAULT = Limits(drain_seconds=0)


async def test_b_033_b_034_b_035_b_108_ten_sessions_a_minute_and_source(mock_clock: MockClock) -> None:
    async with running(settings({"creations_per_minute": 10})) as server:
        for number in range(10):
            await server.create(f"s{number}")
            await after(mock_clock, 1)
        refused = await server.ask("POST", "/api/session", {"name": "x"})
        assert (refused.status, refused.error) == (429, "RATE_LIMITED")
        assert (await server.ask("POST", "/api/session", {"name": "x"}, source="127.0.0.2")).status == 201
        wait_s = int(refused.headers["retry-after"])
        assert wait_s == 50
        await after(mock_clock, wait_s - 1)
        assert (await server.ask("POST", "/api/session", {"name": "y"})).status == 429
        await after(mock_clock, 1)
        assert (await server.ask("POST", "/api/session", {"name": "y"})).status == 201
        assert (await server.ask("POST", "/api/session", {"name": "z"})).status == 429
        assert await server.metric('punch_limited_total{limit="create"}') == 3


@pytest.mark.parametrize(
    ("limit", "method", "target"),
    [("requests_per_minute", "GET", "/api/health"), ("upgrades_per_minute", "GET", "/api/ws/show")],
)
async def test_b_036_other_requests_are_limited_too(limit: str, method: str, target: str) -> None:
    async with running(settings({limit: 3})) as server:
        statuses = [(await server.ask(method, target)).status for _ in range(4)]
        assert statuses[3] == 429
        assert 429 not in statuses[:3]
        assert (await server.ask(method, target, source="127.0.0.2")).status != 429


async def test_b_036_bad_tokens_are_limited_and_good_ones_of_the_same_source_are_not() -> None:
    async with running(settings({"failed_authentications_per_minute": 3})) as server:
        made = await server.create()
        statuses = [(await server.ask("GET", "/api/session/show", token="x")).status for _ in range(5)]  # noqa: S106
        assert statuses == [401, 401, 401, 429, 429]
        assert (await server.ask("GET", "/api/session/show", token=made["token"])).status == 200


async def test_sessions_are_limited_in_all_and_by_source() -> None:
    async with running(settings({"sessions": 3, "sessions_per_source": 2})) as server:
        made = [await server.create(name) for name in "ab"]
        refused = await server.ask("POST", "/api/session", {"name": "c"})
        assert (refused.status, refused.error) == (429, "RATE_LIMITED")
        assert (await server.ask("POST", "/api/session", {"name": "c"}, source="127.0.0.2")).status == 201
        full = await server.ask("POST", "/api/session", {"name": "a"}, source="127.0.0.3")
        assert (full.status, full.error) == (503, "SESSION_FULL")
        await server.ask("DELETE", "/api/session/a", token=made[0]["token"])
        await server.create("a")


async def test_c_23_connections_of_a_session_and_of_a_source_are_limited() -> None:
    async with running(settings({"observers": 1})) as server:
        made = await server.create()
        target = f"/api/ws/show?t={made['token']}"
        peers = [await server.join("show", made["token"]) for _ in range(3)]
        answer, _ = await server.upgrade(target)
        assert (answer.status, answer.error, answer.headers["retry-after"]) == (503, "SESSION_FULL", "10")
        peers[0].close()
        await settle()
        assert (await server.upgrade(target))[0].status == 101
    async with running(settings({"websockets_per_source": 2})) as server:
        made = await server.create()
        target = f"/api/ws/show?t={made['token']}"
        statuses = [(await server.upgrade(target))[0].status for _ in range(3)]
        assert statuses == [101, 101, 503]
        assert (await server.upgrade(target, "127.0.0.2"))[0].status == 101


async def test_b_109_c_48_messages_beyond_a_tokens_rate_are_dropped_and_that_is_said_once_a_second(
    mock_clock: MockClock,
) -> None:
    async with running() as server:
        made = await server.create()
        one, two = await server.pair(made)
        await after(mock_clock, 60)
        for peer in (one, two):
            for _ in range(35):
                peer.say("status", srt="connecting")
            await settle()
        told = [frame for peer in (one, two) for frame in await peer.heard()]
        assert {frame["code"] for frame in told} == {"INVALID_MESSAGE"}
        assert all(frame["message"].startswith("rate limit: ") for frame in told)
        assert len(told) == 1  # both use one token, and have 60 messages together
        await after(mock_clock, 1)
        for _ in range(11):
            one.say("status", srt="connecting")
        assert len(await one.heard()) == 1
        assert await server.metric("punch_messages_dropped_total") == 11


async def test_b_109_a_flood_is_closed_with_1011(mock_clock: MockClock) -> None:
    async with running() as server:
        made = await server.create()
        flood = await server.join("show", made["token"])
        for _ in range(261):
            flood.say("tally", state="off")
        await settle()
        assert "far too many" in [frame["message"] for frame in await flood.heard() if frame["type"] == "error"][-1]
        await after(mock_clock, 1)
        assert await flood.ended() == 1011
        assert await server.metric('punch_connections_closed_total{cause="flood"}') == 1


async def test_twenty_violations_in_a_minute_are_borne_and_the_next_is_not(mock_clock: MockClock) -> None:
    async with running() as server:
        made = await server.create()
        admin = await server.join("show", made["token"])
        await admin.heard()
        for _ in range(10):
            admin.send("nonsense")
            admin.say("ready")
        assert len(await admin.heard()) == 20
        assert not admin.is_gone
        admin.send("nonsense")
        assert len(await admin.heard()) == 1
        await after(mock_clock, 1)
        assert await admin.ended() == 1011


async def test_who_does_not_read_is_closed_with_1011_and_others_are_served() -> None:
    http = listener()
    http.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    chosen = settings({"outbound_messages": 20, "messages_per_second": 10**6, "message_burst": 10**6})
    async with running(chosen, http=http) as server:
        made = await server.create()
        lazy, busy = await server.join("show", made["token"]), await server.join("show", made["token"])
        lazy.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sent = 0
        while not server.broker.counts.closed["overflow"]:
            for _ in range(15):
                busy.say("tally", state="program")
                sent += 1
            await busy.heard()
            assert sent < 100_000
        for _ in range(400):
            await busy.heard()
            if len(busy.texts) > sent:
                break
        assert len(busy.texts) == sent + 1  # with the session
        assert await lazy.ended() == 1011
        assert "too much waits" in lazy.texts[-1]


async def test_b_042_the_head_and_the_body_are_limited() -> None:
    async with running(SETTINGS) as server:
        for raw, status, code in (
            (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414, "PAYLOAD_TOO_LARGE"),
            (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", 431, "PAYLOAD_TOO_LARGE"),
            (b"POST /api/session HTTP/1.1\r\nHost: x\r\nContent-Length: 70000\r\n\r\n", 413, "PAYLOAD_TOO_LARGE"),
        ):
            answer = await server.raw(raw)
            assert (answer.status, answer.error) == (status, code)
        large = await server.ask("POST", "/api/session", b'{"name":"' + b"x" * 16_384 + b'"}')
        assert (large.status, large.error) == (413, "PAYLOAD_TOO_LARGE")


async def test_b_113_b_114_refusals_name_addresses_to_the_security_logger_only() -> None:
    before = len(TAP.lines)
    async with running(settings({"failed_authentications_per_minute": 1})) as server:
        for _ in range(3):
            await server.ask("GET", "/api/session/show", token="x", source="127.0.0.66")  # noqa: S106
    TAP.addresses.add("127.0.0.66")
    told = [(name, line) for name, line in TAP.lines[before:] if "127.0.0.66" in line]
    assert [name for name, _ in told] == ["punchd.security"]


@pytest.mark.parametrize(("form", "words"), [("truncated", "192.0.2.0/24"), ("none", "form")])
async def test_b_114_addresses_in_logs_can_be_cut(form: str, words: str) -> None:
    before = len(TAP.lines)
    async with running(settings(log_addresses=form, trusted_proxies=("127.0.0.1",))) as server:
        await server.ask("GET", "/api/session/show", x_forwarded_for="192.0.2.77")
    [line] = [line for name, line in TAP.lines[before:] if name == "punchd.security"]
    assert words in line
    assert "192.0.2.77" not in line


# --- the pure parts --------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.floats(0, 30), st.sampled_from("ab")), max_size=60), st.integers(1, 5))
def test_b_116_a_window_allows_exactly_so_many_in_any_period(steps: list[tuple[float, str]], most: int) -> None:
    window, now, allowed = Window(most, 60.0, 100), 0.0, dict[str, list[float]](a=[], b=[])
    for step, key in steps:
        now += step
        recent = [at for at in allowed[key] if now < at + 60]
        wait_s = window.allow(key, now)
        assert (wait_s == 0) is (len(recent) < most)
        if wait_s:
            assert wait_s == recent[0] + 60 - now
        else:
            allowed[key].append(now)


def test_a_window_remembers_so_many_keys_and_forgets_those_that_do_nothing() -> None:
    window = Window(1, 60.0, 3)
    for number in range(10):
        assert window.allow(number, 0.0) == 0
    assert len(window) == 3
    assert window.allow("new", 61.0) == 0
    assert len(window) == 1


def test_drops_are_borne_up_to_200_in_10_s() -> None:
    conduct = Conduct(DEFAULT)
    assert all(conduct.drop(0.0) for _ in range(200))
    assert not conduct.drop(9.9)
    assert conduct.drop(10.0)


def test_violations_are_borne_up_to_20_in_60_s() -> None:
    conduct = Conduct(DEFAULT)
    assert all(conduct.violate(float(second)) for second in range(20))
    assert not conduct.violate(59.0)
    conduct = Conduct(DEFAULT)
    assert all(conduct.violate(second * 3.0) for second in range(100))


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(0, 400)), max_size=400))
def test_what_waits_is_counted_in_messages_and_bytes(steps: list[tuple[int, int]]) -> None:
    conduct = Conduct(Limits(outbound_messages=10, outbound_bytes=1024))
    queue: list[int] = []
    for size, read in steps:
        queue.append(size)
        left = read
        while left and queue:
            step = min(left, queue[0])
            left -= step
            queue[0] -= step
            if not queue[0]:
                queue.pop(0)
        unsent = sum(queue)
        borne = conduct.queue(size, unsent)
        assert borne is (len(queue) <= 10 and unsent <= 1024)
