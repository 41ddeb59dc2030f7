"""An application's own socket, connected by a daemon of another user, through two NATs: whose it is afterwards."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio

from punchd.client import AttemptError, Failed
from punchd.client.transport import cookie_of
from punchd.client.trio_client import Daemon
from tests.natlab import KINDS, Host, Laboratory, Link, Site
from tests.netns.daemons import open_to_all, punchd
from tests.netns.tcp_pair import LATE_S, assert_usable
from tests.netns.test_ordinary_user import BOTH, UID, as_user
from tests.pair import Outcome, attempt, exchange, stun_arguments

pytestmark = pytest.mark.netns

CLOSED = 7  # TCP_CLOSE, linux/tcp_states.h
PASSING = [(True, False), (False, True), (True, True)]
NAMES = ["initiator", "responder", "both"]


@pytest.fixture(name="laboratory", scope="module")
def _laboratory() -> Iterator[Laboratory]:
    wan = Link(delay_s=0.01)
    with Laboratory([Site(name, KINDS["apdf"], wan=wan) for name in "ab"]) as laboratory:
        yield laboratory


@asynccontextmanager
async def applications(laboratory: Laboratory, directory: Path) -> AsyncIterator[tuple[Daemon, Daemon]]:
    """Connections of this user (root) to two daemons of another one, which take sockets."""
    settings = directory / "punchd.toml"
    settings.write_text("accept-sockets = true\n")
    words = [*stun_arguments(laboratory.stun), "--techniques", "udp,tcp-nutss,tcp-syni,tcp-repair"]
    with ExitStack() as owned:
        paths = []
        for name in "ab":
            host = laboratory.site(name).host
            starter = punchd(
                open_to_all(directory),
                *words,
                "--config",
                str(settings),
                starter=host.popen,
                name=name,
                prefix=as_user(BOTH),
            )
            paths.append(str(owned.enter_context(starter).ready().path))
        async with Daemon.connect(paths[0], trusted_uids={UID}) as a, Daemon.connect(paths[1], trusted_uids={UID}) as b:
            yield a, b


def made_in(host: Host, kind: socket.SocketKind, family: int = socket.AF_INET) -> socket.socket:
    with host.entered():
        return socket.socket(family, kind)


def uid_of(host: Host, protocol: str, port: int) -> list[int]:
    """Whose the sockets at a local port are: column `uid` of /proc/net/udp or tcp; those in TIME_WAIT are nobody's."""
    text = host.run(["cat", f"/proc/self/net/{protocol}"], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in text.splitlines()[1:]]
    return [int(row[7]) for row in rows if int(row[1].rpartition(":")[2], 16) == port and row[3] in ("01", "07")]


def assert_owners(laboratory: Laboratory, outcome: Outcome, protocol: str, passing: tuple[bool, bool]) -> None:
    for name, end, passed in zip("ab", (outcome.initiator, outcome.responder), passing, strict=True):
        assert end.connected is not None
        owners = uid_of(laboratory.site(name).host, protocol, end.connected.local.port)
        assert owners == [os.geteuid() if passed else UID], f"{name}: {owners}"


@pytest.mark.parametrize("passing", PASSING, ids=NAMES)
@pytest.mark.parametrize(("protocol", "technique"), [("udp", "udp"), ("tcp", "tcp-nutss")])
async def test_a_passed_socket_is_the_one_that_is_connected_and_stays_its_users(
    laboratory: Laboratory, tmp_path: Path, protocol: str, technique: str, passing: tuple[bool, bool]
) -> None:
    kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
    own = [
        made_in(laboratory.site(name).host, kind) if passed else None
        for name, passed in zip("ab", passing, strict=True)
    ]
    async with applications(laboratory, tmp_path) as both:
        outcome = await attempt(*both, late_s=LATE_S, techniques=technique, timeout_ms=12_000, passed=(own[0], own[1]))
        assert outcome.connected, outcome.explain()
        assert_owners(laboratory, outcome, protocol, passing)
        for mine, end in zip(own, (outcome.initiator, outcome.responder), strict=True):
            assert end.connected is not None
            if mine is not None:
                assert mine.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 0
                assert cookie_of(mine.fileno()) == cookie_of(end.connected.socket.fileno())
                assert mine.getpeername() == end.connected.remote.sockaddr
        if protocol == "udp":
            assert await exchange(outcome) == (1, 1)
        else:
            await assert_usable(outcome)
    outcome.close()
    for mine in own:
        if mine is not None:
            mine.close()


@pytest.mark.parametrize(("protocol", "technique"), [("udp", "udp"), ("tcp", "tcp-nutss")])
async def test_over_ipv6_as_well(laboratory: Laboratory, tmp_path: Path, protocol: str, technique: str) -> None:
    kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
    hosts = [laboratory.site(name).host for name in "ab"]
    with made_in(hosts[0], kind, socket.AF_INET6) as own:
        async with applications(laboratory, tmp_path) as both:
            probed = [await end.probe(protocol, local=str(host.ipv6)) for end, host in zip(both, hosts, strict=True)]
            outcome = await attempt(
                *both,
                own=(probed[0], probed[1]),
                late_s=LATE_S,
                techniques=technique,
                timeout_ms=12_000,
                passed=(own, None),
            )
            assert outcome.connected, outcome.explain()
            assert outcome.initiator.connected is not None
            assert own.getpeername()[:2] == outcome.initiator.connected.remote.sockaddr[:2]
            assert uid_of(hosts[0], f"{protocol}6", own.getsockname()[1]) == [os.geteuid()]
        outcome.close()


async def test_techniques_that_need_more_of_a_socket_say_so_and_the_next_one_gets_it(
    laboratory: Laboratory, tmp_path: Path
) -> None:
    with made_in(laboratory.site("a").host, socket.SOCK_STREAM) as own:
        async with applications(laboratory, tmp_path) as both:
            outcome = await attempt(
                *both, late_s=LATE_S, techniques="tcp-syni,tcp-repair,tcp-nutss", timeout_ms=20_000, passed=(own, None)
            )
            assert outcome.connected, outcome.explain()
            failures = [event for _, event in outcome.initiator.events if isinstance(event, Failed)]
            assert {failure.technique for failure in failures} == {"tcp-syni", "tcp-repair"}
            assert {failure.code for failure in failures} <= {"unsupported", "peer-skip"}
            assert_owners(laboratory, outcome, "tcp", (True, False))
            await assert_usable(outcome)
        outcome.close()


def state_of(own: socket.socket) -> int:
    return own.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


async def test_after_a_failure_nothing_more_is_sent_from_the_socket(laboratory: Laboratory, tmp_path: Path) -> None:
    """The application still holds it: closing the daemon's descriptor would leave it in SYN_SENT."""
    host = laboratory.site("a").host
    with made_in(host, socket.SOCK_STREAM) as own:
        async with applications(laboratory, tmp_path) as (a, _):
            where = (await a.probe("tcp")).lport
            async with a.initiate(
                "203.0.113.99", 40000, techniques="tcp-nutss", sock=own, lport=where, timeout_ms=2000
            ) as running:
                with pytest.raises(AttemptError, match=r"exhausted|timeout"):
                    async for _ in running:
                        pass
            assert own.getsockname()[1] == where, "it was used"
            with trio.fail_after(20):
                while state_of(own) != CLOSED or not os.get_blocking(own.fileno()):  # noqa: ASYNC110 (the kernel's)
                    await trio.sleep(0.02)
