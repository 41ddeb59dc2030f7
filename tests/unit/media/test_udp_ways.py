"""What is done when a kernel, a device or a path cannot do something."""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import Any

import pytest

from punchd.media.fast import ALL, Fast
from punchd.media.mmsg import UDP_SEGMENT, Arrival, Slots, Train, Unavailable, is_same_source, raw_name
from punchd.media.udp_in import Inlet
from punchd.media.udp_out import Outlet, TooLongError

ONE_BY_ONE = Fast(mmsg=False)
SIZE = 1000
BATCH = bytearray(range(250)) * 20  # five datagrams
IP_MTU = 14


class FakeSocket:
    """A connected socket whose calls fail as told, one after the other."""

    family = socket.AF_INET

    def __init__(self, *failures: int, has_gso: bool = True, mtu: int = 1500) -> None:
        self.failures = list(failures)
        self.has_gso = has_gso
        self.mtu = mtu
        self.sent: list[bytes] = []

    def fileno(self) -> int:
        return -1

    def getsockopt(self, level: int, option: int) -> int:
        if (level, option) == (socket.IPPROTO_UDP, UDP_SEGMENT) and not self.has_gso:
            raise OSError(errno.ENOPROTOOPT, "")
        return self.mtu if (level, option) == (socket.IPPROTO_IP, IP_MTU) else 0

    def sendmsg(self, data: list[memoryview], ancillary: list[Any], flags: int, address: object = None) -> None:
        assert flags == socket.MSG_DONTWAIT
        number = self.failures.pop(0) if self.failures else 0
        if number:
            raise OSError(number, os.strerror(number))
        if ancillary:
            [(_, _, value)] = ancillary
            (segment,) = struct.unpack("@H", value)
            whole = bytes(data[0])
            self.sent += [whole[at : at + segment] for at in range(0, len(whole), segment)]
        else:
            self.sent.append(bytes(data[0]))


def outlet(sock: FakeSocket, size: int = SIZE) -> Outlet:
    return Outlet(sock, BATCH, None, ONE_BY_ONE, size=size)  # type: ignore[arg-type]


def send_all(one: Outlet, segment: int = SIZE) -> None:
    sent, calls = 0, 0
    while sent < len(BATCH):
        sent = one.send(sent, len(BATCH), segment)
        calls += 1
        assert calls < 30


FIVE = [bytes(BATCH[at : at + SIZE]) for at in range(0, len(BATCH), SIZE)]


@pytest.mark.parametrize("number", [errno.EIO, errno.EINVAL, errno.EOPNOTSUPP])
def test_where_a_device_cannot_segment_the_batch_goes_datagram_by_datagram_from_then_on(number: int) -> None:
    sock = FakeSocket(number)
    one = outlet(sock)
    assert one.way == "gso"
    send_all(one)
    assert (sock.sent, one.way, one.unsent) == (FIVE, "send", 0)


def test_a_kernel_without_gso_is_never_asked_for_it() -> None:
    sock = FakeSocket(has_gso=False)
    one = outlet(sock)
    assert one.way == "send"
    send_all(one)
    assert sock.sent == FIVE


def test_d_31_datagrams_are_never_longer_than_the_paths_mtu() -> None:
    assert outlet(FakeSocket(mtu=900)).size == 872
    assert outlet(FakeSocket(mtu=9000)).size == SIZE


def test_d_31_a_path_that_takes_less_asks_for_another_cut() -> None:
    sock = FakeSocket()
    one = outlet(sock)
    sock.mtu, sock.failures = 900, [errno.EMSGSIZE]
    with pytest.raises(TooLongError):
        one.send(0, len(BATCH), SIZE)
    assert (one.size, one.way, sock.sent) == (872, "gso", [])


def test_an_icmp_message_about_an_earlier_batch_costs_nothing() -> None:
    for number in (errno.EMSGSIZE, errno.ECONNREFUSED):
        sock = FakeSocket(number)
        one = outlet(sock)
        send_all(one)
        assert (sock.sent, one.way, one.unsent) == (FIVE, "gso", 0)


def test_a_path_that_does_not_tell_its_mtu_gets_no_gso() -> None:
    sock = FakeSocket(errno.EMSGSIZE, errno.EMSGSIZE)
    one = outlet(sock)
    send_all(one)
    assert (sock.sent, one.way) == (FIVE, "send")


