"""The process that is all impaired cables of a laboratory: frames from one TAP device to the other, when due.

Started by userspace.py as `python -m tests.natlab.cable_process JSON`, where JSON is a list of
`{"devices": [FD, FD], "link": {…}}`. Writes one byte to its output when it is at work. Ends by SIGKILL only.

`select` and not `epoll`, because its timeout has microseconds.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from typing import Final

from .cable import Lane
from .model import Link

_FRAME_BYTES: Final = 2048  # one Ethernet frame of MTU 1500; TAP devices without offloads have no larger ones
_BURST: Final = 64  # frames taken from one device before the others get their turn
_NICENESS: Final = -10  # a cable that waits for a busy CPU would delay more than it was told


def main() -> None:
    """Carries frames until it is killed."""
    lanes: dict[int, tuple[Lane, int]] = {}
    for number, cable in enumerate(json.loads(sys.argv[1])):
        near, far = cable["devices"]
        link = Link(**cable["link"])
        lanes[near] = Lane(link, f"{number}>"), far
        lanes[far] = Lane(link, f"{number}<"), near
    os.setpriority(os.PRIO_PROCESS, 0, _NICENESS)
    os.write(sys.stdout.fileno(), b"!")
    while True:
        deadlines = [deadline for lane, _ in lanes.values() if (deadline := lane.next_deadline()) is not None]
        wait_s = max(0.0, min(deadlines) - time.monotonic()) if deadlines else None
        readable, _, _ = select.select(lanes, [], [], wait_s)
        for device in readable:
            _take(device, lanes[device][0])
        now = time.monotonic()
        for lane, out in lanes.values():
            for frame in lane.due(now):
                _give(out, frame)


def _take(device: int, lane: Lane) -> None:
    for _ in range(_BURST):
        try:
            frame = os.read(device, _FRAME_BYTES)
        except BlockingIOError:
            return
        lane.accept(frame, time.monotonic())


def _give(device: int, frame: bytes) -> None:
    try:
        os.write(device, frame)
    except OSError:  # the far interface is down: a cable that is not plugged in
        return


if __name__ == "__main__":
    main()
