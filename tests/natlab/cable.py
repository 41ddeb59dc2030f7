"""Delay, jitter, loss and reordering for one direction of a cable: a pure core without clock or device.

The kernel's netem would do this, and is not there on every machine (nor is nftables' queue). So an impaired cable is
a process between two TAP devices (cable_process.py), and this is what it decides.

Order is kept under jitter, as on a real path: a frame leaves no earlier than the one before it. Reordering is asked
for apart, and means what netem means by it: some frames do not wait.

Left out: bandwidth, bursts of loss, duplication, corruption.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator
from typing import Final

from .model import Link

MOST_WAITING: Final = 50_000
"""Frames that one direction holds, 75 MB at most; further ones are lost, as in any full queue."""

_ARP: Final = b"\x08\x06"
_IPV6: Final = b"\x86\xdd"
_ICMPV6: Final = 58
_NEIGHBOUR_DISCOVERY: Final = range(133, 138)  # RFC 4861 §4


class Lane:
    """One direction of a cable.

    Args:
        link: what happens to the frames.
        stream: tells this lane's random numbers from those of other lanes with the same seed.
    """

    def __init__(self, link: Link, stream: str) -> None:
        self._link = link
        self._random = random.Random(f"{link.seed}/{stream}")
        self._waiting: list[tuple[float, int, bytes]] = []
        self._count = 0
        self._last_deadline = 0.0

    def accept(self, frame: bytes, now: float) -> None:
        """A frame comes in; it may be lost."""
        link = self._link
        # Drawn for each frame alike, so that one knob does not change what another does.
        lost, overtakes, drift = (self._random.random() for _ in range(3))
        if is_neighbour_discovery(frame):
            deadline = now
        elif lost < link.loss or len(self._waiting) >= MOST_WAITING:
            return
        elif overtakes < link.reorder:
            deadline = now
        else:
            deadline = max(now + link.delay_s + link.jitter_s * (2 * drift - 1), self._last_deadline)
            self._last_deadline = deadline
        self._count += 1  # keeps the order of frames with one deadline
        heapq.heappush(self._waiting, (deadline, self._count, frame))

    def next_deadline(self) -> float | None:
        """When the next frame leaves, on the clock of `accept`; None if none waits."""
        return self._waiting[0][0] if self._waiting else None

    def due(self, now: float) -> Iterator[bytes]:
        """Takes out the frames whose time has come, in their order."""
        while self._waiting and self._waiting[0][0] <= now:
            yield heapq.heappop(self._waiting)[2]


def is_neighbour_discovery(frame: bytes) -> bool:
    """Whether it is ARP or IPv6 neighbour discovery, which a cable neither loses nor delays.

    Losing them would make loss look like an unreachable host for seconds.
    """
    kind = frame[12:14]
    return kind == _ARP or (
        kind == _IPV6 and len(frame) > 54 and frame[20] == _ICMPV6 and frame[54] in _NEIGHBOUR_DISCOVERY
    )
