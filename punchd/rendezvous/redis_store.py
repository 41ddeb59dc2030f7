"""The store in Redis or Valkey, which several servers share: a client may pulse at one, be looked up at another, and
hear at a third.

The same states at the same times as in memory. What must not be torn apart happens in one Lua script
(`redis_scripts.py`), at Redis' own time, so that the servers' clocks do not matter. All pulses that were read together
go in one command. Redis holds SHA-256 of a client's key and what checks its signatures (`hmac_state.py`), never a key.

Who waits for signals waits here; a message of whichever server took the signal, or saw the client go, or has a newer
wait of it, wakes it. Signals are not in the message: the awakened one takes them from Redis, as a whole or not at all,
so no two servers deliver the same one. After an outage everybody who waits looks for himself.

When Redis is down, calls raise StoreError (`punchd.redis.link`). When it comes back without what it had, clients are
told 1060 or 401, and register anew; with it (AOF), they go on.

Source: rendezvous specification §2, D-23; servers specification, "Redis 7 / Valkey from trio".
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from math import inf
from typing import Any

import trio

from punchd.endpoint import IPAddress
from punchd.errors import StoreError
from punchd.redis.link import Link
from punchd.redis.script import Script
from punchd.redis.url import Place
from punchd.rendezvous import hmac_state, pulse, redis_scripts
from punchd.rendezvous import redis_codec as codec
from punchd.rendezvous.aliases import Bound
from punchd.rendezvous.identity import Binding
from punchd.rendezvous.pulse import ID_SIZE, KEY_SIZE, NO_REPLY, UNKNOWN, Code, SignedPulse, key_digest
from punchd.rendezvous.settings import Limits
from punchd.rendezvous.signals import Posted, Signal
from punchd.rendezvous.store import Ended, Registered
from punchd.rendezvous.views import Policy, Timing, View

SWEEP_S = 1.0  # how often what is gone is swept, and clients online are counted
SWEPT = 200  # clients at a time: some milliseconds of Redis
WOKEN = 64  # waits that look for signals together after an outage
_WAKE_PAUSE_S = 0.01  # between these
_SECRET_SIZE = 32
_REPLIES = {code: int(code).to_bytes(4, "big") for code in Code}
_POSTED = (Posted.SENT, Posted.UNKNOWN, Posted.FULL, Posted.EXHAUSTED)
_BOUND = (Bound.BOUND, Bound.UNKNOWN, Bound.STALE, Bound.TOO_MANY)


class _Wait:
    """Somebody who waits for signals, here. Waits of a client are numbered in the order in which they began."""

    __slots__ = ("ended", "life_s", "newest", "number", "woken")

    def __init__(self) -> None:
        self.woken = trio.Event()
        self.ended: Ended | None = None
        self.number: int | None = None  # until Redis has given it one
        self.newest = 0  # number of a wait of the same client that was heard of
        self.life_s = inf  # that the client has, unless its lease is renewed

    def end(self, reason: Ended) -> None:
        self.ended = reason
        self.woken.set()

    def compare(self) -> None:
        """End if there is a newer one."""
        if self.number is not None and self.newest > self.number:
            self.end(Ended.REPLACED)


class RedisStore:
    """See `punchd.rendezvous.store.Store`. Servers that share a Redis need the same timing, policy and limits.

    Args:
        clock: seconds since 1970 in place of Redis' time; for tests.
        entropy: that many random bytes.
    """

    def __init__(
        self,
        place: Place,
        timing: Timing,
        policy: Policy,
        limits: Limits,
        *,
        clock: Callable[[], float] | None = None,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._timing = timing
        self._policy = policy
        self._limits = limits
        self._clock = clock
        self._entropy = entropy
        self._times = tuple(map(codec.to_us, (timing.online, timing.lifetime, float(limits.signal_seconds))))
        self._waits: dict[bytes, _Wait] = {}
        self._missed = trio.Event()
        self._link = Link(place, redis_scripts.USE, hear=self._hear, resync=self._miss)
        self._ahead_s = 0.0  # of the store's time, to trio's
        self._online = 0

    async def register(self, ip: IPAddress) -> Registered | None:
        new = Registered(self._entropy(ID_SIZE), self._entropy(KEY_SIZE))
        verifier = hmac_state.of_key(new.key)
        digest, capacity = key_digest(new.key), self._limits.clients
        is_room = await self._call(
            redis_scripts.REGISTER, new.client_id, digest, verifier, self._verified_ip(ip), capacity
        )
        return new if is_room else None

    async def authenticate(self, key: bytes) -> bytes | None:
        client_id: bytes | None = await self._call(redis_scripts.AUTHENTICATE, key_digest(key))
        return client_id

    async def verify(self, key: bytes, ip: IPAddress) -> bytes | None:
        client_id: bytes | None = await self._call(redis_scripts.VERIFY, key_digest(key), self._verified_ip(ip))
        return client_id

    async def logout(self, key: bytes) -> bytes | None:
        client_id: bytes | None = await self._call(redis_scripts.LOGOUT, key_digest(key))
        return client_id

    async def pulses(self, batch: Sequence[tuple[bytes, bytes]]) -> list[bytes]:
        replies = [NO_REPLY] * len(batch)
        asked: dict[int, tuple[bytes, bytes, bytes]] = {}  # by place in the batch; what the script is asked
        signed: dict[int, SignedPulse] = {}
        for place, (datagram, origin) in enumerate(batch):
            key = pulse.read_key(datagram)
            if key is not None:
                asked[place] = (key_digest(key), origin, b"")
                continue
            read = pulse.read_signed(datagram)
            if read is not None:
                signed[place], replies[place] = read, UNKNOWN
        cookies = await self._check_signed(batch, signed, asked) if signed else {}
        if asked:
            places = sorted(asked)
            policy = (int(self._policy.reverify_moves), int(self._policy.require_same_ip))
            words = [word for place in places for word in asked[place]]
            codes = await self._call(redis_scripts.PULSES, *policy, *words)
            for place, code in zip(places, codes, strict=True):
                replies[place] = _REPLIES[code] if code != Code.COOKIE else pulse.cookie_reply(cookies[place])
        return replies

    async def _check_signed(
        self,
        batch: Sequence[tuple[bytes, bytes]],
        signed: dict[int, SignedPulse],
        asked: dict[int, tuple[bytes, bytes, bytes]],
    ) -> dict[int, bytes]:
        """Ask for those whose signatures are right. The cookies that are, by place."""
        ids = [one.client_id for one in signed.values()]
        now, secret, *states = await self._call(redis_scripts.SIGNERS, self._entropy(_SECRET_SIZE), *ids)
        unix_s = int(now) // 1_000_000
        cookies: dict[int, bytes] = {}
        for (place, one), state in zip(signed.items(), states, strict=True):
            await trio.lowlevel.checkpoint()  # a signature takes 0.3 ms
            if state and hmac_state.is_authentic(state, one.signed, one.mac):
                origin = batch[place][1]
                cookies[place] = pulse.make_cookie(secret, origin, unix_s)
                letter = b"C" if pulse.is_cookie(one.cookie, secret, origin, unix_s) else b"N"
                asked[place] = (one.client_id, origin, letter + b"%d" % one.unix_ms)
        return cookies

    async def lookup(self, client_id: bytes) -> View | None:
        fields = await self._call(redis_scripts.LOOKUP, client_id)
        return None if fields is None else codec.read_view(client_id, fields, self._timing)

    async def post_signal(self, sender: bytes, target: bytes, data: str) -> Posted:
        bounds = (self._limits.signal_queue, self._limits.signal_memory)
        return _POSTED[await self._call(redis_scripts.POST, sender, target, data.encode(), *bounds)]

    async def take_signals(self, client_id: bytes, wait_s: float) -> list[Signal] | Ended:
        older = self._waits.pop(client_id, None)
        if older is not None:
            older.end(Ended.REPLACED)
        wait = self._waits[client_id] = _Wait()
        deadline = trio.current_time() + wait_s
        try:
            while True:
                found = await self._take(client_id, wait)
                left_s = deadline - trio.current_time()
                if found or left_s <= 0:
                    return found
                with trio.move_on_after(min(left_s, wait.life_s)):
                    await wait.woken.wait()
                if wait.ended is not None:
                    return wait.ended
                wait.woken = trio.Event()
        finally:
            if self._waits.get(client_id) is wait:
                del self._waits[client_id]

    async def _take(self, client_id: bytes, wait: _Wait) -> list[Signal] | Ended:
        """What waits, now. Not cancelled in the middle: what was taken and not given on would be lost."""
        number = b"" if wait.number is None else b"%d" % wait.number
        with trio.CancelScope(shield=True):
            taken = await self._call(redis_scripts.TAKE, client_id, number)
        if isinstance(taken, bytes):
            return Ended.GONE if taken == codec.Kind.GONE.value else Ended.REPLACED
        now, given, life, signals = taken
        wait.number, wait.life_s = int(given), codec.to_s(life)
        wait.compare()
        self._ahead_s = codec.to_s(now) - trio.current_time()
        return [codec.read_signal(packed) for packed in signals]

    async def return_signals(self, client_id: bytes, signals: Sequence[Signal]) -> None:
        if signals:
            await self._call(redis_scripts.RETURN, client_id, *map(codec.pack_signal, signals))

    async def age(self, signal: Signal) -> float:
        now = self._clock() if self._clock is not None else trio.current_time() + self._ahead_s
        return max(0.0, now - signal.posted)

    async def bind_alias(self, binding: Binding) -> Bound:
        packed, most = codec.pack_binding(binding), self._limits.aliases_per_client
        return _BOUND[await self._call(redis_scripts.BIND, binding.fingerprint, most, packed)]

    async def resolve_alias(self, fingerprint: bytes) -> Binding | None:
        packed = await self._call(redis_scripts.RESOLVE, fingerprint)
        return None if packed is None else codec.read_binding(packed)

    async def count_online(self) -> int:
        return self._online

    async def is_healthy(self) -> bool:
        return self._link.is_up

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._link.run)
            nursery.start_soon(self._wake_all_forever)
            nursery.start_soon(self._sweep_forever)

    async def _sweep_forever(self) -> None:
        while True:
            try:
                swept = SWEPT
                while swept >= SWEPT:
                    swept, self._online = await self._call(redis_scripts.SWEEP, SWEPT)
            except StoreError:
                pass  # the link has said so
            await trio.sleep(SWEEP_S)

    async def _wake_all_forever(self) -> None:
        """After an outage everybody looks for signals, some at a time."""
        while True:
            await self._missed.wait()
            self._missed = trio.Event()
            waits = list(self._waits.values())
            for first in range(0, len(waits), WOKEN):
                for wait in waits[first : first + WOKEN]:
                    wait.woken.set()
                await trio.sleep(_WAKE_PAUSE_S)

    def _miss(self) -> None:
        self._missed.set()

    def _hear(self, packed: bytes) -> None:
        try:
            message = codec.read_message(packed)
        except ValueError:  # somebody else's, on our channel
            return
        wait = self._waits.get(message.client_id)
        if wait is None:
            return
        match message.kind:
            case codec.Kind.SIGNAL:
                wait.woken.set()
            case codec.Kind.GONE:
                wait.end(Ended.GONE)
            case codec.Kind.WAIT:
                wait.newest = max(wait.newest, message.number)
                wait.compare()

    def _verified_ip(self, ip: IPAddress) -> bytes:
        return ip.packed if self._policy.require_same_ip else b""

    async def _call(self, script: Script, *arguments: bytes | int) -> Any:
        now = b"" if self._clock is None else b"%d" % codec.to_us(self._clock())
        return await self._link.call(script, now, *self._times, *arguments)
