"""The plan of a laboratory: addresses, cables, routes and the drawing, without any namespace."""

from __future__ import annotations

import ipaddress
import re

import pytest

from tests.natlab import KINDS, Link, Side, Site
from tests.natlab.plan import MOST_PER_SIDE, Plan, plan
from tests.natlab.topology import draw

ALLOWED = [
    ipaddress.ip_network(text)
    for text in ("100.64.0.0/10", "192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")
]


def all_kinds() -> Plan:
    return plan([Site(name, nat) for name, nat in KINDS.items()])


def test_sites_are_seated_left_and_right_in_turn_unless_they_say_where() -> None:
    made = plan([Site("a"), Site("b"), Site("c", side=Side.RIGHT), Site("d")])
    assert [(place.site.name, place.side.value) for place in made.sites] == [
        ("a", "left"),
        ("b", "right"),
        ("c", "right"),
        ("d", "right"),
    ]


def test_every_address_is_from_a_documentation_or_shared_range() -> None:
    texts = {
        word.partition("/")[0]
        for node in all_kinds().nodes
        for command in node.commands
        for word in command.split()
        if re.fullmatch(r"[0-9a-f]*[.:][0-9a-f.:]+(/\d+)?", word)
        and len(word.partition("/")[0]) != len("02:00:00:00:00:00")
    }
    assert len(texts) > 100
    for text in texts:
        address = ipaddress.ip_address(text)
        assert any(address in network for network in ALLOWED if network.version == address.version), text


def test_public_addresses_differ_and_only_hosts_without_nat_own_theirs() -> None:
    made = all_kinds()
    assert len({place.public_ipv4 for place in made.sites}) == len(made.sites)
    assert {place.site.name for place in made.sites if place.ipv4 == place.public_ipv4} == {"firewall", "open"}


def test_interface_names_fit_the_kernel_and_macs_differ() -> None:
    made = all_kinds()
    ends = [end for cable in made.cables for end in cable.ends]
    assert all(len(end.device) < 16 for end in ends)
    assert len({end.mac for end in ends}) == len(ends)
    assert len({(end.node, end.device) for end in ends}) == len(ends)


def test_a_carrier_adds_a_second_box() -> None:
    (place,) = plan([Site("a", KINDS["carrier"])]).sites
    assert place.boxes == ("a-box", "a-carrier")


def test_links_lie_where_they_were_asked_for() -> None:
    lan, wan, backbone = Link(delay_s=0.01), Link(delay_s=0.02), Link(delay_s=0.03)
    made = plan([Site("a", lan=lan, wan=wan)], backbone=backbone)
    found = {frozenset(end.node for end in cable.ends): cable.link for cable in made.cables if not cable.link.is_plain}
    assert found == {
        frozenset({"a", "a-box"}): lan,
        frozenset({"a-box", "isp-left"}): wan,
        frozenset({"isp-left", "core"}): backbone,
        frozenset({"isp-right", "core"}): backbone,
    }


def test_two_sites_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="different names"):
        plan([Site("a"), Site("a")])


def test_more_sites_than_addresses_are_refused() -> None:
    fits = [Site(f"s{number}", side=Side.LEFT) for number in range(MOST_PER_SIDE)]
    assert len(plan(fits).sites) == MOST_PER_SIDE
    with pytest.raises(ValueError, match="at most 100 sites"):
        plan([*fits, Site("one-more", side=Side.LEFT)])


def test_the_drawing_names_hosts_addresses_and_faults() -> None:
    made = plan([Site("a", KINDS["carrier"], wan=Link(delay_s=0.02, jitter_s=0.001, loss=0.05)), Site("b")])
    text = draw(made)
    for word in (
        "100.100.1.2",
        "198.51.100.1",
        "203.0.113.1",
        "carrier",
        "[20 ms +-1 ms loss 5.0%] a-carrier",
        "192.0.2.20",
        "isp-left",
    ):
        assert word in text
