"""The daemon as a process: starting, stopping, signals, service managers, logs and traces.

Attempts are made in a namespace where nobody answers.
"""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from punchd.cli.users import NAMELESS
from tests.netns.daemons import COMMAND, HANG_S, Punchd, Starter, open_to_all, punchd, quiet_namespace, until, writable

pytestmark = pytest.mark.netns

INITIATE = "initiate|a|udp|203.0.113.7|40000|public=198.51.100.2"


@pytest.fixture(name="quiet", scope="module")
def _quiet() -> Iterator[Starter]:
    with quiet_namespace() as starter:
        yield starter


# --- stopping -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_every_attempt_with_a_verdict_and_removes_the_socket(
    tmp_path: Path, quiet: Starter, number: signal.Signals
) -> None:
    with punchd(tmp_path, starter=quiet) as daemon, daemon.ready().talk() as one, daemon.talk() as two:
        for talk in (one, two):
            talk.send(INITIATE, "initiate|b|udp|203.0.113.8|40000|public=198.51.100.2")
            talk.until("progress|b|1|udp|relay|")
        daemon.send(number)
        for talk in (one, two):
            lines = talk.rest()
            assert sorted(line for line in lines if line.startswith("error")) == [
                "error|a|shutdown|punchd is stopping",
                "error|b|shutdown|punchd is stopping",
            ]
            assert len([line for line in lines if "|relay|" in line and line.startswith("progress|b")]) == 1, "abort"
        assert daemon.wait() == 0
        assert not daemon.path.exists()
        assert "Traceback" not in daemon.output


