"""What a flood makes the pure core hold: little, and as long a flood after it no more. `pytest -rP` prints how much.

Limits are an eighth of the defaults, so that short floods reach them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from punchd.media.buffers import Memory
from punchd.media.counters import Count, Counters
from punchd.media.datagrams import Ack, Syn, SynAck, encode
from punchd.media.ends import Incoming, Outgoing
from punchd.media.initiator import Initiator
from punchd.media.receiving import Receiver
from punchd.media.responder import Responder
from punchd.media.settings import ReceiverSettings, ResponderSettings
from tests.unit.media.attacks import ON_RECEIVER, ON_RESPONDER, Heap
from tests.unit.media.parts import ENTROPY, MIB, PEER, A, data

FLOOD = 1200
LARGEST = 1 * MIB  # bytes of heap; measured: 0.2 MiB
NOISE = 32 << 10  # bytes; a set grows at another moment
RECEIVER = ReceiverSettings(remembered=1024, max_entries=8, max_intervals=32, max_held=128)
RESPONDER = ResponderSettings(legacy_start=True, max_half_open=128, max_open=32)


def flooded(name: str, strike: Callable[[int], None]) -> None:
    """Two floods; what they cost is printed and is bounded."""
    with Heap() as heap:
        for number in range(FLOOD):
            strike(number)
        first = heap.peak()
        for number in range(FLOOD, 2 * FLOOD):
            strike(number)
        second = heap.peak()
    print(f"{name}: {first / MIB:.2f} MiB after {FLOOD} datagrams, {second / MIB:.2f} MiB after as many more")
    assert second <= first + NOISE
    assert first < LARGEST


@pytest.mark.parametrize("is_ordered", [False, True], ids=["at once", "in order"])
@pytest.mark.parametrize("name", ON_RECEIVER)
def test_d_11_d_13_d_14_d_26_a_flood_on_a_receiver_costs_little_and_a_session_goes_on(
    name: str, is_ordered: bool
) -> None:
    attack, told = ON_RECEIVER[name]
    counters, memory = Counters(), Memory(256 * MIB)
    asking = Initiator(PEER, A, counters)
    end = Incoming(asking, Receiver(replace(RECEIVER, ordered=is_ordered), memory, counters), counters)
    asking.open(0.0)
    end.take(PEER, encode(SynAck(True, A)), 0.0)

    def strike(number: int) -> None:
        for one in end.take(PEER, attack(number), number * 1e-5)[1]:
            one.release()
        assert memory.reserved <= 192 * MIB
        assert memory.idle <= 64 * MIB

    flooded(name, strike)
    assert counters[told] > 0
    found = [
        one.take() for number in range(100) for one in end.take(PEER, data(2**50 + number, b"good"), 10.0 + number)[1]
    ]
    found += [one.take() for one in end.handle_timeout(200.0)[1]]
    assert found.count(b"good") >= 85  # in order, fewer than 16 of them may come before the order begins anew


@pytest.mark.parametrize("optimistic", [False, True], ids=["waits", "optimistic"])
@pytest.mark.parametrize("name", ON_RESPONDER)
def test_d_05_d_14_d_24_a_flood_on_a_responder_costs_little_and_a_session_goes_on(name: str, optimistic: bool) -> None:
    attack, told = ON_RESPONDER[name]
    counters = Counters()
    machine = Responder(replace(RESPONDER, optimistic=optimistic), counters, ENTROPY)
    end = Outgoing(machine, counters)
    for datagram in (Syn(A), Ack(A)):
        end.take(PEER, encode(datagram), 0.0)

    def strike(number: int) -> None:
        end.take(("203.0.113.1", number), attack(number), number * 1e-5)
        assert len(machine.links) <= 128 + 32
        assert len(machine.timers) <= 2 * (128 + 32) + 65

    flooded(name, strike)
    assert counters[told] > 0
    assert machine.allowance(PEER) is None
    assert counters[Count.FLUSHES_REFUSED] == 0
