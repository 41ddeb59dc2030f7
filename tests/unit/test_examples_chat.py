"""chat.py and chat.c over loopback: a real punchd-rendezvous, and daemons that play a script but grant real sockets.

Every pair of the two programs chats in both directions. With real daemons and NATs: tests/netns/test_examples.py.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from punchd.rendezvous import pulses
from tests.unit.rendezvous.processes import server
from tests.unit.rendezvous.running import loopback
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

EXAMPLES = Path(__file__).parents[2] / "examples"
CFLAGS = ("-std=c11", "-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Wpedantic", "-Werror", "-O2")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g")
TIMEOUT_S = 20


def build_chat(directory: Path, *flags: str) -> Path:
    """Compile chat.c; its warnings are errors."""
    program = directory / "chat"
    subprocess.run(["cc", *CFLAGS, *flags, "-o", program, EXAMPLES / "chat.c"], check=True)
    return program


def chat_command(program: Path | None, where: str, call: str | None, path: Path) -> list[str]:
    """The command line of chat.py (`program` None) or of the compiled chat.c; `where` is HOST:PORT."""
    if program is not None:
        return [str(program), where, call or "-", str(path)]
    pulse_port = int(where.rpartition(":")[2]) - 1
    script = [sys.executable, str(EXAMPLES / "chat.py"), "--rendezvous", f"http://{where}", "--socket", str(path)]
    return [*script, "--pulse-port", str(pulse_port), *(["--call", call] if call else [])]


@contextmanager
def rendezvous_server(directory: Path) -> Iterator[str]:
    """HOST:PORT of a server that runs while the block does; its UDP port is the one below, as by default."""
    config = directory / "rendezvous.toml"
    config.write_text('http = ["127.0.0.1:5025"]\nstun = []\nmetrics = []\n')
    http, udp = neighbours()
    with server(config, http, udp) as running:
        yield f"127.0.0.1:{running.at.http}"


def neighbours() -> tuple[socket.socket, socket.socket]:
    """A listening TCP socket, and a UDP socket on the port below."""
    for _ in range(100):
        http, udp = loopback(socket.SOCK_STREAM), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            udp.bind(("127.0.0.1", http.getsockname()[1] - 1))
        except OSError:
            http.close()
            udp.close()
        else:
            pulses.prepare(udp)
            return http, udp
    raise AssertionError("no two neighbouring ports are free")


class Member:
    """Somebody else at the rendezvous server."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._key = ""
        self.id: str
        told = self.ask("POST", "/register")
        self.id, self._key = told["client_id"], told["private_id"]

    def ask(self, method: str, path: str, text: str = "") -> Any:
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "text/plain"}
        request = urllib.request.Request(f"http://{self._where}{path}", text.encode(), headers, method=method)
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
            return json.loads(answer.read())


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


def callee_script(granted: socket.socket, protocol: str) -> Script:
    def script(daemon: Conversation) -> None:
        answer_probe(daemon, "203.0.113.7", 42000)
        line = daemon.expect("initiate|")
        attempt = id_of(line)
        assert line == f"initiate|{attempt}|udp|198.51.100.4|41000|lport=5000"
        daemon.send(f"progress|{attempt}|1|udp|trying|-\nprogress|{attempt}|1|udp|relay|{OFFER}\n")
        daemon.expect(f"respond|{attempt}|{ANSWER}")
        daemon.send(f"progress|{attempt}|1|udp|ignored|stale\n" + ok_line(attempt, protocol), granted)
        assert daemon.rest() == []

    return script


def caller_script(granted: socket.socket, protocol: str) -> Script:
    def script(daemon: Conversation) -> None:
        answer_probe(daemon, "198.51.100.4", 41000)
        words = daemon.expect("respond|").split("|")
        attempt, token, options = words[1:]
        assert token == OFFER
        assert {"peer=127.0.0.1", "lport=5000"} <= set(options.split(";"))
        text = f"progress|{attempt}|1|udp|relay|{ANSWER}\n" + ok_line(attempt, protocol)
        first = text.index("ok|")
        for position, byte in enumerate(text):  # the worst segmentation there is
            daemon.send(byte, *([granted] if position == first else []))
        assert daemon.rest() == []

    return script


