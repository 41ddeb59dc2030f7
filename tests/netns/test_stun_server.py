"""The STUN server behind NATs, judged by clients that others wrote and by our own daemon.

coturn's `turnutils_natdiscovery` speaks RFC 5780, `stun` (Debian's stun-client) RFC 3489. What they must say follows
from the description of the NAT between. Our server stands beside the laboratory's coturn, on other ports, so that
both can be asked through the same NAT.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_address

import pytest
import trio

from punchd.client.trio_client import Daemon
from punchd.endpoint import Endpoint
from punchd.rendezvous.stun_server import Counters, listen, serve
from punchd.wire import stun
from tests.natlab import KINDS, Filtering, Host, Laboratory, Mapping, Ports, Site
from tests.pair import applications, attempt, daemons, exchange, stun_arguments

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(
        not shutil.which("turnutils_natdiscovery") or not shutil.which("stun"),
        reason="needs the Debian packages coturn and stun-client",
    ),
]

PORT, OTHER_PORT = 5478, 5479
HANG_S = 60.0
JUDGED = (
    "open",
    "firewall",
    "full-cone",
    "adf",
    "apdf",
    "eim-no-preserve",
    "symmetric-sequential",
    "symmetric-random",
    "symmetric-random-adm",
    "carrier",
)
LAB_KINDS = (*JUDGED, "short-timeouts")
TRIES = 3  # stun-client gives up after a second, less than a busy machine may need


@pytest.fixture(scope="module")
def lab() -> Iterator[Laboratory]:
    with Laboratory([Site(name, KINDS[name]) for name in LAB_KINDS]) as built:
        yield built


@asynccontextmanager
async def our_server(lab: Laboratory, addresses: Sequence[str] = ()) -> AsyncIterator[Counters]:
    """Our server on the server's addresses, all of them by default."""
    chosen = addresses or (*lab.server.ipv4_addresses, *lab.server.ipv6_addresses)
    with lab.server.entered():
        listening = listen([Endpoint(ip_address(address), PORT) for address in chosen])
    stop, counters = trio.Event(), Counters()

    async def run() -> None:
        await serve(listening, stop, counters=counters)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        yield counters
        stop.set()


def own_stun(lab: Laboratory) -> list[str]:
    """Our server, as the daemon's --stun wants it."""
    return [f"{address}:{PORT}" for address in lab.server.ipv4_addresses]


async def said(host: Host, words: Sequence[str]) -> str:
    """What a program printed; it runs in a host, and other tasks go on meanwhile."""
    process = host.popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with trio.fail_after(HANG_S):
        printed, _ = await trio.to_thread.run_sync(process.communicate, abandon_on_cancel=True)
    return str(printed)


async def discovered(lab: Laboratory, kind: str, *flags: str, server: str = "") -> str:
    asked = server or lab.server.ipv4
    return await said(lab.site(kind).host, ["turnutils_natdiscovery", *flags, "-p", str(PORT), asked])


MAPPINGS = {
    Mapping.NONE: "Endpoint Independent Mapping",
    Mapping.ENDPOINT_INDEPENDENT: "Endpoint Independent Mapping",
    # The tool asks at the OTHER-ADDRESS of its second answer, not of its first (RFC 5780 §4.3). By table 1 that has
    # the first address again; coturn 4.6.1 names the second one there, against the table, and its tool relies on it.
    Mapping.ADDRESS_DEPENDENT: "Address and Port Dependent Mapping",
    Mapping.ADDRESS_AND_PORT_DEPENDENT: "Address and Port Dependent Mapping",
}
FILTERINGS = {
    Filtering.NONE: "Endpoint Independent Filtering",
    Filtering.ENDPOINT_INDEPENDENT: "Endpoint Independent Filtering",
    Filtering.ADDRESS_DEPENDENT: "Address Dependent Filtering",
    Filtering.ADDRESS_AND_PORT_DEPENDENT: "Address and Port Dependent Filtering",
}


