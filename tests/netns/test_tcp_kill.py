"""kill -9 of a daemon at any moment of a TCP technique, between two NATs.

What must hold afterwards: in the dead one's host no socket, process or firewall rule stays; the other side ends in
time. With an error, mostly. If it had its ok before, then its application learns from TCP: the kernel of the dead
daemon's host closes what that had not handed over, so that the peer's socket reads the end of the data, or a reset.
Only sockets that both applications hold live on. Nobody keeps half a connection.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import trio

from tests.natlab import KINDS, Host, Laboratory, Link, Site
from tests.netns.daemons import HANG_S, Talk, until
from tests.netns.tcp_pair import TECHNIQUES, Pair, initiation, pair, relay, tcp_sockets
from tests.netns.test_kill import (
    TIMEOUT_S,
    Side,
    assert_connected,
    assert_ended_in_time,
    daemon,
    inhabitants,
    other_name,
    play,
)

pytestmark = pytest.mark.netns

_RANDOM = random.Random(30)
# An attempt takes about 0.15 s here. A quarter of the moments run always, the others with --long.
MOMENTS = [
    pytest.param(round(_RANDOM.uniform(0, 0.15), 4), "ab"[index % 2], marks=[pytest.mark.long] if index >= 6 else [])
    for index in range(24)
]
FRESH_PORTS = itertools.count(41000)  # what an earlier test's sockets leave in TIME_WAIT is not in the way


@pytest.fixture(name="laboratory", scope="module")
def _laboratory() -> Iterator[Laboratory]:
    wan = Link(delay_s=0.01)
    with Laboratory([Site(name, KINDS["apdf"], wan=wan) for name in "ab"]) as laboratory:
        yield laboratory


def rules(host: Host) -> bytes:
    """All that nft knows in a host; iptables' tables are among them, where that is nft's."""
    found = host.run(["nft", "list", "ruleset"], capture_output=True, check=True)
    legacy = host.run(["iptables-legacy-save"], capture_output=True, check=True)
    return bytes(found.stdout) + b"".join(line for line in legacy.stdout.splitlines() if line.startswith(b"-A"))


@pytest.mark.parametrize(("after_s", "victim"), MOMENTS)
@pytest.mark.parametrize("technique", TECHNIQUES)
def test_a_daemon_that_is_killed_leaves_no_socket_rule_or_half_open_victim(
    laboratory: Laboratory, tmp_path: Path, technique: str, after_s: float, victim: str
) -> None:
    hosts = {name: laboratory.site(name).host for name in "ab"}
    peer = hosts["b"].public_ipv4
    empty = inhabitants(hosts[victim]), rules(hosts[victim])
    lport = next(FRESH_PORTS)
    with ExitStack() as owned:
        daemons = {name: owned.enter_context(daemon(laboratory, name, tmp_path, technique)) for name in "ab"}
        sides = {}
        for name, running in daemons.items():
            sides[name] = Side(owned.enter_context(running.ready().talk()), name == "a", known=name == "a")
        dead, other = daemons[victim], other_name(victim)
        idle = rules(hosts[other])

        def kill() -> None:
            os.kill(dead.pid, signal.SIGKILL)
            dead.wait()

        play(sides["a"], sides["b"], peer, kill, after_s, technique=technique, lport=lport)
        survivor = sides[other]
        if survivor.known:
            assert_ended_in_time(survivor)
        holders = [name for name, side in sides.items() if side.verdict.startswith("ok|")]
        print(f"{technique} {victim} killed after {after_s:g} s, ok: {holders}, {survivor.verdict}")
        if holders == [other]:
            assert_told_by_tcp(survivor.talk.fds[0])
        elif len(holders) == 2:
            assert_connected(sides["a"], sides["b"])
        for side in sides.values():
            side.talk.close()
        assert (inhabitants(hosts[victim]), rules(hosts[victim])) == empty
        for name, host in hosts.items():
            until(lambda host=host: not tcp_sockets(host), f"no TCP socket stays in {name}: {tcp_sockets(host)}")  # type: ignore[misc]
        assert rules(hosts[other]) == idle

        lport = next(FRESH_PORTS) if holders else lport  # an application's TIME_WAIT holds its port, as any would
        again = owned.enter_context(daemon(laboratory, victim, tmp_path, technique))
        talks = {victim: again.ready().talk(), other: daemons[other].talk()}
        fresh = {name: Side(owned.enter_context(talk), name == "a", known=name == "a") for name, talk in talks.items()}
        play(fresh["a"], fresh["b"], peer, lambda: None, TIMEOUT_S, technique=technique, lport=lport)
        for side in fresh.values():
            assert side.verdict.startswith(f"ok|x|{technique}|"), side.verdict


def assert_told_by_tcp(descriptor: int) -> None:
    """The socket reads the end of the data or a reset, whichever came."""
    with socket.socket(fileno=os.dup(descriptor)) as own:
        own.settimeout(HANG_S)
        with suppress(ConnectionResetError):
            assert own.recv(1) == b""


@pytest.mark.parametrize(("technique", "victim"), [(name, victim) for name in TECHNIQUES for victim in "ab"])
async def test_when_one_daemon_is_killed_in_mid_round_the_other_ends_in_time_and_nothing_stays(
    technique: str, victim: str
) -> None:
    # with delays of 30 ms and tokens that take no time, the answer is there long before anything is established
    async with pair("apdf", "apdf", links=(Link(delay_s=0.03),) * 2) as both:
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