@pytest.fixture(name="chat_c", scope="module")
def _chat_c(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_chat(tmp_path_factory.mktemp("chat"), *SANITIZERS)


def id_in(news: list[str]) -> str:
    """The id that somebody waits as."""
    return news[-1].removeprefix("waiting as ")


@pytest.mark.parametrize("protocol", ["udp", "tcp"])
@pytest.mark.parametrize("languages", ["python calls python", "python calls c", "c calls python", "c calls c"])
def test_two_chat_programs_chat(languages: str, protocol: str, tmp_path: Path, chat_c: Path) -> None:
    first, _, second = languages.split()
    with ExitStack() as stack:
        one, other = stack.enter_context(udp_pair() if protocol == "udp" else tcp_pair())
        where = stack.enter_context(rendezvous_server(tmp_path))
        stack.enter_context(fake_daemon(tmp_path / "bob", callee_script(other, protocol)))
        command = chat_command(chat_c if second == "c" else None, where, None, tmp_path / "bob")
        bob = stack.enter_context(chatter(command))
        waiting = bob.read_news("waiting as")
        assert waiting[0] == "own address: 203.0.113.7 port 42000"
        stack.enter_context(fake_daemon(tmp_path / "alice", caller_script(one, protocol)))
        command = chat_command(chat_c if first == "c" else None, where, id_in(waiting), tmp_path / "alice")
        alice = stack.enter_context(chatter(command))
        news = bob.read_news("connected by")
        assert [line.rstrip(" -") for line in news] == [
            "round 1 udp: trying",
            "round 1 udp: relay",
            "round 1 udp: ignored stale",
            f"connected by {protocol} to 198.51.100.4{':' if second == 'python' else ' port '}50000",
        ]
        assert OFFER not in "".join(news)
        alice.read_news("connected by")
        one.close()
        other.close()
        have_a_chat(alice, bob)


@pytest.mark.parametrize("language", ["python", "c"])
def test_a_token_for_somebody_who_is_connected_and_has_left_does_no_harm(
    language: str, tmp_path: Path, chat_c: Path
) -> None:
    def script(daemon: Conversation) -> None:
        answer_probe(daemon, "203.0.113.7", 42000)
        attempt = id_of(daemon.expect("initiate|"))
        alice.ask("POST", "/logout")
        daemon.send(f"progress|{attempt}|1|udp|relay|{OFFER}\n" + ok_line(attempt), granted)
        other.send(b"here I am\n")
        assert daemon.rest() == []

    with ExitStack() as stack:
        granted, other = stack.enter_context(udp_pair())
        where = stack.enter_context(rendezvous_server(tmp_path))
        alice = Member(where)
        path = Path(stack.enter_context(fake_daemon(tmp_path / "socket", script)))
        program = chat_c if language == "c" else None
        bob = stack.enter_context(chatter(chat_command(program, where, None, path)))
        called = id_in(bob.read_news("waiting as"))
        alice.ask("POST", f"/peer/{called}/signal", "call 198.51.100.4 41000")
        bob.read_news("connected by")
        assert bob.read() == "here I am"
        other.send(b"")
        assert bob.exit_code() == 0


@pytest.mark.parametrize("language", ["python", "c"])
def test_only_the_first_caller_is_listened_to(language: str, tmp_path: Path, chat_c: Path) -> None:
    def script(daemon: Conversation) -> None:
        answer_probe(daemon, "203.0.113.7", 42000)
        line = daemon.expect("initiate|")
        assert "|198.51.100.4|41000|" in line
        late = Member(where)
        for text in ("call 198.51.100.9 41000", ANSWER, "nonsense"):
            late.ask("POST", f"/peer/{called}/signal", text)
        alice.ask("POST", f"/peer/{called}/signal", OFFER)
        assert daemon.read() == f"respond|{id_of(line)}|{OFFER}"
        daemon.send(f"error|{id_of(line)}|exhausted|enough\n")
        assert daemon.rest() == []

    with ExitStack() as stack:
        where = stack.enter_context(rendezvous_server(tmp_path))
        alice = Member(where)
        path = Path(stack.enter_context(fake_daemon(tmp_path / "socket", script)))
        bob = stack.enter_context(chatter(chat_command(chat_c if language == "c" else None, where, None, path)))
        called = id_in(bob.read_news("waiting as"))
        alice.ask("POST", f"/peer/{called}/signal", "call 198.51.100.4 41000")
        assert bob.exit_code() == 1
        news = bob.rest_of_news().splitlines()
        assert news[-1] == "chat: could not connect: exhausted: enough"
        assert len(news) == 1


@pytest.mark.parametrize("language", ["python", "c"])
def test_what_is_missing_is_named(language: str, tmp_path: Path, chat_c: Path) -> None:
    program = chat_c if language == "c" else None

    def last_news(where: str, call: str, path: Path) -> str:
        with chatter(chat_command(program, where, call, path)) as alice:
            assert alice.exit_code() == 1
            return alice.rest_of_news().splitlines()[-1]

    with rendezvous_server(tmp_path) as where:
        nobody = "0" * 32
        assert last_news(where, nobody, tmp_path / "nothing").startswith("chat: could not connect: ")

        with fake_daemon(tmp_path / "socket", lambda daemon: answer_probe(daemon, "198.51.100.4", 41000)) as path:
            news = last_news(where, nobody, Path(path))
        assert news.startswith("chat: could not connect: ")
        assert nobody in news or "closed the connection" in news

    news = last_news(where, nobody, tmp_path / "nothing")
    assert news.startswith("chat: could not connect: ")
    assert where.rpartition(":")[2] in news