async def test_turnutils_natdiscovery_finds_each_kind_to_be_what_it_is(lab: Laboratory) -> None:
    found: dict[str, list[str]] = {}

    async def judge(kind: str) -> None:
        found[kind] = re.findall(r"NAT with (.*)!", await discovered(lab, kind, "-m", "-f"))

    async with our_server(lab), trio.open_nursery() as nursery:
        for kind in JUDGED:
            nursery.start_soon(judge, kind)
    assert found == {kind: [MAPPINGS[KINDS[kind].mapping], FILTERINGS[KINDS[kind].filtering]] for kind in JUDGED}


@pytest.mark.parametrize("kind", JUDGED)
async def test_the_mapping_test_of_rfc_5780_finds_each_kind_to_be_what_it_is(kind: str, lab: Laboratory) -> None:
    first, second = lab.server.ipv4_addresses
    async with our_server(lab):
        with trio.socket.from_stdlib_socket(lab.site(kind).host.socket()) as client:
            await client.bind((lab.site(kind).host.ipv4, 0))
            seen = [await mapped(client, at) for at in ((first, PORT), (second, PORT), (second, OTHER_PORT))]
    if seen[0] == seen[1]:
        is_own = seen[0].ip == ip_address(lab.site(kind).host.ipv4)
        found = Mapping.NONE if is_own else Mapping.ENDPOINT_INDEPENDENT
    else:
        found = Mapping.ADDRESS_DEPENDENT if seen[1] == seen[2] else Mapping.ADDRESS_AND_PORT_DEPENDENT
    assert found is KINDS[kind].mapping


async def mapped(client: trio.socket.SocketType, server: tuple[str, int]) -> Endpoint:
    """Where the server sees the client."""
    with trio.fail_after(HANG_S):
        await client.sendto(stun.encode_request(os.urandom(stun.TRANSACTION_ID_SIZE)), server)
        data, source = await client.recvfrom(1000)
    assert Endpoint.from_sockaddr(source) == Endpoint.from_sockaddr(server)
    answer = stun.decode_response(data)
    assert isinstance(answer, stun.BindingSuccess)
    return answer.mapped


def classic_verdict(kind: str) -> str:
    """The words of stun-client for a kind of NAT; RFC 3489 knows no address-dependent mapping."""
    nat = KINDS[kind]
    if nat.mapping is Mapping.NONE:
        return "Open" if nat.filtering is Filtering.NONE else "Firewall"
    if nat.mapping is not Mapping.ENDPOINT_INDEPENDENT:
        return "Dependent Mapping"
    filters = {"ENDPOINT_INDEPENDENT": "Independent", "ADDRESS_DEPENDENT": "Address Dependent"}
    ports = "preserves ports" if nat.ports is Ports.PRESERVED else "random port"
    return f"Independent Mapping, {filters.get(nat.filtering.name, 'Port Dependent')} Filter, {ports}"


async def test_stun_client_of_rfc_3489_finds_each_kind_to_be_what_it_is(lab: Laboratory) -> None:
    found: dict[str, str] = {}

    async def judge(kind: str) -> None:
        for _ in range(TRIES):
            printed = await said(lab.site(kind).host, ["stun", f"{lab.server.ipv4}:{PORT}"])
            verdict = re.search(r"Primary: (.*)", printed)
            found[kind] = verdict[1].strip() if verdict else printed
            if found[kind].startswith(classic_verdict(kind)):
                found[kind] = classic_verdict(kind)
                return

    async with our_server(lab), trio.open_nursery() as nursery:
        for kind in JUDGED:
            nursery.start_soon(judge, kind)
    assert found == {kind: classic_verdict(kind) for kind in JUDGED}


async def test_a_mappings_lifetime_is_seen_by_a_response_to_another_port(lab: Laboratory) -> None:
    printed: dict[str, str] = {}

    async def judge(kind: str, wait_s: str) -> None:
        printed[kind] = await discovered(lab, kind, "-t", "-T", wait_s)

    async with our_server(lab), trio.open_nursery() as nursery:
        nursery.start_soon(judge, "apdf", "4")
        nursery.start_soon(judge, "short-timeouts", "4")  # its mappings live 2 s
    assert printed["apdf"].count("RFC 5780 response") == 2
    assert printed["short-timeouts"].count("RFC 5780 response") == 1
    assert "timeout" in printed["short-timeouts"]


