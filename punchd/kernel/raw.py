"""Packets that the kernel's own stack would not send: whole ones, header and all, and such that come from outside.

A raw IPPROTO_RAW socket takes an IP packet as it is. Sent to the host's own address it is *injected*: the stack takes
it as if it had arrived, whatever its source says; that works with rp_filter 0, 1 and 2 and under a stateful input
firewall, unlike AF_PACKET on `lo` (measured). Needs CAP_NET_RAW.

What may be sent where is decided in `punchd.attempt`; this file sends.

Source: raw(7), ipv6(7); measurements on Linux 6.18.
"""

from __future__ import annotations

import errno
import os
import socket

from punchd.endpoint import IPAddress
from punchd.errors import Code, PunchError

# The packet counts as lost on the way; whoever sent it repeats it anyway.
_LOST = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.EHOSTUNREACH, errno.ECONNREFUSED})
# What to tell when this host's own rules forbid a packet.
REFUSED = "refused by the local firewall ({error}); its output rules must let {protocol} to there out"


class RawSender:
    """Sends whole IP packets of one version. Whoever made it closes it."""

    def __init__(self, version: int) -> None:
        """Open the socket.

        Raises:
            PunchError: no-privilege, without CAP_NET_RAW.
        """
        self._version = version
        family = socket.AF_INET6 if version == 6 else socket.AF_INET
        try:
            self._socket = socket.socket(
                family, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW
            )
        except PermissionError:
            raise PunchError(Code.NO_PRIVILEGE, "a raw socket needs CAP_NET_RAW") from None

    def send(self, packet: bytes, destination: IPAddress) -> None:
        """Send an IP packet to where its header says, or, with an own address, into the own stack.

        Raises:
            PunchError: refused, when a local firewall forbids it; network, for anything else.
        """
        try:
            self._socket.sendto(packet, (str(destination), 0))
        except OSError as error:
            if error.errno in _LOST:
                return
            number = error.errno or 0
            name = f"{errno.errorcode.get(number, number)} {os.strerror(number)}"
            if error.errno in (errno.EPERM, errno.EACCES):
                text = f"raw send to {destination}: {REFUSED.format(error=name, protocol='TCP')}"
                raise PunchError(Code.REFUSED, text) from None
            raise PunchError(Code.NETWORK, f"raw send to {destination}: {name}") from None

    def close(self) -> None:
        self._socket.close()
