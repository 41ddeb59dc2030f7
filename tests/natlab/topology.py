"""Draws a laboratory as text: one line a site, from its host to the core."""

from __future__ import annotations

from .model import Link, Nat, Side
from .plan import SERVER4, SERVER6, Plan, SitePlan


def draw(plan: Plan) -> str:
    """The drawing, several lines without a final newline."""
    width = max((len(place.site.name) for place in plan.sites), default=0)
    lines: list[str] = []
    for side in Side:
        places = [place for place in plan.sites if place.side is side]
        lines += [_site(place, width) for place in places]
        if places:
            lines.append(f"{'':{width}}   `-- isp-{side.value} --- core")
    lines.append(f"core --- server {' '.join((*SERVER4, *SERVER6))}")
    lines.append("a packet with TTL 4 leaves its own NAT and dies before that of the other side")
    return "\n".join(lines)


def _site(place: SitePlan, width: int) -> str:
    nat = place.site.nat
    own = " ".join(address for address in (place.ipv4, place.ipv6) if address)
    boxes = f"[{describe(nat)}]"
    if nat.carrier:
        boxes += f" --- [carrier: {describe(nat.carrier)}]"
    public = "" if place.ipv4 == place.public_ipv4 else f" {place.public_ipv4}"
    return f"{place.site.name:{width}} {own} {_cable(place.site.lan)} {boxes}{public} {_cable(place.site.wan)} isp"


def describe(nat: Nat) -> str:
    """The NAT in a few words."""
    words = [f"mapping {nat.mapping.value}", f"filtering {nat.filtering.value}", f"ports {nat.ports.value}"]
    return ", ".join(words)


def _cable(link: Link) -> str:
    if link.is_plain:
        return "---"
    faults = [f"{link.delay_s * 1000:g}"]
    if link.jitter_s:
        faults.append(f"+-{link.jitter_s * 1000:g}")
    faults.append("ms")
    if link.loss:
        faults.append(f" loss {link.loss:.0%}")
    if link.reorder:
        faults.append(f" reorder {link.reorder:.0%}")
    return f"-({''.join(faults)})-"
