"""The Unix socket to the daemon: where it is, who listens there, and reading it together with its descriptors.

Whoever holds the socket's path can hand this program any descriptor it likes: a connection to somewhere else, a
file. /tmp is writable for everybody, so the path proves nothing; the kernel's word for who listens (SO_PEERCRED)
does. Trusted are root, the service user `_punchd`, and the own user, since a daemon of one's own can do nothing that
one could not do oneself. Under systemd the answer is root, who made the socket, in whichever user the daemon runs.

Source: line protocol §1 and §5; unix(7).
"""

from __future__ import annotations

import array
import errno
import os
import pwd
import socket
import struct
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from punchd.client.errors import DaemonProtocolError, DaemonUnreachableError, UntrustedDaemonError
from punchd.client.events import Connected
from punchd.client.session import Granted
from punchd.control.requests import Protocol

SYSTEM_PATH = "/run/punchd/punchd.socket"  # made by the systemd unit
HAND_PATH = "/tmp/punchd.socket"  # noqa: S108 (the default path; who listens is checked)
PATH_VARIABLE = "PUNCHD_SOCKET"
SERVICE_USER = "_punchd"

READ_SIZE = 4096  # bytes of one read: eight of the longest lines
MAX_DESCRIPTORS = 8  # of one read; §5 asks for room for at least 4
_SO_COOKIE = 57  # asm-generic/socket.h
_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid


def socket_path(environment: Mapping[str, str] = os.environ) -> str:
    """Where the daemon is expected: $PUNCHD_SOCKET, else the system's path if it exists, else the one in /tmp."""
    if path := environment.get(PATH_VARIABLE):
        return path
    return SYSTEM_PATH if os.path.exists(SYSTEM_PATH) else HAND_PATH


def default_trusted_uids() -> frozenset[int]:
    """Root, the service user where it exists, and the own user."""
    uids = {0, os.geteuid()}
    with suppress(KeyError):
        uids.add(pwd.getpwnam(SERVICE_USER).pw_uid)
    return frozenset(uids)


def open_socket(path: str, trusted_uids: Collection[int] | None, *, blocking: bool) -> socket.socket:
    """A connection to the daemon at `path`, after a look at who listens there.

    Raises:
        DaemonUnreachableError: nobody listens at `path`, or not for this user.
        UntrustedDaemonError: the listener's user is not in `trusted_uids` (None: `default_trusted_uids()`).
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.setblocking(blocking)
        connection.connect(path)
        _check_listener(connection, path, default_trusted_uids() if trusted_uids is None else trusted_uids)
    except OSError as error:
        connection.close()
        raise DaemonUnreachableError(f"no connection to punchd at {path}: {_hint(error)}") from error
    except BaseException:
        connection.close()
        raise
    return connection


def _check_listener(connection: socket.socket, path: str, trusted_uids: Collection[int]) -> None:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    uid = _CREDENTIALS.unpack(credentials)[1]
    if uid not in trusted_uids:
        trusted = ", ".join(map(str, sorted(trusted_uids))) or "none"
        text = f"the program that listens at {path} runs as uid {uid}; expected a punchd of one of the uids {trusted}"
        raise UntrustedDaemonError(text, uid)


def _hint(error: OSError) -> str:
    match error.errno:
        case errno.ENOENT:
            return f"there is no such socket; is punchd running? (another path: ${PATH_VARIABLE})"
        case errno.ECONNREFUSED:
            return "nobody listens there; is punchd running? (a punchd that was killed leaves its socket behind)"
        case errno.EACCES | errno.EPERM:
            return "permission denied; are you in the group punchd? (id -nG; log in again after being added)"
        case errno.EAGAIN:
            return "it has too many connections waiting to be accepted; try again"
        case _:
            return error.strerror or str(error)


@dataclass(frozen=True, slots=True)
class Received:
    """What one read returned; the reader owns the descriptors. No data: the daemon has closed the connection."""

    data: bytes
    descriptors: tuple[int, ...] = ()
    truncated: bool = False  # the kernel had more descriptors than it could give


def receive(connection: socket.socket, flags: int = 0) -> Received:
    """One `recvmsg`, as the queue rule asks: room for descriptors, close-on-exec.

    Raises:
        BlockingIOError: there is nothing, and the socket or `flags` (MSG_DONTWAIT) say not to wait.
    """
    room = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)
    try:
        data, messages, returned_flags, _ = connection.recvmsg(READ_SIZE, room, flags | socket.MSG_CMSG_CLOEXEC)
    except ConnectionError:
        return Received(b"")
    descriptors = array.array("i")
    for level, kind, payload in messages:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(payload[: len(payload) - len(payload) % descriptors.itemsize])
    return Received(data, tuple(descriptors), bool(returned_flags & socket.MSG_CTRUNC))


def close_all(descriptors: Iterable[int]) -> None:
    """Close descriptors that nobody wants; one that is no longer open is passed over."""
    for descriptor in descriptors:
        with suppress(OSError):
            os.close(descriptor)


def send_with(connection: socket.socket, line: bytes, descriptor: int) -> int:
    """Send a line with a descriptor: how much of it went out. The descriptor goes with the first byte."""
    rights = array.array("i", [descriptor]).tobytes()
    return connection.sendmsg([line], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])


def cookie_of(descriptor: int | None) -> bytes | None:
    """What the kernel calls this very socket (SO_COOKIE); None if there is none.

    Raises:
        OSError: it is no socket.
    """
    if descriptor is None:
        return None
    with socket.socket(fileno=os.dup(descriptor)) as same:
        return same.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8)


def adopt(granted: Granted, cookie: bytes | None = None) -> Connected[socket.socket]:
    """The granted descriptor as a socket object, which owns it from here on.

    Args:
        cookie: of the socket that was passed in, if one was: it has to be the same.

    Raises:
        DaemonProtocolError: the descriptor is no socket of the protocol in the `ok` line, or not the one that was
            passed in. It is closed.
    """
    answer = granted.answer
    kind = socket.SOCK_DGRAM if answer.protocol is Protocol.UDP else socket.SOCK_STREAM
    try:
        connected = socket.socket(fileno=granted.descriptor)
    except OSError as error:
        close_all([granted.descriptor])
        raise DaemonProtocolError(f"punchd sent a descriptor that is no socket: {error.strerror}") from error
    if connected.type != kind:
        connected.close()
        raise DaemonProtocolError(f"punchd sent a socket of another kind than {answer.protocol}, as its line says")
    if cookie is not None:
        if cookie_of(connected.fileno()) != cookie:
            connected.close()
            raise DaemonProtocolError("punchd sent another socket than the one that was passed in")
        connected.setblocking(os.get_blocking(connected.fileno()))  # Python's idea of it, not the kernel's
    return Connected(connected, answer.technique, answer.protocol, answer.local, answer.remote)
