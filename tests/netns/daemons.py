"""Daemon processes for tests: started, talked to in plain lines, and looked at through /proc.

Unlike tests.pair, which plays whole applications, this sends lines and takes what comes.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from punchd.cli.users import NAMELESS

HANG_S = 30.0  # whatever takes longer is taken for hung, on a busy machine, too
COMMAND = (sys.executable, "-m", "punchd.cli.punchd")
Starter = Callable[..., subprocess.Popen[bytes]]


def open_to_all(directory: Path) -> Path:
    """The directory, reachable by other users and sticky, as /tmp is; pytest's own are root's alone."""
    for parent in directory.parents:
        if parent == Path("/tmp"):
            break
        parent.chmod(0o755)
    directory.chmod(0o1777)
    return directory


def writable(directory: Path) -> Path:
    """A new directory that a daemon started by root can write to after it has dropped root."""
    open_to_all(directory.parent)
    directory.mkdir()
    os.chown(directory, NAMELESS, -1)
    return directory


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait until that is so; fails if it never is."""
    deadline = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {HANG_S:g} s: {what}"
        time.sleep(0.005)


class Talk:
    """An application's connection, blocking: lines out, lines and descriptors in. Owns what it received."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.fds: deque[int] = deque()
        self._pending = b""
        try:
            self.socket.connect(str(path))
        except OSError:
            self.socket.close()
            raise

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()
        while self.fds:
            os.close(self.fds.popleft())

    def send(self, *lines: str) -> None:
        self.socket.sendall("".join(f"{line}\n" for line in lines).encode())

    def line(self, timeout_s: float = HANG_S) -> str:
        """The next answer.

        Raises:
            EOFError: the daemon has closed the connection, or is gone.
            TimeoutError: nothing came.
        """
        while b"\n" not in self._pending:
            if not select.select([self.socket], [], [], timeout_s)[0]:
                raise TimeoutError(f"no line within {timeout_s:g} s")
            try:
                data, control, _, _ = self.socket.recvmsg(4096, socket.CMSG_SPACE(16), socket.MSG_CMSG_CLOEXEC)
            except ConnectionResetError:
                data, control = b"", []
            for _, _, raw in control:
                self.fds.extend(memoryview(raw).cast("i"))
            if not data:
                raise EOFError(self._pending)
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        return line.decode("ascii")

    def until(self, start: str) -> str:
        """The next answer that starts so; others are passed over."""
        while not (line := self.line()).startswith(start):
            pass
        return line

    def rest(self) -> list[str]:
        """All answers until the daemon closes the connection."""
        lines = []
        with suppress(EOFError):
            while True:
                lines.append(self.line())
        return lines


@dataclass(slots=True)
class Punchd:
    """A daemon process. `output` is what it wrote to standard error, once it has ended."""

    process: subprocess.Popen[bytes]
    path: Path
    errors: Path
    _ended: list[int] = field(default_factory=list)

    def __enter__(self) -> Punchd:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if kind is not None:
            print(self.output)

    @property
    def output(self) -> str:
        return self.errors.read_text(errors="replace")

    @property
    def pid(self) -> int:
        return self.process.pid

    def ready(self) -> Punchd:
        """Wait until it answers; fails if it ends instead. The socket takes connections a moment earlier."""

        def serves() -> bool:
            assert self.process.poll() is None, f"punchd ended with {self.process.returncode}: {self.output}"
            with suppress(OSError, EOFError), Talk(self.path) as talk:
                talk.send("hello|1")
                talk.line()
                return True
            return False

        until(serves, "punchd serves")
        return self

    def talk(self) -> Talk:
        return Talk(self.path)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """Its exit code."""
        return self.process.wait(HANG_S)

    def status(self) -> Mapping[str, str]:
        """/proc/PID/status."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

    def descriptors(self) -> list[str]:
        """What its descriptors are, without those that the test gave it."""
        found = []
        for name in os.listdir(f"/proc/{self.pid}/fd"):
            with suppress(FileNotFoundError):
                found.append(os.readlink(f"/proc/{self.pid}/fd/{name}"))
        return found


def punchd(
    directory: Path,
    *arguments: str,
    starter: Starter = subprocess.Popen,
    prefix: Sequence[str] = (),
    command: Sequence[str] = COMMAND,
    name: str = "punchd",
    **options: Any,
) -> Punchd:
    """Start a daemon with its socket in `directory`; use it as a context manager.

    Args:
        starter: `popen` of a laboratory's host, to have it run there.
        prefix: words before the command.
    """
    path = open_to_all(directory) / f"{name}.socket"
    errors = directory / f"{name}.{time.monotonic_ns()}.log"
    with errors.open("wb") as log:
        chosen = [] if "--techniques" in arguments else ["--techniques", "udp"]
        words = [*prefix, *command, "--socket", str(path), "--mode", "600", *chosen, *arguments]
        return Punchd(starter(words, stderr=log, stdout=log, **options), path, errors)


@contextmanager
def quiet_namespace() -> Iterator[Starter]:
    """A network of its own with one made-up way out, so that attempts can be started and nobody hears them."""
    from tests.natlab.namespace import DIRECTORY, entered

    name = f"punchd-{os.getpid()}-{time.monotonic_ns()}"
    commands = (
        f"netns add {name}",
        f"-n {name} link set lo up",
        f"-n {name} link add out0 type veth peer name out1",
        f"-n {name} addr add 198.51.100.2/24 broadcast 198.51.100.255 dev out0",
        f"-n {name} -6 addr add 2001:db8:1::2/64 dev out0 nodad",
        f"-n {name} link set out0 up",
        f"-n {name} link set out1 up",
        f"-n {name} neigh add 198.51.100.1 lladdr 02:00:00:00:00:01 dev out0 nud permanent",
        f"-n {name} route add default via 198.51.100.1",
    )
    try:
        for command in commands:
            subprocess.run(["ip", *command.split()], check=True)

        def start(words: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
            with entered(DIRECTORY / name):
                return subprocess.Popen(words, **options)

        yield start
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)
