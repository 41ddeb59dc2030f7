"""TCP sockets as hole punching needs them: a chosen initial sequence number, a silent listener, silent endings.

Theory of operation.

**Placeholder.** A port that nobody listens on answers a stray SYN or SYN-ACK with RST, and that RST destroys the peer's
attempt (RFC 9293 §3.10.7.1). A listener whose socket filter drops everything answers nothing. Another filter makes it
a listener on the very same port, without a moment in between; it may stay deaf to ports that are connected to, since a
SYN-ACK of the listener has another sequence number than the SYN that opened the NAT, and spoils the NAT's tracking.

**Chosen ISN.** In TCP_REPAIR mode the sequence number of the send queue of a closed, bound socket can be set; when the
mode is left, `connect` uses it as the ISN. So a raw SYN and the kernel's own can be made to fit each other. Needs
CAP_NET_ADMIN.

**Low-TTL connect.** The TTL of a socket counts for its first SYN only: it is the system's again before anybody can have
answered, so that what the kernel sends next arrives. The kernel repeats a SYN after a second; a copy at once is a fresh
socket with the same initial sequence number, which for NATs and the peer is the same connection.

**Forged connection.** In repair mode `connect` sends nothing and puts the socket into ESTABLISHED: queues' sequence
numbers before, options and window after it (what checkpoint/restore of processes is made of).

**Silent end.** A FIN or RST of *another* connection from the same port may close a NAT's mapping for that port. Closing
in repair mode sends neither.

All sockets share the attempt's port, hence SO_REUSEADDR and SO_REUSEPORT; that no stranger shares it is checked once,
with a bind that does not allow it.

Source: tcp(7), socket(7), linux/tcp.h; the sequence measured on Linux 6.1 and 6.18.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import struct
from collections.abc import Iterable

import trio

from punchd.endpoint import Endpoint, IPAddress
from punchd.errors import Code, PunchError
from punchd.technique import Agreed

# asm-generic/socket.h and linux/tcp.h; the socket module has no names for these
_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27
_TCP_REPAIR, _TCP_REPAIR_QUEUE, _TCP_QUEUE_SEQ, _TCP_REPAIR_OPTIONS, _TCP_REPAIR_WINDOW = 19, 20, 21, 22, 29
_REPAIR_ON, _REPAIR_OFF, _REPAIR_OFF_NO_PROBE = 1, 0, -1
_NO_QUEUE, _RECV_QUEUE, _SEND_QUEUE = 0, 1, 2
_BACKLOG = 16
_NETWORK_HEADER = 0xFFF00000  # SKF_NET_OFF, linux/filter.h, as an unsigned number
# Milliseconds. If this process is killed before anybody has answered a forged connection, the kernel goes on sending
# its FIN for so long, instead of for minutes.
_UNPROVEN_MS = 5_000
_UNSYNCHRONIZED = frozenset({2, 3, 7, 10, 12})  # SYN_SENT, SYN_RECV, CLOSE, LISTEN, NEW_SYN_RECV; linux/tcp_states.h
_SYN_SENT = 2
_UNANSWERED = frozenset({_SYN_SENT, 7})  # and CLOSE
_SYSTEMS_TTL = -1  # ip(7), ipv6(7)

_DROP_ALL = struct.pack("HBBI", 0x06, 0, 0, 0)  # BPF_RET | BPF_K, 0


def _hear_from(peer: IPAddress, deaf_to: Iterable[int]) -> bytes:
    """`struct sock_filter[]`: pass what comes from `peer`, but not from these of its ports; drop all else.

    A TCP filter sees the TCP header; the IP header is to be had at negative offsets.
    """
    unwanted = list(deaf_to)
    load_word, load_half, jump_equal, give_back = 0x20, 0x28, 0x15, 0x06  # BPF_LD | …, BPF_JMP | BPF_JEQ, BPF_RET
    at = _NETWORK_HEADER + (12 if peer.version == 4 else 8)  # the source address
    words = struct.iter_unpack("!I", peer.packed)
    steps: list[tuple[int, int, int, int]] = []
    left = len(peer.packed) // 4 * 2 + 1 + len(unwanted) + 1  # steps before the last one, which drops
    for index, (word,) in enumerate(words):
        steps.append((load_word, 0, 0, at + 4 * index))
        steps.append((jump_equal, 0, left - len(steps) - 1, word))
    steps.append((load_half, 0, 0, 0))
    for port in unwanted:
        steps.append((jump_equal, left - len(steps) - 1, 0, port))
    steps += [(give_back, 0, 0, 0xFFFFFFFF), (give_back, 0, 0, 0)]
    return b"".join(struct.pack("HBBI", *step) for step in steps)


def reserve(local: Endpoint) -> Placeholder:
    """Take a TCP port and answer nothing on it; port 0 lets the kernel choose.

    Raises:
        PunchError: port-in-use; network, for anything else that the kernel has against it.
    """
    try:
        with _socket(local) as alone:
            if local.port:  # TIME_WAIT of an earlier attempt is no user; for port 0 it would halve the kernel's choice
                alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind(local.sockaddr)
            free = Endpoint.from_sockaddr(alone.getsockname())
        return Placeholder(free)
    except OSError as error:
        in_use = error.errno == errno.EADDRINUSE
        raise PunchError(Code.PORT_IN_USE if in_use else Code.NETWORK, f"bind {local}: {_reason(error)}") from None


class Placeholder:
    """A listener that is deaf until it is opened. Whoever made it closes it."""

    def __init__(self, local: Endpoint) -> None:
        self._socket = shared(local)
        try:
            self.deafen()
            self._socket.listen(_BACKLOG)
        except OSError:
            self._socket.close()
            raise
        self.local = Endpoint.from_sockaddr(self._socket.getsockname())

    def deafen(self) -> None:
        """Hear nothing and answer nothing from now on."""
        self._filter(_DROP_ALL)

    def open(self, peer: IPAddress, deaf_to: Iterable[int] = ()) -> None:
        """Listen to this address from now on, but stay deaf to segments from these of its ports.

        Strangers get no answer at all: a SYN-ACK and the RST after it would tell them that something is there.
        """
        self._filter(_hear_from(peer, deaf_to))

    def _filter(self, program: bytes) -> None:
        """Replace the socket's filter at once: there is no moment without one."""
        held = ctypes.create_string_buffer(program)
        attached = struct.pack("HP", len(program) // 8, ctypes.addressof(held))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, attached)

    async def accept(self) -> tuple[socket.socket, Endpoint]:
        """The next connection, owned by the caller, and where it comes from."""
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            try:
                accepted, source = self._socket.accept()
            except OSError:
                continue  # gone again before we looked
            accepted.setblocking(False)
            with contextlib.suppress(OSError):
                accepted.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)  # it inherits the listener's
            return accepted, Endpoint.from_sockaddr(source)

    def close(self) -> None:
        self._socket.close()


