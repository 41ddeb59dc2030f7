"""The daemon's shell on real Unix sockets: order, verdicts, limits, races. Techniques are scripted, nothing is sent.

What concerns probed ports is in test_server_ports.py, what concerns races of tokens in test_server_races.py.
"""

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


# --- order and form ------------------------------------------------------------------------------------------------


async def test_hello_is_answered_with_what_can_be_used_here(tmp_path: Path) -> None:
    async with server(tmp_path) as running:
        with await running.connect() as application:
            await application.send("hello|1|test-app")
            names = ",".join(running.techniques)
            assert await application.line() == f"ok|-|hello|1|{names}|8|hello,probe,initiate,respond,cancel"
            assert not application.fds


@pytest.mark.parametrize("first", ["hello|1", "cancel|x", "", "rubbish"])
async def test_hello_is_for_the_first_line_only(tmp_path: Path, first: str) -> None:
    async with server(tmp_path) as running:
        with await running.connect() as application:
            await application.send(first, "hello|1")
            await application.line()
            assert (await application.line()).startswith("error|-|bad-message|hello")


async def test_a_hello_without_a_common_version_leaves_version_1(tmp_path: Path) -> None:
    async with server(tmp_path) as running:
        with await running.connect() as application:
            await application.send("hello|0", initiate("a", "wins"))
            assert (await application.line()).startswith("error|-|bad-version|")
            assert (await application.until("ok|a|")).startswith("ok|a|wins|tcp|")


async def test_an_attempt_is_progress_and_then_one_verdict_with_one_descriptor(tmp_path: Path) -> None:
    async with server(tmp_path) as running:
        with await running.connect() as application:
            await application.send(initiate("a", "wins"))
            assert await application.line() == "progress|a|1|wins|trying|-"
            assert (await application.line()).startswith("progress|a|1|wins|relay|")
            assert await application.line() == f"ok|a|wins|tcp|192.0.2.1|40001|{PEER}|40000"
            assert len(application.fds) == 1
            assert await application.nothing_for(0.1) == []


async def test_an_attempt_that_fails_names_every_reason_and_ends_once(tmp_path: Path) -> None:
    async with server(tmp_path) as running:
        with await running.connect() as application:
            await application.send(initiate("a", "breaks,buggy,breaks"))
            lines = [await application.until("progress|a|") for _ in range(6)]
            assert [line.split("|")[2:6] for line in lines[::2]] == [
                ["1", "breaks", "trying", "-"],
                ["2", "buggy", "trying", "-"],
                ["3", "breaks", "trying", "-"],
            ]
            assert [line.split("|")[4:6] for line in lines[1::2]] == [
                ["failed", "refused"],
                ["failed", "internal"],
                ["failed", "refused"],
            ]
            verdict = await application.line()
            assert verdict.startswith("error|a|exhausted|")
            assert "breaks refused, buggy internal, breaks refused" in verdict
            assert await application.nothing_for(0.1) == []


async def test_a_technique_that_fails_in_its_own_attempt_harms_no_other(tmp_path: Path) -> None:
    async with server(tmp_path) as running:
        with await running.connect() as application:
            await application.send(initiate("good", "slow"), initiate("bad", "buggy"), initiate("worse", "odd"))
            verdicts = {(await application.until("error|"))[:16] for _ in range(2)}
            assert verdicts == {"error|bad|exhaus", "error|worse|inte"}
            running.techniques["slow"].go.set()
            assert (await application.until("ok|good|")).startswith("ok|good|slow|")
            await application.send(*(initiate(f"n{number}", "silent") for number in range(8)))
            lines = [await application.line() for _ in range(8)]
            assert sorted(lines) == [f"progress|n{number}|1|silent|trying|-" for number in range(8)], "no slot was lost"


