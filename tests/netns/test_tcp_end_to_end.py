"""TCP through two NATs with two real daemons: every technique, the socket that comes of it, and what may go wrong."""

from __future__ import annotations

import fcntl
import hashlib
import math
import os
import random
import select
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from punchd.client import AttemptError
from punchd.client.trio_client import Daemon
from tests.natlab import KINDS, Host, Laboratory, Link, Site
from tests.netns.daemons import Talk, until
from tests.netns.test_kill import inhabitants
from tests.pair import Channel, Outcome, RunningDaemon, TrioSocket, applications, attempt, daemons, stun_arguments

pytestmark = pytest.mark.netns

TECHNIQUES = ("tcp-nutss", "tcp-syni", "tcp-repair")
SEQUENCE = ",".join(TECHNIQUES)
LATE_S = 0.15
HANG_S = 20.0
TWO_MB = 2 * 1000 * 1000
ESTABLISHED = 1  # linux/tcp_states.h
TCP_REPAIR, SO_GET_FILTER = 19, 26  # linux/tcp.h, asm-generic/socket.h
DELAY_S = 0.01


Ordinary = tuple[Laboratory, list[RunningDaemon]]


@dataclass(frozen=True, slots=True)
class Pair:
    laboratory: Laboratory
    daemons: tuple[RunningDaemon, RunningDaemon]
    a: Daemon
    b: Daemon

    def host(self, name: str) -> Host:
        return self.laboratory.site(name).host

    async def attempt6(self, techniques: str) -> Outcome:
        """Between the two hosts' IPv6 addresses."""
        own = [await end.probe("tcp", local=str(self.host(name).ipv6)) for end, name in ((self.a, "a"), (self.b, "b"))]
        assert all(probed.ip.version == 6 for probed in own)
        return await attempt(self.a, self.b, own=(own[0], own[1]), late_s=LATE_S, techniques=techniques)


@asynccontextmanager
async def pair(
    kind_a: str, kind_b: str, *arguments: str, stun6: bool = False, link: Link | None = None
) -> AsyncIterator[Pair]:
    """A laboratory with two daemons that load all TCP techniques, and a connection to each."""
    wan = link or Link(delay_s=DELAY_S)
    with Laboratory([Site("a", KINDS[kind_a], wan=wan), Site("b", KINDS[kind_b], wan=wan)]) as laboratory:
        words = [*stun_arguments(laboratory.stun6 if stun6 else laboratory.stun), "--techniques", SEQUENCE, *arguments]
        with daemons([(laboratory.site(name).host, words) for name in "ab"]) as running:
            for daemon in running:
                await daemon.until_ready()
            async with applications(running[0].path, running[1].path) as (a, b):
                yield Pair(laboratory, (running[0], running[1]), a, b)


@pytest.fixture(name="ordinary", scope="module")
def _ordinary() -> Iterator[Ordinary]:
    """Two ordinary routers, and two daemons for all tests that do not harm them."""
    wan = Link(delay_s=DELAY_S)
    with Laboratory([Site(name, KINDS["apdf"], wan=wan) for name in "ab"]) as laboratory:
        words = [*stun_arguments(laboratory.stun), "--techniques", SEQUENCE]
        with daemons([(laboratory.site(name).host, words) for name in "ab"]) as running:
            yield laboratory, running


@asynccontextmanager
async def connected_to(ordinary: Ordinary) -> AsyncIterator[Pair]:
    laboratory, running = ordinary
    for daemon in running:
        await daemon.until_ready()
    async with applications(running[0].path, running[1].path) as (a, b):
        yield Pair(laboratory, (running[0], running[1]), a, b)


def sockets(outcome: Outcome) -> tuple[trio.SocketStream, trio.SocketStream]:
    """The initiator's and the responder's, as streams."""
    assert outcome.connected, outcome.explain()
    assert outcome.initiator.connected is not None
    assert outcome.responder.connected is not None
    return trio.SocketStream(outcome.initiator.connected.socket), trio.SocketStream(outcome.responder.connected.socket)


async def read_to_the_end(stream: trio.SocketStream) -> bytes:
    data = bytearray()
    while chunk := await stream.receive_some(65536):
        data += chunk
    return bytes(data)


