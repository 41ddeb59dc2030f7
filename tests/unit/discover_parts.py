"""Servers, answers and a discovery that has started: what the tests of `punchd.nat.discover` have in common."""

from __future__ import annotations

from ipaddress import ip_address

from punchd.endpoint import Endpoint
from punchd.nat.discover import DEADLINE_S, Discovered, Discovery
from punchd.wire import stun

LOCAL = Endpoint(ip_address("10.0.0.2"), 4000)
PUBLIC = ip_address("203.0.113.1")
A, B, C, D = (Endpoint(ip_address(f"192.0.2.{number}"), 3478) for number in range(1, 5))
SIX = Endpoint(ip_address("2001:db8::1"), 3478)
STRANGER = Endpoint(ip_address("198.51.100.66"), 3478)


def id_of(number: int) -> bytes:
    return bytes([number]) * 12


def seen(port: int) -> Endpoint:
    return Endpoint(PUBLIC, port)


def answer(number: int, port: int = 5000) -> bytes:
    return stun.encode_success(id_of(number), seen(port))


def discovery(*servers: Endpoint, local: Endpoint = LOCAL, deadline_s: float = DEADLINE_S) -> Discovery:
    """One whose server number n is asked with id_of(n)."""
    ids = [id_of(number) for number in range(len(servers))]
    return Discovery(servers, local, ids, deadline_s=deadline_s)


def started(*servers: Endpoint) -> Discovery:
    machine = discovery(*servers)
    machine.start(0.0)
    return machine


def run_out(machine: Discovery) -> Discovered:
    """Let time pass without another datagram."""
    while (wake_s := machine.next_timeout()) is not None:
        machine.handle_timeout(wake_s)
    result = machine.result()
    assert result is not None
    return result


def schedule(machine: Discovery) -> tuple[dict[Endpoint, list[float]], float]:
    """When each server is asked if time passes in silence, milliseconds rounded; and when it ends."""
    times: dict[Endpoint, list[float]] = {}
    end_s = 0.0
    while (wake_s := machine.next_timeout()) is not None:
        end_s = wake_s
        for datagram in machine.handle_timeout(wake_s):
            times.setdefault(datagram.destination, []).append(round(wake_s * 1000))
    return times, round(end_s * 1000)
