"""Draws a laboratory as a tree of text, from the core outwards to the hosts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .model import Filtering, Link, Mapping, Nat, Side
from .plan import CORE4, PROVIDERS4, SERVER4, SERVER6, Plan, SitePlan

_Tree = tuple[str, Sequence["_Tree"]]


def draw(plan: Plan) -> str:
    """The drawing, several lines without a final newline; what a cable does stands before the node behind it."""
    providers: list[_Tree] = []
    for side in Side:
        places = [place for place in plan.sites if place.side is side]
        providers.append((f"isp-{side.value} {PROVIDERS4[side]}", [_site(place) for place in places]))
    server = f"server {' '.join((*SERVER4, *SERVER6))}"
    return "\n".join(_lines((f"core {CORE4}", [(server, []), *providers])))


def describe(nat: Nat) -> str:
    """The NAT in a few words."""
    if nat.filtering is Filtering.NONE:
        return "router, no NAT, no filter"
    filtering = f"filtering {nat.filtering.value}"
    if nat.mapping is Mapping.NONE:
        return f"firewall, no NAT, {filtering}"
    return f"NAT, mapping {nat.mapping.value}, {filtering}, ports {nat.ports.value}"


def _site(place: SitePlan) -> _Tree:
    site, nat = place.site, place.site.nat
    own = " ".join(address for address in (place.ipv4, place.ipv6) if address)
    host: _Tree = (f"{_faults(site.lan)}{site.name} {own}", [])
    public = "" if nat.mapping is Mapping.NONE else f" {place.public_ipv4}"
    if nat.carrier is None:
        return f"{_faults(site.wan)}{place.boxes[0]}{public} ({describe(nat)})", [host]
    home: _Tree = (f"{place.boxes[0]} ({describe(nat)})", [host])
    return f"{_faults(site.wan)}{place.boxes[1]}{public} ({describe(nat.carrier)})", [home]


def _lines(tree: _Tree, first: str = "", rest: str = "") -> Iterator[str]:
    label, branches = tree
    yield first + label
    for branch in branches:
        last = branch is branches[-1]
        yield from _lines(branch, rest + ("`-- " if last else "|-- "), rest + ("    " if last else "|   "))


def _faults(link: Link) -> str:
    if link.is_plain:
        return ""
    words: list[str] = []
    if link.delay_s:
        words.append(f"{link.delay_s * 1000:g} ms")
    if link.jitter_s:
        words.append(f"+-{link.jitter_s * 1000:g} ms")
    if link.loss:
        words.append(f"loss {link.loss:.1%}")
    if link.reorder:
        words.append(f"reorder {link.reorder:.1%}")
    return f"[{' '.join(words)}] "
