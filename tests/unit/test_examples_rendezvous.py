"""The naive rendezvous server, as a process, over loopback."""

from __future__ import annotations

import re
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
TIMEOUT_S = 20


@contextmanager
def rendezvous_server() -> Iterator[int]:
    """The port of a server that runs while the block does."""
    command = [sys.executable, str(EXAMPLES / "rendezvous.py"), "--host", "127.0.0.1", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            found = re.search(r"port (\d+)", server.stdout.readline())
            assert found is not None
            yield int(found[1])
        finally:
            server.terminate()


class Client:
    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)
        self._lines = self._socket.makefile("rb")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, text: str) -> None:
        self._socket.sendall(text.encode())

    def read(self) -> str:
        """The next line; "" at the end."""
        try:
            return self._lines.readline().decode().removesuffix("\n")
        except ConnectionResetError:
            return ""

    def ask(self, line: str) -> str:
        self.send(line + "\n")
        return self.read()


@pytest.fixture(name="port")
def _port() -> Iterator[int]:
    with rendezvous_server() as port:
        yield port


def test_clients_find_each_other_and_exchange_messages(port: int) -> None:
    with Client(port) as alice, Client(port) as bob:
        assert alice.ask("register alice 198.51.100.4 40000-40003,50000") == "registered alice"
        assert bob.ask("register bob 203.0.113.7 40000") == "registered bob"
        assert bob.ask("lookup alice") == "found alice 198.51.100.4 40000-40003,50000"
        bob.send("send alice first\nsend alice second with blanks\n")
        assert alice.read() == "from bob 203.0.113.7 first"
        assert alice.read() == "from bob 203.0.113.7 second with blanks"


def test_what_cannot_be_done_is_said(port: int) -> None:
    complaint = "error expected register NAME IP PORTS, then lookup NAME or send NAME TEXT"
    with Client(port) as alice, Client(port) as other:
        assert alice.ask("send bob x") == complaint
        assert alice.ask("register alice 198.51.100.4 40000") == "registered alice"
        for wrong in ("", "register", "register alice", "register al|ce 198.51.100.4 1", "register a b", "hello you"):
            assert alice.ask(wrong) == complaint
        assert alice.ask("lookup bob") == "error nobody is called bob"
        assert alice.ask("send bob x") == "undelivered bob"
        assert other.ask("register alice 203.0.113.7 40000") == "error the name alice is taken"
        assert alice.ask("register ally 198.51.100.4 40000") == "registered ally"
        assert other.ask("register alice 203.0.113.7 40000") == "registered alice"


def test_a_name_is_free_again_when_its_client_has_gone(port: int) -> None:
    with Client(port) as alice:
        assert alice.ask("register alice 198.51.100.4 40000") == "registered alice"
    with Client(port) as other:
        answers = iter(lambda: other.ask("register alice 203.0.113.7 40000"), "registered alice")
        assert set(answers) <= {"error the name alice is taken"}  # until the server has noticed


def test_a_line_without_end_is_cut_off(port: int) -> None:
    with Client(port) as endless:
        endless.send("x" * 2000)
        assert endless.read() == ""


def test_one_client_too_many_is_turned_away(port: int) -> None:
    with ExitStack() as stack:
        for _ in range(100):
            assert stack.enter_context(Client(port)).ask("hello").startswith("error expected")
        assert stack.enter_context(Client(port)).read() == ""


def test_a_client_that_does_not_read_does_not_stop_the_others(port: int) -> None:
    with Client(port) as sleeper, Client(port) as talker, Client(port) as third:
        assert sleeper.ask("register sleeper 198.51.100.4 40000") == "registered sleeper"
        assert talker.ask("register talker 203.0.113.7 40000") == "registered talker"
        lines = ("send sleeper " + "x" * 400 + "\n") * 8
        while not select.select([talker], [], [], 0)[0]:  # until all buffers on the way to the sleeper are full
            talker.send(lines)
        assert talker.read() == "undelivered sleeper"
        assert third.ask("register third 203.0.113.7 40000") == "registered third"
