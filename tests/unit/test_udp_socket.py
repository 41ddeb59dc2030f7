"""The UDP socket on loopback: what it shows the daemon, and in which state an application gets it.

Every state of line protocol §5: blocking, connected, default TTL, a filter against late probes, nothing of strangers
in the queue, no error pending.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address

import pytest
import trio

from punchd.endpoint import Endpoint
from punchd.errors import Code, PunchError
from punchd.kernel.udp import MAX_DATAGRAM, Complained, UdpSocket
from punchd.technique import Complaint
from punchd.wire import icmp, probe

LOOPBACKS = ["127.0.0.1", "::1"]
LATE = probe.MAGIC + bytes(probe.SIZE - len(probe.MAGIC))
HANG_S = 10.0

either = pytest.mark.parametrize("ip", LOOPBACKS)


@contextmanager
def ours(ip: str, port: int = 0) -> Iterator[UdpSocket]:
    made = UdpSocket(Endpoint(ip_address(ip), port))
    try:
        yield made
    finally:
        made.close()


@contextmanager
def theirs(ip: str, to: UdpSocket) -> Iterator[tuple[socket.socket, Endpoint]]:
    """Somebody else's socket, connected to ours."""
    with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind((ip, 0))
        other.connect(to.local.sockaddr)
        other.settimeout(HANG_S)
        yield other, Endpoint.from_sockaddr(other.getsockname())


@contextmanager
def handed_over(made: UdpSocket, peer: Endpoint) -> Iterator[socket.socket]:
    with socket.socket(fileno=made.part(peer)) as application:
        application.settimeout(HANG_S)
        yield application


def nothing_waits(application: socket.socket) -> bool:
    application.settimeout(0)
    try:
        application.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    finally:
        application.settimeout(HANG_S)
    return False


# --- before ---------------------------------------------------------------------------------------------------------


@either
def test_a_port_of_zero_is_chosen_by_the_kernel_and_told(ip: str) -> None:
    with ours(ip) as made:
        assert made.local.port > 0
        assert str(made.local.ip) == ip


@either
def test_a_taken_port_is_port_in_use_and_leaves_no_descriptor(ip: str) -> None:
    with ours(ip) as made:
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(PunchError, match="EADDRINUSE") as caught:
            UdpSocket(made.local)
        assert caught.value.reason is Code.PORT_IN_USE
        assert len(os.listdir("/proc/self/fd")) == before


def test_an_address_that_is_not_ours_is_a_network_error() -> None:
    with pytest.raises(PunchError, match="EADDRNOTAVAIL") as caught:
        UdpSocket(Endpoint(ip_address("192.0.2.77"), 0))
    assert caught.value.reason is Code.NETWORK


def test_one_port_serves_each_family_on_its_own() -> None:
    with ours("127.0.0.1") as made, ours("::1", made.local.port) as made6:
        assert made6.local.port == made.local.port


@either
async def test_a_datagram_stays_in_the_queue_until_it_is_discarded(ip: str) -> None:
    with ours(ip) as made, theirs(ip, made) as (other, source):
        assert made.peek() is None
        for data in (b"first", b"", b"x" * 3000):
            other.send(data)
        with trio.fail_after(HANG_S):
            await made.readable()
        assert made.peek() == made.peek() == (b"first", source)
        made.discard()
        assert made.peek() == (b"", source)
        made.discard()
        assert made.peek() == (b"x" * MAX_DATAGRAM, source)
        made.discard()
        assert made.peek() is None
        made.discard()


@either
@pytest.mark.parametrize("ttl", [None, 1, 4, 64])
def test_a_ttl_is_that_of_one_datagram_only(ip: str, ttl: int | None) -> None:
    level, option, wanted = (
        (socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, socket.IPV6_HOPLIMIT)
        if ":" in ip
        else (socket.IPPROTO_IP, socket.IP_RECVTTL if hasattr(socket, "IP_RECVTTL") else 12, socket.IP_TTL)
    )
    with ours(ip) as made, theirs(ip, made) as (other, source):
        other.setsockopt(level, option, 1)
        seen = []
        for given in (ttl, None):
            made.send(b"x", source, given)
            _, control, _, _ = other.recvmsg(10, 100)
            seen.append(
                next(int.from_bytes(raw[:4], "little") for at, kind, raw in control if (at, kind) == (level, wanted))
            )
        assert seen == [ttl or 64, 64]


