"""The TCP sockets on loopback, as far as they need no privilege: the placeholder, its port, and what is given away."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path

import pytest
import trio

from punchd.endpoint import Endpoint
from punchd.errors import Code, PunchError
from punchd.kernel.tcp import Placeholder, begin_connect, established, is_synchronized, is_unanswered, part, reserve

HANG_S = 10.0
QUIET_S = 0.1  # on loopback an answer takes microseconds
SO_GET_FILTER = 26

either = pytest.mark.parametrize("ip", ["127.0.0.1", "::1"])


@contextmanager
def held(ip: str, port: int = 0) -> Iterator[Placeholder]:
    made = reserve(Endpoint(ip_address(ip), port))
    try:
        yield made
    finally:
        made.close()


@contextmanager
def caller(to: Placeholder) -> Iterator[socket.socket]:
    """Somebody who connects: the SYN has left, nothing is waited for."""
    with socket.socket(socket.AF_INET6 if to.local.ip.version == 6 else socket.AF_INET) as other:
        other.setblocking(False)
        with suppress(BlockingIOError):
            other.connect(to.local.sockaddr)
        yield other


async def outcome_of(connecting: socket.socket, within_s: float = HANG_S) -> int | None:
    """The errno of a handshake; None: nothing has answered."""
    with trio.move_on_after(within_s):
        return await established(connecting)
    return None


def refusal(ip: str, port: int) -> PunchError:
    with pytest.raises(PunchError) as caught:
        reserve(Endpoint(ip_address(ip), port))
    return caught.value


# --- the placeholder ------------------------------------------------------------------------------------------------


@either
async def test_a_deaf_placeholder_leaves_a_syn_without_an_answer(ip: str) -> None:
    with held(ip) as made, caller(made) as other:
        assert await outcome_of(other, QUIET_S) is None


@either
async def test_opened_it_accepts_who_calls(ip: str) -> None:
    with held(ip) as made:
        made.open(made.local.ip)
        with caller(made) as other, trio.fail_after(HANG_S):
            accepted, source = await made.accept()
            with accepted:
                assert source == Endpoint.from_sockaddr(other.getsockname())
                assert is_synchronized(accepted)


@either
async def test_deafened_again_it_answers_nobody_but_keeps_whom_it_has(ip: str) -> None:
    with held(ip) as made:
        made.open(made.local.ip)
        with caller(made) as first, trio.fail_after(HANG_S):
            accepted, _ = await made.accept()
            with accepted:
                made.deafen()
                with caller(made) as second:
                    assert await outcome_of(second, QUIET_S) is None
                first.send(b"still here")
                await trio.lowlevel.wait_readable(accepted)
                assert accepted.recv(100) == b"still here"


async def test_opened_it_stays_deaf_to_the_ports_that_are_named() -> None:
    with held("127.0.0.1") as made, socket.socket() as deaf, socket.socket() as heard:
        for other in (deaf, heard):
            other.bind(("127.0.0.1", 0))
            other.setblocking(False)
        made.open(made.local.ip, deaf_to=[1, deaf.getsockname()[1], 2])
        for other in (deaf, heard):
            with suppress(BlockingIOError):
                other.connect(made.local.sockaddr)
        assert await outcome_of(heard) == 0
        assert await outcome_of(deaf, QUIET_S) is None


# --- its port -------------------------------------------------------------------------------------------------------


@either
def test_a_port_of_zero_is_chosen_by_the_kernel_and_told(ip: str) -> None:
    with held(ip) as made:
        assert made.local.port > 0
        assert str(made.local.ip) == ip


@either
def test_a_second_placeholder_on_the_port_is_refused_and_leaves_no_descriptor(ip: str) -> None:
    with held(ip) as made:
        before = len(os.listdir("/proc/self/fd"))
        error = refusal(ip, made.local.port)
        assert error.reason is Code.PORT_IN_USE
        assert "EADDRINUSE" in str(error)
        assert len(os.listdir("/proc/self/fd")) == before


LISTENER = """
import socket, sys
with socket.socket() as other:
    other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    other.bind(("127.0.0.1", 0))
    other.listen()
    print(other.getsockname()[1], flush=True)
    sys.stdin.read()
