"""A socket that an application has made and passed to the daemon: looked at, borrowed, and given back as it was.

Why. A socket that the daemon makes carries the daemon's user and cgroup, so firewalls and accounting by user miss it. A
socket that the application makes keeps the application's, also where it is the daemon that binds and connects it.

What may be passed is decided by what the kernel says of the descriptor itself, never by what the line says:

    a socket                      fstat; everything else is refused, whatever it claims
    of the user who asks          fstat: the user who made it. A socket that somebody else has bound or connected is
                                  no more the application's to give away for having got into its hands
    UDP or TCP, IPv4 or IPv6      SO_DOMAIN, SO_PROTOCOL (a multipath TCP socket is none)
    of this network namespace     SO_NETNS_COOKIE: the addresses that the daemon checks are those of its own
    unused                        neither listening nor connected, nor on the way to either
    unbound, or, UDP, bound to a port from 1024 on

INET_DIAG would add nothing: what it says of the user comes from the same inode (a bound UDP socket: the same uid and
inode number by either way), and it does not find unbound sockets, nor TCP sockets that are only bound. fstat is asked
about the very descriptor, needs no netlink, and takes 2 us with all of the above. Measured. Nothing tells who else
holds the socket; hence:

**The description is shared.** The application can do anything to it at any time, so nothing that was looked at stays
true. Hence: reading and sending with MSG_DONTWAIT, since O_NONBLOCK can be taken away; connecting TCP in a thread;
never TCP_REPAIR, because while that mode is on every holder of the socket may forge connections with it; closing,
which lasts as long as SO_LINGER says if ours is the last descriptor, in a thread (`punchd.kernel.closing`). What stays:
a holder can make the kernel hold the socket's lock for as long as it likes, by a corked send from memory whose pages it
delivers itself (userfaultfd, FUSE): getsockname and a send, MSG_DONTWAIT or not, waited the 2.7 s that such a send was
held up. That is why the setting `accept-sockets` is off unless an administrator turns it on.

Source: line protocol §13.13; socket(7), unix(7); net/core/sock.c; measured on Linux 6.18.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import struct
from contextlib import suppress

from punchd.endpoint import Endpoint
from punchd.errors import Code, DecodeError, DeniedError, PunchError

LOWEST_PORT = 1024  # line protocol §2
# asm-generic/socket.h; the socket module has no names for these
_SO_PROTOCOL, _SO_DOMAIN, _SO_NETNS_COOKIE = 38, 39, 71
_NO_LINGER = struct.pack("ii", 0, 0)
_COOKIE = struct.Struct("=Q")
_CLOSED = 7  # TCP_CLOSE, linux/tcp_states.h
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a directory",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_PROTOCOLS = {socket.IPPROTO_UDP: "udp", socket.IPPROTO_TCP: "tcp"}
_VERSIONS = {int(socket.AF_INET): 4, int(socket.AF_INET6): 6}


class PassedSocket:
    """An application's socket, for the length of one attempt. The descriptor stays the caller's.

    Attributes:
        protocol: "udp" or "tcp".
        version: 4 or 6.
        bound: where it is bound (the address may be the unspecified one), or None.
        is_blocking: as the application had it.
    """

    def __init__(self, fd: int, uid: int) -> None:
        """Look at what came from a connection of user `uid`, and make it ready.

        Raises:
            DeniedError: bad-option, with what was expected and what came; bad-port.
        """
        try:
            found = os.fstat(fd)
            if not stat.S_ISSOCK(found.st_mode):
                raise _unfit(_KINDS.get(stat.S_IFMT(found.st_mode), "another descriptor"))
            if found.st_uid != uid:
                raise _unfit(f"one that uid {found.st_uid} has made; you are uid {uid}")
            self._socket = socket.socket(fileno=os.dup(fd))
        except OSError as error:
            raise _unfit(f"a descriptor that says {_name(error)}") from None
        try:
            self._look()
            flags = fcntl.fcntl(self._socket, fcntl.F_GETFL)
            self.is_blocking = not flags & os.O_NONBLOCK
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            self._socket.setblocking(False)
        except OSError as error:
            self._socket.close()
            raise _unfit(f"a socket that says {_name(error)}") from None
        except BaseException:
            self._socket.close()
            raise

    def borrow(self) -> socket.socket:
        """Another descriptor for the same socket; the caller owns it. Closing it lasts no time: it is not the last.

        Raises:
            PunchError: network, when the socket was given back, or there are too many descriptors.
        """
        try:
            return self._socket.dup()
        except OSError as error:
            raise PunchError(Code.NETWORK, f"the application's socket: {_name(error)}") from None

    def restore(self) -> None:
        """Give it back: blocking as it was. After that this object is empty; another call does nothing."""
        with suppress(OSError):
            self._socket.setblocking(self.is_blocking)
        self._socket.close()

    def _look(self) -> None:
        option = self._socket.getsockopt
        protocol = _PROTOCOLS.get(option(socket.SOL_SOCKET, _SO_PROTOCOL))
        version = _VERSIONS.get(option(socket.SOL_SOCKET, _SO_DOMAIN))
        if protocol is None or version is None:
            raise _unfit("another kind of socket")
        self.protocol, self.version = protocol, version
        if _namespace(self._socket) != _own_namespace():
            raise _unfit("one of another network namespace")
        if option(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise _unfit("one that listens")
        if _is_connected(self._socket):
            raise _unfit("one that is connected")
        if protocol == "tcp" and option(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _CLOSED:
            raise _unfit("one that is in use")
        self.bound = self._look_at_name()

    def _look_at_name(self) -> Endpoint | None:
        try:
            bound = Endpoint.from_sockaddr(self._socket.getsockname())
        except DecodeError:
            raise _unfit("one that is bound to an address that no peer can reach") from None
        if not bound.port:
            if not bound.ip.is_unspecified:
                raise _unfit("one that is bound to an address and to no port")
            if self.version == 6:
                self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            return None
        if self.protocol == "tcp":
            raise _unfit("a TCP socket that is bound; name its port as lport, and the daemon binds it")
        if bound.port < LOWEST_PORT:
            raise DeniedError(Code.BAD_PORT, f"sock: expected a port from {LOWEST_PORT} on, got {bound.port}")
        if self.version == 6 and not self._socket.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
            raise _unfit("an IPv6 socket that takes IPv4, too; set IPV6_V6ONLY before it is bound")
        return bound


def _is_connected(found: socket.socket) -> bool:
    try:
        found.getpeername()
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            return False
        raise
    return True


def _namespace(found: socket.socket) -> int:
    """The cookie of its network namespace (Linux 5.14)."""
    return int(_COOKIE.unpack(found.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, _COOKIE.size))[0])


def _own_namespace() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        return _namespace(own)


def _unfit(what: str) -> DeniedError:
    return DeniedError(Code.BAD_OPTION, f"sock: expected an unused UDP or TCP socket of yours, got {what}")


def _name(error: OSError) -> str:
    number = error.errno or 0
    return f"{errno.errorcode.get(number, number)} {os.strerror(number)}"
