"""One connection to Redis or Valkey, kept up for as long as the server runs.

Theory of operation. All commands and all wakings go over one connection. Redis answers in order and works on one
command at a time, so more connections would gain nothing, and a single one has one state that everybody can ask for:

    starting ──▶ up ◀──▶ down

While it is down, a call fails at once; a task of its own, which no request can cancel, connects again after 0.05 s, and
then ever more slowly, up to once a second. While it is up, a command that writes goes out every second; if that has no
answer after 1.5 s, or is refused, the connection is given up. A call waits for its own answer as long and no longer.
While it is starting, calls wait for the first outcome, so that a server that was just started refuses nobody for
nothing.

A command that was cut off is never sent again, since it may have taken place. Whoever asked for it hears of it.

Messages that were sent while the connection was down are lost. So every subscription begins with `resync`: what they
would have told has to be read from what is stored.

coredis 6.9.0 speaks the protocol (RESP3: answers and messages in one stream) below its pool and its pub/sub object.
Both have a fault that does not arise here: the pool loses a place for each caller that is cancelled while it connects,
and the iteration over messages can end without an error after a reconnect; here its end is the end of the connection.
A connection that could not be made leaves its buffers open, which Python warns of: `_Tidy` closes them.
Its own log lines repeat what stands here, with tracebacks, and are turned off.

Outages are logged in one line each, at most every 10 s, with why and where, never with user or password; one that
lasts is told of again every minute.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import trio
from anyio import TASK_STATUS_IGNORED, BrokenResourceError, ClosedResourceError, EndOfStream
from anyio.abc import TaskStatus
from coredis.connection import (
    BaseConnection,
    BaseConnectionParams,
    TCPConnection,
    TCPLocation,
    UnixDomainSocketConnection,
    UnixDomainSocketLocation,
)
from coredis.exceptions import ConnectionError as LostError
from coredis.exceptions import NoScriptError
from coredis.typing import RedisError

from punchd.errors import StoreError
from punchd.redis.script import Script, Use
from punchd.redis.url import Place

COMMAND_S = 1.5  # for a command and its answer, and for connecting; requests are to fail within 2 s
PROBE_S = 1.0  # between two commands that only show that there is an answer
FIRST_DELAY_S, MOST_DELAY_S = 0.05, 1.0  # before connecting again
IN_FLIGHT = 512  # commands sent and not answered
NOTICE_S = 10.0  # between two lines about outages
REMINDER_S = 60.0  # between two lines about one that lasts

_PROBE_MS = 5000  # that the key of the probe lives

logging.getLogger("coredis").setLevel(logging.CRITICAL + 1)


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
        self._connection: BaseConnection | None = None  # while it is up
        self._is_decided = trio.Event()  # no longer starting
        self._free = trio.Semaphore(IN_FLIGHT)
        self._notices = _Notices(str(place), use)

    @property
    def is_up(self) -> bool:
        return self._connection is not None

    async def call(self, script: Script, *arguments: bytes | int) -> Any:
        """What a script answers.

        Raises:
            StoreError: it cannot be known; the script may have run or not.
        """
        try:
            with trio.fail_after(COMMAND_S):
                await self._is_decided.wait()
                async with self._free:
                    return await self._evaluate(script, arguments)
        except trio.TooSlowError:
            raise StoreError("redis did not answer in time") from None

    async def _evaluate(self, script: Script, arguments: tuple[bytes | int, ...]) -> Any:
        connection = self._connection
        if connection is None:
            raise StoreError("redis cannot be reached")
        try:
            try:
                return await connection.create_request(b"EVALSHA", script.sha, 0, *arguments, decode=False)
            except NoScriptError:
                return await connection.create_request(b"EVAL", script.source, 0, *arguments, decode=False)
        except (LostError, ClosedResourceError, BrokenResourceError) as error:
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
        connection = self._new_connection()
        try:
            async with trio.open_nursery() as nursery:
                with trio.fail_after(COMMAND_S):
                    await nursery.start(connection.run)
                nursery.start_soon(self._listen, connection)
                while True:
                    with trio.fail_after(COMMAND_S):
                        await connection.create_request(b"SET", self._use.probe, b"", b"PX", _PROBE_MS, decode=False)
                    if not was_up:
                        was_up, self._connection = True, connection
                        self._is_decided.set()
                        self._notices.up()
                    await trio.sleep(PROBE_S)
        except* (RedisError, OSError, trio.TooSlowError, ClosedResourceError, BrokenResourceError) as errors:
            reason = _reason(errors, self._place)
        finally:
            self._connection = None
        return was_up, reason

    async def _listen(self, connection: BaseConnection) -> None:
        connection.send_command(b"SUBSCRIBE", self._use.channel)
        async with aclosing(connection.push_messages) as pushes:
            async for push in pushes:
                match push:
                    case [b"message", _, bytes(message)]:
                        self._hear(message)
                    case [b"subscribe", *_]:
                        self._resync()
                    case _:
                        pass
        raise LostError("the messages ended")

    def _new_connection(self) -> BaseConnection:
        place = self._place
        account = BaseConnectionParams(username=place.user, password=place.password, db=place.number)
        if self._tls is not None:
            account["ssl_context"] = self._tls
        if place.path:
            return _Unix(UnixDomainSocketLocation(place.path), **account)
        return _Tcp(TCPLocation(place.host, place.port), **account)


class _Tidy(BaseConnection):
    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        try:
            await super().run(task_status=task_status)
        finally:
            self._write_buffer_in.close()
            self._write_buffer_out.close()
            self._push_message_buffer_in.close()
            self._push_message_buffer_out.close()
            self._streamed_message_buffer_in.close()
            self._streamed_message_buffer_out.close()


class _Tcp(_Tidy, TCPConnection):
    pass


class _Unix(_Tidy, UnixDomainSocketConnection):
    pass


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
        elif isinstance(error, LostError) and error.__cause__ is not None:
            error = error.__cause__
        else:
            break
    if isinstance(error, trio.TooSlowError):
        return f"no answer within {COMMAND_S} s"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, ClosedResourceError | BrokenResourceError | EndOfStream):
        return "the connection ended"
    text = " ".join(str(error).partition(", with args")[0].split())
    for secret in filter(None, (place.password, place.user)):
        text = text.replace(secret, "***")
    return text[:200] or f"expected the answers of a Redis, got {type(error).__name__}"
