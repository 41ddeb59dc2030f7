"""What exemptions are for: a low-TTL connect() through routers that answer ICMP time exceeded.

    a ──(10 ms)── a-box ── isp-left ── core ── server        TTL 1 dies at a-box, TTL 2 at isp-left, whose ICMP
                                                             a-box (a masquerading Linux router) translates

The delay matters: an ICMP that arrives inside connect() is a soft error only (techniques.md §5).
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from tests.natlab import KINDS, Laboratory, Link, Site
from tests.netns.firewall_process import BACKENDS, FAMILIES, Daemon, daemon

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="builds network namespaces: run the tests as root"),
]

PATIENCE_S = 0.5  # the round trip to the first router takes 20 ms
SYN_SENT = 2  # linux/tcp_states.h
IP_RECVERR, IPV6_RECVERR = 11, 25
PORT = 40001
SERVER_PORT = 7


@pytest.fixture(scope="module")
def lab() -> Iterator[Laboratory]:
    with Laboratory([Site("a", KINDS["apdf"], lan=Link(delay_s=0.01))], stun=False) as lab:
        yield lab


@pytest.fixture(scope="module", params=BACKENDS)
def running(lab: Laboratory, request: pytest.FixtureRequest) -> Iterator[Daemon]:
    with daemon(lab.site("a").host, request.param) as running:
        yield running


def set_ttl(one: socket.socket, ttl: int) -> None:
    if one.family == socket.AF_INET6:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, ttl)
    else:
        one.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)


def connecting(lab: Laboratory, port: int, version: int, ttl: int) -> socket.socket:
    """A socket on its way from `port` to the server, with a TTL that is too low."""
    one = lab.site("a").host.socket(FAMILIES[version], socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.bind(("", port))
    set_ttl(one, ttl)
    address = lab.server.ipv6_addresses[0] if version == 6 else lab.server.ipv4
    assert one.connect_ex((address, SERVER_PORT)) == errno.EINPROGRESS
    return one


def fate(lab: Laboratory, port: int, version: int, ttl: int = 2) -> str:
    """What becomes of a low-TTL connect(): the name of an error, or SYN_SENT."""
    with connecting(lab, port, version, ttl) as one:
        select.select([], [one], [one], PATIENCE_S)
        if number := one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            return errno.errorcode[number]
        (state,) = struct.unpack_from("B", one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 64))
        return "SYN_SENT" if state == SYN_SENT else f"state {state}"


@pytest.mark.parametrize("version", FAMILIES)
@pytest.mark.parametrize("ttl", [1, 2])
def test_a_low_ttl_connect_dies_without_an_exemption_and_stays_in_syn_sent_with_it(
    lab: Laboratory, running: Daemon, version: int, ttl: int
) -> None:
    assert fate(lab, PORT, version, ttl) == "EHOSTUNREACH"
    running.hold(PORT, version)
    assert fate(lab, PORT, version, ttl) == "SYN_SENT"
    running.leave(PORT, "return", version)
    assert fate(lab, PORT, version, ttl) == "EHOSTUNREACH"


@pytest.mark.parametrize("version", FAMILIES)
def test_only_that_port_of_that_family_is_exempt(lab: Laboratory, running: Daemon, version: int) -> None:
    running.hold(PORT, version)
    assert fate(lab, PORT + 1, version) == "EHOSTUNREACH"
    assert fate(lab, PORT, 10 - version) == "EHOSTUNREACH"
    assert fate(lab, PORT, version) == "SYN_SENT"
    running.leave(PORT, "cancel", version)


@pytest.mark.parametrize("version", FAMILIES)
def test_a_udp_traceroute_from_the_same_port_number_still_works(lab: Laboratory, running: Daemon, version: int) -> None:
    running.hold(PORT, version)
    with lab.site("a").host.socket(FAMILIES[version], socket.SOCK_DGRAM) as one:
        level, option = (socket.IPPROTO_IPV6, IPV6_RECVERR) if version == 6 else (socket.IPPROTO_IP, IP_RECVERR)
        one.setsockopt(level, option, 1)
        one.bind(("", PORT))
        set_ttl(one, 1)
        one.sendto(b"traceroute", (lab.server.ipv6_addresses[0] if version == 6 else lab.server.ipv4, 33434))
        one.settimeout(PATIENCE_S)
        with pytest.raises(OSError, match="No route to host") as caught:
            one.recv(100)
        assert caught.value.errno == errno.EHOSTUNREACH
    running.leave(PORT, "return", version)


@pytest.mark.parametrize("version", FAMILIES)
def test_a_socket_that_was_kept_connects_once_its_ttl_is_raised(lab: Laboratory, running: Daemon, version: int) -> None:
    """The classic form in full: the next SYN, which the kernel repeats after a second, goes all the way."""
    with lab.server.socket(FAMILIES[version], socket.SOCK_STREAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((lab.server.ipv6_addresses[0] if version == 6 else lab.server.ipv4, SERVER_PORT))
        server.listen()
        running.hold(PORT + 2, version)
        with connecting(lab, PORT + 2, version, ttl=2) as one:
            time.sleep(0.2)
            set_ttl(one, 64)
            _, writable, _ = select.select([], [one], [], 5)
            assert writable
            assert one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        running.leave(PORT + 2, "return", version)


@pytest.mark.parametrize("backend", BACKENDS)
def test_after_sigkill_the_next_start_leaves_no_exemption(lab: Laboratory, backend: str) -> None:
    host = lab.site("a").host
    with daemon(host, backend) as first:
        first.hold(PORT + 3)
        assert fate(lab, PORT + 3, 4) == "SYN_SENT"
        first.kill()
    # iptables' rule has no owner that the kernel knows; a restarted daemon removes it
    assert fate(lab, PORT + 3, 4) == ("EHOSTUNREACH" if backend == "nft" else "SYN_SENT")
    with daemon(host, backend):
        assert fate(lab, PORT + 3, 4) == "EHOSTUNREACH"
