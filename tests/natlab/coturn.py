"""STUN in the laboratory: coturn, a server that this project did not write.

It runs in the server's namespace with RFC 5780 on: two addresses, two ports each (3478, 3479), UDP and TCP, IPv4
and IPv6. No TURN, no TLS, no command line, no files: its database and PID file are /dev/null (which it opens for
writing but never unlinks), its log is dropped.
"""

from __future__ import annotations

import select
import socket
import struct
import subprocess
import time
from collections.abc import Sequence
from typing import Any, Final

from .host import Host

PORT: Final = 3478
_START_LIMIT_S: Final = 10.0  # it takes 0.1 s; a machine under load may need ten times that
_POLL_S: Final = 0.01
_BINDING_REQUEST: Final = struct.pack("!HHI12s", 0x0001, 0, 0x2112A442, b"natlab-ready")


class CoturnError(Exception):
    """coturn did not start."""


def start(server: Host) -> subprocess.Popen[Any]:
    """Starts coturn on all the server's addresses; it is not ready yet."""
    listeners = [word for address in _addresses(server) for word in ("-L", address)]
    command = ["turnserver", "-n", "-S", "-m", "1", "-p", str(PORT), *listeners]
    command += [
        "--no-cli",
        "--no-tls",
        "--no-dtls",
        "--log-file",
        "stdout",
        "--pidfile",
        "/dev/null",
        "-b",
        "/dev/null",
    ]
    return server.popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait(server: Host, process: subprocess.Popen[Any]) -> None:
    """Blocks until it answers a binding request on every address.

    Raises:
        CoturnError: it ended, or is silent for too long.
    """
    limit = time.monotonic() + _START_LIMIT_S
    for address in _addresses(server):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with server.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, PORT))
            while not _answers(probe):
                if process.poll() is not None:
                    raise CoturnError(f"turnserver ended with status {process.returncode} before it answered")
                if time.monotonic() > limit:
                    raise CoturnError(f"turnserver does not answer on {address}:{PORT} after {_START_LIMIT_S} s")


def _answers(probe: socket.socket) -> bool:
    try:
        probe.send(_BINDING_REQUEST)
        ready, _, _ = select.select([probe], [], [], _POLL_S)
        if ready:
            return probe.recv(2048)[:2] == b"\x01\x01"
    except ConnectionRefusedError:  # the port is not open yet
        time.sleep(_POLL_S)
    return False


def _addresses(server: Host) -> Sequence[str]:
    return (*server.ipv4_addresses, *server.ipv6_addresses)
