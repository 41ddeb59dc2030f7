"""Textbook hole punching, UDP and TCP, the reference that ours is measured against.

Ford, Srisuresh, Kegel 2005, §3.4: both sides know each other's endpoints from the rendezvous server and send at full
TTL at once, every 50 ms, until each has heard that it was heard. The caller begins when it asks for the connection,
the callee when that request has come through the side channel. Deliberately plain: two sockets, no daemon, no
authentication, so that what it lacks costs it nothing.

TCP is the same with connect() from a bound port on both sides (simultaneous open, RFC 9293 §3.5), again after each
error.
"""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass

import trio

from punchd.endpoint import Endpoint, parse_ip
from tests.natlab import Host, Laboratory

INTERVAL_S = 0.05
_HELLO, _HEARD = b"hello", b"heard"


@dataclass(frozen=True, slots=True)
class Punched:
    """Whether both sides finished, and how long after the callee began, seconds."""

    connected: bool
    seconds: float


async def punch(laboratory: Laboratory, *, channel_s: float, late_s: float = 0.0, timeout_s: float = 5.0) -> Punched:
    """One attempt between the hosts of sites a and b, on fresh ports that both NATs preserve."""
    ends = []
    for name in "ab":
        site = laboratory.site(name)
        plain = site.host.socket(socket.AF_INET, socket.SOCK_DGRAM)
        plain.setblocking(False)
        plain.bind((str(site.host.ipv4), 0))
        ends.append(
            (trio.socket.from_stdlib_socket(plain), Endpoint(parse_ip(site.host.public_ipv4), plain.getsockname()[1]))
        )
    (a, public_a), (b, public_b) = ends
    began = 0.0

    async def callee() -> None:
        nonlocal began
        await trio.sleep(channel_s + late_s)
        began = trio.current_time()
        await _side(b, public_a)

    with trio.move_on_after(timeout_s) as patience:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_side, a, public_b)
            nursery.start_soon(callee)
    done = trio.current_time()
    a.close()
    b.close()
    return Punched(not patience.cancelled_caught, done - began)


async def simultaneous_open(
    laboratory: Laboratory, *, channel_s: float, late_s: float = 0.0, timeout_s: float = 5.0
) -> Punched:
    """One TCP attempt between the hosts of sites a and b, on fresh ports that both NATs preserve."""
    places = []
    for name in "ab":
        site = laboratory.site(name)
        with site.host.socket(socket.AF_INET, socket.SOCK_STREAM) as free:
            free.bind((str(site.host.ipv4), 0))
            port = free.getsockname()[1]
        places.append((site.host, port, Endpoint(parse_ip(site.host.public_ipv4), port)))
    (host_a, port_a, public_a), (host_b, port_b, public_b) = places
    began = 0.0
    connected: list[socket.socket] = []

    async def callee() -> None:
        nonlocal began
        await trio.sleep(channel_s + late_s)
        began = trio.current_time()
        connected.append(await _open(host_b, port_b, public_a))

    async def caller() -> None:
        connected.append(await _open(host_a, port_a, public_b))

    with trio.move_on_after(timeout_s) as patience:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(caller)
            nursery.start_soon(callee)
    done = trio.current_time()
    for own in connected:
        own.close()
    return Punched(not patience.cancelled_caught, done - began)


async def _open(host: Host, port: int, peer: Endpoint) -> socket.socket:
    while True:
        own = host.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            own.setblocking(False)
            own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            own.bind((str(host.ipv4), port))
            with contextlib.suppress(BlockingIOError):
                own.connect(peer.sockaddr)
            await trio.lowlevel.wait_writable(own)
            if own.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                return own
        except OSError:
            pass  # refused or unreachable: once more, as the textbook says
        except BaseException:
            own.close()
            raise
        own.close()
        await trio.sleep(INTERVAL_S)


async def _side(own: trio.socket.SocketType, peer: Endpoint) -> None:
    heard = False

    async def knock() -> None:
        while True:
            await own.sendto(_HEARD if heard else _HELLO, peer.sockaddr)
            await trio.sleep(INTERVAL_S)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(knock)
        while True:
            data, _ = await own.recvfrom(100)
            if not heard:
                heard = True
            await own.sendto(_HEARD, peer.sockaddr)
            if data == _HEARD:
                nursery.cancel_scope.cancel()
                return
