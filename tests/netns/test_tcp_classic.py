"""The classic form of `tcp-nutss`: low-TTL connect() inside a firewall exemption, where raw packets are not to be had.

The hosts here refuse them, to root as well: their own stack's SYNs carry timestamps, so a rule that drops SYNs without
any stops every raw one (sendto() says EPERM) and no connect(). Nothing else that netfilter can see tells the two
apart: user, group, control group and socket are the same.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest

from punchd.client import Event, Relay
from punchd.client.trio_client import Daemon
from punchd.wire import ip, tcp
from punchd.wire.tcp import Flags
from tests.natlab import KINDS, Host, Laboratory, Link, Site
from tests.netns.daemons import Punchd, punchd, until
from tests.netns.firewall_process import BACKENDS, NEEDS_IPTC, has_exemption, rules
from tests.netns.tcp_pair import LATE_S, assert_usable
from tests.pair import attempt, stun_arguments

pytestmark = pytest.mark.netns

REFUSE = """
table inet site { chain out { type filter hook output priority 0
    oifname != "lo" tcp flags & (syn | ack) == syn tcp option timestamp missing counter drop
}
}
"""
LOW_TTL = 2
NOBODY = "203.0.113.7"
EVERY = 0x0003  # ETH_P_ALL
OUTGOING = 4
WATCHED_S = 2.5  # the kernel would repeat a SYN after 1 s, punchd goes to full TTL unasked after 4 s


@pytest.fixture(name="laboratory", scope="module")
def _laboratory() -> Iterator[Laboratory]:
    wan = Link(delay_s=0.06)  # a STUN server is so far away that copies of SYNs to it are due as well, and refused
    with Laboratory([Site("a", KINDS["apdf"], wan=wan), Site("b", KINDS["apdf"], wan=wan)]) as laboratory:
        refuse(laboratory)
        yield laboratory


def refuse(laboratory: Laboratory) -> None:
    for name in "ab":
        laboratory.site(name).host.run(["nft", "-f", "-"], input=REFUSE.encode(), check=True)


def refused(host: Host) -> int:
    """How many SYNs the rule has dropped."""
    done = host.run(["nft", "list", "table", "inet", "site"], stdout=subprocess.PIPE, check=True)
    found = re.search(rb"counter packets (\d+)", done.stdout)
    assert found is not None
    return int(found[1])


def started(laboratory: Laboratory, directory: Path, name: str, *arguments: str) -> Punchd:
    words = [*stun_arguments([*laboratory.stun, *laboratory.stun6]), "--techniques", "tcp-nutss", *arguments]
    return punchd(directory, *words, starter=laboratory.site(name).host.popen, name=name)


@asynccontextmanager
async def pair(laboratory: Laboratory, directory: Path, *arguments: str) -> AsyncIterator[tuple[Daemon, Daemon]]:
    with ExitStack() as owned:
        running = [owned.enter_context(started(laboratory, directory, name, *arguments)) for name in "ab"]
        paths = [str(daemon.ready().path) for daemon in running]
        async with Daemon.connect(paths[0]) as a, Daemon.connect(paths[1]) as b:
            yield a, b


@pytest.mark.parametrize("backend", BACKENDS)
async def test_where_a_firewall_refuses_raw_packets_it_connects_within_an_exemption(
    laboratory: Laboratory, tmp_path: Path, backend: str
) -> None:
    hosts = {name: laboratory.site(name).host for name in "ab"}
    before = {name: (refused(host), rules(host)) for name, host in hosts.items()}
    meanwhile: set[str] = set()
    async with pair(laboratory, tmp_path, "--firewall", backend) as both:
        own = await both[0].probe("tcp"), await both[1].probe("tcp")
        ports = {"a": own[0].lport, "b": own[1].lport}

        def look(name: str, event: Event) -> None:
            if isinstance(event, Relay) and has_exemption(hosts[name], ports[name]):
                meanwhile.add(name)

        outcome = await attempt(*both, own=own, late_s=LATE_S, techniques="tcp-nutss", on_event=look)
        assert outcome.connected, outcome.explain()
        assert meanwhile == {"a", "b"}
        for name, host in hosts.items():
            assert not has_exemption(host, ports[name])
            assert refused(host) > before[name][0], "else raw SYNs have done it"
        await assert_usable(outcome, size=100_000)
    for name, host in hosts.items():
        assert "punchd" not in rules(host), before[name][1]


async def test_ipv6_in_the_classic_form(tmp_path: Path) -> None:
    with Laboratory([Site(name, KINDS["firewall"], wan=Link(delay_s=0.01)) for name in "ab"]) as laboratory:
        refuse(laboratory)
        addresses = [str(laboratory.site(name).host.ipv6) for name in "ab"]
        async with pair(laboratory, tmp_path) as both:
            own = [await end.probe("tcp", local=address) for end, address in zip(both, addresses, strict=True)]
            outcome = await attempt(*both, own=(own[0], own[1]), late_s=LATE_S, techniques="tcp-nutss")
            assert outcome.connected, outcome.explain()
            assert all(refused(laboratory.site(name).host) for name in "ab")
            await assert_usable(outcome)


@pytest.mark.parametrize(
    "kinds",
    [("icmp-prohibited", "rst"), ("no-filter", "strict-conntrack"), ("symmetric-sequential", "symmetric-sequential")],
    ids=str,
)
async def test_it_connects_pairs_of_nats_that_are_not_of_the_easy_kind(tmp_path: Path, kinds: tuple[str, str]) -> None:
    wan = Link(delay_s=0.01)
    with Laboratory([Site(name, KINDS[kind], wan=wan) for name, kind in zip("ab", kinds, strict=True)]) as laboratory:
        refuse(laboratory)
        async with pair(laboratory, tmp_path) as both:
            outcome = await attempt(*both, late_s=LATE_S, techniques="tcp-nutss", timeout_ms=15_000)
            assert outcome.connected, outcome.explain()
            assert all(refused(laboratory.site(name).host) for name in "ab")
            await assert_usable(outcome)


# --- one side alone ---------------------------------------------------------------------------------------------------


def test_until_the_peer_is_known_to_be_open_every_syn_has_the_low_ttl_and_the_same_sequence_number(
    laboratory: Laboratory, tmp_path: Path
) -> None:
    host = laboratory.site("a").host
    with (
        host.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, socket.htons(EVERY)) as capture,
        started(laboratory, tmp_path, "a", "--ttl", str(LOW_TTL)) as daemon,
        daemon.ready().talk() as talk,
    ):
        talk.send(f"initiate|x|tcp-nutss|{NOBODY}|40000|lport=40011")
        talk.until("progress|x|1|tcp-nutss|relay|")
        time.sleep(WATCHED_S)
        syns = outgoing_syns(capture)
    assert {ttl for ttl, _ in syns} == {LOW_TTL}
    assert len({number for _, number in syns}) == 1
    assert len(syns) >= WATCHED_S / 0.5, "it is sent again and again, each time before the kernel would"


def outgoing_syns(capture: socket.socket) -> list[tuple[int, int]]:
    """TTL and sequence number of each SYN that left for NOBODY."""
    found = []
    with suppress(BlockingIOError):
        while True:
            data, (_, _, kind, *_) = capture.recvfrom(65536)
            if kind != OUTGOING or data[0] >> 4 != 4:
                continue
            packet = ip.decode(data)
            if packet.protocol == ip.TCP and str(packet.destination) == NOBODY:
                segment = tcp.decode(packet.payload)
                assert segment.flags == Flags.SYN
                found.append((packet.ttl, segment.seq))
    return found


def test_without_a_backend_it_says_that_the_firewall_refuses(laboratory: Laboratory, tmp_path: Path) -> None:
    with started(laboratory, tmp_path, "a", "--firewall", "none") as daemon, daemon.ready().talk() as talk:
        talk.send(f"initiate|x|tcp-nutss|{NOBODY}|40000")
        failed = talk.until("progress|x|1|tcp-nutss|failed|")
        assert failed.split("|")[5] == "refused"
        assert f"raw send to {NOBODY}: refused by the local firewall (EPERM" in failed


@pytest.mark.parametrize("backend", BACKENDS)
def test_killed_in_the_middle_nothing_stays_or_the_next_start_removes_it(
    laboratory: Laboratory, tmp_path: Path, backend: str
) -> None:
    host = laboratory.site("a").host
    with started(laboratory, tmp_path, "a", "--firewall", backend) as daemon, daemon.ready().talk() as talk:
        talk.send(f"initiate|x|tcp-nutss|{NOBODY}|40000|lport=40012")
        talk.until("progress|x|1|tcp-nutss|relay|")
        assert has_exemption(host, 40012)
        os.kill(daemon.pid, signal.SIGKILL)
        daemon.wait()
    if backend == "nft":
        until(lambda: "punchd" not in rules(host), "the kernel removes the table")
    else:
        assert has_exemption(host, 40012), "rules have no owner that the kernel knows"
    with started(laboratory, tmp_path, "a", "--firewall", backend) as again:
        again.ready()
        assert not has_exemption(host, 40012)
        again.process.terminate()
        assert again.wait() == 0
    assert "punchd" not in rules(host)


@pytest.mark.parametrize("way", ["cancel", "timeout", "disconnect", "stop"])
def test_however_an_attempt_ends_its_exemption_ends_with_it(laboratory: Laboratory, tmp_path: Path, way: str) -> None:
    host = laboratory.site("a").host
    with started(laboratory, tmp_path, "a") as daemon, daemon.ready().talk() as talk:
        talk.send(f"initiate|x|tcp-nutss|{NOBODY}|40000|lport=40013;timeout=1000")
        talk.until("progress|x|1|tcp-nutss|relay|")
        assert has_exemption(host, 40013)
        if way == "cancel":
            talk.send("cancel|x")
        elif way == "disconnect":
            talk.close()
        elif way == "stop":
            daemon.process.terminate()
        if way != "disconnect":
            talk.until("error|x|")
        until(lambda: not has_exemption(host, 40013), "the exemption is gone")


# --- what is made at the start ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "is_made"),
    [
        ((), True),
        (("--techniques", "udp,tcp-syni"), False),
        (("--firewall", "none"), False),
        (("--techniques", "udp", "--firewall", "nft"), True),
    ],
    ids=str,
)
def test_a_table_is_made_only_where_a_technique_could_need_it_or_it_is_named(
    laboratory: Laboratory, tmp_path: Path, arguments: tuple[str, ...], *, is_made: bool
) -> None:
    host = laboratory.site("a").host
    words = arguments if "--techniques" in arguments else ("--techniques", "tcp-nutss", *arguments)
    with punchd(tmp_path, *words, starter=host.popen) as daemon:
        daemon.ready()
        tables = rules(host).count(f"table inet punchd-{daemon.pid}-")
        assert tables == 1 + is_made, "the guard has one of its own"
        daemon.process.terminate()
        assert daemon.wait() == 0
    assert "punchd" not in rules(host)


@NEEDS_IPTC
def test_looking_at_the_settings_touches_no_firewall(laboratory: Laboratory, tmp_path: Path) -> None:
    """Not even to sweep: what a killed daemon has left stays for one that starts."""
    host = laboratory.site("a").host
    with started(laboratory, tmp_path, "a", "--firewall", "iptables") as daemon, daemon.ready().talk() as talk:
        talk.send(f"initiate|x|tcp-nutss|{NOBODY}|40000|lport=40014")
        talk.until("progress|x|1|tcp-nutss|relay|")
        daemon.process.kill()
        daemon.wait()
    for backend in ("nft", "iptables"):
        with started(laboratory, tmp_path, "a", "--firewall", backend, "--check-config") as look:
            assert look.wait() == 0
        assert has_exemption(host, 40014)
        assert "table inet punchd" not in rules(host)
    with started(laboratory, tmp_path, "a", "--firewall", "iptables") as again:
        again.ready()
    assert "punchd" not in rules(host)
