"""`./dev bench [NAME ...]`: all benchmarks, or those named. Each prints ratios to a reference of the same run."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable

import trio

from tests.bench import (
    broker_flood,
    broker_idle,
    broker_redis,
    broker_speed,
    crowded,
    flood,
    hostile,
    line_speed,
    media_speed,
    pulse_speed,
    punch_time,
    rendezvous_speed,
    stun_speed,
    web_speed,
)

BENCHES: dict[str, Callable[[], Awaitable[None]]] = {
    "lines": line_speed.main,
    "udp-time": punch_time.main,
    "tcp-time": punch_time.tcp,
    "crowd": crowded.main,
    "hostile": hostile.main,
    "pulses": pulse_speed.main,
    "stun": stun_speed.main,
    "web": web_speed.main,
    "rendezvous": rendezvous_speed.main,
    "flood": flood.main,
    "media": media_speed.main,
    "broker": broker_speed.main,
    "broker-redis": broker_redis.main,
    "broker-idle": broker_idle.main,
    "broker-flood": broker_flood.main,
}


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in BENCHES]
    if unknown:
        print(f"bench: no benchmark {unknown[0]}; there are {', '.join(BENCHES)}", file=sys.stderr)
        return 2
    for name in names or BENCHES:
        trio.run(BENCHES[name])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
