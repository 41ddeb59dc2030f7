"""What one application, one user and all together may ask for (§4, §13.8), and what a reader costs that never reads."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
import trio

from punchd.config import Config, Limits
from tests.unit.daemon_fixture import HANG_S, PEER, Application, descriptors, server

UNLIMITED = 100_000
UNPACED = {
    "requests_per_second": UNLIMITED,
    "request_burst": UNLIMITED,
    "user_requests_per_second": UNLIMITED,
    "user_request_burst": UNLIMITED,
    "user_attempts_per_second": UNLIMITED,
    "user_attempt_burst": UNLIMITED,
}


def initiate(attempt_id: str, technique: str, *options: str) -> str:
    return "|".join((f"initiate|{attempt_id}|{technique}|{PEER}|40000", *options))


# --- attempts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "of_one", "of_two"),
    [
        (Limits(attempts_per_connection=3), 3, 6),
        (Limits(attempts_per_user=5), 5, 5),
        (Limits(attempts=4), 4, 4),
    ],
)
async def test_attempts_beyond_a_limit_are_busy_and_a_verdict_makes_room(
    tmp_path: Path, limits: Limits, of_one: int, of_two: int
) -> None:
    async with server(tmp_path, Config(limits=limits)) as running:
        with await running.connect() as one, await running.connect() as two:
            await one.send(*(initiate(f"a{number}", "silent") for number in range(of_one + 1)))
            assert (await one.until("error|")).startswith(f"error|a{of_one}|busy|")
            left = of_two - of_one
            await two.send(*(initiate(f"b{number}", "silent") for number in range(left + 1)))
            assert (await two.until("error|")).startswith(f"error|b{left}|busy|")
            await running.settle(lambda: running.running == of_two)
            await one.send("cancel|a0")
            await one.until("error|a0|cancelled|")
            await (one if left == of_one else two).send(initiate("again", "silent"))
            await (one if left == of_one else two).until("progress|again|1|silent|trying|")


async def test_probes_count_like_attempts(tmp_path: Path) -> None:
    config = Config(stun=(("127.0.0.1", 9),), limits=Limits(attempts_per_connection=2))
    async with server(tmp_path, config) as running:
        with await running.connect() as application:
            await application.send("probe|p|udp", "probe|q|udp", "probe|r|udp", initiate("a", "silent"))
            answers = {await application.until("error|"), await application.until("error|")}
            assert {answer[:14] for answer in answers} == {"error|r|busy|2", "error|a|busy|2"}


async def test_connections_beyond_a_users_limit_get_one_line_and_are_closed(tmp_path: Path) -> None:
    async with server(tmp_path, Config(limits=Limits(connections_per_user=3))) as running:
        kept = [await running.connect() for _ in range(3)]
        for application in kept:
            await application.send("cancel|x")
            await application.line()
        with await running.connect() as refused:
            await refused.send(initiate("a", "wins"))
            (line,) = await refused.rest()
            assert line.startswith("error|-|busy|3 connections of uid ")
        kept.pop().stream.close()
        await trio.testing.wait_all_tasks_blocked(0.02)
        with await running.connect() as application:
            await application.send("cancel|x")
            assert (await application.line()).startswith("error|x|unknown-id|")
        for application in kept:
            application.stream.close()


async def test_connections_of_all_users_are_limited(tmp_path: Path) -> None:
    async with server(tmp_path, Config(limits=Limits(connections=1))) as running:
        with await running.connect() as first:
            await first.send("cancel|x")
            await first.line()
            with await running.connect() as refused:
                (line,) = await refused.rest()
                assert line == "error|-|busy|1 connections are open"


async def test_a_user_who_is_not_named_is_not_permitted(tmp_path: Path) -> None:
    async with server(tmp_path, allowed=frozenset({os.getuid() + 1})) as running:
        with await running.connect() as application:
            (line,) = await application.rest()
            assert line == f"error|-|not-permitted|uid {os.getuid()} is not in allow-users"


# --- pace -----------------------------------------------------------------------------------------------------------


async def test_requests_beyond_the_pace_are_read_later_and_none_is_lost(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """20 a second, 40 at once: 100 lines take three seconds."""
    async with server(tmp_path) as running:
        with await running.connect() as application:
            started = trio.current_time()
            await application.send(*(f"cancel|n{number}" for number in range(100)))
            answers = [await application.line() for _ in range(100)]
            assert [answer.split("|")[1] for answer in answers] == [f"n{number}" for number in range(100)]
            assert trio.current_time() - started == pytest.approx(3.0, abs=0.1)


async def test_reconnecting_does_not_evade_the_pace(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """100 a second and user, 200 at once: 500 lines over 13 connections take three seconds, and a connection is one."""
    async with server(tmp_path) as running:
        started = trio.current_time()
        for start in range(0, 500, 40):
            with await running.connect() as application:
                ids = [f"n{number}" for number in range(start, min(start + 40, 500))]
                await application.send(*(f"cancel|{name}" for name in ids))
                assert [(await application.line()).split("|")[1] for _ in ids] == ids
        assert trio.current_time() - started == pytest.approx(3.13, abs=0.1)


async def test_connections_that_say_nothing_count_as_lines(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """Each of them costs the daemon more than a line does, and whoever waits for its turn keeps its place."""
    async with server(tmp_path, Config(limits=Limits(user_request_burst=10, connections_per_user=5))) as running:
        began = trio.current_time()
        for _ in range(10):
            (await running.connect()).stream.close()
            await trio.testing.wait_all_tasks_blocked()
        assert trio.current_time() == began
        kept = [await running.connect() for _ in range(5)]
        with await running.connect() as refused:
            assert (await refused.rest())[0].startswith("error|-|busy|5 connections of uid ")
        await kept[-1].send("cancel|x")
        assert (await kept[-1].line()).startswith("error|x|unknown-id|")
        assert trio.current_time() - began == pytest.approx(0.06, abs=0.02)
        for application in kept:
            application.stream.close()


async def test_what_begins_beyond_the_pace_begins_later_and_none_is_lost(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    limits = Limits(user_attempts_per_second=10, user_attempt_burst=3)
    async with server(tmp_path, Config(limits=limits)) as running:
        with await running.connect() as application:
            began = trio.current_time()
            await application.send(*(initiate(f"a{number}", "breaks") for number in range(8)))
            for number in range(8):
                await application.until(f"error|a{number}|exhausted|")
            assert trio.current_time() - began == pytest.approx(0.5, abs=0.05)


async def test_the_pace_of_one_connection_holds_up_no_other(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with server(tmp_path) as running:
        with await running.connect() as fast, await running.connect() as other:
            await fast.send(*(f"cancel|n{number}" for number in range(100)))
            for _ in range(40):
                await fast.line()
            started = trio.current_time()
            await other.send("cancel|x")
            await other.line()
            assert trio.current_time() - started < 0.02


# --- readers that do not read ---------------------------------------------------------------------------------------


async def test_an_application_that_leaves_too_much_unread_is_dropped(tmp_path: Path) -> None:
    """By the number of bytes: the time alone would allow it for ten minutes."""
    gc.collect()
    before = descriptors()
    limits = Limits(unread_bytes=4096, unread_seconds=600, **UNPACED)
    async with server(tmp_path, Config(limits=limits)) as running:
        idle = descriptors()
        with await running.connect() as application:
            await application.send(*(initiate(f"c{number}", "chatty") for number in range(8)))
            chatty = running.techniques["chatty"]
            await running.settle(lambda: chatty.started == 8 and chatty.running == 0)
            await running.settle(lambda: descriptors() <= idle + 1)  # the application's own end
            lines = await application.rest()
            assert lines, "what the kernel had is still read"
    assert descriptors() <= before


async def test_an_application_that_does_not_read_for_too_long_is_dropped(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """By time: few bytes wait, but they wait."""
    limits = Limits(unread_bytes=1 << 20, unread_seconds=3, **UNPACED)
    async with server(tmp_path, Config(limits=limits)) as running:
        with await running.connect() as application:
            await application.send(*(["cancel|nobody"] * 200), initiate("a", "waits"))
            started = trio.current_time()
            await running.settle(lambda: running.running == 1)
            await running.settle(lambda: running.running == 0)
            assert 3.0 <= trio.current_time() - started <= 4.0, "the round itself would last six seconds"


async def test_a_flood_of_oks_to_a_reader_that_never_reads_is_bounded_by_the_quotas(tmp_path: Path) -> None:
    """Slots are held until the verdict has left; descriptors: what the kernel holds, and one for each slot."""
    gc.collect()
    before = descriptors()
    limits = Limits(unread_bytes=1 << 20, unread_seconds=600, **UNPACED)
    async with server(tmp_path, Config(limits=limits)) as running:
        idle = descriptors()
        with await running.connect() as application:
            for batch in range(40):
                await application.send(*(initiate(f"a{batch}.{number}", "wins") for number in range(8)))
                await trio.testing.wait_all_tasks_blocked(0.002)
            wins = running.techniques["wins"]
            far_ends = len(wins.far_ends)
            print(f"{far_ends} of 320 attempts got a socket for a reader that never reads")
            assert far_ends <= 24
            assert descriptors() - idle - 2 - far_ends <= 8, "the daemon's own copies: those not yet written"
        await running.settle(lambda: descriptors() <= idle + far_ends)
        for far in wins.far_ends:
            far.setblocking(False)
            assert far.recv(1) == b"", "nobody holds the other end"
    assert descriptors() <= before


async def test_a_connection_that_is_dropped_gives_its_slots_back(tmp_path: Path) -> None:
    limits = Limits(attempts_per_user=8, unread_bytes=4096, unread_seconds=600, **UNPACED)
    async with server(tmp_path, Config(limits=limits)) as running:
        chatty = running.techniques["chatty"]
        for turn in range(1, 6):
            with await running.connect() as application:
                await application.send(*(initiate(f"c{number}", "chatty") for number in range(8)))
                await running.settle(lambda turn=turn: chatty.started == 8 * turn and chatty.running == 0)  # type: ignore[misc]
        with await running.connect() as application:
            await application.send(*(initiate(f"a{number}", "silent") for number in range(8)))
            assert await _busy(application) == 0


async def _busy(application: Application) -> int:
    await application.send("cancel|end")
    lines = []
    with trio.fail_after(HANG_S):
        while not (line := await application.line()).startswith("error|end|"):
            lines.append(line)
    return len([line for line in lines if "|busy|" in line])
