"""How long a technique takes, in round trips, beside the textbook on the same path.

Port-restricted NATs, 80 ms from host to host and back over unequal links (12 and 28 ms one way), a side channel of
60 ms one way, ports probed beforehand. Counted from the `respond` line to the later of both `ok` lines. For UDP three
legs (probe, ack, done) are the least that proves both directions to both sides, 1.5 round trips.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median, quantiles

import trio

from tests.bench import textbook
from tests.natlab import KINDS, Laboratory, Link, Site
from tests.pair import Channel, Outcome, applications, attempt, daemons, stun_arguments

ATTEMPTS = 40
LINKS_S = (0.012, 0.028)
CHANNEL_S = 0.06
GOALS_RTT = {"udp": 1.5, "tcp-nutss": 2.3, "tcp-repair": 1.9, "tcp-syni": 3.5}
ALLOWANCE_S = 0.015


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds: the path's round trip as measured, and each attempt; failures are left out and counted."""

    rtt_s: float
    ours: list[float]
    textbook: list[float]
    ours_failed: int
    textbook_failed: int


async def measure(kind: str, attempts: int = ATTEMPTS, late_s: float = 0.0, technique: str = "udp") -> Times:
    """Both ways of punching in turns, between two NATs of one kind."""
    sites = [Site(name, KINDS[kind], wan=Link(delay_s=delay)) for name, delay in zip("ab", LINKS_S, strict=True)]
    ours: list[float] = []
    plain: list[float] = []
    round_trips: list[float] = []
    failed = [0, 0]
    with Laboratory(sites) as laboratory:
        words = [*stun_arguments(laboratory.stun), "--techniques", technique]
        reference = textbook.punch if technique == "udp" else textbook.simultaneous_open
        with daemons([(laboratory.site(name).host, words) for name in "ab"]) as running:
            for daemon in running:
                await daemon.until_ready()
            async with applications(running[0].path, running[1].path) as (a, b):
                for _ in range(attempts):
                    channel = Channel(delay_s=CHANNEL_S)
                    outcome = await attempt(a, b, late_s=late_s, channel=channel, techniques=technique)
                    if outcome.connected:
                        ours.append(outcome.seconds)
                        round_trips.append(await _round_trip(outcome))
                    else:
                        failed[0] += 1
                    outcome.close()
                    book = await reference(laboratory, channel_s=CHANNEL_S, late_s=late_s)
                    if book.connected:
                        plain.append(book.seconds)
                    else:
                        failed[1] += 1
    return Times(median(round_trips), ours, plain, failed[0], failed[1])


async def _round_trip(outcome: Outcome) -> float:
    """An echo over the punched sockets, seconds."""
    if outcome.initiator.connected is None or outcome.responder.connected is None:
        raise AssertionError("no sockets to measure on")
    a, b = outcome.initiator.connected.socket, outcome.responder.connected.socket
    before = trio.current_time()
    await a.send(b"echo")
    await b.send(await b.recv(10))
    await a.recv(10)
    return trio.current_time() - before


def report(kind: str, times: Times, technique: str = "udp") -> str:
    lines = [
        f"{technique}, {kind} x {kind}, round trip {times.rtt_s * 1000:.1f} ms, "
        f"side channel {CHANNEL_S * 1000:.0f} ms one way"
    ]
    for name, seconds, failed in (
        ("punchd", times.ours, times.ours_failed),
        ("textbook", times.textbook, times.textbook_failed),
    ):
        total = len(seconds) + failed
        if len(seconds) < 2:
            lines.append(f"  {name:9} {len(seconds)} of {total} connected")
            continue
        middle, late = median(seconds), quantiles(seconds, n=10)[-1]
        lines.append(
            f"  {name:9} {len(seconds)} of {total} connected, median {middle * 1000:6.1f} ms = "
            f"{middle / times.rtt_s:.2f} RTT, 9th decile {late * 1000:6.1f} ms"
        )
    if times.ours and times.textbook:
        lines.append(f"  ratio     {median(times.ours) / median(times.textbook):.2f} of the textbook's median")
    return "\n".join(lines)


def goal(times: Times, technique: str) -> str:
    limit_s = GOALS_RTT[technique] * times.rtt_s + ALLOWANCE_S
    verdict = "met" if median(times.ours) <= limit_s else "MISSED"
    return f"  goal      {GOALS_RTT[technique]} RTT + {ALLOWANCE_S * 1000:.0f} ms = {limit_s * 1000:.1f} ms: {verdict}"


async def main() -> None:
    times = await measure("apdf")
    print(report("apdf", times))
    print(goal(times, "udp"))
    late = await measure("no-filter", attempts=10, late_s=0.15)
    print(
        report("no-filter", late)
        + "\n  (the responder 0.15 s late: the textbook's first datagrams spoil its NAT's port)"
    )


async def tcp() -> None:
    for technique in ("tcp-nutss", "tcp-repair", "tcp-syni"):
        times = await measure("apdf", attempts=20, technique=technique)
        print(report("apdf", times, technique))
        print(goal(times, technique))
    for kind in ("rst", "icmp-prohibited", "no-filter"):
        times = await measure(kind, attempts=20, late_s=0.15, technique="tcp-nutss")
        print(report(kind, times, "tcp-nutss"))
