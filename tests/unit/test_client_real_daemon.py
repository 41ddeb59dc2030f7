"""The library against the daemon itself, as far as that goes without sending a packet: tests/netns has the rest."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from punchd.client import AttemptError, DaemonGoneError, DaemonUnreachableError
from punchd.client.blocking import Daemon
from punchd.client.trio_client import Daemon as TrioDaemon
from tests.unit.test_client_fake_daemon import no_descriptor_leaks

START_S = 10.0  # for a daemon to open its socket, or to end, on a busy machine

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: starts the daemon; run sudo ./dev test")


def wait_until_served(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Until connections are accepted: the socket's file is there a moment earlier."""
    deadline = time.monotonic() + START_S
    while True:
        with socket.socket(socket.AF_UNIX) as attempt, suppress(FileNotFoundError, ConnectionRefusedError):
            return attempt.connect(str(path))
        assert process.poll() is None, f"the daemon ended with code {process.returncode}"
        assert time.monotonic() < deadline, f"no daemon at {path} after {START_S} s"
        time.sleep(0.01)


@pytest.fixture(name="process")
def _process(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    path = tmp_path / "socket"
    # The one STUN server is a port of loopback where nobody answers.
    command = [sys.executable, "-m", "punchd.cli.punchd", "--socket", str(path), "--stun", "127.0.0.1:9"]
    with subprocess.Popen([*command, "--techniques", "udp"], stderr=subprocess.PIPE) as process:
        try:
            wait_until_served(path, process)
            yield str(path), process
        finally:
            process.kill()


def test_the_daemon_greets_and_refuses_what_it_must(process: tuple[str, subprocess.Popen[bytes]]) -> None:
    with no_descriptor_leaks(), Daemon.connect(process[0], client="test") as daemon:
        assert daemon.greeting is not None
        assert daemon.greeting.techniques == ("udp",)
        assert "probe" in daemon.greeting.verbs
        for ip, code in (("127.0.0.1", "bad-address"), ("224.0.0.1", "bad-address")):
            with daemon.initiate(ip, 40000, techniques="udp") as attempt, pytest.raises(AttemptError) as caught:
                attempt.connect(print)
            assert caught.value.code == code
        with (
            daemon.initiate("203.0.113.7", 40000, techniques="smoke-signals") as attempt,
            pytest.raises(AttemptError, match="bad-technique"),
        ):
            attempt.connect(print)
        with (
            daemon.respond("A" * 40, peer="203.0.113.7") as attempt,
            pytest.raises(AttemptError, match=r"bad-token|token-version"),
        ):
            attempt.connect(print)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_daemon_that_ends_is_gone(process: tuple[str, subprocess.Popen[bytes]], number: signal.Signals) -> None:
    path, daemon_process = process
    with no_descriptor_leaks(), Daemon.connect(path) as daemon:
        daemon_process.send_signal(number)
        daemon_process.wait(START_S)
        with pytest.raises(DaemonGoneError, match="punchd closed the connection"):
            daemon.probe("udp")
    with pytest.raises(DaemonUnreachableError, match="is punchd running"):
        Daemon.connect(path)


async def test_the_trio_flavour_speaks_to_the_daemon(process: tuple[str, subprocess.Popen[bytes]]) -> None:
    with no_descriptor_leaks():
        async with TrioDaemon.connect(process[0]) as daemon:
            with pytest.raises(AttemptError):
                await daemon.probe("udp", local="127.0.0.1")
            async with daemon.initiate("127.0.0.1", 40000) as attempt:
                with pytest.raises(AttemptError, match="bad-address"):
                    await attempt.connect(trio.sleep)  # type: ignore[arg-type]  # never called
