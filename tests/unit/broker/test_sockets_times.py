"""Timers of connections and sessions under a clock that the tests set."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock

from punchd.broker.agenda import Agenda
from punchd.broker.creation import Creation
from punchd.broker.sessions import Live
from tests.unit.broker.peer import settle
from tests.unit.broker.running import BASE_S, running, settings
from tests.unit.web.raw_websocket import PING, PONG, TEXT, frame


async def after(clock: MockClock, seconds: float) -> None:
    """Time goes by, in steps that no timer is lost in."""
    await settle()
    clock.jump(seconds)
    await settle()


async def test_b_053_b_054_a_peer_that_does_not_register_within_30_s_is_closed(mock_clock: MockClock) -> None:
    async with running() as server:
        made = await server.create()
        peer = await server.join("show", made["peerTokens"]["default"])
        admin = await server.join("show", made["token"])
        await admin.heard()
        await after(mock_clock, 29.9)
        assert await peer.heard() == []
        await after(mock_clock, 0.2)
        assert [told["code"] for told in await peer.heard()] == ["INVALID_MESSAGE"]
        await after(mock_clock, 1)
        assert await peer.ended() == 1011
        for _ in range(9):
            await after(mock_clock, 30)
            assert await admin.heard() == []
        assert admin.pings >= 9
        assert not admin.is_gone
        assert await server.metric('punch_connections_closed_total{cause="silence"}') == 1


async def test_b_061_b_062_c_50_who_is_silent_for_90_s_is_pinged_and_then_dead(mock_clock: MockClock) -> None:
    async with running() as server:
        made = await server.create()
        admin = await server.join("show", made["token"])
        await settle()
        await after(mock_clock, 89.9)
        assert admin.sock.fileno() >= 0
        assert (await server.ask("GET", "/api/session/show", token=made["token"])).status == 200
        await after(mock_clock, 0.2)  # it was pinged at 30, 60 and so on, and has read nothing
        assert [told.get("code", told["type"]) for told in await admin.heard()] == ["session", "INVALID_MESSAGE"]
        assert admin.pings >= 1
        await after(mock_clock, 1)
        assert await admin.ended() == 1011


@pytest.mark.parametrize(
    "sign",
    [
        frame(TEXT, b"punch.ping"),
        frame(TEXT, b'{"type":"punch.ping"}'),
        frame(TEXT, b"nonsense"),
        frame(PING),
        frame(PONG),
    ],
)
async def test_b_062_b_063_c_06_any_frame_is_a_sign_of_life(sign: bytes, mock_clock: MockClock) -> None:
    async with running() as server:
        made = await server.create()
        admin = await server.join("show", made["token"])
        for _ in range(3):
            await after(mock_clock, 80)
            admin.write(sign)
        await admin.heard()
        assert not admin.is_gone


async def test_c_06_the_bare_keep_alive_is_answered_once_in_5_s(mock_clock: MockClock) -> None:
    async with running() as server:
        made = await server.create()
        admin = await server.join("show", made["token"])
        await admin.heard()
        for _ in range(3):
            admin.send("punch.ping")
        assert await admin.kinds() == ["punch.pong"]
        await after(mock_clock, 5.1)
        admin.send("punch.ping")
        assert await admin.kinds() == ["punch.pong"]
        admin.send('{"type":"punch.ping"}')
        assert await admin.kinds() == []


async def test_b_016_b_020_b_023_c_33_a_session_closes_100_ms_before_its_end(mock_clock: MockClock) -> None:
    async with running() as server:
        made = await server.create(ttl=60)
        one, two = await server.pair(made)
        await after(mock_clock, 59.8)
        one.say("health", rtt=1, retransmit=0, bitrate=1)
        assert await two.kinds() == ["health_report"]
        await after(mock_clock, 0.11)
        for peer in (one, two):
            told = [frame for frame in await peer.heard() if frame["type"] != "health_report"]
            assert [frame.get("reason", frame.get("state")) for frame in told] == ["CLOSED", "ttl_expired"]
            assert await peer.ended() == 1000
        gone = await server.ask("GET", "/api/session/show", token=made["token"])
        assert (gone.status, gone.error) == (404, "SESSION_NOT_FOUND")
        assert await server.metric('punch_sessions_ended_total{reason="ttl_expired"}') == 1
        assert (await server.create())["state"] == "WAITING"


async def test_c_33_a_handler_that_is_earlier_than_the_timer_finds_the_session_closed(
    mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run(_agenda: Agenda) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(Agenda, "run", run)
    async with running() as server:
        made = await server.create(ttl=60)
        admin = await server.join("show", made["token"])
        await admin.heard()
        await after(mock_clock, 59.95)
        assert (await server.ask("GET", "/api/session/show", token=made["token"])).status == 404
        assert await admin.kinds() == ["session", "session_closed"]


@pytest.mark.parametrize(("step_s", "status"), [(7200.0, 404), (4.0, 200), (-7200.0, 200)])
async def test_c_33_a_step_of_the_wall_clock_is_followed(step_s: float, status: int, mock_clock: MockClock) -> None:
    stepped = [0.0]
    begun = trio.current_time()
    wall: Callable[[], float] = lambda: BASE_S + trio.current_time() - begun + stepped[0]  # noqa: E731
    async with running(wall=wall) as server:
        made = await server.create(ttl=3600)
        admin = await server.join("show", made["token"])
        stepped[0] = step_s
        await after(mock_clock, 1.1)
        assert (await admin.kinds() == ["session"]) is (status == 200)
        assert (await server.ask("GET", "/api/session/show", token=made["token"])).status == status


async def test_c_24_a_silent_holder_is_probed_and_loses_its_slot(mock_clock: MockClock) -> None:
    async with running() as server:
        made = await server.create()
        one, two = await server.pair(made)
        await after(mock_clock, 40)
        two.send("punch.ping")
        await two.heard()
        third = await server.join("show", made["peerTokens"]["default"], "127.0.0.88")
        third.say("register", port=7000)
        await settle()
        await after(mock_clock, 2.1)
        await after(mock_clock, 1.0)
        assert await third.kinds() == ["peer", "session"]
        assert [told["code"] for told in await one.heard()][-1:] == ["INVALID_MESSAGE"]


async def test_c_24_a_silent_holder_that_answers_the_probe_keeps_its_slot(mock_clock: MockClock) -> None:
    async with running() as server:
        made = await server.create()
        one, two = await server.pair(made)
        await after(mock_clock, 40)
        for peer in (one, two):
            peer.sock.recv(100)  # pings that it leaves unanswered
        third = await server.join("show", made["peerTokens"]["default"], "127.0.0.88")
        third.say("register", port=7000)
        assert await third.heard() == []
        for peer in (one, two):
            peer.pull()  # answers
        assert [told["code"] for told in await third.heard()] == ["STREAM_TAKEN"]


async def test_c_27_health_is_told_once_a_second_and_the_last_of_it_at_its_end(mock_clock: MockClock) -> None:
    async with running() as server:
        made = await server.create()
        one, two = await server.pair(made)
        for rtt in (10, 20, 30):
            one.say("health", rtt=rtt, retransmit=0, bitrate=1)
        assert [told["streams"]["default"]["rtt"] for told in await two.heard()] == [10]
        await after(mock_clock, 1.0)
        assert [told["streams"]["default"]["rtt"] for told in await two.heard()] == [30]
        await after(mock_clock, 5.0)
        assert await two.heard() == []


async def test_a_thousand_sessions_end_in_one_moment_and_all_of_them_do(mock_clock: MockClock) -> None:
    async with running(settings({"sessions_per_source": 10**6})) as server:
        for number in range(1000):
            await server.broker.sessions.create(Creation(f"s{number}", ttl_s=30), b"\x7f\0\0\1")
        made = await server.create(ttl=60)
        admin = await server.join("show", made["token"])
        await after(mock_clock, 30)
        assert len(server.broker.sessions) == 1
        assert await admin.kinds() == ["session"]


async def test_b_105_nothing_of_an_ended_session_waits_in_the_agenda(mock_clock: MockClock) -> None:
    async with running() as server:
        made = await server.create(ttl=30)
        await server.pair(made)
        await after(mock_clock, 31)
        await after(mock_clock, 31)
        await after(mock_clock, 31)
        gc.collect()
        assert len(server.broker._agenda) == 0
        assert server.broker._agenda._heap == []


async def test_the_agenda_calls_timers_in_the_order_of_their_times(mock_clock: MockClock) -> None:
    called: list[tuple[str, float]] = []

    class Alarm:
        def __init__(self, name: str, when: float) -> None:
            self.name, self.when = name, when

        def next_timeout(self) -> float:
            return self.when

        def handle_timeout(self, now: float) -> None:
            called.append((self.name, now))
            self.when = float("inf")

    agenda = Agenda()
    alarms = [Alarm(name, when) for name, when in (("c", 3.0), ("a", 1.0), ("moved", 1.0), ("forgotten", 2.0))]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(agenda.run)
        await settle()
        for alarm in alarms:
            agenda.look(alarm)
        alarms[2].when = 4.0
        agenda.forget(alarms[3])
        for _ in range(5):
            await after(mock_clock, 1.0)
        nursery.cancel_scope.cancel()
    assert called == [("a", 1.0), ("c", 3.0), ("moved", 4.0)]


async def test_b_105_the_agenda_keeps_nothing_of_a_session_that_ended_long_before_its_time() -> None:
    async with running(settings({"sessions_per_source": 10**6})) as server:
        for number in range(200):
            await server.broker.sessions.create(Creation(f"s{number}", ttl_s=86_400), b"\x7f\0\0\1")
            await server.broker.sessions.close(f"s{number}")
        gc.collect()
        assert [one for one in gc.get_objects() if isinstance(one, Live)] == []
        assert len(server.broker._agenda._heap) <= 66
