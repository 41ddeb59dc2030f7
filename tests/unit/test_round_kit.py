"""The kit of one round: what it passes on, what it drops, and that it falls silent when the round is over."""

from __future__ import annotations

import trio

from punchd.attempt.kit import UNHEARD_CARDS, AttemptPorts, RoundKit
from punchd.events import Event, Explained
from punchd.wire.token import Card
from tests.unit.machine_parts import NONCE, B, card


async def test_cards_that_nobody_asks_for_are_dropped_beyond_a_limit() -> None:
    ports = AttemptPorts(None, ())
    kit = RoundKit(nonce=NONCE, peer=B, packets=1, ports=ports, tell=lambda told: None, emit=lambda event: None)
    for number in range(1, UNHEARD_CARDS + 5):
        kit.deliver(card(port=number))
    heard = [(await kit.hear_peer()).ports.ports[0] for _ in range(UNHEARD_CARDS)]
    assert heard == list(range(1, UNHEARD_CARDS + 1))
    with trio.move_on_after(0) as scope:
        await kit.hear_peer()
    assert scope.cancelled_caught


async def test_a_retired_kit_says_nothing_more() -> None:
    told: list[Card] = []
    emitted: list[Event] = []
    kit = RoundKit(nonce=NONCE, peer=B, packets=1, ports=AttemptPorts(None, ()), tell=told.append, emit=emitted.append)
    for _ in range(2):
        kit.tell_peer(card())
        kit.emit(Explained("no datagram came"))
        kit.retire()
    assert (len(told), len(emitted)) == (1, 1)
