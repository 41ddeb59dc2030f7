"""How attempts, connections and the whole daemon end, and that nothing stays open then. Techniques are scripted."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
import trio

from punchd.config import Config, Limits
from tests.unit.daemon_fixture import HANG_S, PEER, descriptors, server, stun_server


def initiate(attempt_id: str, technique: str, *options: str) -> str:
    return "|".join((f"initiate|{attempt_id}|{technique}|{PEER}|40000", *options))


# --- the end ----------------------------------------------------------------------------------------------------


async def test_every_attempt_ends_within_its_timeout_and_two_seconds(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with server(tmp_path) as running:
        with await running.connect() as application:
            started = trio.current_time()
            await application.send(
                initiate("a", "silent", "timeout=1000"), initiate("b", "waits,silent,waits", "timeout=9000")
            )
            assert (await application.until("error|a|")).startswith("error|a|timeout|")
            assert 1.0 <= trio.current_time() - started <= 3.0
            answer = await application.until("error|b|")
            assert answer.startswith(("error|b|timeout|", "error|b|exhausted|")), answer
            assert trio.current_time() - started <= 11.0
            assert running.running == 0


async def test_cancel_ends_an_attempt_with_an_abort_for_the_other_side(tmp_path: Path) -> None:
    async with server(tmp_path) as running:
        with await running.connect() as application:
            await application.send(initiate("a", "waits"))
            await application.until_relay("a")
            await application.send("cancel|a", "cancel|a")
            assert (await application.token("a")).kind.name == "ABORT"
            assert (await application.line()).startswith("error|a|cancelled|")
            assert (await application.line()).startswith("error|a|unknown-id|")
            await running.settle(lambda: running.running == 0)


async def test_a_cancel_that_crosses_an_ok_is_answered_with_unknown_id_after_the_ok(tmp_path: Path) -> None:
    async with server(tmp_path) as running:
        with await running.connect() as application:
            await application.send(initiate("a", "slow"))
            await application.until_relay("a")
            running.techniques["slow"].go.set()
            await trio.testing.wait_all_tasks_blocked(0.05)
            await application.send("cancel|a")
            assert (await application.line()).startswith("ok|a|")
            assert (await application.line()).startswith("error|a|unknown-id|")
            assert len(application.fds) == 1


@pytest.mark.parametrize("half", [False, True])
async def test_the_end_of_the_file_cancels_everything_of_that_connection(tmp_path: Path, half: bool) -> None:
    gc.collect()
    before = descriptors()
    async with server(tmp_path) as running:
        idle = descriptors()
        other = await running.connect()
        await other.send(initiate("other", "waits"))
        await other.until_relay("other")
        application = await running.connect()
        await application.send(*(initiate(f"a{number}", "bound") for number in range(8)))
        await running.settle(lambda: running.techniques["bound"].running == 8)
        if half:
            application.stream.shutdown(trio.socket.SHUT_WR)
            answers = [line for line in await application.rest() if line.startswith("error|")]
            assert sorted(line[:18] for line in answers) == [f"error|a{number}|cancelled" for number in range(8)]
        application.stream.close()
        await running.settle(lambda: running.techniques["bound"].running == 0)
        assert running.techniques["waits"].running == 1, "the other connection is not concerned"
        other.stream.close()
        await running.settle(lambda: running.running == 0 and descriptors() <= idle)
    assert descriptors() <= before


async def test_when_the_daemon_stops_every_attempt_and_every_probe_gets_a_verdict(tmp_path: Path) -> None:
    async with stun_server(answers=0) as silent, server(tmp_path, Config(stun=(silent,))) as running:
        applications = [await running.connect() for _ in range(3)]
        for application in applications:
            await application.send(initiate("a", "waits"), initiate("b", "bound"), "probe|p|udp|local=127.0.0.1")
            await application.until_relay("b")
        await trio.testing.wait_all_tasks_blocked(0.05)
        running.stop.set()
        for application in applications:
            with application:
                answers = [line for line in await application.rest() if line.startswith("error|")]
                assert sorted(line.rsplit("|", 1)[0] for line in answers) == [
                    "error|a|shutdown",
                    "error|b|shutdown",
                    "error|p|shutdown",
                ]
        with trio.fail_after(HANG_S):
            await running.ended.wait()
        assert running.running == 0


async def test_who_is_let_in_just_before_a_stop_has_its_first_line_answered(tmp_path: Path) -> None:
    async with server(tmp_path) as running:
        with await running.connect() as application:
            await trio.testing.wait_all_tasks_blocked(0.01)
            running.stop.set()
            await trio.sleep(0.05)
            await application.send("hello|1")
            assert (await application.rest())[0].startswith("ok|-|hello|1|")
        with trio.fail_after(HANG_S):
            await running.ended.wait()


async def test_a_stop_waits_for_no_application_that_does_not_read(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with server(tmp_path) as running:
        with await running.connect() as application:
            await application.send(*(initiate(f"a{number}", "waits") for number in range(8)))
            await running.settle(lambda: running.running == 8)
            await application.send(*(["cancel|nobody"] * 30))
            started = trio.current_time()
            running.stop.set()
            await running.ended.wait()
            assert trio.current_time() - started <= 4.0
            assert running.running == 0


# --- the process's descriptors ---------------------------------------------------------------------------------------


async def test_a_thousand_attempts_of_all_kinds_leave_no_descriptor_behind(tmp_path: Path) -> None:
    gc.collect()
    before = descriptors()
    limits = Limits(
        requests_per_second=100_000,
        request_burst=100_000,
        user_requests_per_second=100_000,
        user_request_burst=100_000,
        user_attempts_per_second=100_000,
        user_attempt_burst=100_000,
    )
    async with server(tmp_path, Config(limits=limits)) as running:
        idle = descriptors()
        for kind in ("wins", "breaks", "bound", "odd", "buggy"):
            for batch in range(10):
                application = await running.connect()
                ids = [f"a{number}" for number in range(8)]
                await application.send(*(initiate(name, kind) for name in ids))
                if kind == "bound":
                    if batch % 2:
                        await application.send(*(f"cancel|{name}" for name in ids))
                    else:
                        await running.settle(lambda: running.techniques["bound"].running == 8)
                elif kind == "wins" and batch % 2:
                    for _ in ids:
                        await application.until("ok|")
                with application:
                    continue
        await running.settle(lambda: running.running == 0)
        for far in running.techniques["wins"].far_ends + running.techniques["odd"].far_ends:
            far.close()
        await running.settle(lambda: descriptors() <= idle)
    assert descriptors() <= before


async def test_descriptors_are_not_inheritable(tmp_path: Path) -> None:
    """Close-on-exec: nothing that the daemon may start gets an application's socket."""
    known = {int(name) for name in os.listdir("/proc/self/fd")}
    async with server(tmp_path) as running:
        with await running.connect() as application:
            await application.send(initiate("a", "bound"), initiate("b", "slow"))
            await application.until_relay("a")
            new = {int(name) for name in os.listdir("/proc/self/fd")} - known
            opened = [fd for fd in new if os.path.exists(f"/proc/self/fd/{fd}")]  # noqa: ASYNC240 (/proc never blocks)
            assert len(opened) >= 3, "at least the connection's ends and the attempt's port"
            assert not [os.readlink(f"/proc/self/fd/{fd}") for fd in opened if os.get_inheritable(fd)]
