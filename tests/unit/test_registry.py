"""What `auto`, `all` and names mean on this host, and what is said about techniques that cannot run."""

from __future__ import annotations

import pytest

from punchd.control.registry import ALL_ORDER, Registry, Unavailable, with_firewall
from punchd.endpoint import PortSet, parse_ip
from punchd.errors import Code, ConfigError
from punchd.technique import Capability, Facts, Hole, Kit, Role, Technique, Unsuitable
from punchd.wire.token import TECHNIQUE_NUMBERS, Card

FACTS = Facts(Role.INITIATOR, parse_ip("203.0.113.7"), PortSet((1,)), ttl=4, packets_per_port=8, packets=8)
RAW = Capability.NET_RAW | Capability.NET_ADMIN


class Fake:
    """A technique that has a name and needs."""

    protocol = "udp"
    is_reversible = False

    def __init__(self, name: str, number: int | None = None, needs: Capability = Capability.NONE) -> None:
        self.name = name
        self.number = TECHNIQUE_NUMBERS[name] if number is None else number
        self.needs = needs

    def plan(self, facts: Facts) -> str | Unsuitable:
        return "a plan"

    async def initiate(self, plan: str, kit: Kit) -> Hole:
        raise NotImplementedError

    async def respond(self, plan: str, offer: Card, kit: Kit) -> Hole:
        raise NotImplementedError


def test_the_stand_in_is_a_technique() -> None:
    assert isinstance(Unavailable("udp", 3, Code.UNSUPPORTED, "x"), Technique)


def test_auto_is_the_configured_order_and_all_is_the_best_chance_first() -> None:
    registry = Registry([Fake("udp"), Fake("zeta", 200), Fake("tcp-syni"), Fake("tcp-nutss"), Fake("eta", 130)], RAW)
    assert registry.resolve(("auto",)) == ("udp", "zeta", "tcp-syni", "tcp-nutss", "eta")
    assert registry.resolve(("all",)) == ("tcp-nutss", "tcp-syni", "udp", "zeta", "eta")


@pytest.mark.parametrize("names", [("udp",), ("udp", "udp"), ("tcp-repair", "udp"), ("tcp-syni",)])
def test_names_stay_as_they_were_given(names: tuple[str, ...]) -> None:
    assert Registry([Fake("udp")], Capability.NONE).resolve(names) == names


def test_every_built_in_name_may_be_asked_for_and_the_absent_say_so() -> None:
    registry = Registry([Fake("udp")], Capability.NONE)
    assert set(registry.names) == set(TECHNIQUE_NUMBERS)
    assert registry.usable == ["udp"]
    assert registry.lacking == {}
    assert registry.by_name["tcp-syni"].plan(FACTS) == Unsuitable(Code.UNSUPPORTED, "tcp-syni is not loaded here")
    assert registry.by_name["udp"].plan(FACTS) == "a plan"


@pytest.mark.parametrize(
    ("held", "missing"),
    [
        (Capability.NONE, "CAP_NET_RAW, CAP_NET_ADMIN"),
        (Capability.NET_RAW, "CAP_NET_ADMIN"),
        (Capability.NET_ADMIN, "CAP_NET_RAW"),
    ],
)
def test_a_technique_that_lacks_capabilities_is_named_with_them(held: Capability, missing: str) -> None:
    registry = Registry([Fake("tcp-syni", needs=RAW), Fake("udp"), Fake("zeta", 200, RAW)], held)
    assert registry.usable == ["udp"]
    assert registry.lacking == {"tcp-syni": missing, "zeta": missing}
    assert registry.by_name["tcp-syni"].plan(FACTS) == Unsuitable(Code.NO_PRIVILEGE, f"tcp-syni needs {missing}")
    assert registry.by_name["zeta"].number == 200
    assert registry.resolve(("auto",)) == registry.resolve(("all",)) == ("udp",)


@pytest.mark.parametrize(
    ("own", "can_exempt", "missing"),
    [
        (RAW, False, None),
        (Capability.NET_ADMIN, True, None),
        (Capability.NET_ADMIN, False, "CAP_NET_RAW (or a firewall for exemptions)"),
        (Capability.NET_RAW, False, "CAP_NET_ADMIN"),
        (Capability.NONE, False, "CAP_NET_ADMIN, CAP_NET_RAW (or a firewall for exemptions)"),
    ],
)
def test_a_firewall_stands_in_for_raw_packets_where_a_technique_can_use_it(
    own: Capability, can_exempt: bool, missing: str | None
) -> None:
    nutss = Fake("tcp-nutss", needs=Capability.NET_ADMIN | Capability.LOW_TTL_SYN)
    registry = Registry([nutss, Fake("tcp-syni", needs=RAW), Fake("udp")], with_firewall(own, can_exempt=can_exempt))
    assert registry.lacking.get("tcp-nutss") == missing
    assert ("tcp-nutss" in registry.usable) == (missing is None)
    assert ("tcp-syni" in registry.usable) == (own == RAW), "raw packets themselves need the capability"


def test_with_the_capabilities_it_is_usable() -> None:
    registry = Registry([Fake("tcp-syni", needs=RAW)], RAW)
    assert registry.usable == ["tcp-syni"]
    assert registry.lacking == {}


def test_where_nothing_can_be_used_auto_and_all_are_empty() -> None:
    registry = Registry([Fake("tcp-syni", needs=RAW)], Capability.NONE)
    assert registry.resolve(("auto",)) == registry.resolve(("all",)) == ()


def test_tokens_find_every_technique_by_its_number() -> None:
    registry = Registry([Fake("udp"), Fake("zeta", 200)], Capability.NONE)
    assert registry.by_number == {1: "tcp-syni", 2: "tcp-nutss", 3: "udp", 4: "tcp-repair", 200: "zeta"}


def test_two_techniques_cannot_share_a_number() -> None:
    with pytest.raises(ConfigError, match="zeta and eta have the same token number 200"):
        Registry([Fake("zeta", 200), Fake("eta", 200)], Capability.NONE)


def test_all_covers_every_built_in_technique() -> None:
    assert set(ALL_ORDER) == set(TECHNIQUE_NUMBERS)