async def test_the_descriptor_of_a_verdict_that_cannot_be_written_is_closed(tmp_path: Path) -> None:
    before = descriptors()
    async with server(tmp_path) as running:
        with await running.connect() as application:
            await application.send(initiate("a", "odd"))
            await application.until("error|a|internal|")
            far = running.techniques["odd"].far_ends[0]
            far.setblocking(False)
            assert far.recv(1) == b"", "nobody holds the other end any more"
    assert descriptors() <= before


async def test_requests_are_taken_in_order_and_attempts_interleave(tmp_path: Path) -> None:
    async with server(tmp_path) as running:
        with await running.connect() as application:
            await application.send("cancel|n1", initiate("a", "slow"), "cancel|n2", initiate("b", "slow"), "cancel|n3")
            unknown = [await application.until("error|n") for _ in range(3)]
            assert [line.split("|")[1] for line in unknown] == ["n1", "n2", "n3"]
            running.techniques["slow"].go.set()
            verdicts = {(await application.until("ok|"))[:5] for _ in range(2)}
            assert verdicts == {"ok|a|", "ok|b|"}
            assert len(application.fds) == 2


async def test_an_id_is_free_again_after_its_verdict(tmp_path: Path) -> None:
    async with server(tmp_path) as running:
        with await running.connect() as application:
            for _ in range(5):
                await application.send(initiate("a", "wins"))
                await application.until("ok|a|")
                await application.send(initiate("a", "breaks"))
                await application.until("error|a|exhausted|")
            assert len(application.fds) == 5


async def test_an_id_is_free_again_in_the_very_line_after_a_cancel(tmp_path: Path) -> None:
    async with server(tmp_path) as running:
        with await running.connect() as application:
            await application.send(*([initiate("a", "waits"), "cancel|a"] * 5), initiate("a", "wins"))
            for _ in range(5):
                await application.until("error|a|cancelled|")
            await application.until("ok|a|")
            assert await application.nothing_for(0.1) == []


# --- lines that are wrong ------------------------------------------------------------------------------------------


async def test_an_empty_line_is_a_bad_message_and_the_connection_stays(tmp_path: Path) -> None:
    async with server(tmp_path) as running:
        with await running.connect() as application:
            await application.send("", "", initiate("a", "wins"))
            assert (await application.line()).startswith("error|-|bad-message|")
            assert (await application.line()).startswith("error|-|bad-message|")
            await application.until("ok|a|")


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"x" * 501, "too-long"),
        (b"x" * 4000, "too-long"),
        (b"cancel|a\r\n", "bad-message"),
        (b"cancel|\x00\n", "bad-message"),
        (b"cancel|\xff\n", "bad-message"),
        (b"\t\n", "bad-message"),
    ],
)
async def test_a_line_after_which_no_border_is_sure_ends_the_connection_but_not_its_earlier_answers(
    tmp_path: Path, line: bytes, code: str
) -> None:
    async with server(tmp_path) as running:
        with await running.connect() as application:
            await application.send(initiate("a", "wins"))
            await application.until("ok|a|")
            await application.stream.send(b"cancel|n\n" * 10 + b"cancel|m\n" * 5 + line + b"cancel|never\n" * 20)
            answers = await application.rest()
            assert [answer.split("|")[1] for answer in answers] == ["n"] * 10 + ["m"] * 5 + ["-"]
            assert answers[-1].startswith(f"error|-|{code}|")


async def test_a_line_of_500_bytes_is_read_however_it_is_cut(tmp_path: Path) -> None:
    async with server(tmp_path) as running:
        with await running.connect() as application:
            text = b"cancel|" + b"x" * 493 + b"\n"
            for byte in text:
                await application.stream.send(bytes((byte,)))
            assert (await application.line()).startswith("error|-|bad-message|field 2")


