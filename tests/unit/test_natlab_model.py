"""Descriptions, kinds and rules of the laboratory: pure, so no privilege is needed."""

from __future__ import annotations

import re

import pytest

from tests.natlab import KINDS, MATRIX, Engine, Filtering, Link, Mapping, Nat, Ports, Site, TcpTracking, kind
from tests.natlab.model import Unsolicited, decode, encode
from tests.natlab.proof import expected
from tests.natlab.rules import provider_rules, ruleset, tracking


def test_the_matrix_has_the_twenty_kinds_and_each_says_who_behaves_so() -> None:
    assert len(MATRIX) == 20
    assert all(nat.summary for nat in KINDS.values())


def test_no_two_kinds_promise_the_same_but_those_that_differ_by_time_only() -> None:
    promises: dict[object, list[str]] = {}
    for name, nat in KINDS.items():
        promises.setdefault(expected(nat, far_provider="far"), []).append(name)
    assert [names for names in promises.values() if len(names) > 1] == [["apdf", "short-timeouts"]]


def test_an_unknown_kind_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'symetric-random'.*nearest is 'symmetric-random'"):
        kind("symetric-random")


@pytest.mark.parametrize(
    ("description", "why"),
    [
        ({"mapping": Mapping.ADDRESS_DEPENDENT}, "userspace"),
        ({"mapping": Mapping.ADDRESS_AND_PORT_DEPENDENT}, "fresh ports"),
        ({"ports": Ports.RANDOM}, "fresh ports"),
        ({"filtering": Filtering.NONE}, "always filters"),
        ({"rewrites_sequence": True}, "userspace"),
        ({"tcp": TcpTracking.ABSENT}, "conntrack follows"),
        ({"engine": Engine.STATELESS}, "stateless engine does not"),
        ({"engine": Engine.STATELESS, "tcp": TcpTracking.ABSENT, "ports": Ports.SCRAMBLED}, "one behaviour"),
        ({"engine": Engine.USERSPACE}, "strict or does not track"),
        (
            {"engine": Engine.USERSPACE, "tcp": TcpTracking.STRICT, "unsolicited": Unsolicited.RESET},
            "answers nothing",
        ),
        ({"mapping": Mapping.NONE, "carrier": Nat()}, "needs a NAT behind"),
        ({"carrier": Nat(mapping=Mapping.NONE)}, "must translate"),
        ({"port_range": (80, 90)}, "1024-65535"),
        ({"port_step": 0}, "1-64"),
    ],
)
def test_a_nat_that_its_engine_cannot_be_is_refused(description: dict[str, object], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Nat(**description)  # type: ignore[arg-type] # the table holds every field's type


@pytest.mark.parametrize("name", [name for name, nat in KINDS.items() if nat.engine is Engine.USERSPACE])
def test_a_userspace_nat_reaches_its_process_unchanged(name: str) -> None:
    assert decode(encode(KINDS[name])) == KINDS[name]


@pytest.mark.parametrize("name", ["", "Upper", "with space", "-x", "x-", "a" * 41, "core", "server", "isp-left"])
def test_a_site_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="site's name"):
        Site(name)


@pytest.mark.parametrize(
    "faults",
    [
        {"delay_s": -0.1},
        {"delay_s": 61.0},
        {"jitter_s": 0.1},
        {"loss": 1.1},
        {"reorder": -1.0},
        {"reorder": 0.5},
    ],
)
def test_a_link_that_cannot_be_is_refused(faults: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"expected|needs a delay"):
        Link(**faults)  # type: ignore[arg-type] # no seed among them


def rules(name: str) -> str:
    return ruleset(KINDS[name], public="198.51.100.1", host="100.100.1.2")


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("apdf", r'oifname "wan" meta nfproto ipv4 snat ip to 198\.51\.100\.1\n'),
        ("full-cone", r"dnat ip to udp dport map @mapped_udp\n"),
        ("adf", r"ip saddr \. tcp dport @peers_tcp dnat ip to tcp dport map @mapped_tcp\n"),
        ("symmetric-random", r"snat ip to 198\.51\.100\.1 : 20000-60000 fully-random\n"),
        ("symmetric-sequential", r"numgen inc mod 2000 map \{ 0 : 40000, 1 : 40001, .*1999 : 41999 \}\n"),
        ("symmetric-sequential-4", r"numgen inc mod 2000 map \{ 0 : 40000, 1 : 40004, .*1999 : 47996 \}\n"),
        ("eim-no-preserve", r"snat ip to 198\.51\.100\.1 : th sport \^ 0x0155\n"),
        ("rst", r"chain input \{[^}]*reject with tcp reset\n"),
        ("icmp-prohibited", r"chain input \{[^}]*reject with icmpx type admin-prohibited\n"),
        ("nosyn-after", r"chain forward \{[^}]*tcp flags & \(syn \| ack \| rst\) == syn drop\n"),
        ("nosyn-before", r"chain before_tracking \{[^}]*tcp flags & \(syn \| ack \| rst\) == syn drop\n"),
        ("stateless", r"notrack\n.*@opened ip daddr set 100\.100\.1\.2\n"),
        ("udp-blocked", r"chain forward \{[^}]*meta l4proto udp drop\n"),
    ],
)
def test_the_rules_of_a_kind_hold_what_makes_it(name: str, pattern: str) -> None:
    assert re.search(pattern, rules(name), re.DOTALL)


@pytest.mark.parametrize("name", [name for name in KINDS if name not in {"no-filter", "open"}])
def test_a_box_never_accepts_what_it_was_not_asked_for(name: str) -> None:
    assert "hook input priority filter; policy drop;" in rules(name)


@pytest.mark.parametrize("name", ["no-filter", "open"])
def test_a_box_without_a_filter_has_no_input_chain(name: str) -> None:
    assert "hook input" not in rules(name)


@pytest.mark.parametrize("name", ["firewall", "open", "any-opens"])
def test_a_box_that_does_not_translate_in_the_kernel_has_no_nat_rule(name: str) -> None:
    assert "nat hook" not in rules(name)


def test_strictness_and_timeouts_become_sysctls() -> None:
    assert tracking(KINDS["apdf"]) == {}
    assert tracking(KINDS["strict-conntrack"]) == {"nf_conntrack_tcp_loose": "0"}
    assert tracking(KINDS["short-timeouts"]) == {
        "nf_conntrack_udp_timeout": "2",
        "nf_conntrack_udp_timeout_stream": "2",
    }


def test_a_provider_keeps_private_sources_to_itself() -> None:
    assert 'iifname { "line1", "line3" } ip saddr 100.64.0.0/10 drop' in provider_rules(["line1", "line3"])
    assert "drop" not in provider_rules([])
