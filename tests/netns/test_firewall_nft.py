"""The owner table in a namespace: who may touch it, its bounds, its timeouts. In this process: a socket is enough."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from punchd.errors import KernelError
from punchd.kernel.firewall import Exemption, nft
from punchd.kernel.firewall.nft import NftTable
from tests.natlab import Laboratory, Node, Site

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="builds network namespaces: run the tests as root"),
]

WEB = Exemption(socket.AF_INET, 80, b"")


@pytest.fixture(scope="module")
def host() -> Iterator[Node]:
    with Laboratory([Site("a")], stun=False) as lab:
        yield lab.site("a").host


@pytest.fixture
def table(host: Node) -> Iterator[NftTable]:
    with host.entered():
        table = NftTable()
    yield table
    table.close()
    assert table.table not in ruleset(host)


def ruleset(host: Node) -> str:
    return str(host.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout)


def test_nftables_reads_the_rules_as_they_were_meant(host: Node, table: NftTable) -> None:
    table.make(WEB)
    text = ruleset(host)
    assert "flags owner" in text
    assert "type filter hook input priority filter; policy accept;" in text
    assert "icmp type time-exceeded @th,136,8 0x6 @th,224,16 @ports4 drop" in text
    assert "icmpv6 type time-exceeded @th,112,8 0x6 @th,384,16 @ports6 drop" in text
    assert "80 timeout 3m" in text
    assert f"size {nft.LIMIT}" in text


def test_nobody_else_can_change_the_table(host: Node, table: NftTable) -> None:
    table.make(WEB)
    host.run(["nft", "add", "table", "inet", "foreign"], check=True)
    for command in (
        f"delete table inet {table.table}",
        f"flush set inet {table.table} ports4",
        f"add element inet {table.table} ports4 {{ 81 }}",
    ):
        done = host.run(["nft", command], capture_output=True, text=True)
        assert "Operation not permitted" in done.stderr
    host.run(["nft", "flush", "ruleset"], check=True)
    assert "80 timeout 3m" in ruleset(host)
    assert "foreign" not in ruleset(host)


def test_making_it_again_renews_the_timeout(host: Node, table: NftTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nft, "TIMEOUT_MS", 200)
    table.make(WEB)
    monkeypatch.setattr(nft, "TIMEOUT_MS", 60_000)
    table.make(WEB)
    time.sleep(0.4)
    assert "80 timeout 1m" in ruleset(host)


def test_an_element_that_nobody_removes_times_out_and_may_be_made_and_removed_again(
    host: Node, table: NftTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nft, "TIMEOUT_MS", 50)
    table.make(WEB)
    time.sleep(0.1)
    assert "80 timeout" not in ruleset(host)
    table.undo(WEB)
    table.make(WEB)
    time.sleep(0.1)
    monkeypatch.setattr(nft, "TIMEOUT_MS", 60_000)
    table.make(WEB)
    assert "80 timeout 1m" in ruleset(host)


def test_the_kernel_holds_no_more_elements_than_the_limit(table: NftTable) -> None:
    for port in range(1, nft.LIMIT + 1):
        table.make(Exemption(socket.AF_INET, port, b""))
    with pytest.raises(KernelError, match="exempt port 2000: ENFILE"):
        table.make(Exemption(socket.AF_INET, 2000, b""))
    assert table.make(Exemption(socket.AF_INET6, 2000, b""))
    table.undo(WEB)
    assert table.make(Exemption(socket.AF_INET, 2000, b""))


def test_undoing_after_close_is_quiet_and_making_is_not(host: Node) -> None:
    with host.entered():
        table = NftTable()
    table.make(WEB)
    table.close()
    assert table.undo(WEB)
    with pytest.raises(KernelError, match="EBADF"):
        table.make(WEB)


def test_beside_a_program_that_loads_large_rule_sets_no_change_gets_lost(host: Node, table: NftTable) -> None:
    """All writers of nftables share a kernel lock; meanwhile ours wait, which is why they run in a thread."""
    elements = ",".join(f"10.0.{number >> 8}.{number & 255}" for number in range(5000))
    text = f"table inet big {{ set s {{ type ipv4_addr; elements = {{ {elements} }}; }}; }}\ndelete table inet big\n"

    def load() -> None:
        for _ in range(5):
            host.run(["nft", "-f", "-"], input=text, text=True, check=True, stdout=subprocess.DEVNULL)

    other = threading.Thread(target=load)
    other.start()
    longest_s, changes = 0.0, 0
    while other.is_alive():
        start = time.monotonic()
        table.make(WEB)
        table.undo(WEB)
        longest_s, changes = max(longest_s, time.monotonic() - start), changes + 2
    other.join()
    print(f"{changes} changes, the longest pair {longest_s * 1000:.1f} ms")
    assert "80 timeout" not in ruleset(host)
    assert longest_s < nft._ANSWER_S


def test_a_table_is_made_and_removed_many_times_without_leaking_descriptors(host: Node) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        with host.entered():
            NftTable().close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert "punchd" not in ruleset(host)
