"""The store in this process: everything is gone with it, and every client registers anew (D-23)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

import trio

from punchd.endpoint import IPAddress
from punchd.rendezvous import pulse
from punchd.rendezvous.aliases import Aliases, Bound
from punchd.rendezvous.clients import Clients
from punchd.rendezvous.identity import Binding
from punchd.rendezvous.pulse import ID_SIZE, KEY_SIZE, NO_REPLY
from punchd.rendezvous.signals import Posted, Signal, Signals
from punchd.rendezvous.store import Ended, Registered
from punchd.rendezvous.views import View

SWEEP_S = 1.0  # how often memory of clients that are gone is freed
SWEEP_ROWS = 500  # clients looked at between two checkpoints: about a millisecond
COUNT_S = 5.0  # how old the number of clients online may be
COUNT_ROWS = 10_000  # clients counted between two checkpoints: about a millisecond
_SECRET_SIZE = 32


class _Wait:
    """Somebody who waits for signals."""

    __slots__ = ("ended", "woken")

    def __init__(self) -> None:
        self.woken = trio.Event()
        self.ended: Ended | None = None

    def end(self, reason: Ended) -> None:
        self.ended = reason
        self.woken.set()


class MemoryStore:
    """See `punchd.rendezvous.store.Store`.

    Args:
        clock: seconds that never go back.
        unix_clock: seconds since 1970.
        entropy: that many random bytes.
    """

    def __init__(
        self,
        clients: Clients,
        signals: Signals,
        aliases: Aliases,
        *,
        clock: Callable[[], float] = trio.current_time,
        unix_clock: Callable[[], float] = time.time,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._clients = clients
        self._signals = signals
        self._aliases = aliases
        self._clock = clock
        self._unix_clock = unix_clock
        self._entropy = entropy
        self._cookie_secret = entropy(_SECRET_SIZE)
        self._waits: dict[bytes, _Wait] = {}
        self._online = 0

    async def register(self, ip: IPAddress) -> Registered | None:
        new = Registered(self._entropy(ID_SIZE), self._entropy(KEY_SIZE))
        evicted = self._clients.register(new.client_id, new.key, self._clock(), ip)
        if evicted is None:
            return None
        self._forget(evicted)
        return new

    async def authenticate(self, key: bytes) -> bytes | None:
        return self._clients.authenticate(key, self._clock())

    async def verify(self, key: bytes, ip: IPAddress) -> bytes | None:
        return self._clients.verify(key, self._clock(), ip)

    async def logout(self, key: bytes) -> bytes | None:
        client_id = self._clients.logout(key, self._clock())
        if client_id is not None:
            self._forget([client_id])
        return client_id

    async def pulses(self, batch: Sequence[tuple[bytes, bytes]]) -> list[bytes]:
        now = self._clock()
        take = self._clients.pulse
        return [
            take(datagram, origin, now) if len(datagram) == KEY_SIZE else self._other_pulse(datagram, origin, now)
            for datagram, origin in batch
        ]

    def _other_pulse(self, datagram: bytes, origin: bytes, now: float) -> bytes:
        key = pulse.read_key(datagram)
        if key is not None:
            return self._clients.pulse(key, origin, now)
        signed = pulse.read_signed(datagram)
        if signed is None:
            return NO_REPLY
        unix_ms = int(self._unix_clock() * 1000)
        return self._clients.signed_pulse(signed, origin, now, unix_ms, self._cookie_secret)

    async def lookup(self, client_id: bytes) -> View | None:
        return self._clients.view(client_id, self._clock())

    async def post_signal(self, sender: bytes, target: bytes, data: str) -> Posted:
        now = self._clock()
        if self._clients.view(target, now) is None:
            return Posted.UNKNOWN
        posted = self._signals.post(target, Signal(sender, data, now))
        if posted is Posted.SENT:
            self._wake(target)
        return posted

    async def take_signals(self, client_id: bytes, wait_s: float) -> list[Signal] | Ended:
        older = self._waits.pop(client_id, None)
        if older is not None:
            older.end(Ended.REPLACED)
        now = self._clock()
        if self._clients.view(client_id, now) is None:
            return Ended.GONE
        taken = self._signals.take(client_id, now)
        if taken:
            return taken
        wait = self._waits[client_id] = _Wait()
        try:
            with trio.move_on_after(wait_s):
                await wait.woken.wait()
        finally:
            if self._waits.get(client_id) is wait:
                del self._waits[client_id]
        return wait.ended or self._signals.take(client_id, self._clock())

    async def return_signals(self, client_id: bytes, signals: Sequence[Signal]) -> None:
        if client_id in self._clients:
            self._signals.put_back(client_id, signals)
            self._wake(client_id)

    async def age(self, signal: Signal) -> float:
        return max(0.0, self._clock() - signal.posted)

    async def bind_alias(self, binding: Binding) -> Bound:
        if self._clients.view(binding.client_id, self._clock()) is None:
            return Bound.UNKNOWN
        return self._aliases.bind(binding)

    async def resolve_alias(self, fingerprint: bytes) -> Binding | None:
        binding = self._aliases.resolve(fingerprint)
        if binding is None or self._clients.view(binding.client_id, self._clock()) is None:
            return None
        return binding

    async def count_online(self) -> int:
        return self._online

    async def is_healthy(self) -> bool:
        return True

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._sweep_forever)
            nursery.start_soon(self._count_forever)

    async def _sweep_forever(self) -> None:
        while True:
            is_more = True
            while is_more:
                gone, is_more = self._clients.sweep(self._clock(), SWEEP_ROWS)
                self._forget(gone)
                await trio.lowlevel.checkpoint()
            self._signals.sweep(self._clock())
            await trio.sleep(SWEEP_S)

    async def _count_forever(self) -> None:
        while True:
            online, first, is_more = 0, 0, True
            while is_more:
                found, is_more = self._clients.count_online(self._clock(), first, COUNT_ROWS)
                online, first = online + found, first + COUNT_ROWS
                await trio.lowlevel.checkpoint()
            self._online = max(0, online)
            await trio.sleep(COUNT_S)

    def _wake(self, client_id: bytes) -> None:
        wait = self._waits.get(client_id)
        if wait is not None:
            wait.woken.set()

    def _forget(self, gone: Sequence[bytes]) -> None:
        """Drop what belonged to clients that are gone."""
        for client_id in gone:
            self._signals.forget(client_id)
            self._aliases.forget(client_id)
            wait = self._waits.pop(client_id, None)
            if wait is not None:
                wait.end(Ended.GONE)
