"""The process that is all userspace NATs of a laboratory: packets out of a TUN device, translated, and back into it.

Started by userspace.py as `python -m tests.natlab.nat_process JSON`, where JSON is a list of
`{"device": FD, "public": ADDRESS, "nat": {…}}`. Writes one byte to its output when it is at work. Ends by SIGKILL
only.

The box's kernel routes packets from both sides into the device, and what comes out of it to the other side. So it
counts two hops where there is one: the process takes one back. A packet whose TTL ends dies in the kernel, which
also sends the ICMP error; so do packets for the box itself.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import select
import sys
import time
from typing import Final

from .model import decode
from .packet import Packet
from .translator import Translator

_PACKET_BYTES: Final = 2048  # MTU 1500, and no offloads
_BURST: Final = 64  # packets taken from one device before the others get their turn


def main() -> None:
    """Translates until it is killed."""
    boxes: dict[int, Translator] = {}
    for number, box in enumerate(json.loads(sys.argv[1])):
        boxes[box["device"]] = Translator(decode(box["nat"]), int(ipaddress.IPv4Address(box["public"])), seed=number)
    os.write(sys.stdout.fileno(), b"!")
    while True:
        readable, _, _ = select.select(boxes, [], [])
        for device in readable:
            _work(device, boxes[device])


def _work(device: int, box: Translator) -> None:
    for _ in range(_BURST):
        try:
            data = os.read(device, _PACKET_BYTES)
        except BlockingIOError:
            return
        packet = Packet.parse(data)
        translated = box.handle(packet, time.monotonic()) if packet else None
        if translated:
            translated.raise_ttl()
            with contextlib.suppress(OSError):  # the kernel refuses it: a router would drop it, too
                os.write(device, translated.data)


if __name__ == "__main__":
    main()
