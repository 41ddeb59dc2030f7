"""UDP through two NATs with two real daemons: what the matrix does not show."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio

from punchd.client import OkProbe, PortSet
from punchd.client.trio_client import Daemon
from tests.natlab import KINDS, Laboratory, Site
from tests.pair import Channel, applications, attempt, daemons, exchange, relayed, stun_arguments

pytestmark = pytest.mark.netns


@asynccontextmanager
async def pair(
    kind_a: str, kind_b: str, *arguments: str, stun6: bool = False
) -> AsyncIterator[tuple[Laboratory, Daemon, Daemon]]:
    """A laboratory with two daemons and a connection to each."""
    with Laboratory([Site("a", KINDS[kind_a]), Site("b", KINDS[kind_b])]) as laboratory:
        words = [*stun_arguments(laboratory.stun6 if stun6 else laboratory.stun), *arguments]
        with daemons([(laboratory.site(name).host, words) for name in "ab"]) as running:
            for daemon in running:
                await daemon.until_ready()
            async with applications(running[0].path, running[1].path) as (a, b):
                yield laboratory, a, b


def with_ports(probed: OkProbe, ports: Sequence[int]) -> OkProbe:
    return replace(probed, ports=PortSet(tuple(ports)))


async def test_a_thousand_datagrams_each_way_arrive_without_loss() -> None:
    async with pair("apdf", "apdf") as (_, a, b):
        outcome = await attempt(a, b)
        assert outcome.connected, outcome.explain()
        assert await exchange(outcome, count=1000) == (1000, 1000)
        outcome.close()


async def test_the_sockets_are_blocking_and_have_the_systems_ttl_and_no_pending_error() -> None:
    async with pair("apdf", "apdf") as (_, a, b):
        outcome = await attempt(a, b)
        assert outcome.connected, outcome.explain()
        for end in (outcome.initiator, outcome.responder):
            assert end.connected is not None
            # the client library of this test made its own descriptor non-blocking: ask the kernel for the rest
            own = end.connected.socket
            assert own.getsockopt(socket.IPPROTO_IP, socket.IP_TTL) == 64
            assert own.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
            assert own.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 0
            assert own.getsockname() == end.connected.local.sockaddr
            assert own.getpeername() == end.connected.remote.sockaddr
        outcome.close()


async def test_ipv6_through_two_stateful_firewalls() -> None:
    async with pair("firewall", "firewall", stun6=True) as (laboratory, a, b):
        ends = laboratory.site("a").host.ipv6, laboratory.site("b").host.ipv6
        own = await a.probe("udp", local=str(ends[0])), await b.probe("udp", local=str(ends[1]))
        assert own[0].ip.version == 6
        assert own[0].mapping == "open"

        outcome = await attempt(a, b, own=own)

        assert outcome.connected, outcome.explain()
        assert await exchange(outcome, count=50) == (50, 50)
        outcome.close()


async def test_a_host_with_two_addresses_punches_from_the_one_that_is_asked_for() -> None:
    async with pair("apdf", "apdf") as (laboratory, a, b):
        site = laboratory.site("a")
        second = str(site.host.ipv4).rsplit(".", 1)[0] + ".77"
        site.host.run(["ip", "addr", "add", f"{second}/32", "dev", "eth0"], check=True)
        described = site.host.run(["ip", "-j", "link", "show", "eth0"], check=True, capture_output=True).stdout
        hardware = json.loads(described)[0]["address"]
        box = laboratory.nodes["a-box"]
        box.run(["ip", "neigh", "replace", second, "lladdr", hardware, "dev", "lan"], check=True)
        box.run(["ip", "route", "replace", second, "dev", "lan"], check=True)

        own = await a.probe("udp", local=second), await b.probe("udp")
        outcome = await attempt(a, b, own=own)

        assert outcome.connected, outcome.explain()
        assert outcome.initiator.connected is not None
        assert str(outcome.initiator.connected.local.ip) == second
        assert await exchange(outcome) == (1, 1)
        outcome.close()


async def test_without_a_probe_before_both_sides_find_their_ports_while_they_punch() -> None:
    """The initiator's hint is right only because the NAT preserves ports; the responder asks STUN beside it."""
    async with pair("apdf", "apdf") as (laboratory, a, b):
        public = [laboratory.site(name).host.public_ipv4 for name in "ab"]
        own = tuple(
            OkProbe("x", "udp", public[n], PortSet((port,)), "unknown", port)  # type: ignore[arg-type]
            for n, port in ((0, 40100), (1, 40200))
        )
        outcome = await attempt(a, b, own=(own[0], own[1]))
        assert outcome.connected, outcome.explain()
        assert await exchange(outcome) == (1, 1)
        outcome.close()


