"""What a service manager expects: readiness, a heartbeat, sockets that it opened. Does nothing without one.

Source: sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping

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
    wanted = "a listening Unix stream socket"
    return _passed(environment, wanted, lambda it: it.family == socket.AF_UNIX and _is_listener(it))


def internet_sockets(environment: Mapping[str, str] = os.environ) -> list[tuple[str, socket.socket]]:
    """The listening TCP sockets and the UDP sockets that the service manager passed; the caller owns them.

    Returns:
        (name, socket) in the manager's order. The name is that of `FileDescriptorName=`; "" if none came.

    Raises:
        ValueError: what was passed is neither; it stays open then.
    """
    sockets = _passed(environment, "a listening TCP socket or a UDP socket", _is_internet)
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    return [(names[index] if index < len(names) else "", item) for index, item in enumerate(sockets)]


def _passed(environment: Mapping[str, str], wanted: str, fits: Callable[[socket.socket], bool]) -> list[socket.socket]:
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = environment.get("LISTEN_FDS", "0")
    if not (count.isascii() and count.isdecimal() and int(count) <= MOST_FDS):
        raise ValueError(f"LISTEN_FDS from the service manager: expected 0 to {MOST_FDS}, got {count[:20]!r}")
    sockets: list[socket.socket] = []
    try:
        for fd in range(FIRST_FD, FIRST_FD + int(count)):
            sockets.append(_passed_socket(fd, wanted, fits))
    except ValueError:
        for passed in sockets:
            passed.detach()
        raise
    return sockets


def _passed_socket(fd: int, wanted: str, fits: Callable[[socket.socket], bool]) -> socket.socket:
    wanted = f"descriptor {fd} from the service manager: expected {wanted}"
    try:
        os.set_inheritable(fd, False)
        passed = socket.socket(fileno=fd)
    except OSError as error:
        raise ValueError(f"{wanted}, got {error.strerror}") from None
    if not fits(passed):
        found = f"{passed.family.name} {passed.type.name}{'' if _listens(passed) else ' that does not listen'}"
        passed.detach()
        raise ValueError(f"{wanted}, got {found}")
    passed.setblocking(False)
    return passed


def _is_internet(passed: socket.socket) -> bool:
    is_datagram = passed.type == socket.SOCK_DGRAM
    return passed.family in {socket.AF_INET, socket.AF_INET6} and (is_datagram or _is_listener(passed))


def _is_listener(passed: socket.socket) -> bool:
    return passed.type == socket.SOCK_STREAM and _listens(passed)


def _listens(passed: socket.socket) -> bool:
    return bool(passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


async def heartbeat(environment: Mapping[str, str] = os.environ) -> None:
    """Tell the watchdog twice in its interval that the event loop turns; returns at once if there is no watchdog."""
    interval_us = environment.get("WATCHDOG_USEC", "")
    is_set = interval_us.isascii() and interval_us.isdecimal() and int(interval_us) > 0
    if not is_set or environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return
    while True:
        notify("WATCHDOG=1", environment)
        await trio.sleep(int(interval_us) / 2_000_000)
