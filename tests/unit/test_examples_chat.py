"""chat.py and chat.c over loopback: the real rendezvous server, and daemons that play a script but grant real sockets.

Every pair of the two programs chats in both directions. With real daemons and NATs: tests/netns/test_examples.py.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.unit.test_client_fake_daemon import (
    ANSWER,
    GREETING,
    OFFER,
    Conversation,
    Script,
    fake_daemon,
    id_of,
    ok_line,
    tcp_pair,
    udp_pair,
)
from tests.unit.test_examples_rendezvous import EXAMPLES, Client, rendezvous_server

CFLAGS = ("-std=c11", "-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Wpedantic", "-Werror", "-O2")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g")
TIMEOUT_S = 20


def build_chat(directory: Path, *flags: str) -> Path:
    """Compile chat.c; its warnings are errors."""
    program = directory / "chat"
    subprocess.run(["cc", *CFLAGS, *flags, "-o", program, EXAMPLES / "chat.c"], check=True)
    return program


def chat_command(program: Path | None, server: str, name: str, call: str | None, path: Path) -> list[str]:
    """The command line of chat.py (`program` None) or of the compiled chat.c."""
    if program is not None:
        return [str(program), server, name, call or "-", str(path)]
    script = [sys.executable, str(EXAMPLES / "chat.py"), "--rendezvous", server, "--name", name, "--socket", str(path)]
    return [*script, *(["--call", call] if call else [])]


class Chatter:
    """A running chat program with pipes on all three streams."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def read_news(self, end: str) -> list[str]:
        """Lines of standard error up to the one that starts with `end`."""
        assert self._process.stderr is not None
        lines: list[str] = []
        while not (lines and lines[-1].startswith(end)):
            line = self._process.stderr.readline()
            assert line, f"the program ended before it said {end!r}, after {lines}"
            lines.append(line.rstrip("\n"))
        return lines

    def write(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().rstrip("\n")

    def say_goodbye(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()

    def exit_code(self) -> int:
        return self._process.wait(TIMEOUT_S)

    def rest_of_news(self) -> str:
        assert self._process.stderr is not None
        return self._process.stderr.read()


Popen = Callable[..., "subprocess.Popen[str]"]


@contextmanager
def chatter(command: list[str], popen: Popen = subprocess.Popen) -> Iterator[Chatter]:
    pipe = subprocess.PIPE
    with popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield Chatter(process)
        finally:
            process.kill()


def have_a_chat(caller: Chatter, callee: Chatter) -> None:
    """Lines both ways, a goodbye by the caller, two clean ends."""
    caller.write("hello, is it me you are looking for?")
    assert callee.read() == "hello, is it me you are looking for?"
    callee.write("it is")
    assert caller.read() == "it is"
    for number in range(10):
        callee.write(f"line {number}")
        assert caller.read() == f"line {number}"
    caller.say_goodbye()
    assert callee.read() == ""
    assert (caller.exit_code(), callee.exit_code()) == (0, 0)


def answer_probe(daemon: Conversation, ip: str, port: int) -> None:
    line = daemon.read()
    if line.startswith("hello|"):
        daemon.send(GREETING)
        line = daemon.read()
    assert line.startswith("probe|")
    assert line.endswith("|udp")
    daemon.send(f"ok|{id_of(line)}|probe|udp|{ip}|{port}|endpoint-independent|5000\n")


def caller_script(granted: socket.socket, protocol: str) -> Script:
    def script(daemon: Conversation) -> None:
        answer_probe(daemon, "198.51.100.4", 41000)
        line = daemon.expect("initiate|")
        attempt = id_of(line)
        assert line == f"initiate|{attempt}|udp|203.0.113.7|42000|lport=5000"
        daemon.send(f"progress|{attempt}|1|udp|trying|-\nprogress|{attempt}|1|udp|relay|{OFFER}\n")
        daemon.expect(f"respond|{attempt}|{ANSWER}")
        daemon.send(f"progress|{attempt}|1|udp|ignored|stale\n" + ok_line(attempt, protocol), granted)
        assert daemon.rest() == []

    return script


def callee_script(granted: socket.socket, protocol: str) -> Script:
    def script(daemon: Conversation) -> None:
        answer_probe(daemon, "203.0.113.7", 42000)
        words = daemon.expect("respond|").split("|")
        attempt, token, options = words[1:]
        assert token == OFFER
        assert {"peer=198.51.100.4", "lport=5000"} <= set(options.split(";"))
        text = f"progress|{attempt}|1|udp|relay|{ANSWER}\n" + ok_line(attempt, protocol)
        first = text.index("ok|")
        for position, byte in enumerate(text):  # the worst segmentation there is
            daemon.send(byte, *([granted] if position == first else []))
        assert daemon.rest() == []

    return script


@pytest.fixture(name="chat_c", scope="module")
def _chat_c(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_chat(tmp_path_factory.mktemp("chat"), *SANITIZERS)


@pytest.mark.parametrize("protocol", ["udp", "tcp"])
@pytest.mark.parametrize("languages", ["python calls python", "python calls c", "c calls python", "c calls c"])
def test_two_chat_programs_chat(languages: str, protocol: str, tmp_path: Path, chat_c: Path) -> None:
    first, _, second = languages.split()
    with ExitStack() as stack:
        one, other = stack.enter_context(udp_pair() if protocol == "udp" else tcp_pair())
        server = f"127.0.0.1:{stack.enter_context(rendezvous_server())}"
        stack.enter_context(fake_daemon(tmp_path / "bob", callee_script(other, protocol)))
        command = chat_command(chat_c if second == "c" else None, server, "bob", None, tmp_path / "bob")
        bob = stack.enter_context(chatter(command))
        assert bob.read_news("registered")[-2:] == ["own address: 203.0.113.7 port 42000", "registered as bob"]
        stack.enter_context(fake_daemon(tmp_path / "alice", caller_script(one, protocol)))
        command = chat_command(chat_c if first == "c" else None, server, "alice", "bob", tmp_path / "alice")
        alice = stack.enter_context(chatter(command))
        news = alice.read_news("connected by")
        assert [line.rstrip(" -") for line in news[2:]] == [
            "round 1 udp: trying",
            "round 1 udp: relay",
            "round 1 udp: ignored stale",
            f"connected by {protocol} to 198.51.100.4{':' if first == 'python' else ' port '}50000",
        ]
        assert OFFER not in "".join(news)
        bob.read_news("connected by")
        one.close()
        other.close()
        have_a_chat(alice, bob)


@pytest.mark.parametrize("language", ["python", "c"])
def test_a_token_for_somebody_who_is_connected_and_has_left_does_no_harm(
    language: str, tmp_path: Path, chat_c: Path
) -> None:
    def script(daemon: Conversation) -> None:
        answer_probe(daemon, "203.0.113.7", 42000)
        attempt = id_of(daemon.expect("respond|"))
        assert alice.ask("register ally 198.51.100.4 41000") == "registered ally"  # nobody is called alice any more
        daemon.send(f"progress|{attempt}|1|udp|relay|{ANSWER}\n")
        assert alice.ask("lookup bob") == "found bob 203.0.113.7 42000"
        time.sleep(0.1)  # the server's answer to bob may be read first
        daemon.send(ok_line(attempt), granted)
        other.send(b"here I am\n")
        assert daemon.rest() == []

    with ExitStack() as stack:
        granted, other = stack.enter_context(udp_pair())
        port = stack.enter_context(rendezvous_server())
        alice = stack.enter_context(Client(port))
        assert alice.ask("register alice 198.51.100.4 41000") == "registered alice"
        path = Path(stack.enter_context(fake_daemon(tmp_path / "socket", script)))
        program = chat_c if language == "c" else None
        bob = stack.enter_context(chatter(chat_command(program, f"127.0.0.1:{port}", "bob", None, path)))
        bob.read_news("registered")
        alice.send(f"send bob {OFFER}\n")
        bob.read_news("connected by")
        assert bob.read() == "here I am"
        other.send(b"")
        assert bob.exit_code() == 0


@pytest.mark.parametrize("language", ["python", "c"])
def test_an_attempt_that_fails_ends_with_one_line_and_exit_code_1(language: str, tmp_path: Path, chat_c: Path) -> None:
    def script(daemon: Conversation) -> None:
        answer_probe(daemon, "198.51.100.4", 41000)
        daemon.send(f"error|{id_of(daemon.expect('initiate|'))}|exhausted|no technique succeeded: udp timeout\n")
        daemon.rest()

    with ExitStack() as stack:
        server = f"127.0.0.1:{stack.enter_context(rendezvous_server())}"
        path = Path(stack.enter_context(fake_daemon(tmp_path / "socket", script)))
        program = chat_c if language == "c" else None
        alice = stack.enter_context(chatter(chat_command(program, server, "alice", "alice", path)))
        assert alice.exit_code() == 1
        news = alice.rest_of_news().splitlines()
        assert news[-1] == "chat: could not connect: exhausted: no technique succeeded: udp timeout"
        assert len(news) == 3


@pytest.mark.parametrize("language", ["python", "c"])
def test_what_is_missing_is_named(language: str, tmp_path: Path, chat_c: Path) -> None:
    program = chat_c if language == "c" else None
    with rendezvous_server() as port:
        nowhere = tmp_path / "nothing"
        with chatter(chat_command(program, f"127.0.0.1:{port}", "alice", "bob", nowhere)) as alice:
            assert alice.exit_code() == 1
            assert alice.rest_of_news().startswith("chat: could not connect: ")
        with (
            fake_daemon(tmp_path / "socket", lambda daemon: answer_probe(daemon, "198.51.100.4", 41000)) as path,
            chatter(chat_command(program, f"127.0.0.1:{port}", "alice", "bob", Path(path))) as alice,
        ):
            assert alice.exit_code() == 1
            news = alice.rest_of_news().splitlines()[-1]
            assert "the rendezvous server says: nobody is called bob" in news or "closed the connection" in news