def nobody(ip: str) -> Endpoint:
    """A port where nobody listens."""
    with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_DGRAM) as gone:
        gone.bind((ip, 0))
        return Endpoint.from_sockaddr(gone.getsockname())


async def complaint_of(made: UdpSocket) -> Complained | None:
    """The next ICMP error; peeking finds no datagram before it."""
    with trio.fail_after(HANG_S):
        await made.readable()
    assert made.peek() is None
    return made.complained()


@either
async def test_an_icmp_error_says_who_complains_about_what_and_then_is_gone(ip: str) -> None:
    with ours(ip) as made:
        target = nobody(ip)
        made.send(b"x", target)
        expected = Complained(Complaint(icmp.Kind.PORT_UNREACHABLE, target.ip, target.port), target.ip)
        assert await complaint_of(made) == expected
        assert made.complained() is None
        with trio.move_on_after(0.05) as waiting:
            await made.readable()
        assert waiting.cancelled_caught, "an error that stays would make the reader spin"


@either
async def test_errors_about_one_destination_cost_no_datagram_to_another(ip: str) -> None:
    with ours(ip) as made, theirs(ip, made) as (other, source):
        for number in range(10):
            made.send(b"x", nobody(ip))
            made.send(bytes((number,)), source)
        assert [other.recv(10) for _ in range(10)] == [bytes((number,)) for number in range(10)]


@either
async def test_a_datagram_comes_before_an_error(ip: str) -> None:
    with ours(ip) as made, theirs(ip, made) as (other, source):
        made.send(b"x", nobody(ip))
        other.send(b"hello")
        found = made.peek() or made.peek()  # the error makes the first look fail
        assert found == (b"hello", source)


@either
def test_an_application_that_never_asked_for_icmp_errors_gets_none(ip: str) -> None:
    level, option = (socket.IPPROTO_IPV6, 25) if ":" in ip else (socket.IPPROTO_IP, 11)
    with ours(ip) as made, theirs(ip, made) as (_, source):
        made.send(b"x", nobody(ip))
        with handed_over(made, source) as application:
            assert application.getsockopt(level, option) == 0
            assert application.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
            application.settimeout(0)
            with pytest.raises(BlockingIOError):
                application.recvmsg(100, 100, socket.MSG_ERRQUEUE)


def test_what_the_kernel_refuses_is_a_network_error_and_what_gets_lost_is_not() -> None:
    with ours("127.0.0.1") as made:
        with pytest.raises(PunchError, match=r"send to 203\.0\.113\.7:9") as caught:
            made.send(b"x", Endpoint(ip_address("203.0.113.7"), 9))  # from a loopback address: EINVAL
        assert caught.value.reason is Code.NETWORK
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as gone:
            gone.bind(("127.0.0.1", 0))
            nobody = Endpoint.from_sockaddr(gone.getsockname())
        for _ in range(5):
            made.send(b"x", nobody)
        assert made.peek() is None


# --- after ----------------------------------------------------------------------------------------------------------


@either
def test_the_application_gets_it_blocking_connected_and_with_the_systems_ttl(ip: str) -> None:
    with ours(ip) as made, theirs(ip, made) as (other, source):
        made.send(b"low", source, 1)
        fd = made.part(source)
        assert not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK
        assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        with socket.socket(fileno=fd) as application:
            assert Endpoint.from_sockaddr(application.getpeername()) == source
            assert Endpoint.from_sockaddr(application.getsockname()) == made.local
            level, option = (
                (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS) if ":" in ip else (socket.IPPROTO_IP, socket.IP_TTL)
            )
            with socket.socket(application.family, socket.SOCK_DGRAM) as plain:
                assert application.getsockopt(level, option) == plain.getsockopt(level, option)
            assert application.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
            assert application.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == bytes(8)
            application.send(b"hello")
            assert other.recv(10) == b"low"
            assert other.recv(10) == b"hello"


