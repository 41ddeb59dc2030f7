"""Programs that are run, heard, piped and ended: small ones of every Unix."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
import trio

from punchd.broker.connect import End
from punchd.broker.messages import Direction
from punchd.endpoint import Endpoint
from punchd.punch.outcomes import EndedError, Exit
from punchd.session import child, tools
from punchd.session.child import Ears, Ended
from punchd.session.tools import Choice, Command

PATIENCE_S = 30.0


class Listener:
    """What was said, and the ears for it."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.counts: list[bytes] = []
        self.ears = Ears(self.lines.append, self.counts.append, "the-secret")


def shell(script: str, *, is_end: bool = True) -> Command:
    return Command(("/bin/sh", "-c", script), is_end=is_end)


async def run(*commands: Command, linger_s: float = 0.0) -> tuple[Ended, Listener]:
    listener = Listener()
    with trio.fail_after(PATIENCE_S):
        return await child.run(commands, listener.ears, linger_s), listener


@pytest.mark.parametrize(
    ("script", "code", "why"),
    [("exit 0", 0, "exit code 0"), ("exit 3", 3, "exit code 3"), ("kill -9 $$", -9, "ended by SIGKILL")],
)
async def test_how_it_ended_is_told(script: str, code: int, why: str) -> None:
    ended, _ = await run(shell(script))
    assert ended == Ended(code, f"/bin/sh: {why}")


async def test_last_words_and_statistics_are_heard_to_the_end_and_the_passphrase_is_blotted_out() -> None:
    script = "echo opening srt://x?passphrase=the-secret >&2; echo '{\"sid\":1}' > {stats}; printf unfinished >&2"
    _, listener = await run(shell(script))
    assert sorted(listener.lines) == ["opening srt://x?passphrase=***", "unfinished"]
    assert listener.counts == [b'{"sid":1}']


async def test_a_line_without_an_end_is_cut() -> None:
    _, listener = await run(shell("head -c 100000 /dev/zero | tr '\\0' x >&2"))
    assert "".join(listener.lines) == "x" * 100_000
    assert max(map(len, listener.lines)) <= 2 * child.MAX_LINE_BYTES


async def test_each_is_piped_into_the_next_and_what_is_fed_may_finish(tmp_path: Path) -> None:
    file = tmp_path / "out"
    feeding = shell("echo one; echo two; sleep 0.2", is_end=True)
    fed = shell(f"cat > {file}; sleep 0.3; echo three >> {file}", is_end=False)
    ended, _ = await run(feeding, fed)
    assert ended.code == 0
    assert file.read_text() == "one\ntwo\nthree\n"


async def test_an_srt_end_lingers_when_its_source_has_ended_well(tmp_path: Path) -> None:
    file = tmp_path / "out"
    sending = shell(f"cat > {file}; sleep 0.3; echo sent >> {file}; sleep 60")
    ended, _ = await run(shell("echo media", is_end=False), sending, linger_s=1.0)
    assert ended.code == 0
    assert file.read_text() == "media\nsent\n"


@pytest.mark.parametrize(("code", "left"), [(0, "media, and what fills it up"), (1, "media")])
async def test_what_has_to_follow_does_if_the_source_has_ended_well(tmp_path: Path, code: int, left: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    file = tmp_path / "out"
    source = Command(
        ("/bin/sh", "-c", f"printf media; sleep 0.1; exit {code}"), is_end=False, tail=b", and what fills it up"
    )
    ended, _ = await run(source, shell(f"cat > {file}"), linger_s=0.5)
    assert ended.code == code
    assert file.read_text() == left
    assert len(os.listdir("/proc/self/fd")) == before


async def test_who_does_not_read_what_has_to_follow_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "FED_S", 0.2)
    source = Command(("/bin/sh", "-c", "head -c 65536 /dev/zero"), is_end=False, tail=b"more")
    ended, _ = await run(source, shell("sleep 600"))
    assert ended.code == 0


@pytest.mark.skipif(shutil.which("srt-live-transmit") is None, reason="needs srt-live-transmit: apt install srt-tools")
@pytest.mark.parametrize("packets", [1, 71, 300])
async def test_a_films_last_packets_arrive_though_they_do_not_fill_a_piece(tmp_path: Path, packets: int) -> None:
    film, copy = tmp_path / "film.ts", tmp_path / "copy.ts"
    film.write_bytes(b"".join(b"\x47\x01\x00\x10" + number.to_bytes(184, "big") for number in range(packets)))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    end = End(Endpoint(ip_address("127.0.0.1"), port), port, Direction.SENDER, 120, "0123456789")
    feeding, sending = tools.commands(Choice(Direction.SENDER, "ffmpeg"), end, "cam")
    source = replace(feeding, words=("/bin/sh", "-c", f"sleep 0.5; cat {film}"))
    receiver = ("srt-live-transmit", "-q", f"srt://127.0.0.1:{port}?mode=listener", "file://con")
    caller = replace(sending, words=(*sending.words[:-1], f"srt://127.0.0.1:{port}?mode=caller"))
    with copy.open("wb") as sink:
        receiving = await trio.lowlevel.open_process(receiver, stdout=sink, stderr=subprocess.DEVNULL)
        try:
            await run(source, caller, linger_s=1.0)
        finally:
            receiving.terminate()
            await receiving.wait()
    found = copy.read_bytes()
    assert found[: film.stat().st_size] == film.read_bytes()
    assert len(found) % 1316 == 0


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


async def cancelled(commands: Sequence[Command], after: str) -> list[int]:
    """Run until a line says `after`; the pids that were said before."""
    pids: list[int] = []
    with trio.fail_after(PATIENCE_S), trio.CancelScope() as scope:

        def hear(line: str) -> None:
            if line.isdigit():
                pids.append(int(line))
            elif line == after:
                scope.cancel()

        await child.run(commands, Ears(hear, lambda line: None, "-"), 0.0)
    assert scope.cancelled_caught
    return pids


async def test_when_cancelled_nothing_is_left_not_even_what_a_shell_has_started() -> None:
    stubborn = "(trap '' TERM; sleep 600) & echo $! >&2; echo $$ >&2; echo ready >&2; wait"
    pids = await cancelled([shell(stubborn)], "ready")
    assert len(pids) == 2
    with trio.fail_after(PATIENCE_S):
        while any(map(is_running, pids)):  # noqa: ASYNC110 (another process)
            await trio.sleep(0.01)


async def test_what_ignores_sigterm_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "TERM_S", 0.2)
    pids = await cancelled([shell("trap '' TERM; echo $$ >&2; echo ready >&2; while :; do sleep 1; done")], "ready")
    assert not any(map(is_running, pids))


async def test_a_program_that_is_not_there_is_a_reason_and_takes_the_others_with_it() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(EndedError) as refused:
        await run(shell("sleep 600"), Command(("srt-live-transmit-x",)))
    assert (refused.value.code, str(refused.value)) == (Exit.USAGE, "srt-live-transmit-x is not installed")
    assert len(os.listdir("/proc/self/fd")) == before


async def test_the_group_is_its_own_so_that_a_terminal_s_interrupt_does_not_reach_it() -> None:
    pids = await cancelled([shell("ps -o pgid= -p $$ | tr -d ' ' >&2; echo ready >&2; sleep 600")], "ready")
    assert len(pids) == 1
    assert pids != [os.getpgid(0)]