def test_a_second_interrupt_ends_it_although_an_application_does_not_read(tmp_path: Path, quiet: Starter) -> None:
    with punchd(tmp_path, starter=quiet) as daemon, daemon.ready().talk() as talk:
        talk.send(*(["cancel|nobody"] * 40))
        talk.line()
        daemon.send(signal.SIGINT)
        until(lambda: "stopping on SIGINT" in daemon.output, "the first one is heard")
        daemon.send(signal.SIGINT)
        assert daemon.wait() in (0, 130)
        assert "Traceback" not in daemon.output
        assert not daemon.path.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_moment_of_the_start_ends_it_and_leaves_no_path(tmp_path: Path, number: signal.Signals) -> None:
    """From the moment on that our code runs: what Python itself says before that is Python's."""
    program = "import sys; from punchd.cli import punchd; print('up', flush=True); sys.exit(punchd.main(sys.argv[1:]))"
    seen = set()
    open_to_all(tmp_path)
    for turn in range(14):
        command = [sys.executable, "-c", program]
        with subprocess.Popen(
            [*command, "--socket", str(tmp_path / "punchd.socket"), "--mode", "600", "--log-level", "error"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.01 + turn * 0.04)  # `up` is said a moment before main() runs
            process.send_signal(number)
            _, errors = process.communicate(timeout=HANG_S)
            assert b"Traceback" not in errors, errors.decode()
            seen.add(process.returncode)
            assert process.returncode in (0, -number)
            assert not (tmp_path / "punchd.socket").exists()
    assert -number in seen, "none came before there was anything to clean up"


def test_a_daemon_that_says_that_it_is_ready_hears_signals(tmp_path: Path) -> None:
    for _ in range(10):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            address = tmp_path / "notify"
            manager.bind(str(address))
            address.chmod(0o777)  # as systemd's
            manager.settimeout(HANG_S)
            with punchd(tmp_path, env={**os.environ, "NOTIFY_SOCKET": str(address)}) as daemon:
                assert manager.recv(100) == b"READY=1"
                daemon.send(signal.SIGTERM)
                assert manager.recv(100) == b"STOPPING=1"
                assert daemon.wait() == 0
                assert not daemon.path.exists()
            address.unlink()


# --- starting -------------------------------------------------------------------------------------------------------


def test_a_second_daemon_on_the_same_path_ends_with_78_and_harms_nobody(tmp_path: Path, quiet: Starter) -> None:
    with punchd(tmp_path, starter=quiet) as first, first.ready().talk() as talk:
        talk.send(INITIATE)
        talk.until("progress|a|1|udp|relay|")
        with punchd(tmp_path, starter=quiet) as second:
            assert second.wait() == 78
            assert second.output.splitlines()[-1].endswith("already running: another daemon answers there")
        talk.send("cancel|a")
        talk.until("error|a|cancelled|")
        with first.talk() as other:
            other.send("hello|1")
            other.until("ok|-|hello|1|udp|")


def test_ten_daemons_that_start_at_once_leave_one_that_serves(tmp_path: Path) -> None:
    """On a path with a dead socket, where each of them may think that it is to be replaced."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "punchd.socket"))
    running = [punchd(tmp_path, "--log-level", "error") for _ in range(10)]
    try:
        running[0].path.exists()
        until(lambda: sum(daemon.process.poll() is None for daemon in running) == 1, "nine have given up")
        (winner,) = [daemon for daemon in running if daemon.process.poll() is None]
        winner.ready()
        with winner.talk() as talk:
            talk.send("hello|1")
            assert talk.line().startswith("ok|-|hello|")
        assert {daemon.process.returncode for daemon in running if daemon is not winner} == {78}
        winner.send(signal.SIGTERM)
        assert winner.wait() == 0
        assert not winner.path.exists()
    finally:
        for daemon in running:
            daemon.__exit__(None, None, None)


@pytest.mark.parametrize("what", ["symlink", "file", "directory", "foreign"])
def test_what_squats_at_the_path_is_named_and_left_alone(tmp_path: Path, what: str) -> None:
    path = tmp_path / "punchd.socket"
    if what == "symlink":
        path.symlink_to("/etc/passwd")
    elif what == "file":
        path.write_text("precious")
    elif what == "directory":
        path.mkdir()
    else:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        os.chown(path, 54321, 54321)
    before = path.lstat()
    with punchd(tmp_path) as daemon:
        assert daemon.wait() == 78
        (line,) = [line for line in daemon.output.splitlines() if "taken" in line]
        assert str(path) in line
    assert path.lstat() == before


def test_the_socket_has_the_group_and_the_mode_that_were_asked_for(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with punchd(tmp_path, "--group", "54321", "--mode", "660") as daemon:
        daemon.ready()
        found = daemon.path.lstat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (NAMELESS, 54321, 0o660)


def test_an_unprivileged_user_outside_the_group_cannot_connect_and_one_in_it_can(tmp_path: Path) -> None:
    open_to_all(tmp_path)
    program = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    with punchd(tmp_path, "--group", "54321", "--mode", "660") as daemon:
        daemon.ready()
        for groups, code in ((["--clear-groups"], 1), (["--groups", "54321"], 0)):
            done = subprocess.run(
                ["setpriv", "--reuid=65534", "--regid=65534", *groups, "/usr/bin/python3", "-c", program, daemon.path],
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == code, done.stderr
            assert ("PermissionError" in done.stderr) == (code == 1)


def test_a_user_who_is_not_named_is_let_in_and_told(tmp_path: Path) -> None:
    settings = tmp_path / "punchd.toml"
    settings.write_text("allow-users = [54321]\n")
    with punchd(tmp_path, "--config", str(settings)) as daemon, daemon.ready().talk() as talk:
        assert talk.rest() == ["error|-|not-permitted|uid 0 is not in allow-users"]


# --- a service manager's sockets ------------------------------------------------------------------------------------


def activated(tmp_path: Path, fd: int) -> Punchd:
    """A daemon that gets that descriptor as its third, as by socket activation."""
    script = f'exec 3<&{fd}; exec {fd}<&-; export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@"'
    return punchd(tmp_path, prefix=["/bin/bash", "-c", script, "-"], pass_fds=[fd], name="unused")


def test_a_passed_socket_is_served_and_its_path_is_not_ours_to_remove(tmp_path: Path) -> None:
    path = tmp_path / "manager.socket"
    with socket.socket(socket.AF_UNIX) as low:
        low.bind(str(path))
        low.listen()
        fd = os.dup2(low.fileno(), 20)
        with activated(tmp_path, fd) as daemon:
            os.close(fd)
            served = Punchd(daemon.process, path, daemon.errors)
            with served.talk() as talk:
                talk.send("hello|1")
                assert talk.line().startswith("ok|-|hello|1|")
            assert not daemon.path.exists(), "--socket is not used then"
            assert str(daemon.path) not in daemon.output
            daemon.send(signal.SIGTERM)
            assert daemon.wait() == 0
        assert path.exists()
        with activated(tmp_path, os.dup2(low.fileno(), 20)) as again:
            os.close(20)
            with Punchd(again.process, path, again.errors).talk() as talk:
                talk.send("hello|1")
                assert talk.line().startswith("ok|-|hello|1|"), "the next one serves the same socket"


def test_a_passed_descriptor_of_the_wrong_kind_is_one_line_and_78(tmp_path: Path) -> None:
    fd = os.dup2(os.open("/dev/null", os.O_RDONLY), 20)
    with activated(tmp_path, fd) as daemon:
        os.close(fd)
        assert daemon.wait() == 78
        line = daemon.output.splitlines()[-1]
        assert "Traceback" not in daemon.output
        assert "expected a listening Unix stream socket, got Socket operation on non-socket" in line


# --- logs and traces ------------------------------------------------------------------------------------------------


def test_every_line_of_a_json_log_parses_and_none_holds_a_token(tmp_path: Path, quiet: Starter) -> None:
    options = ("--log-format", "json", "--log-level", "debug")
    with punchd(tmp_path, *options, starter=quiet) as daemon:
        with daemon.ready().talk() as talk:
            talk.send(INITIATE, "respond|r|AAAA", "initiate|b|udp|127.0.0.1|1")
            token = talk.until("progress|a|1|udp|relay|").split("|")[5]
            talk.send("cancel|a")
            abort = talk.until("progress|a|1|udp|relay|").split("|")[5]
            talk.until("error|a|cancelled|")
        daemon.send(signal.SIGTERM)
        assert daemon.wait() == 0
        entries = [json.loads(line) for line in daemon.output.splitlines()]
        assert {"time", "level", "logger", "message"} <= set(entries[0])
        assert {entry["level"] for entry in entries} >= {"info", "debug"}
        for text in (token, abort, token[16:]):
            assert text not in daemon.output


def test_a_trace_is_one_text_an_attempt_without_tokens(tmp_path: Path, quiet: Starter) -> None:
    traces = writable(tmp_path / "traces")
    with punchd(tmp_path, "--trace", str(traces), starter=quiet) as daemon, daemon.ready().talk() as talk:
        tokens = []
        for number in range(3):
            talk.send(INITIATE)
            tokens.append(talk.until("progress|a|1|udp|relay|").split("|")[5])
            time.sleep(0.1)  # for a packet or two
            talk.send("cancel|a")
            talk.until("error|a|cancelled|")
            assert len(list(traces.glob("*.txt"))) == number + 1
        assert {file.suffix for file in traces.iterdir()} <= {".txt", ".pcap"}
        for file in traces.glob("*.txt"):
            assert re.fullmatch("[0-9a-f]{16}-initiator.txt", file.name)
            assert file.stat().st_mode & 0o777 == 0o600
            text = file.read_text()
            assert "AttemptEnded verdict=cancelled" in text.splitlines()[-1]
            assert not [token for token in tokens if token in text or token[24:40] in text]
        keys = [base64.urlsafe_b64decode(token + "==")[-16:] for token in tokens]
        captures = [file.read_bytes() for file in traces.glob("*.pcap")]
        assert any(b"PCH1" in capture for capture in captures)
        assert not [key for key in keys for capture in captures if key in capture]


def test_a_trace_without_the_right_to_sniff_says_so_and_has_no_packets(tmp_path: Path, quiet: Starter) -> None:
    traces = writable(tmp_path / "traces")
    prefix = ["setpriv", "--bounding-set=-all,+setuid,+setgid,+chown,+fowner", "--inh-caps=-all", "--"]
    with (
        punchd(tmp_path, "--trace", str(traces), prefix=prefix, starter=quiet) as daemon,
        daemon.ready().talk() as talk,
    ):
        talk.send(INITIATE)
        talk.until("progress|a|1|udp|relay|")
        talk.send("cancel|a")
        talk.until("error|a|cancelled|")
        [file] = traces.iterdir()
        assert "  Unrecorded why=sniffing needs CAP_NET_RAW\n" in file.read_text()


def test_a_trace_that_becomes_unwritable_costs_a_warning_and_no_attempt(tmp_path: Path, quiet: Starter) -> None:
    traces = writable(tmp_path / "traces")
    with punchd(tmp_path, "--trace", str(traces), starter=quiet) as daemon, daemon.ready().talk() as talk:
        traces.rmdir()
        talk.send(INITIATE)
        talk.until("progress|a|1|udp|relay|")
        talk.send("cancel|a")
        talk.until("error|a|cancelled|")
        assert "punchd: WARNING: trace: " in daemon.output
        talk.send("hello|1")
        assert talk.line().startswith("error|-|bad-message|"), "it goes on"


def test_a_full_disk_costs_a_warning_and_no_attempt(tmp_path: Path, quiet: Starter) -> None:
    traces = tmp_path / "traces"
    traces.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size=4k,nr_inodes=3,uid={NAMELESS}", "none", str(traces)], check=True
    )
    try:
        (traces / "filler").write_bytes(bytes(4096))
        with punchd(tmp_path, "--trace", str(traces), starter=quiet) as daemon, daemon.ready().talk() as talk:
            talk.send(INITIATE)
            talk.until("progress|a|1|udp|relay|")
            talk.send("cancel|a")
            talk.until("error|a|cancelled|")
            assert "No space left on device" in daemon.output
    finally:
        subprocess.run(["umount", str(traces)], check=True)


def test_a_trace_directory_that_is_missing_at_the_start_is_one_line_and_78(tmp_path: Path) -> None:
    with punchd(tmp_path, "--trace", str(tmp_path / "missing")) as daemon:
        assert daemon.wait() == 78
        assert f"trace {tmp_path / 'missing'}: expected a directory" in daemon.output
        assert not daemon.path.exists()


# --- what the kernel knows of addresses -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "answer"),
    [
        ("198.51.100.2", "error|a|bad-address|198.51.100.2 is an address of this host"),
        ("198.51.100.255", "error|a|bad-address|198.51.100.255 is a broadcast address"),
        ("2001:db8:1::2", "error|a|bad-address|2001:db8:1::2 is an address of this host"),
        ("2001:db8:9::1", "error|a|network|no route to 2001:db8:9::1: ENETUNREACH"),
        ("127.0.0.1", "error|a|bad-address|"),
        ("255.255.255.255", "error|a|bad-address|"),
        ("10.0.0.1", "error|a|bad-address|"),
        ("203.0.113.7", "progress|a|1|udp|trying|-"),
        ("2001:db8:1::9", "progress|a|1|udp|trying|-"),
    ],
)
def test_what_may_be_aimed_at_is_what_the_kernel_can_reach(
    tmp_path_factory: pytest.TempPathFactory, quiet: Starter, target: str, answer: str
) -> None:
    with punchd(tmp_path_factory.mktemp("daemon"), starter=quiet) as daemon, daemon.ready().talk() as talk:
        talk.send(f"initiate|a|udp|{target}|40000")
        assert talk.line().startswith(answer)


def test_a_stun_option_is_held_to_the_same_policy_as_a_target(tmp_path: Path, quiet: Starter) -> None:
    with punchd(tmp_path, starter=quiet) as daemon, daemon.ready().talk() as talk:
        for server in ("198.51.100.2", "198.51.100.255", "127.0.0.1", "localhost", "10.0.0.1", "224.0.0.1"):
            talk.send(f"initiate|a|udp|203.0.113.7|40000|stun={server}:3478", f"probe|p|udp|stun={server}:3478")
            assert talk.line().startswith("error|a|bad-address|"), server
            assert talk.line().startswith("error|p|bad-address|"), server


# --- the program ----------------------------------------------------------------------------------------------------


def test_the_module_and_the_program_are_the_same() -> None:
    for command in (list(COMMAND), [str(Path(sys.executable).with_name("punchd"))]):
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
        assert done.stdout.startswith("punchd ")