async def assert_usable(outcome: Outcome, size: int = 1000) -> None:
    """Bytes both ways, the first one first; and each side sees the other's half-close as the end of them."""
    ends = sockets(outcome)
    sent = [random.Random(seed).randbytes(size) for seed in (1, 2)]
    received = [b"", b""]

    async def send(index: int) -> None:
        await ends[index].send_all(sent[index])
        await ends[index].send_eof()

    async def receive(index: int) -> None:
        received[index] = await read_to_the_end(ends[index])

    with trio.move_on_after(HANG_S):
        async with trio.open_nursery() as nursery:
            for index in (0, 1):
                nursery.start_soon(send, index)
                nursery.start_soon(receive, index)
    digests = [[hashlib.sha256(data).hexdigest() for data in ends] for ends in (received, sent[::-1])]
    assert digests[0] == digests[1], f"{[len(data) for data in received]} of {size} bytes; {outcome.explain()}"
    outcome.close()


def attached_filter(own: TrioSocket) -> int:
    """Instructions of a socket's filter; 0: it has none."""
    return len(own.getsockopt(socket.SOL_SOCKET, SO_GET_FILTER, 1024))  # the kernel says how many there are


# --- who connects ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("technique", "kinds"),
    [
        *((technique, ("apdf", "apdf")) for technique in TECHNIQUES),
        ("tcp-nutss", ("no-filter", "strict-conntrack")),
        ("tcp-nutss", ("strict-conntrack", "apdf")),
        ("tcp-nutss", ("icmp-prohibited", "rst")),
        ("tcp-syni", ("nosyn-after", "nosyn-after")),
        ("tcp-syni", ("nosyn-before", "apdf")),
        ("tcp-repair", ("nosyn-before", "nosyn-before")),
        ("tcp-repair", ("nosyn-after", "no-filter")),
    ],
    ids=str,
)
async def test_a_technique_connects_the_pairs_of_nats_that_it_is_for(technique: str, kinds: tuple[str, str]) -> None:
    async with pair(*kinds) as both:
        outcome = await attempt(both.a, both.b, late_s=LATE_S, techniques=technique)
        assert outcome.connected, outcome.explain()
        assert outcome.initiator.connected is not None
        assert outcome.initiator.connected.technique == technique
        await assert_usable(outcome)


@pytest.mark.parametrize("technique", ["tcp-nutss", "tcp-syni"])
async def test_a_technique_alone_fails_where_both_nats_drop_syns_untracked_and_says_why(technique: str) -> None:
    async with pair("nosyn-before", "nosyn-before") as both:
        outcome = await attempt(both.a, both.b, techniques=technique, timeout_ms=4000)
        assert outcome.initiator.error is not None, outcome.explain()
        assert outcome.responder.error is not None, outcome.explain()
        assert outcome.initiator.error.code in ("timeout", "exhausted"), outcome.explain()
        assert "answer" in str(outcome.initiator.error) or "handshake" in str(outcome.initiator.error)


async def test_a_sequence_goes_on_to_the_technique_that_can() -> None:
    async with pair("nosyn-before", "nosyn-before") as both:
        outcome = await attempt(both.a, both.b, late_s=LATE_S, techniques=SEQUENCE, timeout_ms=30_000)
        assert outcome.connected, outcome.explain()
        assert outcome.initiator.connected is not None
        assert outcome.responder.connected is not None
        assert outcome.initiator.connected.technique == outcome.responder.connected.technique == "tcp-repair"
        await assert_usable(outcome)


async def test_two_sequential_symmetric_nats_are_predicted() -> None:
    async with pair("symmetric-sequential", "symmetric-sequential") as both:
        outcome = await attempt(both.a, both.b, late_s=LATE_S, techniques=SEQUENCE, timeout_ms=30_000)
        await assert_usable(outcome)


@pytest.mark.parametrize("word", ["all", "auto"])
async def test_the_words_all_and_auto_stand_for_what_the_daemon_has(word: str) -> None:
    async with pair("no-filter", "strict-conntrack") as both:
        own = await both.a.probe("tcp"), await both.b.probe("tcp")
        outcome = await attempt(both.a, both.b, own=own, late_s=LATE_S, techniques=word, timeout_ms=20_000)
        assert outcome.connected, outcome.explain()
        await assert_usable(outcome)


async def test_ipv6_through_two_stateful_firewalls() -> None:
    async with pair("firewall", "firewall", stun6=True) as both:
        for technique in TECHNIQUES:
            outcome = await both.attempt6(technique)
            assert outcome.connected, outcome.explain()
            assert outcome.initiator.connected is not None
            assert outcome.initiator.connected.technique == technique
            assert str(outcome.initiator.connected.remote.ip) == both.host("b").ipv6
            await assert_usable(outcome, size=100_000)


