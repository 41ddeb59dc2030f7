"""Exemptions as a whole process holds them: made, undone, shared, refused, and what is left of them after SIGKILL."""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Iterator

import pytest

from tests.natlab import Laboratory, Node, Site
from tests.netns.firewall_process import BACKENDS, FAMILIES, NEEDS_IPTC, Daemon, daemon, has_exemption, rules

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="builds network namespaces: run the tests as root"),
]

KILLS = 30
WITHOUT_NET_ADMIN = ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"]
OTHER_USER_NAMESPACE = ["unshare", "--user", "--map-root-user"]  # all capabilities, none over the network


@pytest.fixture(scope="module")
def host() -> Iterator[Node]:
    with Laboratory([Site("a")], stun=False) as lab:
        yield lab.site("a").host


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_exemption_ends_with_its_scope_however_that_ends(host: Node, backend: str) -> None:
    before = rules(host)
    with daemon(host, backend) as running:
        for how, version in itertools.product(["return", "cancel", "raise"], FAMILIES):
            running.hold(40001, version)
            assert has_exemption(host, 40001)
            running.leave(40001, how, version)
            assert not has_exemption(host, 40001)
    assert rules(host) == before
    assert "punchd" not in before


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_daemons_in_one_namespace_do_not_disturb_each_other(host: Node, backend: str) -> None:
    with daemon(host, backend) as one, daemon(host, backend) as two:
        one.hold(40001)
        two.hold(40002)
        two.hold(40001)
        one.leave(40001)
        assert has_exemption(host, 40002)
        assert "40001" in rules(host)
        one.kill()
        assert "40001" in rules(host)
        two.leave(40001)
        two.leave(40002)
        assert not has_exemption(host, 40001)


def test_none_changes_nothing(host: Node) -> None:
    before = rules(host)
    with daemon(host, "none") as running:
        assert running.greeting == "firewall none for"
        running.hold(40001)
        assert rules(host) == before


def test_auto_takes_nft(host: Node) -> None:
    with daemon(host, "auto") as running:
        assert running.greeting == "firewall nft for 4 6"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("wrapper", "reason"),
    [(WITHOUT_NET_ADMIN, "CAP_NET_ADMIN"), (OTHER_USER_NAMESPACE, "ermi")],  # permitted, Permission
    ids=["no capability", "capability elsewhere"],
)
def test_without_privilege_a_backend_says_so_and_does_not_hang(
    host: Node, backend: str, wrapper: list[str], reason: str
) -> None:
    start = time.monotonic()
    running = Daemon(host, backend, wrapper=wrapper)
    print(running.greeting)
    running.end()
    assert running.greeting.startswith(f"error firewall {backend}: ")
    assert reason in running.greeting
    assert time.monotonic() - start < 10  # starting Python takes half a second, on a busy machine more


@pytest.mark.parametrize("wrapper", [WITHOUT_NET_ADMIN, OTHER_USER_NAMESPACE], ids=["none", "elsewhere"])
def test_without_privilege_auto_does_without_and_logs_why(host: Node, wrapper: list[str]) -> None:
    running = Daemon(host, "auto", wrapper=wrapper)
    assert running.greeting == "firewall none for"
    log = running.end()
    assert "firewall nft: " in log
    assert "firewall iptables: " in log


def test_after_sigkill_at_any_moment_nothing_of_nft_stays(host: Node) -> None:
    """In quick succession, and always several at a time."""
    chance = random.Random(1)
    for _ in range(KILLS // 6):
        crowd = [Daemon(host, "nft") for _ in range(6)]
        assert [one.ask("storm") for one in crowd] == ["storming"] * 6
        before = rules(host)
        for one in crowd:
            assert f"punchd-{one.pid}-" in before
            time.sleep(chance.random() * 0.02)
            one.kill()
            assert f"punchd-{one.pid}-" not in rules(host)
    assert "punchd" not in rules(host)


@NEEDS_IPTC
def test_after_sigkill_at_any_moment_the_next_start_removes_what_iptables_kept(host: Node) -> None:
    chance = random.Random(2)
    with daemon(host, "iptables") as neighbour:
        neighbour.hold(50000)
        crowd = [Daemon(host, "iptables") for _ in range(6)]
        for number, one in enumerate(crowd):
            one.hold(50001 + number)
            assert one.ask("storm") == "storming"
        for one in crowd:
            time.sleep(chance.random() * 0.02)
            one.kill()
        left = rules(host)
        assert all(f"punchd:{one.pid}:" in left for one in crowd)
        with daemon(host, "iptables"):
            found = rules(host)
        assert [one.pid for one in crowd if f"punchd:{one.pid}:" in found] == []
        assert has_exemption(host, 50000)
    assert "punchd" not in rules(host)
