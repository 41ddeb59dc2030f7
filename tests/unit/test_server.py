"""The daemon's shell on real Unix sockets: order, verdicts, limits, races. Techniques are scripted, nothing is sent.

Limits are in test_server_limits.py, probed ports in test_server_ports.py, races in test_server_races.py, and how things
end in test_server_ending.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from punchd.config import Config, Limits
from tests.unit.daemon_fixture import PEER, descriptors, server


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
