"""The sender of tcp-syni: when it connects. With NATs and real stacks: tests/netns/test_tcp_end_to_end.py."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import trio

from punchd.attempt.outlook import KnownSide
from punchd.endpoint import Endpoint, PortSet, parse_ip
from punchd.technique import Facts, Role, Sighted
from punchd.wire.tcp import Flags, Options, Segment, plus
from punchd.wire.token import Card
from punchd_techniques.tcp_syni import LEAKED_S, TcpSyni
from tests.unit.machine_parts import NONCE, B, card

LOCAL = Endpoint(parse_ip("192.0.2.1"), 4000)
PEER_PORT = 7001
FACTS = Facts(Role.INITIATOR, B, PortSet((PEER_PORT,)), ttl=3, packets_per_port=20, packets=100)


class Standing:
    """A connection whose handshake never ends."""

    port = PEER_PORT

    async def result(self) -> int:
        await trio.sleep_forever()
        return 0

    def announce(self) -> None: ...

    def drop(self) -> None: ...


class Port:
    """A port on no network: it notes what leaves, and shows what the test puts in."""

    local = LOCAL
    outlook = KnownSide(LOCAL, LOCAL.ip, PortSet((LOCAL.port,)))
    syn_options = Options(mss=1460, window_scale=7, sack_permitted=True)
    can_send_raw = True

    def __init__(self) -> None:
        self.opened_with: list[int] = []  # sequence numbers of the low-TTL SYNs
        self.connected_at: float | None = None
        self.injected = 0
        self.show, self._shown = trio.open_memory_channel[Any](10)

    async def learn(self) -> KnownSide:
        return self.outlook

    def isn(self) -> int:
        return 1000

    def send(self, flags: Flags, port: int, *, seq: int, ack: int = 0, ttl: int | None = None) -> None:
        self.opened_with.append(seq)

    def inject(self, flags: Flags, port: int, *, seq: int, ack: int = 0, options: Options) -> None:
        self.injected += 1

    async def sight(self) -> Any:
        return await self._shown.receive()

    def connect(self, port: int, isn: int, ttl: int | None = None) -> Standing:
        self.connected_at = trio.current_time()
        return Standing()

    def repeat(self, port: int) -> None: ...


class Kit:
    """The kit of a round between nobody and nobody."""

    nonce = NONCE

    def __init__(self) -> None:
        self.port = Port()
        self.deliver, self._cards = trio.open_memory_channel[Card](10)

    def now(self) -> float:
        return trio.current_time()

    def random(self, size: int) -> bytes:
        return bytes(range(1, size + 1))

    @asynccontextmanager
    async def tcp(self) -> AsyncIterator[Port]:
        yield self.port

    def tell_peer(self, told: Card) -> None: ...

    async def hear_peer(self) -> Card:
        return await self._cards.receive()

    def emit(self, event: object) -> None: ...


async def leaked_then(kit: Kit, card_after_s: float) -> float:
    """A SYN-ACK leaks, the injector's card comes so much later; seconds from the SYN-ACK to connect()."""
    port = kit.port
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(TcpSyni().initiate, FACTS, cast("Any", kit))
            await trio.testing.wait_all_tasks_blocked()
            leaked = Segment(PEER_PORT, LOCAL.port, 5000, plus(port.opened_with[0], 1), Flags.SYN | Flags.ACK, 64240)
            began = trio.current_time()
            port.show.send_nowait(Sighted(leaked, PEER_PORT, is_outgoing=False, ttl=60))
            await trio.sleep(card_after_s)
            assert port.connected_at is None or card_after_s > LEAKED_S
            kit.deliver.send_nowait(card(technique=1, port=PEER_PORT))
            while port.connected_at is None:  # noqa: ASYNC110 (the clock jumps)
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    assert port.injected == 0
    return port.connected_at - began


async def test_a_syn_ack_that_leaked_waits_for_the_card_so_that_our_syn_comes_after_the_injectors(
    autojump_clock: trio.testing.MockClock,
) -> None:
    assert math.isclose(await leaked_then(Kit(), card_after_s=0.2), 0.2)


async def test_without_a_card_it_is_believed_in_the_end(autojump_clock: trio.testing.MockClock) -> None:
    assert math.isclose(await leaked_then(Kit(), card_after_s=9.0), LEAKED_S)
