"""Every kind of NAT is probed with real packets and must be what its description says, no more and no less.

The support matrix rests on this file: a pair that connects proves nothing if the NATs between are not what they are
called. What was proven is printed; `pytest -rP` shows it, and so does `python -m tests.natlab --prove`.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.natlab import KINDS, Engine, Laboratory, Side, Site
from tests.natlab.host import Host
from tests.natlab.probe import probe
from tests.natlab.proof import expected

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="builds network namespaces: run the tests as root"),
]

BULK_BYTES = 1_000_000
PATIENCE_S = 5.0  # for what takes milliseconds
DATAGRAMS = 1000


@pytest.fixture(scope="module")
def lab() -> Iterator[Laboratory]:
    bystanders = [Site(f"bystander-{side.value}", side=side) for side in Side]
    with Laboratory([*(Site(name, nat) for name, nat in KINDS.items()), *bystanders], stun=False) as built:
        yield built


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_is_what_it_says(name: str, lab: Laboratory) -> None:
    far = Side.RIGHT if lab.site(name).side is Side.LEFT else Side.LEFT
    proof = probe(lab, name)
    print(f"{name}: proven", *proof.lines(), sep="\n    ")
    assert proof.differences(expected(KINDS[name], far_provider=f"isp-{far.value}")) == []


@pytest.mark.parametrize("name", KINDS)
def test_a_whole_tcp_connection_with_a_megabyte_passes(name: str, lab: Laboratory) -> None:
    host = lab.site(name).host
    payload = os.urandom(BULK_BYTES)
    with lab.server.socket(kind=socket.SOCK_STREAM) as listener, host.socket(kind=socket.SOCK_STREAM) as client:
        listener.bind((lab.server.ipv4, 0))
        listener.listen()
        for one in (listener, client):
            one.settimeout(PATIENCE_S)
        client.connect(listener.getsockname())
        server, peer = listener.accept()
        with server:
            server.settimeout(PATIENCE_S)
            assert peer[0] == host.public_ipv4
            sender = threading.Thread(target=client.sendall, args=(payload,))
            sender.start()
            received = read_exactly(server, BULK_BYTES)
            sender.join()
            server.sendall(b"done")
            assert read_exactly(client, 4) == b"done"
    assert received == payload


def read_exactly(stream: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count and (piece := stream.recv(65536)):
        data += piece
    return bytes(data)


@pytest.mark.parametrize("name", [name for name, nat in KINDS.items() if nat.engine is Engine.USERSPACE])
def test_a_burst_of_a_thousand_datagrams_passes_a_userspace_nat_without_loss(name: str, lab: Laboratory) -> None:
    host = lab.site(name).host
    with lab.server.socket() as server, host.socket() as client:
        server.bind((lab.server.ipv4, 0))
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_000_000)
        server.settimeout(PATIENCE_S)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_000_000)
        for number in range(DATAGRAMS):
            client.sendto(number.to_bytes(4, "big"), server.getsockname())
        came = [int.from_bytes(server.recv(100), "big") for _ in range(DATAGRAMS)]
    assert came == list(range(DATAGRAMS))


def test_short_timeouts_end_a_silent_mapping_where_others_keep_it(lab: Laboratory) -> None:
    limit_s = KINDS["short-timeouts"].udp_timeout_s
    assert limit_s == 2
    with lab.server.socket() as server:
        server.bind((lab.server.ipv4, 0))
        server.settimeout(0.5)
        sockets = {name: opened(lab.site(name).host, server) for name in ("apdf", "short-timeouts")}
        time.sleep(limit_s + 1.0)  # conntrack looks for ended entries when they are asked for; a second is rounding
        answered: dict[str, bool] = {}
        for name, (client, outside) in sockets.items():
            with client:
                client.settimeout(0.5)
                server.sendto(b"late", outside)
                try:
                    answered[name] = client.recv(100) == b"late"
                except TimeoutError:
                    answered[name] = False
    assert answered == {"apdf": True, "short-timeouts": False}


def opened(host: Host, server: socket.socket) -> tuple[socket.socket, tuple[str, int]]:
    """A socket in the host with a mapping towards the server, and its outside endpoint."""
    client = host.socket()
    client.sendto(b"open", server.getsockname())
    data, outside = server.recvfrom(100)
    assert data == b"open"
    return client, (outside[0], outside[1])
