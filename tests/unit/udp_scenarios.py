"""What the tests of `udp` share: kinds of NAT, a run under a clock that jumps, and what is asserted of every run."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from punchd.endpoint import PortSet
from punchd_techniques.udp import DONE_S, LAST_RESORT_UNANSWERED_S, Udp
from tests.unit.fake_network import (
    ADF,
    APDF,
    FULL_CONE,
    NO_FILTER,
    RANDOM,
    SEQUENTIAL,
    Host,
    NatKind,
    Punch,
    pair,
)

KINDS = {
    "full-cone": FULL_CONE,
    "adf": ADF,
    "apdf": APDF,
    "no-filter": NO_FILTER,
    "sequential": SEQUENTIAL,
    "random": RANDOM,
}
FILTERS_BY_PORT = ("apdf", "no-filter", "sequential", "random")
HOPELESS = {pair for kind in FILTERS_BY_PORT for pair in (("random", kind), (kind, "random"))}
RTT_S = 0.08
SIDE_S = 0.06
COPIES_S = sum(DONE_S)
WRONG_HINT = PortSet((30000,))
EIGHT_WRONG_HINTS = PortSet(tuple(range(30000, 30008)))


def run(punch: Punch) -> None:
    """Under a clock that jumps: no test here waits."""
    trio.run(punch.run, Udp(), clock=MockClock(autojump_threshold=0))


def assert_one_pair(punch: Punch) -> None:
    """Both sides hold a socket, and each is connected to what the other is seen as."""
    assert punch.a.hole is not None, punch.a.explanation
    assert punch.b.hole is not None, punch.b.explanation
    assert (punch.a.hole.remote, punch.b.hole.remote) == (punch.b.seen_as, punch.a.seen_as)


def after_respond(punch: Punch) -> tuple[float, float]:
    """When the responder and the initiator were done, from the start of the responder's half."""
    assert punch.a.ok_s is not None
    assert punch.b.ok_s is not None
    assert punch.b.begun_s is not None
    return punch.b.ok_s - punch.b.begun_s, punch.a.ok_s - punch.b.begun_s


def assert_done_at(punch: Punch, responder_s: float, initiator_s: float) -> None:
    assert_one_pair(punch)
    assert after_respond(punch) == pytest.approx((responder_s, initiator_s), abs=1e-9)


def first_full_ttl_s(host: Host) -> float:
    return min((sent.at_s for sent in host.sent if sent.ttl is None), default=float("inf"))


def assert_discreet(initiator: Host) -> None:
    """Nothing at full TTL before a card or a datagram of the peer came, or the last resort."""
    excuses = [initiator.heard[0][0]] if initiator.heard else []
    excuses += initiator.arrived[:1]
    assert first_full_ttl_s(initiator) >= min([*excuses, LAST_RESORT_UNANSWERED_S])


def punched(a: NatKind, b: NatKind, **more: object) -> Punch:
    punch = Punch(*pair(a, b), **more)  # type: ignore[arg-type]
    run(punch)
    return punch
