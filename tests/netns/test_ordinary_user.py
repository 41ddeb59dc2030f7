"""Daemons with less than root: which technique connects with which capability, through two real NATs, end to end.

Everybody but root gets capabilities as systemd gives them: an ordinary user, ambient, nothing else in the bounding set.
The classic form of `tcp-nutss` (no raw packets) is all that a daemon without CAP_NET_RAW has for TCP.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from punchd.client import Event, OkProbe, Relay
from punchd.client.trio_client import Daemon
from tests.natlab import KINDS, Laboratory, Link, Site
from tests.netns.daemons import Punchd, open_to_all, punchd
from tests.netns.firewall_process import has_exemption, rules
from tests.netns.tcp_pair import LATE_S, assert_usable
from tests.pair import Outcome, attempt, exchange, stun_arguments

pytestmark = pytest.mark.netns

UID = 54321
EVERYTHING = "tcp-syni,tcp-nutss,tcp-repair,udp"
BOTH, ADMIN, RAW, NONE = "+net_raw,+net_admin", "+net_admin", "+net_raw", ""


@pytest.fixture(name="laboratory", scope="module")
def _laboratory() -> Iterator[Laboratory]:
    wan = Link(delay_s=0.01)
    with Laboratory([Site(name, KINDS["apdf"], wan=wan) for name in "ab"]) as laboratory:
        yield laboratory


def as_user(capabilities: str) -> list[str]:
    """Words before a command: an ordinary user with these capabilities and no way to get others."""
    only = ",".join(filter(None, ("-all", capabilities)))
    words = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "--no-new-privs"]
    return [*words, f"--inh-caps={only}", f"--ambient-caps={only}", f"--bounding-set={only}", "--"]


def started(laboratory: Laboratory, directory: Path, name: str, capabilities: str, *arguments: str) -> Punchd:
    words = [*stun_arguments(laboratory.stun), "--techniques", EVERYTHING, *arguments]
    host = laboratory.site(name).host
    return punchd(open_to_all(directory), *words, starter=host.popen, name=name, prefix=as_user(capabilities))


@asynccontextmanager
async def pair(
    laboratory: Laboratory, directory: Path, capabilities: Sequence[str], *arguments: str
) -> AsyncIterator[tuple[Daemon, Daemon]]:
    """A daemon in either host, with these capabilities."""
    with ExitStack() as owned:
        running = [
            owned.enter_context(started(laboratory, directory, name, having, *arguments))
            for name, having in zip("ab", capabilities, strict=True)
        ]
        paths = [str(daemon.ready().path) for daemon in running]
        async with (
            Daemon.connect(paths[0], trusted_uids={UID}) as a,
            Daemon.connect(paths[1], trusted_uids={UID}) as b,
        ):
            yield a, b


class Exempt:
    """Looks at both hosts' firewalls whenever a token leaves, and afterwards."""

    def __init__(self, laboratory: Laboratory, own: tuple[OkProbe, OkProbe]) -> None:
        self._ports = {name: (laboratory.site(name).host, probed.lport) for name, probed in zip("ab", own, strict=True)}
        self.meanwhile: set[str] = set()

    def look(self, name: str, event: Event) -> None:
        if isinstance(event, Relay) and has_exemption(*self._ports[name]):
            self.meanwhile.add(name)

    def now(self) -> set[str]:
        return {name for name, place in self._ports.items() if has_exemption(*place)}


async def tcp_attempt(laboratory: Laboratory, both: tuple[Daemon, Daemon], technique: str) -> tuple[Outcome, set[str]]:
    """An attempt, and the hosts in which there was an exemption while it ran; there is none when it has ended."""
    own = await both[0].probe("tcp"), await both[1].probe("tcp")
    exempt = Exempt(laboratory, own)
    outcome = await attempt(
        *both, own=own, late_s=LATE_S, techniques=technique, timeout_ms=12_000, on_event=exempt.look
    )
    assert exempt.now() == set()
    return outcome, exempt.meanwhile


async def test_an_ordinary_user_with_both_capabilities_connects_with_every_technique(
    laboratory: Laboratory, tmp_path: Path
) -> None:
    async with pair(laboratory, tmp_path, [BOTH, BOTH]) as both:
        assert [end.greeting and end.greeting.techniques for end in both] == [tuple(EVERYTHING.split(","))] * 2
        for technique in ("tcp-nutss", "tcp-syni", "tcp-repair"):
            outcome, exempt = await tcp_attempt(laboratory, both, technique)
            assert outcome.connected, f"{technique}: {outcome.explain()}"
            assert exempt == set(), "no rule is made where raw packets can be sent"
            await assert_usable(outcome)
        outcome = await attempt(*both, late_s=LATE_S, techniques="udp")
        assert await exchange(outcome, 10) == (10, 10), outcome.explain()
        outcome.close()


