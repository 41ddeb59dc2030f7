"""Whether the host's ways out have changed since somebody last asked: what was learnt about a network is void then.

A netlink socket in the kernel's multicast groups for addresses and routes (rtnetlink(7)); the kernel queues a message
for each change, and nobody needs to wait for them: whoever is about to use what he remembers looks whether there are
any. No capability is needed. Which route it was is not looked at: routes of a host change rarely, and learning anew is
cheap.

A change that leaves addresses and routes as they were, as when the provider changes his network, cannot be seen here.
"""

from __future__ import annotations

import socket
from types import TracebackType

from punchd.errors import KernelError

_GROUPS = 0x10 | 0x40 | 0x100 | 0x400  # linux/rtnetlink.h: RTMGRP_IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE
_MOST = 1024  # messages taken at once; a full buffer, 212,992 bytes by default, holds fewer


class RouteChanges:
    """Owns a netlink socket: close it, or use it as a context manager.

    Raises:
        KernelError: there is no netlink here.
    """

    def __init__(self) -> None:
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
            )
        except OSError as error:
            raise KernelError(f"netlink: {error.strerror}") from None
        try:
            self._socket.bind((0, _GROUPS))
        except OSError as error:
            self._socket.close()
            raise KernelError(f"netlink: {error.strerror}") from None

    def __enter__(self) -> RouteChanges:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def happened(self) -> bool:
        """Whether anything changed since the last call."""
        changed = False
        for _ in range(_MOST):
            try:
                self._socket.recv(1)  # the rest of the message is dropped
            except BlockingIOError:
                break
            except OSError:  # ENOBUFS: more changes than the buffer holds
                changed = True
            else:
                changed = True
        return changed