def test_what_the_system_does_not_take_counts_as_lost_and_the_rest_goes_on() -> None:
    sock = FakeSocket(errno.EPERM, errno.EPERM, errno.ECONNREFUSED)
    one = outlet(sock)
    send_all(one)
    assert (sock.sent, one.unsent) == (FIVE[1:], 1)


def test_a_socket_that_is_closed_is_an_error() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        outlet(FakeSocket(errno.EBADF)).send(0, len(BATCH), SIZE)


def test_a_full_buffer_is_no_error_of_the_way() -> None:
    sock = FakeSocket(errno.EAGAIN)
    one = outlet(sock)
    with pytest.raises(BlockingIOError):
        one.send(0, len(BATCH), SIZE)
    send_all(one)
    assert (sock.sent, one.way) == (FIVE, "gso")


def test_at_most_64_datagrams_go_at_once() -> None:
    sock = FakeSocket()
    assert outlet(sock).send(0, len(BATCH), 50) == 64 * 50


@pytest.mark.parametrize("name", ["recvmmsg", "sendmmsg"])
def test_a_c_library_without_the_calls_is_no_obstacle(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(asked: str) -> None:
        raise Unavailable(asked)

    monkeypatch.setattr("punchd.media.mmsg._function", missing)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here, here.dup():
        here.bind(("127.0.0.1", 0))
        here.connect(here.getsockname())
        inlet = Inlet(here, ALL, with_names=True)
        one = Outlet(here, bytearray(b"abcde"), None, Fast(gso=False), size=SIZE)
        assert one.send(0, 5, 2) == 2
        [arrival] = inlet.receive()
        assert (bytes(arrival.data), inlet.path, one.way) == (b"ab", "gro+recvmsg", "send")
        assert is_same_source(arrival.source, raw_name(socket.AF_INET, here.getsockname()))
        inlet.close()
    with pytest.raises(Unavailable):
        Slots(1, with_names=False)
    with pytest.raises(Unavailable):
        Train(bytearray(1), 1)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_sources_are_told_apart_by_address_and_port(family: int) -> None:
    hosts = ("127.0.0.1", "127.0.0.2") if family == socket.AF_INET else ("::1", "::2")
    names = {(host, port): raw_name(family, (host, port)) for host in hosts for port in (4000, 4001)}
    for one, name in names.items():
        for other, another in names.items():
            assert is_same_source(name, another) is (one == other)
    if family == socket.AF_INET6:
        flow = raw_name(family, ("::1", 4000, 77, 0))
        assert is_same_source(flow, names["::1", 4000])


def datagrams(arrival: Arrival) -> list[tuple[bytes, bytes]]:
    data, segment, source, distance = arrival
    step = distance or segment or len(data) or 1
    return [(bytes(data[at : at + (segment or step)]), source) for at in range(0, len(data), step)]


def test_datagrams_of_several_lengths_come_as_they_were_sent() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here:
        here.bind(("127.0.0.1", 0))
        here.connect(here.getsockname())
        sent = [b"a" * size for size in (5, 5, 3, 5, 0, 0, 7, 6, 6, 8)]
        slots = Slots(16, with_names=False)
        for _ in range(2):
            for one in sent:
                here.send(one)
            came = list(slots.receive(here.fileno()))
            assert [found or b"" for arrival in came for found, _ in datagrams(arrival) or [(b"", b"")]] == sent
            assert len(came) == 7


def test_many_datagrams_of_several_sources_come_with_one_call() -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as there,
    ):
        here.bind(("127.0.0.1", 0))
        there.bind(("127.0.0.1", 0))
        train = Train(BATCH, 8)
        name = raw_name(socket.AF_INET, here.getsockname())
        assert train.send(there.fileno(), 0, len(BATCH), SIZE, name) == len(BATCH)
        here.sendto(b"own", here.getsockname())
        slots = Slots(4, with_names=True)
        [calm] = slots.receive(here.fileno())
        assert (calm.segment, calm.distance) == (SIZE, Slots.STRIDE)
        first = datagrams(calm)
        second = [found for arrival in slots.receive(here.fileno()) for found in datagrams(arrival)]
        assert [data for data, _ in first + second] == [*FIVE, b"own"]
        assert is_same_source(first[0][1], raw_name(socket.AF_INET, there.getsockname()))
        assert is_same_source(second[1][1], name)
        with pytest.raises(BlockingIOError):
            slots.receive(here.fileno())
