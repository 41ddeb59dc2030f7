"""What tests of passed descriptors share."""

from __future__ import annotations

import socket
from array import array

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
