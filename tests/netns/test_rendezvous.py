"""The rendezvous server as a process in the laboratory: default ports, two addresses, clients behind NATs.

a --- a-box (NAT) --- isp-left --- core --- server 192.0.2.10, 192.0.2.20, and two of IPv6
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from punchd.endpoint import Endpoint
from punchd.wire import stun
from tests.natlab import KINDS, Engine, Host, Laboratory, Ports, Site, TcpTracking

pytestmark = pytest.mark.netns

START_S = 30.0
PATIENCE_S = 5.0
MAPPING_S = 2  # of the NAT that forgets


def ask(host: Host, address: str, method: str, path: str, key: str = "", *, body: str = "") -> Any:
    """The JSON that the server at `address` answers to a host of the laboratory."""
    with host.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.settimeout(PATIENCE_S)
        sock.connect((address, 5025))
        bearer = f"Authorization: Bearer {key}\r\n" if key else ""
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n{bearer}\r\n"
        )
        sock.sendall((head + body).encode())
        answer = b"".join(iter(lambda: sock.recv(65_536), b""))
    return json.loads(answer.partition(b"\r\n\r\n")[2])


def pulser(host: Host, address: str) -> socket.socket:
    """A UDP socket of `host` that hears only what comes from `address`, port 5024."""
    sock = host.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    sock.settimeout(PATIENCE_S)
    sock.connect((address, 5024))
    return sock


def code(sock: socket.socket, key: str) -> int:
    sock.send(bytes.fromhex(key))
    return int.from_bytes(sock.recv(100), "big")


def outside(host: Host, inside_port: int) -> Endpoint:
    """How the Internet sees that port of `host`, by the server's own STUN."""
    request, client = os.urandom(12), host.socket()
    with client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.settimeout(PATIENCE_S)
        client.bind(("", inside_port))
        client.sendto(stun.encode_request(request), ("192.0.2.20", 3478))
        answer = stun.decode_response(client.recv(2048))
    assert isinstance(answer, stun.BindingSuccess)
    assert answer.transaction_id == request
    return answer.mapped


def serve(laboratory: Laboratory) -> subprocess.Popen[bytes]:
    """Start the server with its defaults on the server host."""
    server = laboratory.server
    process = server.popen([sys.executable, "-m", "punchd.cli.rendezvous", "--insecure", "--log-level", "warning"])
    deadline = time.monotonic() + START_S
    while True:
        try:
            assert ask(server, "127.0.0.1", "GET", "/health")["ok"]
        except ConnectionRefusedError:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        else:
            return process


@pytest.fixture(scope="module")
def lab() -> Iterator[Laboratory]:
    forgetful = replace(
        KINDS["apdf"], ports=Ports.RANDOM, udp_timeout_s=MAPPING_S, engine=Engine.USERSPACE, tcp=TcpTracking.ABSENT
    )
    with Laboratory([Site("a", KINDS["apdf"]), Site("b", forgetful)], stun=False) as built:
        serve(built)
        yield built


def test_v_001_d_15_with_its_defaults_the_server_is_on_5024_5025_and_3478_and_metrics_on_loopback(
    lab: Laboratory,
) -> None:
    client = lab.site("a").host
    for address in (*lab.server.ipv4_addresses, *lab.server.ipv6_addresses):
        me = ask(client, address, "POST", "/register")
        with pulser(client, address) as sock:
            assert code(sock, me["private_id"]) == 1020
    assert outside(client, 7001).ip.compressed == client.public_ipv4
    with client.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.settimeout(PATIENCE_S)
        sock.connect(("192.0.2.10", 3478))
        sock.sendall(stun.encode_request(os.urandom(12)))
        assert sock.recv(2) == b"\x01\x01"  # Binding success, RFC 8489 §18.2
    with client.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.settimeout(PATIENCE_S)
        with pytest.raises(ConnectionRefusedError):
            sock.connect(("192.0.2.10", 5026))


def test_v_003_a_pulse_is_answered_from_the_very_address_that_it_was_sent_to(lab: Laboratory) -> None:
    client = lab.site("a").host
    me = ask(client, "192.0.2.10", "POST", "/register")
    for address in (*lab.server.ipv4_addresses, *lab.server.ipv6_addresses):
        with pulser(client, address) as sock:  # connected: the kernel drops what comes from another address
            assert code(sock, me["private_id"]) == 1020


def looked_up(asker: Host, client_id: str, key: str) -> tuple[str, int]:
    found = ask(asker, "192.0.2.10", "GET", f"/peer/{client_id}/udp", key)
    return found["host"], found["port"]


@pytest.mark.parametrize(("name", "times"), [("a", 1), ("b", 2)])
def test_the_looked_up_address_is_the_nats_and_rebinding_moves_it_at_the_next_pulse(
    lab: Laboratory, name: str, times: int
) -> None:
    client = lab.site(name).host
    me, peer = (ask(lab.site(one).host, "192.0.2.10", "POST", "/register") for one in (name, "a"))
    seen: list[tuple[str, int]] = []
    with client.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.settimeout(PATIENCE_S)
        sock.bind(("", 7000))
        for number in range(times):
            time.sleep(number * (MAPPING_S + 2))
            sock.sendto(bytes.fromhex(me["private_id"]), ("192.0.2.10", 5024))
            assert sock.recv(4) == (1020).to_bytes(4, "big")
            mapped = outside(client, 7000)  # the mapping does not depend on the destination
            seen.append(looked_up(lab.site("a").host, me["client_id"], peer["private_id"]))
            assert seen[-1] == (str(mapped.ip), mapped.port) == (client.public_ipv4, mapped.port)
    assert len(set(seen)) == times