async def test_errors_that_end_nothing_leave_the_attempt_running(tmp_path: Path) -> None:
    """§13.6: bad-message, duplicate-id, unknown-id, everything on `-`, a malformed token for a running id."""
    async with server(tmp_path) as running:
        with await running.connect() as application:
            await application.send(
                initiate("a", "slow"),
                "rubbish",
                "cancel|a|too|many",
                initiate("a", "wins"),
                initiate("a", "no-such-one"),
                "probe|a|udp",
                "cancel|other",
                "respond|a|AAAA",
                "hello|1",
            )
            answers = [await application.line() for _ in range(10)]
            complaints = [answer for answer in answers if not answer.startswith("progress|a|1|slow|trying")]
            codes = sorted(
                answer.split("|")[2] if answer.startswith("error") else "|".join(answer.split("|")[3:6])
                for answer in complaints
                if "|relay|" not in answer
            )
            assert codes == sorted(
                [
                    "bad-message",
                    "bad-message",
                    "duplicate-id",
                    "duplicate-id",
                    "duplicate-id",
                    "unknown-id",
                    "slow|ignored|bad-token",
                    "bad-message",
                ]
            )
            assert running.techniques["slow"].running == 1
            running.techniques["slow"].go.set()
            assert (await application.until("ok|a|")).startswith("ok|a|slow|")


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("initiate|a|wins|127.0.0.1|40000", "bad-address"),
        ("initiate|a|wins|192.0.2.1|40000", "bad-address"),  # the host's own, says the kernel
        ("initiate|a|wins|198.51.100.1|40000", "network"),
        ("initiate|a|wins|2001:db8::1|40000", "network"),
        ("initiate|a|wins|203.0.113.7|70000", "bad-port"),
        ("initiate|a|tcp-syni|203.0.113.7|40000", "exhausted"),
        ("initiate|a|wins|203.0.113.7|40000|stun=127.0.0.1:3478", "bad-address"),
        ("initiate|a|wins|203.0.113.7|40000|stun=192.0.2.1:3478", "bad-address"),
        ("initiate|a|wins|203.0.113.7|40000|stun=10.0.0.1:3478", "bad-address"),
        ("initiate|a|wins|203.0.113.7|40000|stun=localhost:3478", "bad-address"),
        ("initiate|a|bound|203.0.113.7|40000|local=192.0.2.77", "network"),
        ("probe|a|tcp", "no-address"),
        ("probe|a|udp", "no-address"),
    ],
)
async def test_a_request_that_cannot_be_carried_out_says_why_and_costs_no_slot(
    tmp_path: Path, line: str, code: str
) -> None:
    before = descriptors()
    config = Config(limits=Limits(attempts_per_connection=1))
    async with server(tmp_path, config) as running:
        with await running.connect() as application:
            for _ in range(3):
                await application.send(line)
                answer = await application.line()
                assert answer.startswith(f"error|a|{code}|"), answer
                assert "|-" not in answer
            await application.send(initiate("a", "wins"))
            await application.until("ok|a|")
    assert descriptors() <= before


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("initiate|a|wins|203.0.113.99|40000", "internal"),
        ("initiate|a|wins|203.0.113.7|40000|stun=a..b:3478", None),
        (f"initiate|a|wins|203.0.113.7|40000|stun={'x' * 58}:3478", None),
    ],
)
async def test_a_request_that_meets_a_bug_ends_neither_its_connection_nor_anothers_attempt(
    tmp_path: Path, line: str, code: str | None
) -> None:
    async with server(tmp_path) as running:
        with await running.connect() as application:
            await application.send(initiate("other", "slow"), line)
            if code is not None:
                assert (await application.until("error|a|")).startswith(f"error|a|{code}|")
            running.techniques["slow"].go.set()
            await application.until("ok|other|")


async def test_a_probe_without_a_stun_server_says_how_to_name_one(tmp_path: Path) -> None:
    async with server(tmp_path) as running:
        with await running.connect() as application:
            await application.send("probe|a|udp", "probe|b|udp|local=127.0.0.1")
            for name in "ab":
                assert "--stun" in await application.until(f"error|{name}|no-address|")


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
        requests_per_second=100_000, request_burst=100_000, user_requests_per_second=100_000, user_request_burst=100_000
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
