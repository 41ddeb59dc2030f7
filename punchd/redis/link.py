"""One connection to Redis or Valkey, kept up for as long as the server runs.

Theory of operation. All commands and all wakings go over one connection. Redis answers in order and works on one
command at a time, so more connections would gain nothing, and a single one has one state that everybody can ask for:

    starting ──▶ up ◀──▶ down

While it is down, a call fails at once; a task of its own, which no request can cancel, connects again after 0.05 s, and
then ever more slowly, up to once a second. While it is up, a command that writes goes out every second; if that is
refused, or if any command has no answer after 1.5 s, the connection is given up, and all that wait hear of it. While it
is starting, calls wait for the first outcome, so that a server that was just started refuses nobody for nothing.

A command that was cut off is never sent again, since it may have taken place. Whoever asked for it hears of it.

Messages that were sent while the connection was down are lost. So every subscription begins with `resync`: what they
would have told has to be read from what is stored.

Outages are logged in one line each, at most every 10 s, with why and where, never with user or password; one that
lasts is told of again every minute.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from coredis.exceptions import ConnectionError as LostError
from coredis.exceptions import NoScriptError
from coredis.typing import RedisError

from punchd.errors import StoreError
from punchd.redis.connection import ANSWER_S, Connection, Word
from punchd.redis.script import Script, Use
from punchd.redis.url import Place

CONNECT_S = 1.5  # for connecting, and for a place among those that wait
PROBE_S = 1.0  # between two commands that only show that there is an answer
FIRST_DELAY_S, MOST_DELAY_S = 0.05, 1.0  # before connecting again
IN_FLIGHT = 512  # commands sent and not answered
NOTICE_S = 10.0  # between two lines about outages
REMINDER_S = 60.0  # between two lines about one that lasts

_PROBE_MS = 5000  # that the key of the probe lives


class Link:
    """The connection. `run` keeps it; `call` uses it.

    Args:
        use: what for.
        hear: called with each message on the channel.
        resync: called when messages may have been lost.
    """

    def __init__(self, place: Place, use: Use, *, hear: Callable[[bytes], None], resync: Callable[[], None]) -> None:
        self._place = place
        self._use = use
        self._tls = ssl.create_default_context() if place.is_tls else None
        self._hear = hear
        self._resync = resync
        self._connection: Connection | None = None  # while it is up
        self._is_decided = trio.Event()  # no longer starting
        self._free = trio.Semaphore(IN_FLIGHT)
        self._notices = _Notices(str(place), use)

    @property
    def is_up(self) -> bool:
        return self._connection is not None

    async def call(self, script: Script, *arguments: Word) -> Any:
        """What a script answers.

        Raises:
            StoreError: it cannot be known; the script may have run or not.
        """
        try:
            self._free.acquire_nowait()
        except trio.WouldBlock:
            await self._in_turn(self._free.acquire)
        try:
            if not self._is_decided.is_set():
                await self._in_turn(self._is_decided.wait)
            return await self._evaluate(script, arguments)
        finally:
            self._free.release()

    async def _in_turn(self, wait: Callable[[], Awaitable[None]]) -> None:
        with trio.move_on_after(CONNECT_S) as scope:
            await wait()
        if scope.cancelled_caught:
            raise StoreError("redis did not answer in time")

    async def _evaluate(self, script: Script, arguments: tuple[Word, ...]) -> Any:
        connection = self._connection
        if connection is None:
            raise StoreError("redis cannot be reached")
        try:
            try:
                return await connection.ask(b"EVALSHA", script.sha, 0, *arguments)
            except NoScriptError:
                return await connection.ask(b"EVAL", script.source, 0, *arguments)
        except LostError as error:
            raise StoreError("the connection to redis was lost") from error
        except RedisError as error:
            self._notices.refused(_reason(error, self._place))
            raise StoreError("redis refused a command") from error

    async def run(self) -> None:
        """Keep the connection until cancelled."""
        delay_s = FIRST_DELAY_S
        while True:
            was_up, reason = await self._session()
            self._is_decided.set()
            self._notices.down(reason)
            delay_s = FIRST_DELAY_S if was_up else min(MOST_DELAY_S, delay_s * 2)
            await trio.sleep(delay_s)

    async def _session(self) -> tuple[bool, str]:
        """Connect, and stay so. Whether that worked, and why it is over."""
        was_up, reason = False, ""
        try:
            with trio.fail_after(CONNECT_S):
                connection = Connection(await self._open(), self._pass_on)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connection.run)
                await self._greet(connection)
                while True:
                    await connection.ask(b"SET", self._use.probe, b"", b"PX", _PROBE_MS)
                    if not was_up:
                        was_up, self._connection = True, connection
                        self._is_decided.set()
                        self._notices.up()
                        await connection.ask(b"SUBSCRIBE", self._use.channel)
                        self._resync()
                    await trio.sleep(PROBE_S)
        except* (RedisError, OSError, trio.TooSlowError, trio.BrokenResourceError) as errors:
            reason = _reason(errors, self._place)
        finally:
            self._connection = None
        return was_up, reason

    def _pass_on(self, message: bytes) -> None:
        self._hear(message)

    async def _open(self) -> trio.abc.Stream:
        place = self._place
        if place.path:
            return await trio.open_unix_socket(place.path)
        stream = await trio.open_tcp_stream(place.host, place.port)
        if self._tls is None:
            return stream
        return trio.SSLStream(stream, self._tls, server_hostname=place.host, https_compatible=True)

    async def _greet(self, connection: Connection) -> None:
        place = self._place
        account = (b"AUTH", (place.user or "default").encode(), (place.password or "").encode())
        await connection.ask(b"HELLO", 3, *(account if place.user or place.password else ()))
        if place.number:
            await connection.ask(b"SELECT", place.number)


class _Notices:
    """The lines about outages."""

    def __init__(self, place: str, use: Use) -> None:
        self._place = place
        self._meanwhile = use.meanwhile
        self._log = logging.getLogger(use.logger)
        self._said_at = -REMINDER_S
        self._refused_at = -REMINDER_S
        self._is_told = False  # of the outage that there is

    def down(self, reason: str) -> None:
        now = trio.current_time()
        if now - self._said_at >= (REMINDER_S if self._is_told else NOTICE_S):
            self._said_at, self._is_told = now, True
            self._log.error("store: redis at %s: %s; until it is back, %s", self._place, reason, self._meanwhile)

    def up(self) -> None:
        if self._is_told:
            self._is_told = False
            self._log.warning("store: redis at %s answers again", self._place)

    def refused(self, reason: str) -> None:
        now = trio.current_time()
        if now - self._refused_at >= NOTICE_S:
            self._refused_at = now
            self._log.error("store: redis at %s refuses commands: %s", self._place, reason)


def _reason(error: BaseException, place: Place) -> str:
    """The innermost reason for an error, in one line, without the account: what does not know a command may repeat it
    with its arguments, and the first of all has user and password."""
    while True:
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[-1]
        elif isinstance(error, LostError | OSError | trio.BrokenResourceError) and error.__cause__ is not None:
            error = error.__cause__
        else:
            break
    match error:
        case trio.TooSlowError():
            return f"no answer within {ANSWER_S} s"
        case ssl.SSLCertVerificationError():
            return f"its certificate is not good: {error.verify_message.rstrip('.')}"
        case ssl.SSLError():
            return f"TLS failed: {error.reason or error}"
        case OSError() if error.strerror:
            return error.strerror
        case trio.BrokenResourceError():
            return "the connection ended"
        case _:
            pass
    text = " ".join(str(error).partition(", with args")[0].split())
    for secret in filter(None, (place.password, place.user)):
        text = text.replace(secret, "***")
    return text[:200] or f"expected the answers of a Redis, got {type(error).__name__}"