async def test_padding_makes_both_ways_fragments_and_the_verdict_stays(lab: Laboratory) -> None:
    async with our_server(lab):
        printed = await discovered(lab, "full-cone", "-m", "-f", "-P")
    assert re.findall(r"NAT with (.*)!", printed) == ["Endpoint Independent Mapping", "Endpoint Independent Filtering"]


async def test_over_ipv6_a_firewall_is_found_to_be_one(lab: Laboratory) -> None:
    async with our_server(lab):
        printed = await discovered(lab, "firewall", "-m", "-f", server=lab.server.ipv6_addresses[0])
    assert re.findall(r"NAT with (.*)!", printed) == [
        "Endpoint Independent Mapping",
        "Address and Port Dependent Filtering",
    ]


async def test_a_server_with_one_address_says_what_it_saw_and_nothing_of_another(lab: Laboratory) -> None:
    async with our_server(lab, [lab.server.ipv4]) as counters:
        printed = await discovered(lab, "apdf", "-m", "-f")
        assert f"UDP reflexive addr: {lab.site('apdf').host.public_ipv4}" in printed
        assert "Other addr" not in printed
        assert "NAT with" not in printed
        assert counters.answered == 2


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
async def test_a_server_on_all_addresses_answers_from_the_one_that_was_asked(
    lab: Laboratory, family: socket.AddressFamily
) -> None:
    host = lab.site("firewall").host  # lets in answers from where it asked, and nothing else
    addresses = lab.server.ipv4_addresses if family == socket.AF_INET else lab.server.ipv6_addresses
    async with our_server(lab, ["0.0.0.0", "::"]):  # noqa: S104
        with trio.socket.from_stdlib_socket(host.socket(family)) as client:
            for address in addresses:
                assert str((await mapped(client, (address, PORT))).ip) in (host.ipv4, host.ipv6)


@pytest.mark.parametrize("protocol", ["udp", "tcp"])
async def test_our_daemon_comes_to_the_same_verdicts_as_with_coturn(lab: Laboratory, protocol: str) -> None:
    arguments = [stun_arguments(lab.stun), stun_arguments(own_stun(lab))]
    places = [(lab.site(kind).host, words) for kind in JUDGED for words in arguments]
    verdicts: list[str] = []
    async with our_server(lab) as counters:
        with daemons(places) as running:
            for daemon in running:
                await daemon.until_ready()
                async with Daemon.connect(daemon.path) as application:
                    verdicts.append((await application.probe(protocol)).mapping)
        assert counters.answered >= (2 * len(JUDGED) if protocol == "udp" else 0)
        assert counters.accepted == (2 * len(JUDGED) if protocol == "tcp" else 0)
    assert dict(zip(JUDGED, verdicts[1::2], strict=True)) == dict(zip(JUDGED, verdicts[::2], strict=True))
    assert len(set(verdicts)) >= 4  # or the NATs have not been told apart at all


@pytest.mark.parametrize("techniques", ["udp", "tcp-nutss"])
async def test_an_attempt_connects_with_our_server(lab: Laboratory, techniques: str) -> None:
    words = stun_arguments(own_stun(lab))
    async with our_server(lab) as counters:
        with daemons([(lab.site(kind).host, words) for kind in ("apdf", "symmetric-sequential")]) as running:
            for daemon in running:
                await daemon.until_ready()
            async with applications(running[0].path, running[1].path) as (a, b):
                outcome = await attempt(a, b, techniques=techniques, late_s=0.15)
                assert outcome.connected, outcome.explain()
                if techniques == "udp":
                    assert await exchange(outcome, count=10) == (10, 10)
                outcome.close()
        assert counters.answered if techniques == "udp" else counters.accepted
