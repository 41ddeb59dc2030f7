"""A laboratory as its users see it: hosts, programs, STUN, traces, several at once, and nothing left behind."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.natlab import KINDS, MATRIX, Laboratory, LaboratoryError, Side, Site
from tests.natlab.measured_path import number
from tests.natlab.namespace import DIRECTORY
from tests.natlab.packet import ACK, SYN
from tests.natlab.wiretap import Segment

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="builds network namespaces: run the tests as root"),
]

MAGIC_COOKIE = 0x2112A442  # RFC 8489 §5
XOR_MAPPED_ADDRESS = 0x0020
PATIENCE_S = 2.0
OWN_NAMESPACES = f"natlab-{os.getpid()}-*"


@pytest.fixture(scope="module")
def lab() -> Iterator[Laboratory]:
    with Laboratory([Site("a", KINDS["apdf"]), Site("b", KINDS["carrier"]), Site("c", ipv6=False)]) as built:
        yield built


def mapped(host_socket: socket.socket, endpoint: str) -> tuple[str, int]:
    """What that STUN server says we look like (RFC 8489 §14.2)."""
    address, _, port = endpoint.rpartition(":")
    request = struct.pack("!HHI12s", 1, 0, MAGIC_COOKIE, os.urandom(12))
    host_socket.settimeout(PATIENCE_S)
    host_socket.sendto(request, (address.strip("[]"), int(port)))
    reply = host_socket.recv(2048)
    assert reply[4:20] == request[4:20]
    at = 20
    while at < len(reply):
        kind, size = struct.unpack_from("!HH", reply, at)
        if kind == XOR_MAPPED_ADDRESS:
            family = socket.AF_INET if reply[at + 5] == 1 else socket.AF_INET6
            (port_number,) = struct.unpack_from("!H", reply, at + 6)
            plain = bytes(a ^ b for a, b in zip(reply[at + 8 : at + 4 + size], reply[4:20], strict=False))
            return socket.inet_ntop(family, plain), port_number ^ (MAGIC_COOKIE >> 16)
        at += 4 + size + -size % 4
    raise AssertionError("no mapped address")


def test_coturn_answers_on_both_addresses_with_the_public_endpoint(lab: Laboratory) -> None:
    for name in ("a", "b"):
        host = lab.site(name).host
        with host.socket() as here:
            here.bind(("", 6000))
            assert {mapped(here, server) for server in lab.stun} == {(host.public_ipv4, 6000)}


def test_coturn_answers_over_ipv6_where_nothing_is_translated(lab: Laboratory) -> None:
    host = lab.site("a").host
    with host.socket(socket.AF_INET6) as here:
        here.bind(("::", 6000))
        assert {mapped(here, server) for server in lab.stun6} == {(host.ipv6, 6000)}


def test_a_site_may_have_no_ipv6(lab: Laboratory) -> None:
    host = lab.site("c").host
    assert host.ipv6 is None
    assert b"2001:db8" not in host.run(["ip", "-6", "addr"], capture_output=True, check=True).stdout


def test_a_program_runs_in_its_host_and_says_how_it_went(lab: Laboratory) -> None:
    done = lab.site("a").host.run(["ip", "-o", "-4", "addr"], capture_output=True, text=True, check=True)
    assert "100.100.1.2/24" in done.stdout
    assert lab.site("a").host.run(["false"]).returncode == 1
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        lab.site("a").host.run(["no-such-program"])
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        lab.site("a").host.popen(["no-such-program"])


def test_a_thread_steps_in_and_out(lab: Laboratory) -> None:
    outside = Path("/proc/thread-self/ns/net").stat().st_ino
    with lab.site("a").host.entered():
        assert Path("/proc/thread-self/ns/net").stat().st_ino != outside
        assert [name for _, name in socket.if_nameindex()] == ["lo", "eth0"]
    assert Path("/proc/thread-self/ns/net").stat().st_ino == outside


def test_a_program_outlives_the_thread_that_ordered_it(lab: Laboratory) -> None:
    started: list[subprocess.Popen[bytes]] = []
    thread = threading.Thread(
        target=lambda: started.append(lab.site("a").host.popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE))
    )
    thread.start()
    thread.join()
    time.sleep(0.05)  # a signal at the thread's end would have come by now
    out, _ = started[0].communicate(b"alive", timeout=PATIENCE_S)
    assert out == b"alive"


async def test_a_trio_program_builds_one_directly() -> None:
    with Laboratory([Site("a")], stun=False) as built:
        assert built.site("a").host.run(["true"]).returncode == 0


def test_a_trace_holds_the_traffic_of_every_node(lab: Laboratory, tmp_path: Path) -> None:
    host = lab.site("a").host
    with lab.trace(tmp_path) as trace, host.socket() as here:
        mapped(here, lab.stun[0])
        time.sleep(0.02)  # until every tcpdump has written
    assert set(trace.files) == set(lab.nodes)
    for node in lab.nodes:
        packets = listing(trace.files[node])
        if node in {"a", "a-box", "isp-left", "core", "server"}:
            assert lab.server.ipv4 + ".3478" in packets, node
        else:
            assert packets == "", node


def listing(file: Path) -> str:
    return subprocess.run(["tcpdump", "-n", "-r", file], capture_output=True, text=True, check=True).stdout


def test_a_trace_of_some_nodes_ends_with_its_laboratory(tmp_path: Path) -> None:
    with Laboratory([Site("a")], stun=False) as built:
        trace = built.trace(tmp_path / "deep" / "er", ["core"])
    assert [path.name for path in trace.files.values()] == ["core.pcap"]
    assert trace.files["core"].stat().st_size


def test_the_drawing_shows_the_running_laboratory(lab: Laboratory) -> None:
    assert lab.site("a").host.ipv4 in lab.topology()
    assert lab.site("b").host.public_ipv4 in lab.topology()


def test_laboratories_live_side_by_side_with_the_same_addresses() -> None:
    sites = [Site("a", KINDS["apdf"]), Site("b", KINDS["any-opens"])]
    with Laboratory(sites) as first, Laboratory(sites) as second:
        hosts = [built.site("b").host for built in (first, second)]
        assert hosts[0].name != hosts[1].name
        assert hosts[0].ipv4 == hosts[1].ipv4
        with hosts[0].socket() as one, hosts[1].socket() as other:
            for index, here in enumerate((one, other)):
                here.bind(("", 6000 + index))
                assert mapped(here, first.stun[0])[1] == 6000 + index


def test_nothing_stays_when_the_block_ends_not_even_a_grandchild() -> None:
    before = set(DIRECTORY.glob(OWN_NAMESPACES))
    with Laboratory([Site("a", KINDS["any-opens"])]) as built:
        host = built.site("a").host
        identity = host.path.stat().st_ino
        child = host.popen(["sh", "-c", "setsid sleep 1000 & wait"])
        wait_for(lambda: len(inhabitants(identity)) == 2)
    assert child.returncode == -9
    assert set(DIRECTORY.glob(OWN_NAMESPACES)) == before
    wait_for(lambda: not inhabitants(identity))


def test_nothing_stays_when_it_cannot_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(DIRECTORY.glob(OWN_NAMESPACES))
    threads = threading.active_count()
    monkeypatch.setattr("tests.natlab.plan.ruleset", lambda *_args, **_options: "no rules at all")
    with pytest.raises(LaboratoryError, match="nft failed for a-box"), Laboratory([Site("a", KINDS["apdf"])]):
        pass
    assert set(DIRECTORY.glob(OWN_NAMESPACES)) == before
    assert threading.active_count() == threads


def test_the_private_address_never_leaves_the_provider(lab: Laboratory, tmp_path: Path) -> None:
    # A masquerading Linux router leaks what conntrack calls invalid; a SYN-ACK out of nothing is.
    host = lab.site("a").host
    raw = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW); "
    with lab.trace(tmp_path, ["a-box", "core"]) as trace:
        packet = syn_ack(host.ipv4, lab.server.ipv4)
        host.run([sys.executable, "-c", f"{raw} s.sendto({packet!r}, ({lab.server.ipv4!r}, 0))"], check=True)
        time.sleep(0.05)
    assert host.ipv4 in listing(trace.files["a-box"])
    assert host.ipv4 not in listing(trace.files["core"])


def syn_ack(source: str, target: str) -> bytes:
    return Segment((number(source), 5000), (number(target), 9), SYN | ACK).encode()


def test_how_long_it_takes() -> None:
    """No limit is asserted, since machines differ; the numbers are for whoever reads them (`pytest -rP`)."""
    both = [Site(f"{side.value}-{name}", nat, side=side) for side in Side for name, nat in MATRIX.items()]
    for label, sites in (("a pair", [Site("a", KINDS["apdf"]), Site("b", KINDS["full-cone"])]), ("40 sites", both)):
        start = time.monotonic()
        with Laboratory(sites):
            up = time.monotonic()
        print(f"{label} with coturn: up in {up - start:.3f} s, down in {time.monotonic() - up:.3f} s")


def inhabitants(namespace: int) -> list[int]:
    found: list[int] = []
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and Path("/proc", entry, "ns/net").stat().st_ino == namespace:
                found.append(int(entry))
        except OSError:
            continue
    return found


def wait_for(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < limit, "it did not happen in time"
        time.sleep(0.005)
