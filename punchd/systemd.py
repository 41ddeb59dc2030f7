"""What a service manager expects: readiness, a heartbeat, sockets that it opened. Does nothing without one.

Source: sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

import trio

FIRST_FD = 3  # SD_LISTEN_FDS_START
NOTIFY_S = 0.5  # how long a manager that does not read its queue may hold up the event loop
MOST_FDS = 16  # one is usual


def notify(state: str, environment: Mapping[str, str] = os.environ) -> None:
    """Tell the service manager `READY=1`, `STOPPING=1`, ...; silent if there is none."""
    address = environment.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        try:
            channel.settimeout(NOTIFY_S)
            channel.sendto(state.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)
        except OSError:
            return  # the manager is gone; nobody else wants to know


def listening_sockets(environment: Mapping[str, str] = os.environ) -> list[socket.socket]:
    """The listening stream sockets that the service manager passed; the caller owns them.

    Raises:
        ValueError: what was passed is no listening Unix stream socket; it stays open then.
    """
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = environment.get("LISTEN_FDS", "0")
    if not (count.isascii() and count.isdecimal() and int(count) <= MOST_FDS):
        raise ValueError(f"LISTEN_FDS from the service manager: expected 0 to {MOST_FDS}, got {count[:20]!r}")
    sockets: list[socket.socket] = []
    try:
        for fd in range(FIRST_FD, FIRST_FD + int(count)):
            sockets.append(_listening_socket(fd))
    except ValueError:
        for passed in sockets:
            passed.detach()
        raise
    return sockets


def _listening_socket(fd: int) -> socket.socket:
    wanted = f"descriptor {fd} from the service manager: expected a listening Unix stream socket"
    try:
        os.set_inheritable(fd, False)
        passed = socket.socket(fileno=fd)
    except OSError as error:
        raise ValueError(f"{wanted}, got {error.strerror}") from None
    listens = passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if passed.family != socket.AF_UNIX or passed.type != socket.SOCK_STREAM or not listens:
        found = f"{passed.family.name} {passed.type.name}{'' if listens else ' that does not listen'}"
        passed.detach()
        raise ValueError(f"{wanted}, got {found}")
    passed.setblocking(False)
    return passed


async def heartbeat(environment: Mapping[str, str] = os.environ) -> None:
    """Tell the watchdog twice in its interval that the event loop turns; returns at once if there is no watchdog."""
    interval_us = environment.get("WATCHDOG_USEC", "")
    is_set = interval_us.isascii() and interval_us.isdecimal() and int(interval_us) > 0
    if not is_set or environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return
    while True:
        notify("WATCHDOG=1", environment)
        await trio.sleep(int(interval_us) / 2_000_000)
