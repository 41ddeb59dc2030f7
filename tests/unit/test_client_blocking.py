"""The blocking flavour against a daemon that plays a script, over real Unix sockets with real descriptors."""

from __future__ import annotations

import os
import queue
import random
import select
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from punchd.client import (
    AttemptError,
    Code,
    Connected,
    Failed,
    Ignored,
    News,
    Relay,
    Trying,
)
from punchd.client.blocking import Attempt, Daemon
from tests.unit.test_client_fake_daemon import (
    ANSWER,
    OFFER,
    SCRIPT_TIMEOUT_S,
    Conversation,
    fake_daemon,
    id_of,
    no_descriptor_leaks,
    ok_line,
    tcp_pair,
    udp_pair,
)

PEER = "203.0.113.7"


def nothing(token: str) -> None:
    """Relays nowhere."""


def talk(one: socket.socket, other: socket.socket) -> None:
    one.send(b"ping")
    assert other.recv(100) == b"ping"
    other.send(b"pong")
    assert one.recv(100) == b"pong"


def test_two_programs_get_a_socket_after_a_probe_and_three_tokens(tmp_path: Path) -> None:
    def script(daemon: Conversation) -> None:
        assert daemon.read() == "hello|1|chat/1.0"
        daemon.send("ok|-|hello|2|tcp-syni,udp|8|hello,probe|a later addition\n")
        probe = daemon.expect("probe|p1|udp|lport=5000;stun=stun.example:3478")
        daemon.send(f"ok|{id_of(probe)}|probe|udp|198.51.100.4|40000-40001|endpoint-independent|5000\n")
        attempt = id_of(daemon.expect(f"initiate|i2|tcp-syni,udp|{PEER}|40000-40002,50000|lport=5000;timeout=9000"))
        daemon.send(f"progress|{attempt}|1|udp|trying|-\nprogress|{attempt}|1|udp|relay|{OFFER}\n")
        daemon.expect(f"respond|{attempt}|{ANSWER}")
        with udp_pair() as (granted, other):
            daemon.send(ok_line(attempt), granted)
            assert other.recv(100) == b"ping"
            other.send(b"pong")

    sent: list[str] = []
    with (
        no_descriptor_leaks(),
        fake_daemon(tmp_path / "socket", script) as path,
        Daemon.connect(path, client="chat/1.0") as daemon,
    ):
        assert daemon.greeting is not None
        assert (daemon.greeting.version, daemon.greeting.techniques) == (2, ("tcp-syni", "udp"))
        own = daemon.probe("udp", lport=5000, stun=("stun.example", 3478))
        assert (str(own.ip), own.ports.ports, own.lport) == ("198.51.100.4", (40000, 40001), 5000)
        ports = (40000, 40001, 40002, 50000)
        with daemon.initiate(PEER, ports, techniques="tcp-syni,udp", lport=own.lport, timeout_ms=9000) as attempt:
            events = []
            for event in attempt:
                events.append(event)
                if isinstance(event, Relay):
                    sent.append(event.token)
                    attempt.deliver(ANSWER)
            connected = events.pop()
            assert events == [Trying(1, "udp"), Relay(1, "udp", OFFER)]
            assert isinstance(connected, Connected)
            assert list(attempt) == []
            assert attempt.poll() is None
        assert sent == [OFFER]
        assert (connected.technique, str(connected.local), str(connected.remote)) == (
            "udp",
            "10.0.0.5:40000",
            "198.51.100.4:50000",
        )
        with connected.socket as hole:
            assert hole.type == socket.SOCK_DGRAM
            assert not os.get_inheritable(hole.fileno())
            assert os.get_blocking(hole.fileno())
            hole.send(b"ping")
            assert hole.recv(100) == b"pong"


def test_a_responder_pins_the_address_of_the_other_side(tmp_path: Path) -> None:
    def script(daemon: Conversation) -> None:
        daemon.greet()
        line = daemon.expect("respond|")
        assert line == f"respond|r1|{OFFER}|lport=40000;peer={PEER};tech=udp,tcp-nutss"
        with tcp_pair() as (granted, _):
            daemon.send(ok_line("r1", "tcp"), granted)
        assert daemon.rest() == []  # nothing to cancel after success

    with fake_daemon(tmp_path / "socket", script) as path, Daemon.connect(path) as daemon:
        with daemon.respond(OFFER, peer=PEER, techniques=["udp", "tcp-nutss"], lport=40000) as attempt:
            connected = attempt.connect(nothing)
        connected.socket.close()


def whole(daemon: Conversation, text: str, granted: socket.socket) -> None:
    daemon.send(text, granted)


def byte_by_byte(daemon: Conversation, text: str, granted: socket.socket) -> None:
    first = text.index("ok|")
    for position, byte in enumerate(text):
        daemon.send(byte, *([granted] if position == first else []))


def cut_in_the_ok_line(daemon: Conversation, text: str, granted: socket.socket) -> None:
    first = text.index("ok|")
    daemon.send(text[:first])
    daemon.send(text[first : first + 5], granted)
    daemon.send(text[first + 5 :])


