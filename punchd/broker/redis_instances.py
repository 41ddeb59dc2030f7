"""This process as one of those that share a Redis: it is heard of, it hears, and it takes care of the dead.

    called       what it is
    PROCESS      this process
    PROCESS.N    an instance: this process from one moment when it was lost to the next; its connections are
                 PROCESS.N-1, PROCESS.N-2 and so on

Every second an instance says that it lives. One that was silent for 10 s is given up by the others: they end its
connections in their sessions, some at a time, until there are none. It may have hung, or been cut off; then it finds
its commands refused, closes its connections, and goes on as another instance.

What the instance has to tell its connections comes through a stream of its own, in which each event of each session
has one entry. They come with the answers to its own commands, and in messages when another instance's command had one,
and are told in their order; if some were missed, the instance reads on in its stream. An entry that it caused itself is
a number only: what it says stays here. The message also brings the session's new state, so that its next change here is
one of that.

While Redis is away nobody is disconnected for OUTAGE_S; then the connections are closed, so that clients may look for
another server, and the instance is a new one.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

import trio

from punchd.broker import redis_codec as codec
from punchd.broker import redis_scripts
from punchd.broker.clock import Clock
from punchd.broker.redis_codec import Delivery
from punchd.broker.redis_scripts import BUSY, READ
from punchd.errors import DecodeError, StoreError
from punchd.redis.connection import Word
from punchd.redis.link import Link
from punchd.redis.script import Script
from punchd.redis.url import Place

BEAT_S = 1.0
LOST_S = 5.0  # beyond the time that a command may take
OUTAGE_S = 14.0  # 10 s are to be survived, and it takes some to notice and to connect again
_START = b"0-0"

log = logging.getLogger(__name__)


class Host(Protocol):
    """Whoever has the connections."""

    def tell(self, deliveries: Iterable[Delivery]) -> None:
        """What an entry says."""
        ...

    def read_entry(self, sealed: bytes, place: bytes) -> list[Delivery]:
        """What an entry of another server says.

        Raises:
            DecodeError: it cannot be read.
        """
        ...

    def offer(self, name: str, version: int, sealed: bytes) -> None:
        """A session's newest state."""
        ...

    def lose(self, name: str) -> None:
        """What connections of a session were to be told is lost: they are to be closed."""
        ...

    async def check(self) -> None:
        """Messages and changes may have been lost.

        Raises:
            StoreError: it cannot be known.
        """
        ...

    def abandon(self) -> bool:
        """All connections are to be closed: they are no part of their sessions any more. Whether there were any."""
        ...

    def bury(self, name: str, connection: str) -> trio.Event:
        """A dead instance's connection is gone. Set when that has taken place."""
        ...

    def swept(self, number: int) -> None:
        """So many sessions ended by themselves."""
        ...


@dataclass(frozen=True, slots=True)
class _Grave:
    """A dead instance, some of its connections with their sessions, and those that were ended."""

    instance: bytes
    left: list[tuple[bytes, bytes]]
    ended: Sequence[bytes] = ()


