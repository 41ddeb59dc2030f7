"""What tests of passed descriptors share."""

from __future__ import annotations

import socket
import struct
from array import array
from contextlib import suppress

from punchd.config import Config
from tests.unit.daemon_fixture import PEER, Application

TAKES = Config(accept_sockets=True)
INITIATE = f"initiate|a|bound|{PEER}|40000|sock=1"


def udp(family: int = socket.AF_INET) -> socket.socket:
    return socket.socket(family, socket.SOCK_DGRAM)


def bound(found: socket.socket, ip: str = "127.0.0.1", port: int = 0) -> socket.socket:
    found.bind((ip, port))
    return found


async def send(application: Application, data: str | bytes, *fds: int) -> None:
    rights = array("i", fds).tobytes()
    control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if fds else []
    raw = data.encode() if isinstance(data, str) else data
    sent = await application.stream.sendmsg([raw], control)
    while sent < len(raw):
        sent += await application.stream.send(raw[sent:])


# --- descriptors that are slow to close -------------------------------------------------------------------------------

unread: list[socket.socket] = []  # their other ends


def make_linger(own: socket.socket, seconds: int) -> None:
    """Connect it, and fill it with data that nobody will read before `let_go`."""
    with bound(socket.socket()) as listener:
        listener.listen()
        own.setblocking(True)
        own.connect(listener.getsockname())
        far, _ = listener.accept()
    own.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            own.send(bytes(65536))
    own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, seconds))
    unread.append(far)


def lingering(seconds: int) -> socket.socket:
    """A TCP socket whose last close takes so long."""
    found = socket.socket()
    make_linger(found, seconds)
    return found


def slow_to_close(seconds: int) -> socket.socket:
    """A Unix socket in whose queue lies a TCP socket that lingers."""
    near, far = socket.socketpair()
    with near, lingering(seconds) as slow:
        socket.send_fds(near, [b"x"], [slow.fileno()])
    return far


def let_go() -> None:
    """To be called at the end of a test."""
    while unread:
        unread.pop().close()