"""


def test_another_processs_listener_that_would_share_its_port_is_found() -> None:
    with subprocess.Popen([sys.executable, "-c", LISTENER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        error = refusal("127.0.0.1", int(other.stdout.readline()))
        other.communicate()
    assert error.reason is Code.PORT_IN_USE


def test_an_address_that_is_not_ours_is_a_network_error() -> None:
    error = refusal("192.0.2.77", 0)
    assert error.reason is Code.NETWORK
    assert "EADDRNOTAVAIL" in str(error)


def time_wait_ports() -> set[int]:
    lines = Path("/proc/self/net/tcp").read_text().splitlines()[1:]
    return {int(words[1].partition(":")[2], 16) for words in map(str.split, lines) if words[3] == "06"}


async def test_a_connection_in_time_wait_is_no_obstacle() -> None:
    with held("127.0.0.1") as made:
        made.open(made.local.ip)
        with caller(made) as other, trio.fail_after(HANG_S):
            accepted, _ = await made.accept()
            accepted.shutdown(socket.SHUT_WR)  # whoever ends first keeps TIME_WAIT
            await trio.lowlevel.wait_readable(other)
            assert other.recv(1) == b""
            other.shutdown(socket.SHUT_WR)
            await trio.lowlevel.wait_readable(accepted)
            accepted.close()
        port = made.local.port
    assert port in time_wait_ports()
    with held("127.0.0.1", port) as again:
        assert again.local.port == port


def test_one_port_serves_each_family_on_its_own() -> None:
    with held("127.0.0.1") as made, held("::1", made.local.port) as made6:
        assert made6.local.port == made.local.port


# --- connecting, and what is given away -----------------------------------------------------------------------------


@either
async def test_a_connection_leaves_from_the_port_that_a_placeholder_holds(ip: str) -> None:
    with held(ip) as made, held(ip) as other:
        other.open(other.local.ip)
        with begin_connect(made.local, other.local) as connecting, trio.fail_after(HANG_S):
            assert await established(connecting) == 0
            accepted, source = await other.accept()
            accepted.close()
            assert source == made.local


@either
async def test_a_low_ttl_is_that_of_the_first_syn_only(ip: str) -> None:
    level, option = (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS) if ":" in ip else (socket.IPPROTO_IP, socket.IP_TTL)
    with held(ip) as made, held(ip) as other:
        with begin_connect(made.local, other.local) as usual, begin_connect(made.local, made.local, ttl=2) as low:
            assert low.getsockopt(level, option) == usual.getsockopt(level, option) > 2
        with pytest.raises(PunchError, match="EINVAL"):
            begin_connect(made.local, other.local, ttl=256)


async def test_a_connection_is_unanswered_until_the_peer_has_met_it_and_after_an_error() -> None:
    with held("127.0.0.1") as made, held("127.0.0.1") as other:
        with begin_connect(made.local, other.local) as connecting:
            assert is_unanswered(connecting), "the other one is deaf"
        other.open(other.local.ip)
        with begin_connect(made.local, other.local) as connecting, trio.fail_after(HANG_S):
            assert await established(connecting) == 0
            assert not is_unanswered(connecting)
        other.close()
    with held("127.0.0.1") as made, begin_connect(made.local, other.local) as connecting, trio.fail_after(HANG_S):
        assert await established(connecting) != 0
        assert is_unanswered(connecting)


async def test_a_handshake_that_fails_tells_its_errno() -> None:
    with held("127.0.0.1") as made, held("127.0.0.1") as other:
        other.close()
        with begin_connect(made.local, other.local) as connecting:
            assert await outcome_of(connecting) == 111  # ECONNREFUSED
            assert not is_synchronized(connecting)


@pytest.mark.parametrize("port", [-1, 65536, 2**40])
def test_a_port_that_is_none_is_a_network_error_and_leaves_no_descriptor(port: int) -> None:
    with held("127.0.0.1") as made:
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(PunchError) as caught:
            begin_connect(made.local, Endpoint(made.local.ip, port))
        assert caught.value.reason is Code.NETWORK
        assert len(os.listdir("/proc/self/fd")) == before


@either
async def test_a_parted_socket_is_blocking_and_has_none_of_our_options(ip: str) -> None:
    with held(ip) as made, held(ip) as other:
        other.open(other.local.ip)
        connecting = begin_connect(made.local, other.local)
        with trio.fail_after(HANG_S):
            assert await established(connecting) == 0
            accepted, _ = await other.accept()
        for own in (connecting, accepted):
            with socket.socket(fileno=part(own)) as application:
                assert own.fileno() == -1
                assert not fcntl.fcntl(application, fcntl.F_GETFL) & os.O_NONBLOCK
                assert application.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 0
                assert application.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0
                assert application.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == bytes(8)
                # the kernel says how many instructions a filter has
                assert application.getsockopt(socket.SOL_SOCKET, SO_GET_FILTER, 1024) == b""