@pytest.mark.parametrize("segmentation", [whole, byte_by_byte, cut_in_the_ok_line])
def test_segmentation_does_not_separate_a_line_from_its_descriptor(
    tmp_path: Path, segmentation: Callable[[Conversation, str, socket.socket], None]
) -> None:
    def script(daemon: Conversation) -> None:
        daemon.greet()
        attempt = id_of(daemon.expect("initiate|"))
        with udp_pair() as (granted, other):
            segmentation(daemon, f"progress|{attempt}|1|udp|relay|{OFFER}\n" + ok_line(attempt), granted)
            assert other.recv(100) == b"ping"
            other.send(b"pong")

    sent: list[str] = []
    with no_descriptor_leaks(), fake_daemon(tmp_path / "socket", script) as path, Daemon.connect(path) as daemon:
        with daemon.initiate(PEER, "40000") as attempt:
            connected = attempt.connect(sent.append)
        with connected.socket as hole:
            hole.send(b"ping")
            assert hole.recv(100) == b"pong"
    assert sent == [OFFER]


def test_attempts_in_several_threads_each_get_their_own_events_and_socket(tmp_path: Path) -> None:
    count = 6

    def script(daemon: Conversation) -> None:
        daemon.greet()
        attempts = [id_of(daemon.expect("initiate|")) for _ in range(count)]
        for attempt in reversed(attempts):
            daemon.send(f"progress|{attempt}|1|udp|relay|{attempt}{'T' * 20}\n")
        answered = {id_of(daemon.expect("respond|")) for _ in range(count)}
        assert answered == set(attempts)
        for attempt in attempts:
            with udp_pair() as (granted, other):
                other.send(attempt.encode())
                daemon.send(ok_line(attempt), granted)
                assert other.recv(100) == attempt.encode()

    def run(daemon: Daemon, found: queue.SimpleQueue[tuple[str, bytes]]) -> None:
        with daemon.initiate(PEER, 40000) as attempt:
            connected = attempt.connect(lambda token: threading.Thread(target=attempt.deliver, args=(token,)).start())
            with connected.socket as hole:
                hole.send(attempt.id.encode())
                found.put((attempt.id, hole.recv(100)))

    found: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()
    with no_descriptor_leaks(), fake_daemon(tmp_path / "socket", script) as path, Daemon.connect(path) as daemon:
        threads = [threading.Thread(target=run, args=(daemon, found)) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    pairs = [found.get() for _ in range(count)]
    assert sorted(first for first, _ in pairs) == [f"i{number}" for number in range(1, count + 1)]
    assert all(first.encode() == second for first, second in pairs)


def test_the_lines_of_many_threads_stay_whole_and_each_threads_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 25

    def script(daemon: Conversation) -> None:
        daemon.greet()
        attempt = id_of(daemon.expect("initiate|"))
        lines = [daemon.read() for _ in range(8 * count)]
        for letter in "abcdefgh":
            mine = [line for line in lines if letter in line.split("|")[2]]
            assert mine == [f"respond|{attempt}|{letter * 180}{number:03}" for number in range(count)]

    def deliver(attempt: Attempt, letter: str) -> None:
        for number in range(count):
            attempt.deliver(f"{letter * 180}{number:03}")

    def send_slowly(connection: socket.socket, data: bytes) -> None:
        time.sleep(random.random() / 1000)
        for position in range(0, len(data), 50):
            connection.send(data[position : position + 50])

    with (
        fake_daemon(tmp_path / "socket", script) as path,
        Daemon.connect(path) as daemon,
        daemon.initiate(PEER, 40000) as attempt,
    ):
        monkeypatch.setattr(socket.socket, "sendall", send_slowly)
        threads = [threading.Thread(target=deliver, args=(attempt, letter)) for letter in "abcdefgh"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def test_unknown_stages_codes_and_extra_fields_are_tolerated(tmp_path: Path) -> None:
    def script(daemon: Conversation) -> None:
        daemon.greet()
        attempt = id_of(daemon.expect("initiate|"))
        daemon.send(f"progress|{attempt}|1|quic-v9|dreaming|sheep|electric\nprogress|{attempt}|2|udp|failed|bored||\n")
        daemon.send(f"error|{attempt}|out-of-luck|no luck today|tomorrow\n")

    with (
        fake_daemon(tmp_path / "socket", script) as path,
        Daemon.connect(path) as daemon,
        daemon.initiate(PEER, 40000) as attempt,
    ):
        assert next(attempt) == News(1, "quic-v9", "dreaming", "sheep")
        assert next(attempt) == Failed(2, "udp", "bored", "")
        with pytest.raises(AttemptError, match="out-of-luck: no luck today") as caught:
            next(attempt)
        assert caught.value.code == "out-of-luck"
        assert list(attempt) == []


def test_leaving_the_block_early_cancels_and_closes_what_was_on_its_way(tmp_path: Path) -> None:
    def script(daemon: Conversation) -> None:
        daemon.greet()
        attempt = id_of(daemon.expect("initiate|"))
        daemon.send(f"progress|{attempt}|1|udp|trying|-\n")
        daemon.expect(f"cancel|{attempt}")
        with udp_pair() as (granted, _):
            daemon.send(ok_line(attempt), granted)
        daemon.send(f"error|{attempt}|unknown-id|no such attempt\n")
        daemon.expect("probe|")
        daemon.send("error|p2|no-address|no STUN server: use --stun\n")
        assert daemon.rest() == []

    with no_descriptor_leaks(), fake_daemon(tmp_path / "socket", script) as path, Daemon.connect(path) as daemon:
        with no_descriptor_leaks():  # already while the connection goes on
            with daemon.initiate(PEER, 40000) as attempt:
                assert next(attempt) == Trying(1, "udp")
            with pytest.raises(AttemptError, match="no-address") as caught:
                daemon.probe("udp")
        assert caught.value.code == Code.NO_ADDRESS


def test_a_socket_that_nobody_fetched_is_closed_with_its_block(tmp_path: Path) -> None:
    def script(daemon: Conversation) -> None:
        daemon.greet()
        daemon.expect("initiate|i1|")
        daemon.expect("initiate|i2|")
        with udp_pair() as (granted, _):
            daemon.send(ok_line("i1") + "progress|i2|1|udp|trying|-\n", granted)
        assert daemon.rest() == ["cancel|i2"]

    with (
        no_descriptor_leaks(),
        fake_daemon(tmp_path / "socket", script) as path,
        Daemon.connect(path) as daemon,
        daemon.initiate(PEER, 40000),
        daemon.initiate(PEER, 40000) as second,
    ):
        assert next(second) == Trying(1, "udp")  # reading this has read the other's socket


def test_after_cancel_the_abort_token_comes_and_then_the_error(tmp_path: Path) -> None:
    def script(daemon: Conversation) -> None:
        daemon.greet()
        attempt = id_of(daemon.expect("initiate|"))
        daemon.expect(f"cancel|{attempt}")
        daemon.send(f"progress|{attempt}|1|udp|relay|{OFFER}\nerror|{attempt}|cancelled|by the application\n")
        assert daemon.rest() == []

    sent: list[str] = []
    with (
        fake_daemon(tmp_path / "socket", script) as path,
        Daemon.connect(path) as daemon,
        daemon.initiate(PEER, 40000) as attempt,
    ):
        attempt.cancel()
        with pytest.raises(AttemptError, match="cancelled: by the application"):
            attempt.connect(sent.append)
        assert sent == [OFFER]
        with pytest.raises(RuntimeError, match="was over before"):
            attempt.connect(sent.append)


# --- one thread, a select loop ----------------------------------------------------------------------------------------


class SocketInbox:
    """Tokens as datagrams on a socket."""

    def __init__(self, side: socket.socket) -> None:
        self._side = side

    def fileno(self) -> int:
        return self._side.fileno()

    def receive(self) -> list[str]:
        try:
            return [self._side.recv(500, socket.MSG_DONTWAIT).decode()]
        except BlockingIOError:
            return []


def test_one_thread_can_wait_for_the_daemon_and_its_side_channel(tmp_path: Path) -> None:
    def script(daemon: Conversation) -> None:
        daemon.greet()
        attempt = id_of(daemon.expect("initiate|"))
        daemon.send(f"progress|{attempt}|1|udp|relay|{OFFER}\n")
        daemon.expect(f"respond|{attempt}|{ANSWER}")
        daemon.send(f"progress|{attempt}|1|udp|ignored|stale\n")
        with udp_pair() as (granted, _):
            daemon.send(ok_line(attempt), granted)

    here, there = socket.socketpair(type=socket.SOCK_DGRAM)

    def send(token: str) -> None:
        assert token == OFFER
        there.send(ANSWER.encode())

    events: list[object] = []
    with (
        no_descriptor_leaks(),
        fake_daemon(tmp_path / "socket", script) as path,
        Daemon.connect(path) as daemon,
        daemon.initiate(PEER, 40000) as attempt,
    ):
        attempt.connect(send, SocketInbox(here), on_event=events.append).socket.close()
    here.close()
    there.close()
    assert events == [Relay(1, "udp", OFFER), Ignored(1, "udp", "stale")]


def test_poll_returns_none_until_there_is_something(tmp_path: Path) -> None:
    go = threading.Event()

    def script(daemon: Conversation) -> None:
        daemon.greet()
        daemon.expect("initiate|i1")
        daemon.expect("initiate|i2")
        go.wait(SCRIPT_TIMEOUT_S)
        daemon.send("progress|i2|1|udp|trying|-\nprogress|i1|1|udp|trying|-\n")
        daemon.rest()

    with (
        fake_daemon(tmp_path / "socket", script) as path,
        Daemon.connect(path) as daemon,
        daemon.initiate(PEER, 40000) as first,
        daemon.initiate(PEER, 40000) as second,
    ):
        assert (first.poll(), second.poll()) == (None, None)
        go.set()
        assert select.select([first], [], [], SCRIPT_TIMEOUT_S)[0] == [first]
        assert first.poll() == Trying(1, "udp")
        assert second.poll() == Trying(1, "udp")
        assert (first.poll(), second.poll()) == (None, None)
