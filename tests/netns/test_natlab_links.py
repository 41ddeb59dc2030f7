"""Impaired links measured end to end: the numbers that were asked for are the numbers that sockets see."""

from __future__ import annotations

import itertools
import os
import socket
import statistics
import time

import pytest

from tests.natlab import KINDS, Laboratory, Link, Site

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="builds network namespaces: run the tests as root"),
]

PATIENCE_S = 2.0


def round_trips(lab: Laboratory, name: str, count: int, *, ipv6: bool = False) -> list[float]:
    """Seconds that each of `count` datagrams took to the server and back."""
    family, address = (socket.AF_INET6, lab.server.ipv6_addresses[0]) if ipv6 else (socket.AF_INET, lab.server.ipv4)
    times: list[float] = []
    with lab.server.socket(family) as server, lab.site(name).host.socket(family) as client:
        server.bind((address, 0))
        for one in (server, client):
            one.settimeout(PATIENCE_S)
        for number in range(count):
            start = time.monotonic()
            client.sendto(number.to_bytes(2, "big"), server.getsockname()[:2])
            data, source = server.recvfrom(100)
            server.sendto(data, source)
            assert client.recv(100) == data
            times.append(time.monotonic() - start)
    return times


def one_way(lab: Laboratory, name: str, count: int, pause_s: float = 0.0) -> list[int]:
    """The numbers of the datagrams that came from the host to the server, of `count` sent, in their order."""
    came: list[int] = []
    with lab.server.socket() as server, lab.site(name).host.socket() as client:
        server.bind((lab.server.ipv4, 0))
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_000_000)
        server.settimeout(0.5)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_000_000)
        for number in range(count):
            client.sendto(number.to_bytes(4, "big"), server.getsockname())
            if pause_s:
                time.sleep(pause_s)
        try:
            while len(came) < count:
                came.append(int.from_bytes(server.recv(100), "big"))
        except TimeoutError:
            pass
    return came


def test_delays_add_up_and_a_plain_link_has_none() -> None:
    sites = [
        Site("wan", KINDS["apdf"], wan=Link(delay_s=0.02)),
        Site("both", KINDS["any-opens"], lan=Link(delay_s=0.005), wan=Link(delay_s=0.02)),
        Site("plain", KINDS["full-cone"]),
    ]
    with Laboratory(sites, stun=False) as lab:
        for name, expected_s in (("wan", 0.04), ("both", 0.05), ("plain", 0.0)):
            for ipv6 in (False, True):
                measured_s = statistics.median(round_trips(lab, name, 9, ipv6=ipv6))
                print(f"{name} IPv{6 if ipv6 else 4}: {measured_s * 1000:.2f} ms, asked for {expected_s * 1000:.0f}")
                assert expected_s <= measured_s < expected_s + 0.01


def test_the_backbone_delays_both_sides() -> None:
    with Laboratory([Site("a"), Site("b")], backbone=Link(delay_s=0.01), stun=False) as lab:
        for name in ("a", "b"):
            assert 0.02 <= statistics.median(round_trips(lab, name, 5)) < 0.03


def test_jitter_varies_the_delay_within_its_bounds() -> None:
    with Laboratory([Site("a", wan=Link(delay_s=0.02, jitter_s=0.01, seed=3))], stun=False) as lab:
        times = round_trips(lab, "a", 30)
    assert min(times) >= 0.02
    assert statistics.median(times) < 0.06 + 0.01
    assert max(times) - min(times) > 0.01


def test_loss_is_per_direction_and_as_much_as_asked_for() -> None:
    count, loss = 2000, 0.1
    with Laboratory([Site("a", KINDS["apdf"], wan=Link(loss=loss, seed=5))], stun=False) as lab:
        came = one_way(lab, "a", count)
    deviation = (count * loss * (1 - loss)) ** 0.5
    assert abs(count - len(came) - count * loss) < 5 * deviation
    assert came == sorted(came)


def test_a_burst_of_a_thousand_crosses_a_slow_link_whole_and_in_order() -> None:
    link = Link(delay_s=0.03, jitter_s=0.01)
    with Laboratory([Site("a", KINDS["apdf"], lan=link, wan=link)], stun=False) as lab:
        assert one_way(lab, "a", 1000) == list(range(1000))


def test_reordering_happens_when_it_is_asked_for() -> None:
    with Laboratory([Site("a", wan=Link(delay_s=0.02, reorder=0.2))], stun=False) as lab:
        came = one_way(lab, "a", 200, pause_s=0.0005)
    assert sorted(came) == list(range(200))
    overtaken = sum(after < before for before, after in itertools.pairwise(came))
    assert 10 <= overtaken <= 60
