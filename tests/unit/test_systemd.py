"""What a service manager hears and passes, on real sockets of its side."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import trio

from punchd import systemd

PASSING = """
import os, sys
from punchd import systemd
os.environ["LISTEN_PID"] = str(os.getpid())
try:
    found = systemd.listening_sockets()
except ValueError as error:
    print("ValueError:", error)
else:
    for item in found:
        print(item.fileno(), item.getsockname(), item.getblocking(), os.get_inheritable(item.fileno()))
        item.close()
"""


@contextmanager
def manager(address: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(address)
        channel.setblocking(False)
        yield channel


def passed(fds: list[int | None], count: str | None = None) -> str:
    """What `listening_sockets` says in a program that inherits these as descriptors 3, 4, ...; None is closed."""
    moves = "".join(f"exec {3 + index}<&{fd} || exit 9; " for index, fd in enumerate(fds) if fd is not None)
    closes = "".join(f"exec {3 + index}<&-; " for index, fd in enumerate(fds) if fd is None)
    done = subprocess.run(
        ["/bin/bash", "-c", f'{moves}{closes}exec "$0" -W error -c "$1"', sys.executable, PASSING],
        env={**os.environ, "LISTEN_FDS": str(len(fds)) if count is None else count},
        pass_fds=[fd for fd in fds if fd is not None],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout


@contextmanager
def high_socket(family: int, kind: int) -> Iterator[socket.socket]:
    """A socket whose number is out of the way of 3, 4, 5."""
    with socket.socket(family, kind) as low, socket.socket(fileno=fcntl.fcntl(low.fileno(), fcntl.F_DUPFD, 20)) as high:
        yield high


# --- notify ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("abstract", [False, True])
def test_the_manager_hears_each_state(tmp_path: Path, abstract: bool) -> None:
    name = f"punchd-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with manager("\0" + name if abstract else name) as channel:
        environment = {"NOTIFY_SOCKET": "@" + name if abstract else name}
        systemd.notify("READY=1", environment)
        systemd.notify("STOPPING=1", environment)
        assert channel.recv(100) == b"READY=1"
        assert channel.recv(100) == b"STOPPING=1"


@pytest.mark.parametrize(
    "address", [None, "", "relative", "/does/not/exist", "/" + "x" * 300, "@" + "x" * 300, "vsock:2:1"]
)
def test_without_a_manager_nothing_is_said_and_nothing_fails(address: str | None) -> None:
    before = len(os.listdir("/proc/self/fd"))
    systemd.notify("READY=1", {} if address is None else {"NOTIFY_SOCKET": address})
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.timeout(30)
def test_a_manager_that_does_not_read_does_not_hold_the_daemon_up_for_ever(tmp_path: Path) -> None:
    with manager(str(tmp_path / "notify")):
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        full = False
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filler:
            filler.setblocking(False)
            while not full:
                try:
                    filler.sendto(b"x", str(tmp_path / "notify"))
                except BlockingIOError:
                    full = True
        systemd.notify("WATCHDOG=1", environment)


# --- the watchdog -----------------------------------------------------------------------------------------------------


async def test_the_heart_beats_twice_in_each_interval(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    with manager(str(tmp_path / "notify")) as channel:
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "30000000"}
        beats: list[float] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(systemd.heartbeat, environment)
            while trio.current_time() < 301:
                await trio.sleep(1)
                try:
                    assert channel.recv(100) == b"WATCHDOG=1"
                except BlockingIOError:
                    continue
                beats.append(trio.current_time())
            nursery.cancel_scope.cancel()
        assert len(beats) == 21
        assert max(late - early for early, late in pairwise(beats)) <= 16


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WATCHDOG_USEC": ""},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "-5"},
        {"WATCHDOG_USEC": "abc"},
        {"WATCHDOG_USEC": "²"},
        {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"},
    ],
)
async def test_without_a_watchdog_the_heart_does_not_beat(
    environment: dict[str, str], autojump_clock: trio.testing.MockClock
) -> None:
    with trio.fail_after(1000):
        await systemd.heartbeat(environment)


async def test_a_watchdog_of_this_process_is_served(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    with manager(str(tmp_path / "notify")) as channel:
        environment = {
            "NOTIFY_SOCKET": str(tmp_path / "notify"),
            "WATCHDOG_USEC": "1000000",
            "WATCHDOG_PID": str(os.getpid()),
        }
        with trio.move_on_after(0.1):
            await systemd.heartbeat(environment)
        assert channel.recv(100) == b"WATCHDOG=1"


# --- sockets --------------------------------------------------------------------------------------------------------


def test_a_listening_socket_is_taken_over_and_is_not_inherited_further(tmp_path: Path) -> None:
    with high_socket(socket.AF_UNIX, socket.SOCK_STREAM) as one, high_socket(socket.AF_UNIX, socket.SOCK_STREAM) as two:
        for number, item in enumerate((one, two)):
            item.bind(str(tmp_path / str(number)))
            item.listen()
        assert passed([one.fileno(), two.fileno()]).splitlines() == [
            f"3 {tmp_path / '0'} False False",
            f"4 {tmp_path / '1'} False False",
        ]


def test_sockets_for_another_process_are_not_ours() -> None:
    assert systemd.listening_sockets({"LISTEN_PID": "1", "LISTEN_FDS": "1"}) == []
    assert systemd.listening_sockets({"LISTEN_FDS": "1"}) == []
    assert systemd.listening_sockets({"LISTEN_PID": str(os.getpid())}) == []


@pytest.mark.parametrize(
    ("family", "kind", "listens", "found"),
    [
        (socket.AF_UNIX, socket.SOCK_STREAM, False, "AF_UNIX SOCK_STREAM that does not listen"),
        (socket.AF_UNIX, socket.SOCK_DGRAM, False, "AF_UNIX SOCK_DGRAM that does not listen"),
        (socket.AF_UNIX, socket.SOCK_SEQPACKET, True, "AF_UNIX SOCK_SEQPACKET"),
        (socket.AF_INET, socket.SOCK_STREAM, True, "AF_INET SOCK_STREAM"),
    ],
)
def test_a_descriptor_of_another_kind_is_one_clear_line(
    tmp_path: Path, family: int, kind: int, listens: bool, found: str
) -> None:
    with high_socket(family, kind) as item:
        item.bind(str(tmp_path / "socket") if family == socket.AF_UNIX else ("127.0.0.1", 0))
        if listens:
            item.listen()
        wanted = "descriptor 3 from the service manager: expected a listening Unix stream socket"
        assert passed([item.fileno()]) == f"ValueError: {wanted}, got {found}\n"


def test_a_descriptor_that_is_no_socket_or_not_there_is_one_clear_line(tmp_path: Path) -> None:
    wanted = "descriptor 3 from the service manager: expected a listening Unix stream socket"
    assert passed([None]) == f"ValueError: {wanted}, got Bad file descriptor\n"
    with open(os.devnull) as file:
        assert passed([file.fileno()]) == f"ValueError: {wanted}, got Socket operation on non-socket\n"


@pytest.mark.parametrize("count", ["", "x", "-1", "1000000", "²"])
def test_a_number_of_descriptors_that_makes_no_sense_is_one_clear_line(count: str) -> None:
    assert passed([], count).startswith("ValueError: LISTEN_FDS from the service manager: expected 0 to 16, got ")