@pytest.mark.parametrize("kinds", [("apdf", "eim-no-preserve"), ("no-filter", "symmetric-sequential")], ids=str)
async def test_a_wrong_hint_is_mended_by_the_answer_and_a_note(kinds: tuple[str, str]) -> None:
    async with pair(*kinds) as (_, a, b):
        own = await a.probe("udp"), await b.probe("udp")
        wrong = with_ports(own[1], [(port + 777) % 60000 + 1024 for port in own[1].ports])

        outcome = await attempt(a, b, own=(own[0], wrong))

        assert outcome.connected, outcome.explain()
        assert relayed(outcome) >= 3  # offer, answer, and the note that says what was opened
        assert await exchange(outcome) == (1, 1)
        outcome.close()


@pytest.mark.parametrize(
    "kinds", [("apdf", "apdf"), ("killed-by-rst", "apdf"), ("symmetric-random", "full-cone")], ids=str
)
async def test_tokens_that_are_never_relayed_back_cost_time_but_not_the_connection(kinds: tuple[str, str]) -> None:
    async with pair(*kinds) as (_, a, b):
        outcome = await attempt(a, b, channel=Channel(back=False), timeout_ms=12_000)
        assert outcome.connected, outcome.explain()
        outcome.close()


async def test_a_pair_that_cannot_connect_says_why() -> None:
    async with pair("symmetric-random", "apdf") as (_, a, b):
        outcome = await attempt(a, b)
        assert outcome.initiator.error is not None
        assert outcome.initiator.error.code == "exhausted"
        assert "random port" in str(outcome.initiator.error)
        assert outcome.responder.error is not None
        assert outcome.responder.error.code == "peer-abort"


async def test_late_probes_do_not_reach_the_application() -> None:
    async with pair("full-cone", "apdf") as (_, a, b):
        outcome = await attempt(a, b)
        assert outcome.connected, outcome.explain()
        assert outcome.initiator.connected is not None
        assert outcome.responder.connected is not None
        sender, receiver = outcome.initiator.connected.socket, outcome.responder.connected.socket

        await sender.send(b"PCH1" + bytes(26))  # as long as a late probe, and looks like one
        await sender.send(b"PCH1")  # shorter: an application's
        await sender.send(b"")
        await sender.send(b"data")

        with trio.fail_after(5):
            assert [await receiver.recv(100) for _ in range(3)] == [b"PCH1", b"", b"data"]
        outcome.close()


async def test_a_handed_over_descriptor_outlives_the_daemon() -> None:
    with Laboratory([Site("a", KINDS["apdf"]), Site("b", KINDS["apdf"])]) as laboratory:
        words = stun_arguments(laboratory.stun)
        with daemons([(laboratory.site(name).host, words) for name in "ab"]) as running:
            for daemon in running:
                await daemon.until_ready()
            async with applications(running[0].path, running[1].path) as (a, b):
                outcome = await attempt(a, b)
            assert outcome.connected, outcome.explain()
            for daemon in running:
                assert daemon.stop() == 0
            assert await exchange(outcome, count=10) == (10, 10)
            outcome.close()
