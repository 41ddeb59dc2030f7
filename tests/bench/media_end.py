"""One end of the media protocol for `media_speed`: a process of its own on a core of its own.

    send HOST PORT CORE OWN_PORT JSON     waits on its port for the receiver, sends, and prints what it sent
    receive HOST PORT CORE OWN_PORT JSON  asks that sender, receives until it is silent, and prints what came

JSON holds `seconds`, `size` of a logical send, `rate` (bit/s or null), and `fast` (which ways may be taken). The
sender's first datagram opens a NAT; its peer is HOST:PORT, so that both sockets are connected.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from typing import Any

import trio

from punchd.media.fast import Fast
from punchd.media.settings import ReceiverSettings
from punchd.media.trio_initiator import Initiator
from punchd.media.trio_responder import Responder

DATAGRAM = 1400
SILENCE_S = 0.5
TICK_S = 0.001


async def ticker(late: list[float]) -> None:
    """A task that wants to run every millisecond; how late it was each time, seconds."""
    while True:
        due = time.perf_counter() + TICK_S
        await trio.sleep(TICK_S)
        late.append(time.perf_counter() - due)


async def send(sock: socket.socket, chosen: dict[str, Any], late: list[float]) -> dict[str, Any]:
    payload = os.urandom(chosen["size"])
    async with Responder.open(
        sock, rate_bps=chosen["rate"], datagram_size=DATAGRAM, fast=Fast(**chosen["fast"])
    ) as responder:
        sock.send(b"open the NAT")
        stream = await responder.accept()
        late.clear()
        before, end = time.process_time(), time.perf_counter() + chosen["seconds"]
        while time.perf_counter() < end:
            await stream.send(payload)
        told = stream.statistics()
        return {"bytes": told.bytes, "cpu_s": time.process_time() - before, "path": told.path}


async def receive(sock: socket.socket, chosen: dict[str, Any], late: list[float]) -> dict[str, Any]:
    settings = ReceiverSettings(reassembly_timeout_s=0.5)
    async with Initiator.open(sock, settings=settings, fast=Fast(**chosen["fast"])) as initiator:
        total = 0
        await initiator.receive_some()
        late.clear()
        cpu_s, began_at = time.process_time(), time.perf_counter()
        ended_at, spent_s = began_at, cpu_s
        while True:
            with trio.move_on_after(SILENCE_S) as scope:
                for delivery in await initiator.receive_some():
                    total += len(delivery.payload)
                ended_at, spent_s = time.perf_counter(), time.process_time()
            if scope.cancelled_caught:
                break
        told = initiator.statistics()
        return {
            "bytes": total, "seconds": ended_at - began_at, "cpu_s": spent_s - cpu_s, "path": told.path,
            "lost": told.lost, "drops": told.kernel_drops, "sends": told.logical_sends,
        }  # fmt: skip


async def main(role: str, host: str, ports: tuple[int, int], core: int, chosen: dict[str, Any]) -> None:
    own_port, port = ports
    os.sched_setaffinity(0, {core})
    late: list[float] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("0.0.0.0", own_port))  # noqa: S104 (loopback, or a namespace of the laboratory)
        if role == "receive" and chosen.get("is_behind_nat"):
            _, where = sock.recvfrom(100)  # the sender's public address is known from what it sends first
            sock.connect(where)
        else:
            sock.connect((host, port))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ticker, late)
            found = await (send if role == "send" else receive)(sock, chosen, late)
            nursery.cancel_scope.cancel()
    late.sort()
    found["tick_p99_s"] = late[int(len(late) * 0.99)] if late else None
    print(json.dumps(found))


if __name__ == "__main__":
    role, host, port, core, own_port, chosen = sys.argv[1:]
    trio.run(main, role, host, (int(own_port), int(port)), int(core), json.loads(chosen))
