"""What others notice of a hostile user of the same daemon, with its default limits, 20 ms from everything.

A greeting and a probe are timed from line to answer, an attempt from its first probe to both sockets. The goal: the
99th percentile of probes and attempts grows by less than 10 %. A greeting takes a fraction of a millisecond, and one
step of somebody else's attempt more than that; it is shown in milliseconds rather than promised.
"""

from __future__ import annotations

from tests.bench.pulse_speed import hurry
from tests.hostile import KINDS_OF_WAITING, measure, scene

DELAY_S = 0.02
MEASURED_S = 30.0
SEED = 7


async def main() -> None:
    """Prints the ratios."""
    hurry()
    with scene(paced=True, delay_s=DELAY_S) as found:
        quiet, busy = await measure(found, MEASURED_S, SEED)
    print("hostile: what another user waits for, without and with a hostile one")
    for kind in KINDS_OF_WAITING:
        shares = [
            f"p{share:.0%}".rstrip("%") + f" {before * 1000:.2f} -> {after * 1000:.2f} ms ({after / before:.2f})"
            for share in (0.5, 0.9, 0.99)
            for before, after in [(quiet.quantile(kind, share), busy.quantile(kind, share))]
        ]
        print(f"  {kind:8} {len(quiet.waits[kind])} and {len(busy.waits[kind])} times: {', '.join(shares)}")
    print(f"  attempts that failed: {quiet.lost} and {busy.lost}")
