"""A Debian machine: a tree that debootstrap made, under an overlay, booted by systemd-nspawn.

It has a cgroup of its own, and a network namespace with loopback only unless one is given. What it writes is gone in
the end; `reboot` keeps it.

Source: systemd-nspawn(1), cgroups(7).
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

TREES = Path(__file__).parents[2] / ".cache" / "debian"  # made by packaging/tree
BOOT_S = 60.0  # takes 3 s on an idle machine
END_S = 30.0


class Machine:
    """To be entered; `network` is the path of a network namespace."""

    def __init__(self, suite: str, name: str, network: Path | None = None) -> None:
        self.name = name
        self._tree = TREES / suite
        self._network = network
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._leader = 0

    def __enter__(self) -> Self:
        self._place = Path(tempfile.mkdtemp(prefix="punchd-machine-"))
        for name in ("upper", "work", "root"):
            (self._place / name).mkdir()
        layers = f"lowerdir={self._tree},upperdir={self._place}/upper,workdir={self._place}/work"
        _run("mount", "-t", "overlay", "overlay", "-o", layers, str(self._place / "root"))
        self._cgroup = _cgroups() / f"{self._place.name}"
        self._cgroup.mkdir()
        try:
            self.boot()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(signal.SIGTERM)
        _run("umount", str(self._place / "root"))
        _run("rm", "-rf", str(self._place))
        for directory, _, _ in os.walk(self._cgroup, topdown=False):
            with suppress(OSError):
                os.rmdir(directory)

    def boot(self) -> None:
        """Start it, and wait until it is up."""
        network = ["--private-network"]
        if self._network is not None:  # CAP_NET_ADMIN, which a private network brings, has to be asked for then
            network = [f"--network-namespace-path={self._network}", "--capability=CAP_NET_ADMIN"]
        # In a cgroup of its own: two systemds in one would end each other's services.
        enter = f'echo $$ >"{self._cgroup}/cgroup.procs"; exec "$@"'
        nspawn = ["systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--console=pipe", *network]
        with (self._place / "console").open("ab") as console:
            self._nspawn = subprocess.Popen(
                ["sh", "-c", enter, "sh", *nspawn, f"--machine={self.name}", f"--directory={self._place}/root"],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
            )
        deadline = time.monotonic() + BOOT_S
        while not self._is_up():
            said = (self._place / "console").read_text(errors="replace")
            assert self._nspawn.poll() is None, f"{self.name} ended while it booted: {said}"
            assert time.monotonic() < deadline, f"{self.name} is not up after {BOOT_S:g} s: {said}"
            time.sleep(0.2)

    def reboot(self) -> None:
        """Shut it down in order, and boot it again."""
        self._end(signal.SIGTERM)
        self.boot()

    def run(self, *command: str, check: bool = True) -> str:
        """What a command in it said on both outputs.

        Raises:
            AssertionError: it failed, unless `check` is false.
        """
        done = self.start(*command, stdout=subprocess.PIPE)
        said, _ = done.communicate(timeout=300)
        assert not check or done.returncode == 0, f"{self.name}: {' '.join(command)}: {done.returncode}\n{said}"
        return said

    def start(self, *command: str, stdout: int | None = None) -> subprocess.Popen[str]:
        """A command in it, running."""
        clean = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
        return subprocess.Popen(
            ["nsenter", "--target", str(self._leader), "--all", "--", *command],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.STDOUT,
            env=clean,
            text=True,
        )

    def path(self, inside: str) -> Path:
        """A path in it, as this process may use it, sockets included."""
        return Path(f"/proc/{self._leader}/root{inside}")

    def until(self, *command: str, says: str, seconds: float = 60.0) -> None:
        """Wait until a command's output is that."""
        deadline = time.monotonic() + seconds
        while (said := self.run(*command, check=False).strip()) != says:
            assert time.monotonic() < deadline, f"{self.name}: {' '.join(command)}: expected {says!r}, got {said!r}"
            time.sleep(0.2)

    def property(self, unit: str, name: str) -> str:
        """What systemd says of a unit."""
        return self.run("systemctl", "show", "--value", "--property", name, unit).strip()

    def _is_up(self) -> bool:
        assert self._nspawn is not None
        with suppress(OSError, ValueError, IndexError):
            children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text()
            self._leader = int(children.split()[0])
            state = self.run("systemctl", "is-system-running", check=False).strip()
            return state in {"running", "degraded"}
        return False

    def _end(self, number: signal.Signals) -> None:
        if self._nspawn is None:
            return
        self._nspawn.send_signal(number)
        try:
            self._nspawn.wait(END_S)
        except subprocess.TimeoutExpired:
            self._nspawn.kill()
            self._nspawn.wait()
        self._nspawn = None


def _cgroups() -> Path:
    """Where the unified hierarchy is mounted."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, kind = line.partition(" - ")
        if kind.startswith("cgroup2 "):
            return Path(fields.split()[4])
    raise AssertionError("expected a mounted cgroup2 hierarchy, found none")


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
