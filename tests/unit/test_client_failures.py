"""The blocking flavour when the daemon dies, breaks the protocol, or the program closes the connection."""

from __future__ import annotations

import queue
import threading
from pathlib import Path

import pytest

from punchd.client import (
    DaemonGoneError,
    DaemonProtocolError,
    Trying,
)
from punchd.client.blocking import Attempt, Daemon
from tests.unit.test_client_fake_daemon import (
    ANSWER,
    SCRIPT_TIMEOUT_S,
    Conversation,
    fake_daemon,
    id_of,
    no_descriptor_leaks,
    ok_line,
    udp_pair,
)

PEER = "203.0.113.7"


def nothing(token: str) -> None:
    """Relays nowhere."""


def take_everything(daemon: Daemon, attempt: Attempt) -> None:
    attempt.connect(nothing).socket.close()
    daemon.probe("udp")


def test_when_the_daemon_dies_everyone_who_waits_is_told(tmp_path: Path) -> None:
    started = threading.Barrier(3)

    def script(daemon: Conversation) -> None:
        daemon.greet()
        daemon.expect("initiate|")
        daemon.expect("initiate|")
        started.wait(SCRIPT_TIMEOUT_S)

    def run(daemon: Daemon, errors: queue.SimpleQueue[BaseException]) -> None:
        with daemon.initiate(PEER, 40000) as attempt:
            started.wait(SCRIPT_TIMEOUT_S)
            with pytest.raises(DaemonGoneError) as caught:
                next(attempt)
            errors.put(caught.value)

    errors: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
    with no_descriptor_leaks(), fake_daemon(tmp_path / "socket", script) as path, Daemon.connect(path) as daemon:
        threads = [threading.Thread(target=run, args=(daemon, errors)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        first, second = errors.get(), errors.get()
        assert first is not second
        assert "punchd closed the connection" in str(first)
        with pytest.raises(DaemonGoneError):
            daemon.probe("udp")


def test_an_answer_that_came_before_the_daemon_died_still_counts(tmp_path: Path) -> None:
    def script(daemon: Conversation) -> None:
        daemon.greet()
        attempt = id_of(daemon.expect("initiate|"))
        with udp_pair() as (granted, _):
            daemon.send(f"progress|{attempt}|1|udp|trying|-\n")
            daemon.send(ok_line(attempt), granted)

    with (
        no_descriptor_leaks(),
        fake_daemon(tmp_path / "socket", script) as path,
        Daemon.connect(path) as daemon,
        daemon.initiate(PEER, 40000) as attempt,
    ):
        assert next(attempt) == Trying(1, "udp")
        for _ in range(3):
            attempt.deliver(ANSWER)  # into a connection that is closing: no error
        attempt.connect(nothing).socket.close()


def test_closing_from_another_thread_ends_a_wait(tmp_path: Path) -> None:
    with (
        no_descriptor_leaks(),
        fake_daemon(tmp_path / "socket", Conversation.greet_and_listen) as path,
        Daemon.connect(path) as daemon,
        daemon.initiate(PEER, 40000) as attempt,
    ):
        closing = threading.Timer(0.05, daemon.close)
        closing.start()
        with pytest.raises(DaemonGoneError, match="closed by this program"):
            next(attempt)
        daemon.close()
        closing.join()


@pytest.mark.parametrize(
    ("descriptors", "message"),
    [(0, "without its descriptor"), (2, "1 descriptor.s. without an ok line"), (9, "CTRUNC")],
)
def test_a_wrong_number_of_descriptors_breaks_the_connection(tmp_path: Path, descriptors: int, message: str) -> None:
    def script(daemon: Conversation) -> None:
        daemon.greet()
        attempt = id_of(daemon.expect("initiate|"))
        with udp_pair() as (granted, _):
            daemon.send(f"progress|{attempt}|1|udp|trying|-\n" + ok_line(attempt), *[granted] * descriptors)

    with (
        no_descriptor_leaks(),
        fake_daemon(tmp_path / "socket", script) as path,
        Daemon.connect(path) as daemon,
        daemon.initiate(PEER, 40000) as attempt,
        pytest.raises(DaemonProtocolError, match=message),
    ):
        take_everything(daemon, attempt)


def test_a_descriptor_of_another_kind_than_its_line_says_is_refused_and_closed(tmp_path: Path) -> None:
    def script(daemon: Conversation) -> None:
        daemon.greet()
        with udp_pair() as (granted, _), (tmp_path / "file").open("w") as file:
            daemon.send(ok_line(id_of(daemon.expect("initiate|")), "tcp"), granted)
            daemon.send(ok_line(id_of(daemon.expect("initiate|"))), file.fileno())

    with no_descriptor_leaks(), fake_daemon(tmp_path / "socket", script) as path, Daemon.connect(path) as daemon:
        with (
            daemon.initiate(PEER, 40000) as attempt,
            pytest.raises(DaemonProtocolError, match="a socket of another kind than tcp"),
        ):
            next(attempt)
        with daemon.initiate(PEER, 40000) as attempt, pytest.raises(DaemonProtocolError, match="no socket"):
            next(attempt)