class Instance:
    """See above. `run` keeps it; it may be used before."""

    def __init__(self, place: Place, clock: Clock, host: Host) -> None:
        self._process = secrets.token_hex(6)
        self._number = 0
        self._clock = clock
        self._host = host
        self._link = Link(place, redis_scripts.use(self._process), hear=self._wake_up, resync=self._missed)
        self._last = _START  # entry of the stream that was told
        self._ahead: dict[bytes, tuple[bytes, Sequence[bytes]]] = {}  # entries by what stands before them
        self._own: dict[bytes, tuple[float, list[Delivery]]] = {}  # what entries of our own say, and since when
        self._keys = count(1)
        self._is_new = True  # not in Redis yet
        self._is_suspect = False  # something may have been lost
        self._grave = _Grave(b"", [])
        self._dug = trio.Event()
        self._heard_at = trio.current_time()
        self._unread = trio.Event()
        self._urgent = trio.Event()  # the next beat is not to wait
        self._next = trio.Event()
        self.sessions = 0  # open ones, of all servers

    @property
    def id(self) -> str:
        return f"{self._process}.{self._number}"

    @property
    def is_well(self) -> bool:
        """Whether Redis answers."""
        return self._link.is_up

    async def call(self, script: Script, *arguments: Word) -> Any:
        """What a script answers.

        Raises:
            StoreError: it cannot be known.
        """
        return await self._link.call(script, *arguments)

    async def commit(self, own: list[Delivery], name: str, *arguments: Word) -> tuple[bytes, Any, Any]:
        """Run COMMIT from its fourth argument on, the session's name; `own` is what it has to tell here.

        Raises:
            StoreError: it cannot be known whether it took place, or this instance was given up.
        """
        me, key = self.id, b"%d" % next(self._keys) if own else b""
        if own:
            self._own[key] = trio.current_time(), own
        status, *rest = await self.call(redis_scripts.COMMIT, me, self._last, key, name, *arguments)
        if status == b"reaped":
            self._hurry()
            raise StoreError("this server was given up by the others")
        if status != b"ok":
            self._own.pop(key, None)
        version, blob = rest
        if status == b"ok" and own and me == self.id:
            self._come(version, blob, (b"n", name.encode(), b"k", key))
        return status, version, blob

    async def catch_up(self) -> None:
        """Tell what there is to be told.

        Raises:
            StoreError: it cannot be known.
        """
        me = self.id
        self._tell(me, await self.call(redis_scripts.READ_ON, me, self._last))

    async def next_beat(self) -> None:
        """Until Redis has answered again, or was given up."""
        await self._next.wait()

    async def resign(self) -> None:
        """Say goodbye, so that what is left of it is not waited for."""
        await self.call(redis_scripts.RESIGN, self.id)

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._link.run)
            nursery.start_soon(self._read_forever)
            nursery.start_soon(self._bury_forever)
            while True:
                self._urgent = trio.Event()
                try:
                    await self._beat()
                except StoreError:
                    if trio.current_time() - self._heard_at > OUTAGE_S:
                        self._start_anew("redis was away for too long")
                with trio.move_on_after(BEAT_S):
                    await self._urgent.wait()

    # --- being alive -------------------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        while not await self._say_alive():
            await self._host.check()
            self._start_anew("redis does not know this server any more")
        if self._is_suspect:
            self._is_suspect = False
            try:
                await self._host.check()
            except StoreError:
                self._is_suspect = True
                raise
        self._heard_at = trio.current_time()
        self._go_on()

    async def _say_alive(self) -> bool:
        me, grave = self.id, self._grave
        words: tuple[bytes, ...] = (BUSY,) if grave.left else (grave.instance, *grave.ended)
        is_new, at_ms = int(self._is_new), self._clock.now_ms()
        status, *rest = await self.call(redis_scripts.BEAT, me, self._last, is_new, at_ms, *words)
        if status != b"ok":
            return False
        self._is_new = False
        self.sessions, passed, dead, left, entries = rest
        self._host.swept(passed)
        self._tell(me, entries)
        if len(entries) < READ:
            self._forget_lost()
        told = _order(self._last)
        self._ahead = {former: one for former, one in self._ahead.items() if _order(one[0]) > told}
        if words[0] != BUSY:
            self._grave = _Grave(dead, list(zip(left[::2], left[1::2], strict=True)))
            self._dug.set()
        return True

    async def _bury_forever(self) -> None:
        """End connections of dead instances, as many as the last beat gave."""
        while True:
            await self._dug.wait()
            self._dug = trio.Event()
            grave = self._grave
            if not grave.left:
                continue
            told = [(one, self._host.bury(name.decode(), one.decode())) for one, name in grave.left]
            log.info("another server is gone; %d of its connections are ended", len(told))
            with trio.move_on_after(redis_scripts.CLAIM_MS / 1000):
                for _, is_ended in told:
                    await is_ended.wait()
            self._grave = _Grave(grave.instance, [], [one for one, is_ended in told if is_ended.is_set()])
            self._hurry()

    def _start_anew(self, reason: str) -> None:
        if self._host.abandon():
            log.warning("WebSockets are closed: %s", reason)
        self._number += 1
        self._last, self._is_new, self._is_suspect = _START, True, False
        self._own.clear()
        self._ahead.clear()
        self._heard_at = trio.current_time()
        self._go_on()

    def _go_on(self) -> None:
        self._next.set()
        self._next = trio.Event()

    def _missed(self) -> None:
        """The connection to Redis is new."""
        self._is_suspect = not self._is_new
        self._unread.set()
        self._hurry()

    def _hurry(self) -> None:
        self._urgent.set()

    # --- what is to be told ------------------------------------------------------------------------------------------

    def _wake_up(self, message: bytes) -> None:
        try:
            wake = codec.load_wake(message)
        except DecodeError:
            self._unread.set()
            return
        if wake.instance != self.id:
            return
        if wake.state:
            self._host.offer(wake.name, wake.version, wake.state)
        self._come(wake.former, wake.place, wake.fields)

    async def _read_forever(self) -> None:
        while True:
            await self._unread.wait()
            self._unread = trio.Event()
            with contextlib.suppress(StoreError):  # `_missed` comes when it is back
                await self.catch_up()

    def _come(self, former: bytes, place: bytes, fields: Sequence[bytes]) -> None:
        """One entry. Tasks that were answered at the same moment go on in any order, so it may be ahead of others; what
        really is missing comes with the next beat."""
        if _order(place) > _order(self._last):
            self._ahead[former] = place, fields
        while (found := self._ahead.pop(self._last, None)) is not None:
            self._tell(self.id, [found])

    def _tell(self, me: str, entries: Sequence[Any]) -> None:
        """Tell what was not told yet. Answers may overlap, but none begins after what was told."""
        if me != self.id:
            return  # of an instance that is no more
        if len(entries) >= READ:
            self._unread.set()
        for place, flat in entries:
            if _order(place) <= _order(self._last):
                continue
            self._last = place
            fields = dict(zip(flat[::2], flat[1::2], strict=True))
            told = self._read(fields)
            if told is None:
                self._host.lose(fields[b"n"].decode())
            else:
                self._host.tell(told)

    def _read(self, fields: dict[bytes, bytes]) -> list[Delivery] | None:
        """What an entry says; None if nobody knows."""
        if b"b" not in fields:
            return self._own.pop(fields.get(b"k", b""), (0.0, None))[1]
        where = codec.place_of_entry(self.id, fields[b"n"].decode(), int(fields[b"v"]))
        try:
            return self._host.read_entry(fields[b"b"], where)
        except DecodeError:
            return None

    def _forget_lost(self) -> None:
        """Changes whose answers were lost, and that did not take place: all that did was told just now."""
        until = trio.current_time() - LOST_S
        for key in [key for key, (since, _) in self._own.items() if since < until]:
            del self._own[key]


def _order(place: bytes) -> tuple[int, int]:
    ms, _, number = place.partition(b"-")
    return int(ms), int(number)