@either
def test_late_probes_are_dropped_and_everything_else_passes(ip: str) -> None:
    passing = [
        b"",
        b"P",
        b"PCH",
        b"PCH1",
        b"PCH1" + bytes(25),  # 29 bytes
        b"PCH2" + bytes(26),
        b"xPCH1" + bytes(30),
        bytes(30),
        bytes(1400),
    ]
    dropped = [LATE, LATE + b"x", b"PCH1" + bytes(1400)]
    with ours(ip) as made, theirs(ip, made) as (other, source), handed_over(made, source) as application:
        for data in passing:
            for late in dropped:
                other.send(late)
            other.send(data)
        for data in passing:
            assert application.recv(2000) == data
        assert nothing_waits(application)


@either
def test_strangers_and_probes_are_removed_from_the_queue_and_the_peers_data_is_not(ip: str) -> None:
    with ours(ip) as made, theirs(ip, made) as (peer, source), theirs(ip, made) as (stranger, _):
        for _ in range(20):
            stranger.send(b"")
            stranger.send(b"spam" * 100)
            peer.send(LATE)
        peer.send(b"first")
        peer.send(b"second")
        with handed_over(made, source) as application:
            assert application.recv(100) == b"first"
            assert application.recv(100) == b"second"
            stranger.send(b"spam")
            peer.send(b"third")
            assert application.recv(100) == b"third"
            assert nothing_waits(application)


@either
def test_a_queue_full_of_strangers_is_empty_for_the_application(ip: str) -> None:
    with ours(ip) as made, theirs(ip, made) as (_, source), theirs(ip, made) as (stranger, _):
        for _ in range(2000):
            stranger.send(b"x")
        with handed_over(made, source) as application:
            assert nothing_waits(application)


@either
def test_a_pending_error_is_cleared_and_hides_no_strangers_in_the_queue(ip: str) -> None:
    """An ICMP error that comes after `connect` makes the first look at the queue fail."""
    with ours(ip) as made, theirs(ip, made) as (peer, source), theirs(ip, made) as (stranger, _):
        with theirs(ip, made) as (_, nobody):
            pass
        for _ in range(3):
            stranger.send(b"spam")
        made._socket.connect(nobody.sockaddr)
        made._socket.send(b"x")  # refused, by an ICMP error that now waits to be fetched
        with handed_over(made, source) as application:
            assert nothing_waits(application)
            application.send(b"no error is left")
            assert peer.recv(100) == b"no error is left"


@either
def test_an_empty_datagram_of_the_peer_is_its_data(ip: str) -> None:
    with ours(ip) as made, theirs(ip, made) as (peer, source):
        peer.send(b"")
        peer.send(b"next")
        with handed_over(made, source) as application:
            assert application.recv(10) == b""
            assert application.recv(10) == b"next"


def test_a_refused_connect_leaves_the_socket_with_the_daemon() -> None:
    with ours("127.0.0.1") as made:
        with pytest.raises(PunchError, match=r"connect to 203\.0\.113\.7:9") as caught:
            made.part(Endpoint(ip_address("203.0.113.7"), 9))
        assert caught.value.reason is Code.NETWORK
        assert made._socket.fileno() >= 0


@either
def test_after_parting_the_daemon_holds_nothing(ip: str) -> None:
    with ours(ip) as made, theirs(ip, made) as (_, source):
        fd = made.part(source)
        made.close()
        os.fstat(fd)
        os.close(fd)
        with pytest.raises(OSError, match="Bad file descriptor") as caught:
            os.fstat(fd)
        assert caught.value.errno == errno.EBADF
        with ours(ip, made.local.port):
            pass
