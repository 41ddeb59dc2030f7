"""What a SYN of this kernel says towards a host: maximum segment size, window scale, SACK.

A technique speaks for its own kernel before that does: an opening SYN, a SYN injected into the peer's stack. It must
say the same. The window scale counts for all windows of the connection, in the peer's stack and in NATs that track
windows: too small a scale there and the peer sends in small portions, too large and it sends what nobody has room for.

The kernel chooses the scale from its memory limits (tcp_rmem, rmem_max), and TCP_INFO tells of it only for connections
that stand. So a socket connects to itself over `lo` (simultaneous open, RFC 9293 §3.5), which takes no one else. Where
that does not work, the choice of a kernel with the default limits is assumed. Timestamps are left out: they cannot be
made up for a stack that has its own clock.

Source: tcp(7), ip(7), linux/tcp.h; tcp_select_initial_window in net/ipv4/tcp_output.c.
"""

from __future__ import annotations

import contextlib
import socket
import struct

from punchd.endpoint import Endpoint, IPAddress
from punchd.wire.tcp import Options

_DEFAULT_SCALE = 7  # of a kernel with tcp_rmem at most 6 MiB, which is the default
_ESTABLISHED = 1
_STATE, _OPTIONS, _SCALES = 0, 5, 6  # offsets in struct tcp_info; the scales are snd_wscale:4, rcv_wscale:4
_INFO_BYTES = 8
_HAS_SACK, _HAS_SCALE = 2, 4  # TCPI_OPT_SACK, TCPI_OPT_WSCALE
_IP_MTU, _IPV6_MTU = 14, 24  # linux/in.h, linux/in6.h
_ETHERNET_MTU = 1500
_HEADERS = {4: 40, 6: 60}  # bytes of IP and TCP without options
_DISCARD = 9  # RFC 863; nothing is sent there


def syn_options(local: IPAddress, remote: IPAddress) -> Options:
    """What the kernel's own SYN from here to there would say; nothing is sent to anybody else."""
    window_scale, sack_permitted = _of_this_kernel()
    mss = _mtu(local, remote) - _HEADERS[local.version]
    return Options(mss=mss, window_scale=window_scale, sack_permitted=sack_permitted)


def _of_this_kernel() -> tuple[int | None, bool]:
    """Window scale (None: it does not scale) and whether it knows selective acknowledgements."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as own:
        try:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # no TIME_WAIT
            own.bind(("127.0.0.1", 0))
            with contextlib.suppress(BlockingIOError):
                own.connect(own.getsockname())
            info = own.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
        except OSError:
            return _DEFAULT_SCALE, True
    if info[_STATE] != _ESTABLISHED:
        return _DEFAULT_SCALE, True
    scale = info[_SCALES] >> 4 if info[_OPTIONS] & _HAS_SCALE else None
    return scale, bool(info[_OPTIONS] & _HAS_SACK)


def _mtu(local: IPAddress, remote: IPAddress) -> int:
    """Of the way to a host, bytes, as far as the kernel knows."""
    family = socket.AF_INET6 if local.version == 6 else socket.AF_INET
    level, option = (socket.IPPROTO_IPV6, _IPV6_MTU) if local.version == 6 else (socket.IPPROTO_IP, _IP_MTU)
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as own:
        try:
            own.bind(Endpoint(local, 0).sockaddr)
            own.connect(Endpoint(remote, _DISCARD).sockaddr)
            return own.getsockopt(level, option)
        except OSError:
            return _ETHERNET_MTU
