"""Floods and forgeries on real sockets: the session goes on; what it costs is printed (`pytest -rP`) and bounded."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from punchd.media.buffers import Memory
from punchd.media.counters import Count
from punchd.media.datagrams import ConnectionId, Syn, SynAck, encode, parse
from punchd.media.settings import ResponderSettings
from punchd.media.trio_initiator import Initiator
from punchd.media.trio_responder import Responder
from tests.unit.media.attacks import ON_RECEIVER, ON_RESPONDER, Heap
from tests.unit.media.pairs import PATIENCE_S, Pair, drained
from tests.unit.media.parts import MIB, A, data, fragment

pytestmark = pytest.mark.usefixtures("nothing_is_left_open")

FLOOD = 2000
AT_ONCE = 50  # datagrams that every receive buffer holds
LARGEST = 4  # MiB of heap; measured: 1.3


@asynccontextmanager
async def attacked(sender: socket.socket, receiver: socket.socket, memory: Memory) -> AsyncIterator[Initiator]:
    """A session A whose sender does what the test does."""
    sender.setblocking(False)

    async def answer() -> None:
        await trio.lowlevel.wait_readable(sender)
        assert isinstance(parse(sender.recv(100)), Syn)
        sender.send(encode(SynAck(True, A)))

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            async with Initiator.open(receiver, desired=A, memory=memory) as initiator:
                yield initiator


async def flood(strike: Callable[[int], object]) -> None:
    """Not faster than it is read: what the kernel drops does no harm."""
    for number in range(FLOOD):
        strike(number)
        if number % AT_ONCE == AT_ONCE - 1:
            await trio.testing.wait_all_tasks_blocked()


@pytest.mark.parametrize("name", ON_RECEIVER)
async def test_d_11_d_13_d_14_d_26_a_receiver_under_a_flood_goes_on(pair: Pair, name: str) -> None:
    attack, told = ON_RECEIVER[name]
    sender, memory = pair[0], Memory(256 * MIB)
    found: list[bytes] = []
    async with attacked(sender, pair[1], memory) as initiator, trio.open_nursery() as nursery:

        async def take() -> None:
            while True:
                for one in await initiator.receive_some():
                    payload = bytes(one.payload)
                    found.extend([payload] if payload.startswith(b"good") else [])
                assert memory.reserved <= 192 * MIB

        nursery.start_soon(take)
        with Heap() as heap:
            await flood(lambda number: sender.send(attack(number)))
            drained(sender)  # answers
            peak, claimed = heap.peak() / MIB, memory.reserved / MIB
            print(f"{name}: {peak:.2f} MiB, {claimed:.1f} MiB claimed; {initiator.counters.named()}")
            assert peak < LARGEST
        sender.send(data(2**60, b"good, in one piece"))
        for offset, part in ((0, b"good, "), (6, b"in two")):
            sender.send(fragment(2**60 + 1, offset, 12, part))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert found == [b"good, in one piece", b"good, in two"]
    assert initiator.counters[told] > 0
    assert initiator.statistics().kernel_drops == 0


@pytest.mark.parametrize("optimistic", [False, True], ids=["waits", "optimistic"])
@pytest.mark.parametrize("name", ON_RESPONDER)
async def test_d_05_d_14_d_24_a_responder_under_a_flood_goes_on(name: str, optimistic: bool) -> None:
    """Every datagram comes from another port."""
    attack, told = ON_RESPONDER[name]
    settings = ResponderSettings(legacy_start=True, optimistic=optimistic, max_open=16)
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as there,
        trio.fail_after(PATIENCE_S),
    ):
        for sock in (here, there):
            sock.bind(("127.0.0.1", 0))
        here.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, MIB)
        place = here.getsockname()

        def strike(number: int) -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
                stranger.bind((f"127.1.{number >> 8}.{number & 255}", 0))
                stranger.sendto(attack(number), place)

        async with (
            Responder.open(here, rate_bps=None, settings=settings) as responder,
            Initiator.open(there, peer=place) as initiator,
        ):
            stream = await responder.accept()
            with Heap() as heap:
                await flood(strike)
                peak = heap.peak() / MIB
            print(f"{name}: {peak:.2f} MiB; {responder.counters.named()}")
            assert peak < LARGEST
            assert responder.counters[told] > 0
            await stream.send(b"still here" * 500)
            assert (await initiator.receive()).take() == b"still here" * 500


async def test_d_26_forged_names_lose_a_flush_each_and_no_more(pair: Pair) -> None:
    """Who knows the tuple may flush four times at once; what is sent between is delivered all the same."""
    sender, found = pair[0], 0
    async with attacked(sender, pair[1], Memory(MIB)) as initiator:
        for number in range(200):
            sender.send(encode(ConnectionId(b"forged %d" % number)))
            sender.send(data(number))
            while not await initiator.receive_some():
                pass
            found += 1
        assert found == 200
        assert initiator.counters[Count.FLUSHES] <= 4 + initiator.statistics().seconds + 1
        assert initiator.counters[Count.FLUSHES_REFUSED] > 100
