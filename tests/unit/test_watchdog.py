"""Each service feeds the service manager's watchdog, from its event loop and from nowhere else."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio

from punchd import systemd

START_S = 60.0
INTERVAL_US = 400_000


def free() -> str:
    """A place on loopback where nobody listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{found.getsockname()[1]}"


def arguments(program: str, directory: Path) -> list[str]:
    match program:
        case "punchd":
            words = ["--socket", str(directory / "socket"), "--mode", "600", "--techniques", "udp"]
            return [
                *words,
                "--user",
                str(os.geteuid()),
            ]  # no other can reach the manager's socket in a test's directory
        case "rendezvous":
            return ["--http", free(), "--udp", free(), "--stun", free(), "--metrics", free()]
        case _:
            return ["--insecure-dev", "--listen", free(), "--metrics", free()]


@pytest.mark.parametrize("program", ["punchd", "rendezvous", "broker"])
def test_a_service_says_that_it_is_ready_and_goes_on_to_say_that_it_is_alive(program: str, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(START_S)
        environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": str(INTERVAL_US)}
        command = [sys.executable, "-m", f"punchd.cli.{program}", *arguments(program, tmp_path)]
        with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
            try:
                said = [manager.recv(1000).decode() for _ in range(6)]
            finally:
                process.terminate()
    assert "READY=1" in said
    assert said.count("WATCHDOG=1") >= 4, said


async def test_an_event_loop_that_is_stuck_does_not_feed_the_watchdog(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "20000"}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(systemd.heartbeat, environment)
            await trio.testing.wait_all_tasks_blocked()
            assert manager.recv(100) == b"WATCHDOG=1"
            time.sleep(0.2)  # noqa: ASYNC251 (that is the point)
            with pytest.raises(BlockingIOError):
                manager.recv(100)
            nursery.cancel_scope.cancel()
