"""Addresses in their one form, ports in their one order, and what a privileged daemon may aim at."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from punchd.endpoint import (
    MAX_PORTS,
    MAX_RUNS,
    Endpoint,
    IPAddress,
    PortSet,
    is_global,
    is_private,
    objection,
    parse_ip,
    runs,
)
from punchd.errors import DecodeError
from tests.unit import request_oracle, strategies

any_address = st.one_of(strategies.addresses(4), strategies.addresses(6))


@given(any_address)
def test_an_address_that_is_written_is_read_as_the_same_except_mapped_ones(ip: IPAddress) -> None:
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        with pytest.raises(DecodeError, match="write it as IPv4"):
            parse_ip(str(ip))
    else:
        assert parse_ip(str(ip)) == ip


@given(st.one_of(any_address.map(lambda ip: ip.exploded), st.text("0123456789abcfABF:.%/ []", max_size=45), st.text()))
def test_an_address_is_taken_if_and_only_if_a_second_reading_takes_it(text: str) -> None:
    expected = request_oracle.address(text)
    if expected is None:
        with pytest.raises(DecodeError):
            parse_ip(text)
    else:
        assert parse_ip(text).packed == expected


@given(any_address)
def test_what_may_be_aimed_at_agrees_with_a_second_reading(ip: IPAddress) -> None:
    assert (objection(ip, allow_private=False) is None) == request_oracle.may_be_aimed_at(ip.packed)
    assert is_global(ip) == (objection(ip, allow_private=False) is None)
    assert objection(ip, allow_private=True) is None or objection(ip, allow_private=False) is not None


REFUSALS = [
    ("0.0.0.0", "an unspecified"),  # noqa: S104
    ("0.255.255.255", "an unspecified"),
    ("127.0.0.1", "a loopback"),
    ("169.254.0.0", "a link-local"),
    ("169.254.255.255", "a link-local"),
    ("224.0.0.0", "a multicast"),
    ("239.255.255.255", "a multicast"),
    ("240.0.0.0", "a reserved"),
    ("255.255.255.254", "a reserved"),
    ("255.255.255.255", "a broadcast"),
    ("::", "an unspecified"),
    ("::1", "a loopback"),
    ("::2", "an IPv4-compatible"),
    ("::203.0.113.7", "an IPv4-compatible"),
    ("::ffff:203.0.113.7", "an IPv4-mapped"),
    ("fe80::", "a link-local"),
    ("febf:ffff::1", "a link-local"),
    ("fec0::1", "a site-local"),
    ("ff00::", "a multicast"),
]


@pytest.mark.parametrize(("text", "kind"), REFUSALS)
@pytest.mark.parametrize("allow_private", [False, True])
def test_what_is_never_a_peer_is_named(text: str, kind: str, allow_private: bool) -> None:
    ip = ip_address(text)
    assert objection(ip, allow_private=allow_private) == f"{ip} is {kind} address"


PRIVATE = ["10.0.0.0", "10.255.255.255", "172.16.0.0", "172.31.255.255", "192.168.0.0", "192.168.255.255"]
PRIVATE += ["100.64.0.0", "100.127.255.255", "fc00::", "fdff:ffff::1"]
PUBLIC = ["9.255.255.255", "11.0.0.0", "172.15.255.255", "172.32.0.0", "192.167.255.255", "192.169.0.0"]
PUBLIC += ["100.63.255.255", "100.128.0.0", "1.0.0.0", "126.255.255.255", "128.0.0.0", "169.253.1.1", "223.255.255.255"]
# Python's is_private says yes to these: documentation and benchmarks, line protocol §13.7.
PUBLIC += ["192.0.2.1", "198.51.100.1", "203.0.113.1", "198.18.0.1", "2001:db8::1", "fbff::1", "fe00::1", "::1:0:0"]


@pytest.mark.parametrize("text", PRIVATE)
def test_private_ranges_are_refused_unless_they_are_allowed(text: str) -> None:
    ip = ip_address(text)
    assert is_private(ip)
    assert "private address (allow-private = true permits these)" in (objection(ip, allow_private=False) or "")
    assert objection(ip, allow_private=True) is None


@pytest.mark.parametrize("text", PUBLIC)
def test_their_neighbours_and_documentation_ranges_are_not_private(text: str) -> None:
    assert not is_private(ip_address(text))
    assert objection(ip_address(text), allow_private=False) is None


@given(st.lists(st.integers(-2, 65538) | st.integers(40000, 40020), max_size=20))
def test_a_port_set_is_1_to_16_different_ports(ports: list[int]) -> None:
    good = 1 <= len(ports) <= MAX_PORTS and len(set(ports)) == len(ports) and all(1 <= port <= 65535 for port in ports)
    if good:
        assert list(PortSet(tuple(ports))) == ports
    else:
        with pytest.raises(ValueError, match="port"):
            PortSet(tuple(ports))


@given(st.lists(st.integers(-2, 65538) | st.integers(40000, 40030), max_size=60))
def test_the_ports_that_fit_are_the_first_ones_in_their_order(ports: list[int]) -> None:
    valid = list(dict.fromkeys(port for port in ports if 1 <= port <= 65535))
    if not valid:
        with pytest.raises(ValueError, match="1 to 16"):
            PortSet.of(ports)
        return
    kept = PortSet.of(ports)
    assert list(kept) == valid[: len(kept)]
    assert len(str(kept).split(",")) <= MAX_RUNS
    if len(kept) < len(valid):
        assert len(kept) == MAX_PORTS or len(runs(valid[: len(kept) + 1])) > MAX_RUNS


def test_an_endless_supply_of_ports_is_cut() -> None:
    assert str(PortSet.of(count(40000))) == "40000-40015"
    assert str(PortSet.of(count(40000, 2))) == "40000,40002,40004,40006"


@pytest.mark.parametrize(
    ("ports", "found", "text"),
    [
        ((5,), [(5, 5)], "5"),
        ((7, 8, 9, 3), [(7, 9), (3, 3)], "7-9,3"),
        ((9, 8, 7), [(9, 9), (8, 8), (7, 7)], "9,8,7"),
        ((1, 3, 4), [(1, 1), (3, 4)], "1,3-4"),
    ],
)
def test_neighbours_are_written_as_runs(ports: tuple[int, ...], found: list[tuple[int, int]], text: str) -> None:
    assert runs(ports) == found
    assert str(PortSet(ports)) == text


def test_a_port_set_is_asked_like_a_collection() -> None:
    ports = PortSet((7, 9))
    assert 7 in ports
    assert 8 not in ports
    assert len(ports) == 2


def test_endpoints_are_written_with_brackets_where_the_address_has_colons() -> None:
    assert str(Endpoint(IPv4Address("192.0.2.1"), 80)) == "192.0.2.1:80"
    assert str(Endpoint(IPv6Address("2001:db8::1"), 80)) == "[2001:db8::1]:80"


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_an_endpoint_comes_from_a_real_socket_and_goes_back_to_one(family: int, host: str) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as receiver, socket.socket(family, socket.SOCK_DGRAM) as sender:
        receiver.bind((host, 0))
        there = Endpoint.from_sockaddr(receiver.getsockname())
        sender.sendto(b"x", there.sockaddr)
        receiver.settimeout(5)
        assert Endpoint.from_sockaddr(receiver.recvfrom(1)[1]).ip == ip_address(host)


def test_a_socket_address_loses_its_zone_and_must_have_a_port() -> None:
    assert Endpoint.from_sockaddr(("fe80::1%eth0", 5, 0, 3)) == Endpoint(IPv6Address("fe80::1"), 5)
    with pytest.raises(DecodeError, match="expected a port number, got None"):
        Endpoint.from_sockaddr(("192.0.2.1", None))
