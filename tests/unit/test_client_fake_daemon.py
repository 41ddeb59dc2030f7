"""A daemon that plays a script on a real Unix socket and passes real descriptors; and the proof that it does.

The tests of the client library and of the examples use it. A script is a function that is given the daemon's end of
the first connection; it runs in a thread, and what it raises fails the test.
"""

from __future__ import annotations

import array
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from punchd.client.blocking import Daemon

SCRIPT_TIMEOUT_S = 20  # longer than any script takes on a busy machine
GREETING = "ok|-|hello|1|udp|8|hello,probe,initiate,respond,cancel\n"
OFFER = "Ag" + "A" * 40  # a token by its form; nobody here looks into it
ANSWER = "Ag" + "B" * 40

Script = Callable[["Conversation"], object]


class Conversation:
    """The daemon's end of one connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._lines = connection.makefile("rb")

    def read(self) -> str:
        """The next line without its line feed; "" when the application has closed the connection."""
        return self._lines.readline().decode("ascii").removesuffix("\n")

    def expect(self, start: str) -> str:
        """The next line, which begins with `start`."""
        line = self.read()
        assert line.startswith(start), f"expected a line that starts with {start!r}, got {line!r}"
        return line

    def send(self, text: str, *sockets: socket.socket | int) -> None:
        """All of `text` in one message, with the descriptors."""
        numbers = array.array("i", [item if isinstance(item, int) else item.fileno() for item in sockets])
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)] if sockets else []
        assert self._socket.sendmsg([text.encode("ascii")], rights) == len(text)

    def greet(self) -> None:
        self.expect("hello|1")
        self.send(GREETING)

    def greet_and_listen(self) -> None:
        """Say hello and then nothing until the application closes the connection."""
        self.greet()
        self.rest()

    def rest(self) -> list[str]:
        """What the application still sends until it closes the connection."""
        return list(iter(self.read, ""))

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


@contextmanager
def fake_daemon(path: Path, script: Script) -> Iterator[str]:
    """Listen at `path` and play `script` to the first connection; leaving the block waits for its end."""
    errors: list[BaseException] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(SCRIPT_TIMEOUT_S)
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=_play, args=(listener, script, errors))
        thread.start()
        try:
            yield str(path)
        finally:
            thread.join()
    if errors:
        raise errors[0]


def _play(listener: socket.socket, script: Script, errors: list[BaseException]) -> None:
    try:
        connection, _ = listener.accept()
        connection.settimeout(SCRIPT_TIMEOUT_S)
        conversation = Conversation(connection)
        try:
            script(conversation)
        finally:
            conversation.close()
    except BaseException as error:  # noqa: BLE001 (handed to the test's thread)
        errors.append(error)


@contextmanager
def udp_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two UDP sockets on loopback, connected to each other: one to grant, one that plays the other side."""
    with socket.socket(type=socket.SOCK_DGRAM) as one, socket.socket(type=socket.SOCK_DGRAM) as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        one.connect(other.getsockname())
        other.connect(one.getsockname())
        other.settimeout(SCRIPT_TIMEOUT_S)
        yield one, other


@contextmanager
def tcp_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a TCP connection on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as one:
        other, _ = listener.accept()
        with other:
            other.settimeout(SCRIPT_TIMEOUT_S)
            yield one, other


def ok_line(attempt_id: str, protocol: str = "udp") -> str:
    return f"ok|{attempt_id}|{protocol}|{protocol}|10.0.0.5|40000|198.51.100.4|50000\n"


def id_of(line: str) -> str:
    """The id in a request line."""
    return line.split("|")[1]


@contextmanager
def no_descriptor_leaks() -> Iterator[None]:
    """What is open after the block was open before it."""
    before = _open_descriptors()
    yield
    assert _open_descriptors() == before


def _open_descriptors() -> set[tuple[str, str]]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add((name, os.readlink(f"/proc/self/fd/{name}")))
        except FileNotFoundError:
            continue  # the descriptor of the listing itself
    return found


def test_the_fake_daemon_passes_descriptors_and_reads_lines(tmp_path: Path) -> None:
    def script(conversation: Conversation) -> None:
        conversation.greet()
        line = conversation.expect("initiate|")
        with udp_pair() as (granted, other):
            conversation.send(ok_line(id_of(line)), granted)
            assert other.recv(100) == b"through the hole"

    with fake_daemon(tmp_path / "socket", script) as path, Daemon.connect(path) as daemon:
        with daemon.initiate("198.51.100.4", 50000) as attempt:
            connected = attempt.connect(lambda token: None)
        with connected.socket:
            connected.socket.send(b"through the hole")