def shared(local: Endpoint) -> socket.socket:
    """A TCP socket bound to a port that it shares with the attempt's other sockets; the caller owns it."""
    found = _socket(local)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        found.bind(local.sockaddr)
    except OSError:
        found.close()
        raise
    return found


def begin_connect(local: Endpoint, remote: Endpoint, isn: int | None = None, ttl: int | None = None) -> socket.socket:
    """Send a SYN, with this initial sequence number (1 to 2^32 - 1) if one is given; the caller owns the socket.

    The kernel takes 0 for none, and chooses. `ttl` is the SYN's only (None: the system's).

    Raises:
        PunchError: network, when the kernel refuses at once.
    """
    found: socket.socket | None = None
    try:
        found = shared(local)
        if isn is not None:
            _set(found, _TCP_REPAIR, _REPAIR_ON)
            _set(found, _TCP_REPAIR_QUEUE, _SEND_QUEUE)
            _set(found, _TCP_QUEUE_SEQ, _signed(isn))
            _set(found, _TCP_REPAIR_QUEUE, _NO_QUEUE)  # else TCP_QUEUE_SEQ can be read for ever
            _set(found, _TCP_REPAIR, _REPAIR_OFF)
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the end of repair mode takes it away
        if ttl is not None:
            _set_ttl(found, ttl)
        with contextlib.suppress(BlockingIOError):
            found.connect(remote.sockaddr)
        if ttl is not None:
            _set_ttl(found, _SYSTEMS_TTL)
    except (OSError, OverflowError) as error:  # OverflowError: the socket module about a port beyond 65535
        if found is not None:
            found.close()
        raise PunchError(Code.NETWORK, f"connect {local} to {remote}: {_reason(error)}") from None
    return found


def bind_beside(found: socket.socket, local: Endpoint) -> None:
    """Bind an application's socket to a port that sockets of the attempt share already, none of which listens.

    Raises:
        OSError: as bind(2).
    """
    before = found.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.bind(local.sockaddr)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, before)


def connect_low(found: socket.socket, remote: Endpoint, ttl: int | None) -> None:
    """Send a SYN with this TTL (None: the system's); what follows it goes at the TTL that the socket had before.

    Raises:
        OSError: as connect(2), EINPROGRESS included. It may block, if others hold the socket.
    """
    if ttl is None:
        found.connect(remote.sockaddr)
        return
    before = _ttl(found)
    _set_ttl(found, ttl)
    try:
        found.connect(remote.sockaddr)
    finally:
        _set_ttl(found, before)