@pytest.mark.parametrize("technique", TECHNIQUES)
async def test_tokens_that_are_never_relayed_back_cost_time_but_not_the_connection(
    ordinary: Ordinary, technique: str
) -> None:
    async with connected_to(ordinary) as both:
        outcome = await attempt(both.a, both.b, techniques=technique, channel=Channel(back=False), timeout_ms=15_000)
        await assert_usable(outcome)


# --- the socket -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("technique", TECHNIQUES)
async def test_the_socket_is_established_blocking_and_as_the_kernel_makes_them(
    ordinary: Ordinary, technique: str
) -> None:
    async with connected_to(ordinary) as both:
        outcome = await attempt(both.a, both.b, late_s=LATE_S, techniques=technique)
        assert outcome.connected, outcome.explain()
        for end in (outcome.initiator, outcome.responder):
            assert end.connected is not None
            own = end.connected.socket
            assert own.getsockname() == end.connected.local.sockaddr
            assert own.getpeername() == end.connected.remote.sockaddr
            assert own.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == ESTABLISHED
            assert own.getsockopt(socket.IPPROTO_IP, socket.IP_TTL) == 64
            assert own.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
            assert own.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 0
            assert own.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0
            assert own.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == bytes(8)
            assert own.getsockopt(socket.IPPROTO_TCP, TCP_REPAIR) == 0
            assert attached_filter(own) == 0
        outcome.close()


@pytest.mark.parametrize("technique", TECHNIQUES)
async def test_a_descriptor_arrives_blocking(ordinary: Ordinary, technique: str) -> None:
    """The trio client makes its own non-blocking; so both descriptors are taken as they come over the Unix socket."""
    async with connected_to(ordinary) as both:
        flags = await trio.to_thread.run_sync(raw_descriptor_flags, both, technique)
        assert [bits & os.O_NONBLOCK for bits in flags] == [0, 0]


def raw_descriptor_flags(both: Pair, technique: str) -> list[int]:
    """fcntl's flags of both sides' descriptors, from an attempt in plain lines."""
    with ExitStack() as owned:
        a, b = (owned.enter_context(Talk(Path(daemon.path))) for daemon in both.daemons)
        relay(a, b, initiation(b, technique))
        for end in (a, b):
            assert end.fds, "no descriptor came"
        return [fcntl.fcntl(end.fds[0], fcntl.F_GETFL) for end in (a, b)]


def initiation(b: Talk, technique: str, timeout_ms: int = 8000) -> str:
    """The line that begins an attempt towards what `b` probes for."""
    b.send("probe|p|tcp")
    *_, address, ports, _, lport = b.until("ok|p|probe|tcp|").split("|")
    return f"initiate|x|{technique}|{address}|{ports}|timeout={timeout_ms}#{lport}"


def relay(
    a: Talk, b: Talk, line: str, on_token: Callable[[bool], None] = lambda from_initiator: None
) -> dict[str, str]:
    """Play an attempt between two applications that relay at once; the verdicts by side ("a", "b").

    Args:
        line: of `initiation`.
        on_token: called before a token is relayed, with whose it is.
    """
    line, _, lport = line.partition("#")
    a.send(line)
    ends = {"a": a, "b": b}
    verdicts: dict[str, str] = {}
    responds = f";lport={lport}"
    while len(verdicts) < len(ends):
        readable, _, _ = select.select([end.socket for end in ends.values()], [], [], HANG_S)
        assert readable, f"nothing more comes, verdicts: {verdicts}"
        for name, end in list(ends.items()):
            with suppress(TimeoutError):
                try:
                    while True:
                        words = end.line(0).split("|")
                        if words[0] in ("ok", "error"):
                            verdicts[name] = "|".join(words)
                        elif words[4] == "relay":
                            on_token(name == "a")
                            options = f"timeout=1000{responds}" if name == "a" and responds else ""
                            responds = responds if name == "b" else ""
                            other = b if name == "a" else a
                            with suppress(OSError):
                                other.send(f"respond|x|{words[5]}|{options}" if options else f"respond|x|{words[5]}")
                except EOFError:
                    del ends[name]
                    verdicts.pop(name, None)
    return verdicts


