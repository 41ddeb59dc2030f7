"""TCP through two NATs with two real daemons: which technique connects which pair."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.netns.tcp_pair import (
    LATE_S,
    SEQUENCE,
    TECHNIQUES,
    Ordinary,
    assert_usable,
    connected_to,
    ordinary_pair,
    pair,
)
from tests.pair import Channel, attempt

pytestmark = pytest.mark.netns


@pytest.fixture(name="ordinary", scope="module")
def _ordinary() -> Iterator[Ordinary]:
    yield from ordinary_pair()


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
