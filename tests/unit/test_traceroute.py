"""What the hops of a traceroute teach: the decision, without packets."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from punchd.endpoint import IPAddress, is_global, parse_ip
from punchd.kernel.traceroute import LEAST, MOST_HOPS, Hop, low_ttl, undecided
from tests.unit.strategies import addresses

OWN = parse_ip("203.0.113.9")
EVERY = list(range(1, MOST_HOPS + 1))


def hops(**answers: str) -> dict[int, Hop]:
    """`h3="192.0.2.1"`: the TTL ran out there; `h3="!192.0.2.1"`: something else was wrong."""
    return {int(name[1:]): Hop(parse_ip(text.lstrip("!")), text[0] != "!") for name, text in answers.items()}


# (what, who answered, what it teaches, whose answer could still change that)
CASES: list[tuple[str, dict[int, Hop], int | None, list[int]]] = [
    ("nobody answered yet", {}, None, EVERY),
    ("a home router", hops(h1="192.168.1.1", h2="198.51.100.254"), 2, []),
    ("and a carrier's NAT", hops(h1="192.168.1.1", h2="100.64.7.1", h3="198.51.100.254"), 3, []),
    ("three private hops", hops(h1="10.0.0.1", h2="172.16.0.1", h3="192.168.0.1", h4="192.0.2.7"), 4, []),
    ("the furthest", {n: Hop(parse_ip("10.0.0.1"), True) for n in EVERY[:-1]} | hops(h8="192.0.2.7"), MOST_HOPS, []),
    ("IPv6 behind a prefix translator", hops(h1="fd00::1", h2="2001:db8::1"), 2, []),
    ("link-local routers are not public", hops(h1="fe80::1", h2="fd00::2", h3="2001:db8::1"), 3, []),
    ("169.254/16 neither", hops(h1="169.254.0.1", h2="192.0.2.1"), 2, []),
    ("the nearest is public: 1 would die in it", hops(h1="198.51.100.1"), 2, []),
    ("the nearest is the NAT, by its outside address", hops(h1="203.0.113.9", h2="198.51.100.1"), 2, []),
    ("the second is the NAT", hops(h1="10.0.0.1", h2="203.0.113.9", h3="198.51.100.1"), 3, []),
    ("a silent first hop does not matter", hops(h2="198.51.100.1"), 2, []),
    ("a silent second one might be public", hops(h1="10.0.0.1", h3="198.51.100.1"), 3, [2]),
    ("several silent ones", hops(h4="198.51.100.1", h6="192.0.2.1"), 4, [1, 2, 3]),
    ("private as far as is seen", hops(h1="10.0.0.1", h2="10.1.0.1"), None, EVERY[2:]),
    ("all private", {n: Hop(parse_ip("10.0.0.1"), True) for n in EVERY}, None, []),
    ("the target, in the same network", hops(h1="!10.0.0.5"), None, []),
    ("the target, behind a router", hops(h1="10.0.0.1", h2="!10.1.0.5", h3="!10.1.0.5"), None, []),
    ("the target, a router before it is silent", hops(h2="!10.1.0.5"), None, [1]),
    ("a public target is no router", hops(h1="10.0.0.1", h2="!192.0.2.10"), None, []),
    ("a firewall refuses further ones", hops(h1="10.0.0.1", h2="!10.1.0.1", h3="198.51.100.1"), None, []),
    ("the target behind public hops", hops(h1="10.0.0.1", h2="198.51.100.1", h3="!192.0.2.10"), 2, []),
]


@pytest.mark.parametrize(("answers", "ttl", "open_questions"), [case[1:] for case in CASES], ids=[c[0] for c in CASES])
def test_the_low_ttl_is_the_first_public_hop(
    answers: dict[int, Hop], ttl: int | None, open_questions: list[int]
) -> None:
    assert low_ttl(answers, OWN) == ttl
    assert undecided(answers, OWN) == open_questions


def test_without_an_own_public_address_any_public_hop_counts() -> None:
    assert low_ttl(hops(h1="10.0.0.1", h2="203.0.113.9"), None) == 2


seen = st.dictionaries(
    st.integers(1, MOST_HOPS), st.builds(Hop, st.sampled_from((4, 6)).flatmap(addresses), st.booleans())
)


@given(seen, st.none() | addresses(4))
def test_a_ttl_leads_to_a_public_hop_with_none_before_it(answers: Mapping[int, Hop], own: IPAddress | None) -> None:
    ttl = low_ttl(answers, own)
    if ttl is None:
        return
    assert LEAST <= ttl <= MOST_HOPS
    public = {n for n, hop in answers.items() if hop.expired and is_global(hop.address) and hop.address != own}
    assert max(min(public), LEAST) == ttl
    assert all(answers[n].expired for n in answers if n < min(public))


@given(seen, st.data())
def test_an_answer_that_is_not_waited_for_changes_nothing(answers: dict[int, Hop], data: st.DataObject) -> None:
    """So it is right to stop as soon as nobody is waited for. A router answers once: hops seen stay as they are."""
    waited_for = undecided(answers, None)
    assert waited_for == sorted(set(waited_for) - answers.keys())
    late = [n for n in EVERY if n not in answers and n not in waited_for]
    if not late:
        return
    index = data.draw(st.sampled_from(late))
    # where a datagram of TTL N was refused, or ran out at N, one with less never was refused
    is_path = index < min((n for n, hop in answers.items() if hop.expired), default=0)
    hop = data.draw(st.builds(Hop, addresses(4), st.just(True) if is_path else st.booleans()))
    assert low_ttl(answers | {index: hop}, None) == low_ttl(answers, None)


@given(seen)
def test_an_answer_that_is_waited_for_could_change_what_is_known(answers: dict[int, Hop]) -> None:
    public, private = Hop(parse_ip("192.0.2.1"), True), Hop(parse_ip("10.0.0.1"), False)
    for index in undecided(answers, None):
        changed = {low_ttl(answers | {index: hop}, None) for hop in (public, private)}
        assert changed != {low_ttl(answers, None)}
