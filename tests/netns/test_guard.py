"""The kernel's guard: nothing leaves a host with a source address that is not the host's, whatever the daemon tries."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path

import pytest

from punchd.cli.users import NAMELESS
from punchd.endpoint import Endpoint
from punchd.errors import Code, KernelError, PunchError
from punchd.kernel.firewall import guard, messages
from punchd.kernel.firewall.nft import OwnerTable
from punchd.kernel.raw import RawSender
from punchd.technique import Capability
from punchd.wire import ip
from punchd.wire.tcp import Flags
from tests.natlab import Host, Laboratory, Node, Site
from tests.netns.daemons import Punchd, open_to_all, punchd, until
from tests.netns.two_hosts import crafted

pytestmark = pytest.mark.netns

UID = 54321
EVERY = 0x0003  # ETH_P_ALL
FOREIGN = {4: "203.0.113.99", 6: "2001:db8:99::1"}
PEER = {4: "203.0.113.7", 6: "2001:db8:7::7"}
WITH_USER = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups"]
BOTH = ["--inh-caps=-all,+net_raw,+net_admin", "--ambient-caps=-all,+net_raw,+net_admin"]
RAW = ["--inh-caps=-all,+net_raw", "--ambient-caps=-all,+net_raw", "--bounding-set=-all,+net_raw"]


@pytest.fixture(name="host", scope="module")
def _host() -> Iterator[Host]:
    with Laboratory([Site("a")], stun=False) as laboratory:
        yield laboratory.site("a").host


def ruleset(host: Node) -> str:
    return str(host.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout)


def own(host: Host, version: int) -> str:
    return str(host.ipv6 if version == 6 else host.ipv4)


def packet(source: str, destination: str, port: int) -> bytes:
    """A SYN, to be told from others by its destination port."""
    return crafted(Endpoint(ip_address(source), 40000), Endpoint(ip_address(destination), port), Flags.SYN)


@contextmanager
def guarded(host: Host, uid: int = 0) -> Iterator[None]:
    """A guard over what this process sends; the daemon never stands one over root."""
    with host.entered():
        table = OwnerTable(lambda name: messages.guard_table(name, uid))
    try:
        yield
    finally:
        table.close()


class Wire:
    """What leaves a host through any device, and what goes through its `lo`."""

    def __init__(self, host: Host) -> None:
        with host.entered():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(EVERY))
        self._socket.setblocking(False)

    def close(self) -> None:
        self._socket.close()

    def ports(self, *, loopback: bool = False) -> list[int]:
        """The destination ports of the TCP segments since the last look, in order."""
        found = []
        with suppress(BlockingIOError):
            while True:
                data, (device, _, kind, *_) = self._socket.recvfrom(65536)
                if kind == socket.PACKET_OUTGOING and (device == "lo") is loopback and data[0] >> 4 in (4, 6):
                    seen = ip.decode(data, truncated=True)
                    if seen.protocol == ip.TCP:
                        found.append(int.from_bytes(seen.payload[2:4], "big"))
        return found


@pytest.fixture(name="wire")
def _wire(host: Host) -> Iterator[Wire]:
    wire = Wire(host)
    yield wire
    wire.close()


@contextmanager
def sender(host: Host, version: int) -> Iterator[RawSender]:
    with host.entered():
        raw = RawSender(version)
    try:
        yield raw
    finally:
        raw.close()


def send(raw: RawSender, source: str, destination: str, port: int) -> Code | None:
    """None: it was sent; else why not."""
    try:
        raw.send(packet(source, destination, port), ip_address(destination))
    except PunchError as error:
        return error.reason
    return None


@pytest.mark.parametrize("version", [4, 6])
def test_a_raw_packet_with_a_foreign_source_does_not_leave_and_one_with_an_own_does(
    host: Host, wire: Wire, version: int
) -> None:
    with sender(host, version) as raw:
        assert send(raw, FOREIGN[version], PEER[version], 1) is None
        with guarded(host):
            assert send(raw, own(host, version), PEER[version], 2) is None
            for port in range(100, 200):
                assert send(raw, FOREIGN[version], PEER[version], port) is Code.REFUSED
            assert send(raw, own(host, version), PEER[version], 3) is None
            assert "counter packets 100 bytes" in ruleset(host)
        assert send(raw, FOREIGN[version], PEER[version], 4) is None
    assert wire.ports() == [1, 2, 3, 4], "the guard is why, and nothing else"


@pytest.mark.parametrize("version", [4, 6])
def test_injecting_into_the_own_stack_stays_possible(host: Host, wire: Wire, version: int) -> None:
    with guarded(host), sender(host, version) as raw:
        assert send(raw, FOREIGN[version], own(host, version), 5) is None
    assert 5 in wire.ports(loopback=True)


@pytest.mark.parametrize("version", [4, 6])
def test_what_was_to_be_injected_does_not_leave_when_the_address_is_lost_meanwhile(
    host: Host, wire: Wire, version: int
) -> None:
    """The address was this host's when the attempt began; now a packet to it takes the default route."""
    lost = {4: "192.0.2.77", 6: "2001:db8:77::1"}[version]
    with sender(host, version) as raw:
        assert send(raw, PEER[version], lost, 6) is None
        with guarded(host):
            assert send(raw, PEER[version], lost, 7) is Code.REFUSED
    assert wire.ports() == [6]


