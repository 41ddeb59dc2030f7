"""Who may use the processor next: what many clients want done, in small turns.

Theory of operation. trio lets every task run that can run, then looks what has come from the network, and so on in
rounds. What one client waits for takes a handful of rounds, so rounds have to be short, however much others want done
at once: a session tells forty listeners something, a hundred clients begin a TLS handshake in the same moment.

So whoever is about to do some work for a client asks for a turn. While a round is young it is had at once. Later,
and as long as others wait, the work waits for one of the next rounds: as many turns for each of them as keep rounds
short, first for sources that have not waited lately, then for the others one after the other. Each source has some
credit when it begins to wait, and again whenever all others were looked at; work costs what it is worth. So whoever
asks for little is served next, and whoever asks for much waits for himself.

Source: RFC 8290 §4 (deficit round robin; new flows first).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from time import perf_counter

import trio

YOUNG_S = 0.0003  # a round's age up to which a turn is had at once, and what a round should take
MOST = 16  # turns in a round for those who wait, some 20 us each; what costs as much has a round for itself
CREDIT = 4


@dataclass(slots=True)
class _Source:
    credit: int = CREDIT
    waiting: deque[tuple[trio.Event, int]] = field(default_factory=deque)  # with what it costs


class Turns:
    """Turns by source. `run` it for as long as it is asked: where it does not run, every turn is had at once."""

    def __init__(self) -> None:
        self._new: dict[bytes, _Source] = {}  # in the order in which they began to wait
        self._old: dict[bytes, _Source] = {}  # those that have used up their credit since
        self._waiting = 0
        self._called = trio.lowlevel.ParkingLot()
        self._round = _Round()
        self._is_running = False
        self._share = MOST  # turns for the next round

    def __len__(self) -> int:
        return self._waiting

    async def take(self, source: bytes, cost: int = 1) -> None:
        """Wait for a turn. Not a checkpoint if it is had at once.

        Args:
            cost: 1 for a message or a request; MOST for what takes a round by itself, such as a TLS handshake.
        """
        if not self._is_running or (not self._waiting and perf_counter() - self._round.begun < YOUNG_S):
            return
        known = self._old.get(source) or self._new.setdefault(source, _Source())
        event = trio.Event()
        known.waiting.append((event, cost))
        self._waiting += 1
        self._called.unpark()
        try:
            await event.wait()
        except BaseException:
            if not event.is_set():
                known.waiting.remove((event, cost))
                self._waiting -= 1
            raise

    async def run(self) -> None:
        """Give turns to those who wait, until cancelled."""
        trio.lowlevel.add_instrument(self._round)
        self._is_running = True
        try:
            while True:
                if not self._waiting:
                    self._new.clear()
                    self._old.clear()
                    await self._called.park()
                self._share = max(1, self._share // 2) if self._round.took > YOUNG_S else min(MOST, self._share + 1)
                self._give(self._share)
                await trio.lowlevel.checkpoint()
        finally:
            self._is_running = False
            trio.lowlevel.remove_instrument(self._round)
            while self._waiting:
                self._give(MOST)

    def _give(self, turns: int) -> None:
        while turns > 0 and self._waiting:
            sources = self._new or self._old
            name = next(iter(sources))
            one = sources[name]
            if one.credit > 0 and one.waiting:
                event, cost = one.waiting.popleft()
                event.set()
                self._waiting -= 1
                one.credit -= cost
                turns -= cost
                continue
            del sources[name]
            if one.credit <= 0:
                one.credit += CREDIT
                self._old[name] = one
            elif sources is self._new:  # else it would be new again with its next wish, and always first
                self._old[name] = one


class _Round(trio.abc.Instrument):
    """When trio's round began, and how long the last one took."""

    begun = took = 0.0

    def before_io_wait(self, timeout: float) -> None:
        self.took = perf_counter() - self.begun

    def after_io_wait(self, timeout: float) -> None:
        self.begun = perf_counter()
