"""What a service manager expects: readiness, a heartbeat, sockets that it opened. Does nothing without one.

Source: sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

import trio

FIRST_FD = 3  # SD_LISTEN_FDS_START


def notify(state: str, environment: Mapping[str, str] = os.environ) -> None:
    """Tell the service manager `READY=1`, `STOPPING=1`, ...; silent if there is none."""
    address = environment.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        try:
            channel.sendto(state.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)
        except OSError:
            return  # the manager is gone; nobody else wants to know


def listening_sockets(environment: Mapping[str, str] = os.environ) -> list[socket.socket]:
    """The listening stream sockets that the service manager passed; the caller owns them.

    Raises:
        ValueError: what was passed is no listening Unix stream socket.
    """
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return []
    sockets = []
    for fd in range(FIRST_FD, FIRST_FD + int(environment.get("LISTEN_FDS", "0"))):
        os.set_inheritable(fd, False)
        passed = socket.socket(fileno=fd)
        listens = passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if passed.family != socket.AF_UNIX or passed.type != socket.SOCK_STREAM or not listens:
            raise ValueError(f"descriptor {fd} from the service manager: expected a listening Unix stream socket")
        passed.setblocking(False)
        sockets.append(passed)
    return sockets


async def heartbeat(environment: Mapping[str, str] = os.environ) -> None:
    """Tell the watchdog twice in its interval that the event loop turns; returns at once if there is no watchdog."""
    interval_us = environment.get("WATCHDOG_USEC", "")
    if not interval_us.isdecimal() or environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return
    while True:
        notify("WATCHDOG=1", environment)
        await trio.sleep(int(interval_us) / 2_000_000)
