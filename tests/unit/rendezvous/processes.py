"""`punchd-rendezvous` as a process, on sockets that the test gave it, as a service manager does."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from tests.unit.rendezvous.redis_server import RedisServer
from tests.unit.rendezvous.running import Running, loopback

START_S = 60.0

# Its two sockets become descriptors 3 and 4.
ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="2")
os.execv(sys.executable, [sys.executable, "-m", "punchd.cli.rendezvous", *sys.argv[3:]])
"""


@dataclass(slots=True)
class Server:
    """One that serves."""

    process: subprocess.Popen[bytes]
    at: Running

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(START_S)


def config_for(redis: RedisServer, directory: Path) -> Path:
    config = directory / "rendezvous.toml"
    config.write_text(f'http = ["127.0.0.1:5025"]\nstore = "{redis.url}"\nstun = []\nmetrics = []\n')
    return config


@contextmanager
def server(config: Path, http: socket.socket | None = None, udp: socket.socket | None = None) -> Iterator[Server]:
    """Start one, and wait until it says that it serves; killed at the end. The sockets become its own."""
    http, udp = http or loopback(socket.SOCK_STREAM), udp or loopback(socket.SOCK_DGRAM)
    at = Running(http.getsockname()[1], udp.getsockname()[1], 0, None, trio.Event())
    above = [fcntl.fcntl(sock, fcntl.F_DUPFD, 10) for sock in (http, udp)]  # clear of 3 and 4
    command = [sys.executable, "-c", ACTIVATE, *map(str, above), "--config", str(config)]
    with (
        tempfile.TemporaryDirectory(prefix="punchd-notify-") as directory,
        closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as notified,
    ):
        notified.bind(f"{directory}/notify")
        notified.settimeout(START_S)
        environment = os.environ | {"NOTIFY_SOCKET": f"{directory}/notify"}
        process = subprocess.Popen(command, pass_fds=above, stderr=subprocess.DEVNULL, env=environment)
        for fd in above:
            os.close(fd)
        http.close()
        udp.close()
        try:
            while b"READY=1" not in notified.recv(4096):
                pass
            yield Server(process, at)
        finally:
            process.kill()
            process.wait(START_S)
