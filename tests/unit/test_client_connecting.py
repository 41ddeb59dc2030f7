"""Finding a daemon, deciding whether to trust it, saying hello, and refusing arguments that are none."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from punchd.client import (
    AttemptError,
    DaemonGoneError,
    DaemonUnreachableError,
    DecodeError,
    RequestRefusedError,
    UntrustedDaemonError,
)
from punchd.client.blocking import Daemon
from punchd.client.transport import HAND_PATH, SYSTEM_PATH, socket_path
from tests.unit.test_client_fake_daemon import (
    Conversation,
    fake_daemon,
    id_of,
    no_descriptor_leaks,
)

PEER = "203.0.113.7"


def nothing(token: str) -> None:
    """Relays nowhere."""


def test_a_listener_of_an_untrusted_user_is_told_nothing(tmp_path: Path) -> None:
    def script(daemon: Conversation) -> None:
        assert daemon.rest() == []

    with (
        no_descriptor_leaks(),
        fake_daemon(tmp_path / "socket", script) as path,
        pytest.raises(UntrustedDaemonError, match=f"runs as uid {os.geteuid()}; expected .* uids 4294967294") as caught,
    ):
        Daemon.connect(path, trusted_uids={4294967294})
    assert caught.value.uid == os.geteuid()


def test_nobody_there_is_told_with_what_to_look_at(tmp_path: Path) -> None:
    with no_descriptor_leaks(), pytest.raises(DaemonUnreachableError, match="no such socket; is punchd running"):
        Daemon.connect(str(tmp_path / "nothing"))
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(tmp_path / "left"))
    with no_descriptor_leaks(), pytest.raises(DaemonUnreachableError, match="nobody listens there; is punchd running"):
        Daemon.connect(str(tmp_path / "left"))
    with no_descriptor_leaks(), pytest.raises(DaemonUnreachableError, match="too long"):
        Daemon.connect("/" + "x" * 200)


def test_a_closed_door_names_the_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")  # root, who runs these tests, is never refused

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(DaemonUnreachableError, match="are you in the group punchd"):
        Daemon.connect(str(tmp_path / "socket"))


@pytest.mark.parametrize("answer", ["error|-|bad-message|expected initiate or respond\n", "error|-|bad-version|no\n"])
def test_a_daemon_without_hello_is_spoken_to_all_the_same(tmp_path: Path, answer: str) -> None:
    def script(daemon: Conversation) -> None:
        daemon.expect("hello|1")
        daemon.send(answer)
        attempt = id_of(daemon.expect("initiate|"))
        daemon.send(f"error|{attempt}|exhausted|tried all\n")

    with fake_daemon(tmp_path / "socket", script) as path, Daemon.connect(path) as daemon:
        assert daemon.greeting is None
        with daemon.initiate(PEER, 40000) as attempt, pytest.raises(AttemptError, match="exhausted: tried all"):
            attempt.connect(nothing)


def test_a_daemon_that_does_not_want_this_program_says_why(tmp_path: Path) -> None:
    def script(daemon: Conversation) -> None:
        daemon.expect("hello|1")
        daemon.send("error|-|busy|16 connections of uid 1000 already\n")

    with (
        no_descriptor_leaks(),
        fake_daemon(tmp_path / "socket", script) as path,
        pytest.raises(RequestRefusedError, match="busy: 16 connections") as caught,
    ):
        Daemon.connect(path)
    assert caught.value.code == "busy"


def test_a_daemon_that_hangs_up_on_hello_is_gone(tmp_path: Path) -> None:
    with (
        no_descriptor_leaks(),
        fake_daemon(tmp_path / "socket", lambda daemon: daemon.expect("hello|1")) as path,
        pytest.raises(DaemonGoneError),
    ):
        Daemon.connect(path)


def test_wrong_arguments_are_told_before_anything_is_sent(tmp_path: Path) -> None:
    def script(daemon: Conversation) -> None:
        daemon.greet()
        assert daemon.rest() == []

    with fake_daemon(tmp_path / "socket", script) as path, Daemon.connect(path) as daemon:
        for arguments in (
            ("example.org", 40000, "udp"),
            (PEER, 0, "udp"),
            (PEER, "40000-40000000000", "udp"),
            (PEER, "1,2,3,4,5,6", "udp"),
            (PEER, (), "udp"),
            (PEER, 40000, "udp|lport=1"),
            (PEER, 40000, "udp\ncancel|i1"),
            (PEER, 40000, ""),
        ):
            with pytest.raises(DecodeError), daemon.initiate(arguments[0], arguments[1], techniques=arguments[2]):
                pass
        with pytest.raises(DecodeError, match="token"), daemon.respond("no token|", peer=PEER):
            pass
        with pytest.raises(DecodeError, match="stun"):
            daemon.probe("udp", stun=("example.org;ttl=1", 3478))


def test_the_path_comes_from_the_environment_or_the_system_or_tmp(monkeypatch: pytest.MonkeyPatch) -> None:
    assert socket_path({"PUNCHD_SOCKET": "/somewhere"}) == "/somewhere"
    monkeypatch.setattr(os.path, "exists", lambda path: path == SYSTEM_PATH)
    assert socket_path({}) == SYSTEM_PATH == "/run/punchd/punchd.socket"
    monkeypatch.setattr(os.path, "exists", lambda path: False)
    assert socket_path({"PUNCHD_SOCKET": ""}) == HAND_PATH == "/tmp/punchd.socket"
