"""punchd-rendezvous on a host of a laboratory, as a process."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.natlab import Host

START_S = 30.0


@contextmanager
def rendezvous(host: Host, where: str, *words: str) -> Iterator[None]:
    """Serve plain HTTP at `where` (HOST:PORT), pulses on the UDP port below and STUN on the one above.

    Args:
        words: more of the command line.
    """
    address, _, port = where.rpartition(":")
    command = [sys.executable, "-m", "punchd.cli.rendezvous", "--http", where, "--udp", f"{address}:{int(port) - 1}"]
    command += ["--stun", f"{address}:{int(port) + 1}", "--insecure", "--log-level", "warning", *words]
    with host.popen(command) as process:
        try:
            _wait_until_answered(host, address, int(port))
            yield
        finally:
            process.terminate()


def _wait_until_answered(host: Host, address: str, port: int) -> None:
    deadline = time.monotonic() + START_S
    with host.entered():
        while True:
            try:
                socket.create_connection((address, port), 1).close()
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
            else:
                return
