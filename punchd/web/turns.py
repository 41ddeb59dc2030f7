"""Who may use the processor next: what many clients want done, in small turns.

Theory of operation. trio lets every task run that can run, then looks what has come from the network, and so on in
rounds. What one client waits for takes a handful of rounds, so rounds have to be short, however much others want done
at once: a session tells forty listeners something, a hundred clients begin a TLS handshake in the same moment.

So whoever is about to do some work for a client asks for a turn. While a round is young it is had at once; so are the
first few small ones of each round for sources that do not wait already, one for each, since what is asked for seldom
should not wait at all. Everything else waits for one of the next rounds: as many turns for each of them as keep rounds
short, first for sources that have not waited lately, then for the others one after the other. Each source has some
credit when it begins to wait, and again whenever all others were looked at; work costs what it is worth. So whoever
asks for little is served next, and whoever asks for much waits for himself. What is told to many at once counts as one
source, whoever they are; else a thousand listeners would go before somebody who came after them.

A TLS handshake takes longer than a round should and cannot be divided. Handshakes have turns of their own, dealt out
in the same way but one each millisecond, so that most rounds are without one: with an ECDSA key it takes 0.4 ms.

Source: RFC 8290 §4 (deficit round robin; new flows first).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter

import trio

YOUNG_S = 0.0003  # a round's age up to which a turn is had at once, and what a round should take
MOST = 16  # turns in a round for those who wait, some 20 us each; what costs as much has a round for itself
HANDSHAKE_S = 0.001  # from one to the next, while others wait for theirs
AT_ONCE = 4  # turns in a round, one for a source, that are had however old it is and whoever waits
CREDIT = 4

Act = Callable[[], None]


@dataclass(slots=True)
class _Source:
    credit: int = CREDIT
    waiting: deque[tuple[Act, int]] = field(default_factory=deque)  # with what it costs


class _Queue:
    """Those who wait, by source."""

    def __init__(self) -> None:
        self._new: dict[bytes, _Source] = {}  # in the order in which they began to wait
        self._old: dict[bytes, _Source] = {}  # those that have used up their credit since
        self._waiting = 0
        self._called = trio.lowlevel.ParkingLot()

    def __len__(self) -> int:
        return self._waiting

    def __contains__(self, source: bytes) -> bool:
        """Whether it waits, or did lately."""
        return source in self._new or source in self._old

    def add(self, source: bytes, act: Act, cost: int) -> None:
        (self._old.get(source) or self._new.setdefault(source, _Source())).waiting.append((act, cost))
        self._waiting += 1
        self._called.unpark()

    async def wait(self, source: bytes, cost: int) -> None:
        """Wait for a turn. Who gives up takes none."""
        event = trio.Event()
        self.add(source, event.set, cost)
        try:
            await event.wait()
        except BaseException:
            if not event.is_set():
                (self._old.get(source) or self._new[source]).waiting.remove((event.set, cost))
                self._waiting -= 1
            raise

    async def called(self) -> None:
        """Until somebody waits. What was known of sources is forgotten if nobody does."""
        if not self._waiting:
            self._new.clear()
            self._old.clear()
            await self._called.park()

    def give(self, turns: int) -> None:
        """As many turns; a last one may cost more than is left."""
        while turns > 0 and self._waiting:
            sources = self._new or self._old
            name = next(iter(sources))
            one = sources[name]
            if one.credit > 0 and one.waiting:
                act, cost = one.waiting.popleft()
                self._waiting -= 1
                act()
                one.credit -= cost
                turns -= cost
                continue
            del sources[name]
            if one.credit <= 0:
                one.credit += CREDIT
                self._old[name] = one
            elif sources is self._new:  # else it would be new again with its next wish, and always first
                self._old[name] = one


class Turns:
    """Turns by source. `run` it for as long as it is asked: where it does not run, every turn is had at once."""

    def __init__(self) -> None:
        self._works = _Queue()
        self._handshakes = _Queue()
        self._handshake_at = 0.0  # the next one, by perf_counter
        self._round = _Round()
        self._is_running = False

    def __len__(self) -> int:
        return len(self._works) + len(self._handshakes)

    async def take(self, source: bytes, cost: int = 1) -> None:
        """Wait for a turn. Not a checkpoint if it is had at once.

        Args:
            cost: 1 for a message or a request; MOST for what takes a round by itself.
        """
        if not self._is_free and not self._is_seldom(source, cost):
            await self._works.wait(source, cost)

    def call(self, source: bytes, act: Act) -> None:
        """Have `act` called with a turn, before this returns or later. It is not taken back, and may not raise."""
        if self._is_free or self._is_seldom(source, 1):
            act()
        else:
            self._works.add(source, act, 1)

    async def take_handshake(self, source: bytes) -> None:
        """Wait for a turn of a TLS handshake. Not a checkpoint if it is had at once."""
        if not self._is_running:
            return
        if self._handshakes or not self._is_free or perf_counter() < self._handshake_at:
            await self._handshakes.wait(source, 1)
        else:
            self._handshake_at = perf_counter() + HANDSHAKE_S

    async def run(self) -> None:
        """Give turns to those who wait, until cancelled."""
        trio.lowlevel.add_instrument(self._round)
        self._is_running = True
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._give)
                nursery.start_soon(self._give_handshakes)
        finally:
            self._is_running = False
            trio.lowlevel.remove_instrument(self._round)
            for queue in (self._works, self._handshakes):
                while queue:
                    queue.give(MOST)

    @property
    def _is_free(self) -> bool:
        return not self._is_running or (not self._works and perf_counter() - self._round.begun < YOUNG_S)

    def _is_seldom(self, source: bytes, cost: int) -> bool:
        served = self._round.served
        if cost > 1 or len(served) >= AT_ONCE or source in served or source in self._works:
            return False
        served.add(source)
        return True

    async def _give(self) -> None:
        share = MOST  # turns for the next round
        while True:
            await self._works.called()
            share = max(1, share // 2) if self._round.took > YOUNG_S else min(MOST, share + 1)
            self._works.give(share)
            await trio.lowlevel.checkpoint()

    async def _give_handshakes(self) -> None:
        while True:
            await self._handshakes.called()
            await trio.sleep(max(0.0, self._handshake_at - perf_counter()))
            self._handshakes.give(1)
            self._handshake_at = perf_counter() + HANDSHAKE_S


class _Round(trio.abc.Instrument):
    """When trio's round began, who had a turn at once in it, and how long the last one took."""

    begun = took = 0.0

    def __init__(self) -> None:
        self.served: set[bytes] = set()

    def before_io_wait(self, timeout: float) -> None:
        self.took = perf_counter() - self.begun

    def after_io_wait(self, timeout: float) -> None:
        self.begun = perf_counter()
        self.served.clear()