def test_other_users_packets_are_none_of_its_business(host: Host, wire: Wire) -> None:
    with guarded(host, UID), sender(host, 4) as raw:
        assert send(raw, FOREIGN[4], PEER[4], 8) is None
    assert wire.ports() == [8]


# --- the daemon's ---------------------------------------------------------------------------------------------------


def as_user(host: Host, directory: Path, *arguments: str, capabilities: list[str] = BOTH) -> Punchd:
    prefix = [*WITH_USER, *capabilities, "--"]
    return punchd(open_to_all(directory), *arguments, starter=host.popen, prefix=prefix)


@pytest.mark.parametrize("firewall", ["auto", "none", "nft"])
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_it_stands_over_the_daemons_user_whatever_makes_exemptions_and_is_gone_with_the_daemon(
    host: Host, tmp_path: Path, firewall: str, how: signal.Signals
) -> None:
    before = ruleset(host)
    wanted = f'oif != "lo" meta skuid {UID} fib saddr type != local counter packets 0 bytes 0 drop'
    with as_user(host, tmp_path, "--firewall", firewall) as daemon:
        daemon.ready()
        assert wanted in ruleset(host)
        daemon.send(how)
        daemon.wait()
        assert ruleset(host) == before


def test_the_daemons_own_user_cannot_send_with_a_foreign_source_while_it_runs(
    host: Host, wire: Wire, tmp_path: Path
) -> None:
    """Another process of the user: that the rule is about the sockets' user and not about who made it."""
    program = (
        "import socket, sys\n"
        "raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)\n"
        "raw.sendto(bytes.fromhex(sys.argv[1]), (sys.argv[2], 0))\n"
    )

    def attack(port: int) -> bool:
        words = [*WITH_USER, *RAW, "--", sys.executable, "-c", program, packet(FOREIGN[4], PEER[4], port).hex()]
        return bool(host.run([*words, PEER[4]], capture_output=True).returncode == 0)

    assert attack(10)
    with as_user(host, tmp_path) as daemon:
        daemon.ready()
        assert not attack(11)
        daemon.process.kill()
        daemon.wait()
    assert attack(12)
    assert wire.ports() == [10, 12]


def test_where_there_is_no_service_user_it_stands_over_the_user_without_a_name(host: Host, tmp_path: Path) -> None:
    with punchd(tmp_path, starter=host.popen) as daemon:
        daemon.ready()
        assert f"meta skuid {NAMELESS} " in ruleset(host)


def test_a_firewall_that_is_loaded_anew_leaves_it_alone(host: Host, tmp_path: Path) -> None:
    """`nft flush ruleset` is the first line of many a /etc/nftables.conf."""
    with punchd(tmp_path, starter=host.popen) as daemon:
        daemon.ready()
        host.run(["nft", "flush", "ruleset"], check=True)
        assert f"meta skuid {NAMELESS} " in ruleset(host)


def test_a_daemon_that_stays_root_says_that_there_is_none(host: Host, tmp_path: Path) -> None:
    with punchd(tmp_path, "--user", "root", starter=host.popen) as daemon:
        daemon.ready()
        assert "meta skuid" not in ruleset(host)
        until(lambda: "no guard against packets with a foreign source: it knows" in daemon.output, "it says so")


def test_without_cap_net_admin_it_says_that_there_is_none(host: Host, tmp_path: Path) -> None:
    with as_user(host, tmp_path, capabilities=RAW) as daemon:
        daemon.ready()
        assert "foreign source: it needs CAP_NET_ADMIN, which" in daemon.output


def test_a_host_without_nft_gets_a_daemon_without_a_guard_and_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(build: object) -> OwnerTable:
        raise KernelError("firewall nft: this kernel has no nf_tables")

    monkeypatch.setattr(guard, "OwnerTable", refuse)
    assert guard.post(os.geteuid() or UID) is None
    assert [record.message for record in caplog.records] == [
        "no guard against packets with a foreign source: firewall nft: this kernel has no nf_tables"
    ]


def test_without_the_right_to_send_raw_packets_it_is_not_needed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("punchd.kernel.privileges.held", lambda: Capability.NET_ADMIN)
    with caplog.at_level(logging.INFO):
        assert guard.post(UID) is None
    assert not caplog.records