async def established(connecting: socket.socket) -> int:
    """Wait for the end of a handshake: 0 when the connection stands, else the errno that ended it."""
    await trio.lowlevel.wait_writable(connecting)
    return connecting.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def forge(local: Endpoint, remote: Endpoint, agreed: Agreed) -> socket.socket:
    """A connection in ESTABLISHED without a handshake; the caller owns it.

    Raises:
        PunchError: network, when the kernel refuses (CAP_NET_ADMIN).
    """
    found: socket.socket | None = None
    try:
        found = shared(local)
        _set(found, _TCP_REPAIR, _REPAIR_ON)
        for queue, number in ((_SEND_QUEUE, agreed.send_next), (_RECV_QUEUE, agreed.receive_next)):
            _set(found, _TCP_REPAIR_QUEUE, queue)
            _set(found, _TCP_QUEUE_SEQ, _signed(number))
        found.connect(remote.sockaddr)
        options = (
            (2, agreed.mss),  # TCPOPT_MAXSEG
            (3, agreed.window_scale | agreed.window_scale << 16),  # TCPOPT_WINDOW: send and receive
            (4, 0),  # TCPOPT_SACK_PERM
        )
        packed = b"".join(struct.pack("II", code, value) for code, value in options)
        found.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR_OPTIONS, packed)
        # struct tcp_repair_window: snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup
        window = struct.pack(
            "5I", agreed.receive_next, agreed.window, agreed.window, agreed.window, agreed.receive_next
        )
        found.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR_WINDOW, window)
        _set(found, _TCP_REPAIR_QUEUE, _NO_QUEUE)
        _set(found, _TCP_REPAIR, _REPAIR_OFF_NO_PROBE)
        _set(found, socket.TCP_USER_TIMEOUT, _UNPROVEN_MS)
    except (OSError, OverflowError, struct.error) as error:  # the latter two: numbers that are none
        if found is not None:
            found.close()
        raise PunchError(Code.NETWORK, f"forge {local} to {remote}: {_reason(error)}") from None
    return found


def close_silently(connection: socket.socket | trio.socket.SocketType) -> None:
    """Close without FIN or RST where the kernel lets us (CAP_NET_ADMIN); else as usual."""
    with contextlib.suppress(OSError):  # not allowed: an ordinary close then
        connection.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, _REPAIR_ON)
    connection.close()


def announce(connection: socket.socket) -> None:
    """Let the kernel say that this connection is established (CAP_NET_ADMIN; else nothing happens).

    At the end of repair mode it sends a window probe: an ACK one below the next sequence number. No half-open socket
    sends that.
    """
    with contextlib.suppress(OSError):
        _set(connection, _TCP_REPAIR, _REPAIR_ON)
        _set(connection, _TCP_REPAIR, _REPAIR_OFF)


def is_synchronized(connection: socket.socket) -> bool:
    """Whether the peer has a connection, too, as far as this end knows (RFC 9293 §3.3.2: the synchronized states)."""
    return _state(connection) not in _UNSYNCHRONIZED


def is_connecting(connection: socket.socket) -> bool:
    """Whether its SYN is under way and unanswered."""
    return _state(connection) == _SYN_SENT


def is_unanswered(connection: socket.socket) -> bool:
    """Whether nothing but an error has answered its SYN; false once the peer's own SYN has met it."""
    return _state(connection) in _UNANSWERED


def part(connection: socket.socket) -> int:
    """Give a connected socket's descriptor away, blocking and without our options; the caller owns it."""
    for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
        connection.setsockopt(socket.SOL_SOCKET, option, 0)
    _set(connection, socket.TCP_USER_TIMEOUT, 0)
    connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    connection.setblocking(True)
    return connection.detach()


def _socket(local: Endpoint) -> socket.socket:
    family = socket.AF_INET6 if local.ip.version == 6 else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    if local.ip.version == 6:
        found.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return found


def _state(connection: socket.socket) -> int:
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


def _ttl(found: socket.socket) -> int:
    if found.family == socket.AF_INET6:
        return found.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS)
    return found.getsockopt(socket.IPPROTO_IP, socket.IP_TTL)


def _set_ttl(found: socket.socket, ttl: int) -> None:
    if found.family == socket.AF_INET6:
        found.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, ttl)
    else:
        found.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)


def _set(found: socket.socket, option: int, value: int) -> None:
    found.setsockopt(socket.IPPROTO_TCP, option, value)


def _signed(number: int) -> int:
    """An unsigned 32-bit value as setsockopt's int takes it."""
    number &= 0xFFFFFFFF
    return number - (1 << 32) if number >= 1 << 31 else number


def _reason(error: Exception) -> str:
    if not isinstance(error, OSError):
        return str(error)
    number = error.errno or 0
    return f"{errno.errorcode.get(number, number)} {os.strerror(number)}"
