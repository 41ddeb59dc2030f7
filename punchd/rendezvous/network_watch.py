"""Waits until the host's links, addresses or routes change, so that a client need not be away until its next pulse.

rtnetlink(7) tells each process that asks; no privilege is needed. Where there is no netlink, nothing is ever told, and
a change is found at the next pulse.
"""

from __future__ import annotations

import socket

import trio

SETTLE_S = 0.3  # a change comes as several: the old address goes, the new one comes, then its routes

# linux/rtnetlink.h: RTMGRP_LINK, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE. LINK, because IPv4 routes that go
# with their link are not told of.
_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400
_MOST = 1024  # messages taken at once; a full buffer holds fewer


class NetworkWatch:
    """Owns a netlink socket, if there is one: `close` it."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        flags = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | flags, socket.NETLINK_ROUTE)
            self._socket.bind((0, _GROUPS))
        except OSError:
            self.close()

    def close(self) -> None:
        """May be called twice."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def change(self) -> None:
        """Wait for a change, and a moment longer for those that come with it."""
        if self._socket is None:
            await trio.sleep_forever()
            return
        await trio.lowlevel.wait_readable(self._socket)
        await trio.sleep(SETTLE_S)
        for _ in range(_MOST):
            try:
                self._socket.recv(1)  # the rest of the message is dropped
            except BlockingIOError:
                return
            except OSError:  # ENOBUFS: more changes than the buffer holds
                continue
