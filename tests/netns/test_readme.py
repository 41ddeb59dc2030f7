"""The five commands of the README, on three hosts, as they stand there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.natlab import KINDS, Host, Laboratory, Site

pytestmark = pytest.mark.netns

README = Path(__file__).parents[2] / "README.md"
PUBLIC = "192.0.2.10"  # in the README; the laboratory's server has it
INSTALLED = "/opt/punchd/bin/"
HERE = f"{Path(sys.executable).parent}/"
PATIENCE_S = 60.0


def commands() -> list[str]:
    """Of the section that promises five."""
    section = README.read_text().partition("## From nothing to a connection\n")[2].partition("\n## ")[0]
    assert section.startswith("\nFive commands")
    return [line for block in re.findall(r"```sh\n(.*?)```", section, re.DOTALL) for line in block.splitlines()]


@contextmanager
def running(host: Host, command: str, home: Path, *more: str) -> Iterator[subprocess.Popen[str]]:
    """As root, so without sudo; each host has its own home and its own socket."""
    words = shlex.split(command.removeprefix("sudo ").replace(INSTALLED, HERE).replace("$(id -gn)", "root"))
    environment = {**os.environ, "HOME": str(home), "PUNCHD_SOCKET": str(home / "socket")}
    environment.pop("XDG_CONFIG_HOME", None)
    pipe = subprocess.PIPE
    pipes = {"stdin": pipe, "stdout": pipe, "stderr": pipe}
    with host.popen([*words, *more], env=environment, text=True, bufsize=1, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: subprocess.Popen[str], pattern: str) -> re.Match[str]:
    """The first line of its news that matches."""
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if found := re.search(pattern, line):
            return found
    raise AssertionError(f"{process.args!r}: no {pattern!r} in {seen}")


@pytest.mark.timeout(PATIENCE_S)
def test_five_commands_lead_from_nothing_to_a_connection(tmp_path: Path) -> None:
    install, serve, daemon, listen, connect = commands()
    assert ".[servers]" in install
    homes = {name: tmp_path / name for name in "sab"}
    with ExitStack() as stack:
        lab = stack.enter_context(Laboratory([Site("a", KINDS["apdf"]), Site("b", KINDS["apdf"])], stun=False))
        assert lab.server.ipv4 == PUBLIC
        for home in homes.values():
            home.mkdir()
        stack.enter_context(running(lab.server, serve, homes["s"]))
        hosts = {name: lab.site(name).host for name in "ab"}
        for name, host in hosts.items():
            stack.enter_context(running(host, daemon, homes[name], "--socket", str(homes[name] / "socket")))
            until_there(homes[name] / "socket")
        listener = stack.enter_context(running(hosts["a"], listen, homes["a"]))
        address = read_until(listener, r"listening at (punch1\w+)")[1]
        calling = connect.replace("ADDRESS", address)
        connector = stack.enter_context(running(hosts["b"], calling, homes["b"]))
        assert listener.stdin is not None
        assert connector.stdin is not None
        connector.stdin.write("hello from b\n")
        connector.stdin.close()
        assert listener.stdout is not None
        assert listener.stdout.readline() == "hello from b\n"
        listener.stdin.write("hello from a\n")
        listener.stdin.close()
        assert connector.stdout is not None
        assert connector.stdout.read() == "hello from a\n"
        assert (connector.wait(PATIENCE_S), listener.wait(PATIENCE_S)) == (0, 0)


def until_there(path: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S / 2
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path}"
        time.sleep(0.05)