@pytest.mark.parametrize("technique", TECHNIQUES)
async def test_two_megabytes_each_way_arrive_unaltered_and_the_first_byte_is_the_applications(
    ordinary: Ordinary, technique: str
) -> None:
    async with connected_to(ordinary) as both:
        outcome = await attempt(both.a, both.b, late_s=LATE_S, techniques=technique)
        await assert_usable(outcome, size=TWO_MB)


@pytest.mark.parametrize("technique", TECHNIQUES)
async def test_a_half_close_is_the_end_for_one_direction_only(ordinary: Ordinary, technique: str) -> None:
    async with connected_to(ordinary) as both:
        outcome = await attempt(both.a, both.b, late_s=LATE_S, techniques=technique)
        first, second = sockets(outcome)
        with trio.fail_after(HANG_S):
            await first.send_eof()
            assert await second.receive_some() == b""
            await second.send_all(b"still here")
            assert await first.receive_some() == b"still here"
            await second.send_eof()
            assert await first.receive_some() == b""
        outcome.close()


# --- what goes wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("technique", TECHNIQUES)
async def test_at_five_percent_loss_twenty_of_twenty_attempts_connect_and_carry_data(technique: str) -> None:
    """Each of the two cables between the hosts loses half of it; all attempts run at once, on ports of their own."""
    lossy = Link(delay_s=DELAY_S, loss=1 - math.sqrt(0.95), seed=len(technique))
    failures: list[str] = []
    async with pair("apdf", "apdf", link=lossy) as both, trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(note_failure, both, technique, number, failures)
    assert not failures, "\n".join(failures)


async def note_failure(both: Pair, technique: str, number: int, failures: list[str]) -> None:
    await trio.sleep(number * 0.1)
    async with applications(both.daemons[0].path, both.daemons[1].path) as (a, b):
        try:
            outcome = await attempt(a, b, late_s=LATE_S, techniques=technique, timeout_ms=30_000)
        except AttemptError as error:
            failures.append(f"{number}: probe: {error}")
            return
        if not outcome.connected:
            failures.append(f"{number}: {outcome.explain()}")
            outcome.close()
            return
        try:
            await assert_usable(outcome, size=5000)
        except (AssertionError, trio.BrokenResourceError) as error:
            failures.append(f"{number}: {error!r} {outcome.explain()}")


@pytest.mark.parametrize(("technique", "victim"), [(name, victim) for name in TECHNIQUES for victim in "ab"])
async def test_when_one_daemon_is_killed_in_mid_round_the_other_ends_in_time_and_nothing_stays(
    technique: str, victim: str
) -> None:
    # with delays of 30 ms and tokens that take no time, the answer is there long before anything is established
    async with pair("apdf", "apdf", link=Link(delay_s=0.03)) as both:
        await trio.to_thread.run_sync(kill_in_mid_round, both, technique, victim)


def kill_in_mid_round(both: Pair, technique: str, victim: str) -> None:
    dead, survivor = both.daemons if victim == "a" else both.daemons[::-1]
    with ExitStack() as owned:
        talks = [owned.enter_context(Talk(Path(daemon.path))) for daemon in both.daemons]
        line = initiation(talks[1], technique, timeout_ms=1000)

        def kill(from_initiator: bool) -> None:
            if not from_initiator and dead.process.poll() is None:
                dead.process.send_signal(signal.SIGKILL)
                dead.process.wait()

        began_at = time.monotonic()
        verdicts = relay(talks[0], talks[1], line, kill)
        assert time.monotonic() - began_at < 12, "far beyond any timeout of the survivor's"
        assert dead.process.returncode == -signal.SIGKILL
        name = "b" if victim == "a" else "a"
        assert list(verdicts) == [name]
        assert verdicts[name].startswith("error|x|"), verdicts
        assert survivor.process.poll() is None
    for host in (both.host("a"), both.host("b")):
        until(lambda host=host: not tcp_sockets(host), "no TCP socket stays")  # type: ignore[misc]
    assert str(dead.process.pid) not in {str(pid) for pid in inhabitants(both.host(victim))}


def tcp_sockets(host: Host) -> list[str]:
    """The TCP sockets of a host that belong to a process: state and local port. TIME_WAIT belongs to none."""
    with host.entered():
        lines = Path("/proc/thread-self/net/tcp").read_text().splitlines()[1:]
    return [f"{line.split()[3]} {line.split()[1]}" for line in lines if line.split()[3] != "06"]