@pytest.mark.parametrize(
    ("capabilities", "exempt"),
    [((ADMIN, ADMIN), {"a", "b"}), ((ADMIN, BOTH), {"a"}), ((BOTH, ADMIN), {"b"})],
    ids=["both classic", "initiator classic", "responder classic"],
)
async def test_with_net_admin_only_tcp_nutss_connects_in_its_classic_form_within_an_exemption(
    laboratory: Laboratory, tmp_path: Path, capabilities: tuple[str, str], exempt: set[str]
) -> None:
    async with pair(laboratory, tmp_path, capabilities) as both:
        for end, having in zip(both, capabilities, strict=True):
            if having == ADMIN:
                assert end.greeting is not None
                assert end.greeting.techniques == ("tcp-nutss", "udp")
        for _ in range(2):
            outcome, meanwhile = await tcp_attempt(laboratory, both, "tcp-nutss")
            assert outcome.connected, outcome.explain()
            assert meanwhile == exempt
            await assert_usable(outcome, size=100_000)
    assert "punchd" not in rules(laboratory.site("a").host) + rules(laboratory.site("b").host)


async def test_with_net_raw_only_udp_connects(laboratory: Laboratory, tmp_path: Path) -> None:
    async with pair(laboratory, tmp_path, [RAW, RAW]) as both:
        outcome = await attempt(*both, late_s=LATE_S, techniques="auto")
        assert await exchange(outcome, 10) == (10, 10), outcome.explain()
        outcome.close()


@dataclass(frozen=True, slots=True)
class Lack:
    """What a daemon has, what it offers then, and what it says that others lack."""

    capabilities: str
    offered: str
    lacking: dict[str, str]
    arguments: tuple[str, ...] = ()


EITHER = "CAP_NET_RAW (or a firewall for exemptions)"
LACKS = {
    "net_raw": Lack(RAW, "udp", dict.fromkeys(("tcp-nutss", "tcp-syni", "tcp-repair"), "CAP_NET_ADMIN")),
    "net_admin": Lack(ADMIN, "tcp-nutss,udp", dict.fromkeys(("tcp-syni", "tcp-repair"), "CAP_NET_RAW")),
    "net_admin without a firewall": Lack(
        ADMIN, "udp", {"tcp-nutss": EITHER, "tcp-syni": "CAP_NET_RAW"}, ("--firewall", "none")
    ),
    "none": Lack(NONE, "udp", {"tcp-nutss": f"CAP_NET_ADMIN, {EITHER}", "tcp-syni": "CAP_NET_RAW, CAP_NET_ADMIN"}),
}


@pytest.mark.parametrize("lack", LACKS.values(), ids=LACKS)
def test_what_does_not_work_is_not_offered_and_names_what_it_lacks(
    laboratory: Laboratory, tmp_path: Path, lack: Lack
) -> None:
    with started(laboratory, tmp_path, "a", lack.capabilities, *lack.arguments) as daemon:
        with daemon.ready().talk() as talk:
            talk.send("hello|1")
            assert talk.line().split("|")[4] == lack.offered
            for technique, what in lack.lacking.items():
                talk.send(f"initiate|x|{technique}|203.0.113.7|40000")
                assert talk.line() == f"error|x|no-privilege|no technique can be used: {technique} needs {what}"
            talk.send("probe|p|tcp|lport=40000")
            wanted = "ok|p|" if "tcp" in lack.offered else "error|p|no-privilege|no technique for TCP can be used: "
            assert talk.line().startswith(wanted)
        for technique, what in lack.lacking.items():
            assert f"technique {technique} cannot be used: it needs {what}" in daemon.output


def test_a_backend_that_needs_more_is_one_line_and_78(laboratory: Laboratory, tmp_path: Path) -> None:
    """libiptc opens a raw socket, whatever the kernel asks for; and the lock of iptables is root's."""
    for capabilities, why in (
        (ADMIN, "firewall iptables: needs CAP_NET_RAW, which this process does not have"),
        (RAW, "firewall iptables: needs CAP_NET_ADMIN, which this process does not have"),
    ):
        with started(laboratory, tmp_path, "a", capabilities, "--firewall", "iptables") as daemon:
            assert daemon.wait() == 78
            assert daemon.output.splitlines()[-1] == f"punchd: {why}"
            assert not daemon.path.exists()
