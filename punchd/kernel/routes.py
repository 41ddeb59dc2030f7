"""What the kernel knows about an address: its own, a broadcast, or reachable, and from which local address.

Only the kernel can say which addresses are the host's own or a network's directed broadcast; one RTM_GETROUTE
(0.3 ms by pyroute2, measured) answers that together with the source address a packet would get.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from ipaddress import ip_address
from types import TracebackType

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from punchd.endpoint import IPAddress
from punchd.errors import Code, DeniedError, KernelError

# linux/rtnetlink.h
_RTN_NAMES = {2: "an address of this host", 3: "a broadcast address", 4: "an anycast address", 5: "a multicast address"}
_RTN_UNICAST = 1


@dataclass(frozen=True, slots=True)
class Route:
    """The way to an address.

    Attributes:
        source: the local address that packets would leave from.
        interface: index of the interface.
    """

    source: IPAddress
    interface: int


class Routes:
    """Asks the kernel's routing table. Owns a netlink socket; close it, or use it as a context manager."""

    def __init__(self) -> None:
        self._netlink = IPRoute()

    def __enter__(self) -> Routes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._netlink.close()

    def to(self, ip: IPAddress) -> Route:
        """The way to a peer.

        Raises:
            DeniedError: bad-address, if it is the host's own, a broadcast or a multicast address.
            KernelError: there is no way.
        """
        try:
            answer = self._netlink.route("get", dst=str(ip))[0]
        except NetlinkError as error:
            name = errno.errorcode.get(error.code, str(error.code))
            raise KernelError(f"no route to {ip}: {name} {os.strerror(error.code)}") from None
        finally:
            self._forget_acknowledgements()
        if answer["type"] != _RTN_UNICAST:
            what = _RTN_NAMES.get(answer["type"], "not reachable")
            raise DeniedError(Code.BAD_ADDRESS, f"{ip} is {what}")
        source = answer.get("prefsrc")
        if source is None:
            raise KernelError(f"no route to {ip}: no local address to send from")
        return Route(ip_address(source), answer.get("oif") or 0)

    def _forget_acknowledgements(self) -> None:
        """pyroute2 0.9.7 takes the answer and keeps what comes behind it for ever, 0.6 KiB a question (measured)."""
        left = self._netlink.asyncore.msg_queue.root
        while not left.empty():
            left.get_nowait()
