"""One WebSocket conversation: the protocol of `websockets`, without its I/O, driven by two tasks.

Theory of operation. One task reads: it feeds the protocol, answers pings, notices silence and the end. The other is
the application's. They meet in an inbox; while that is full, nothing is read, so that a client which talks too fast is
slowed down by TCP.

What is sent goes to the kernel at once, if it takes it; that saves a task switch for nearly every message. Else it
waits in a buffer that a third task empties, which exists only as long as there is something to write. A client that
takes nothing for `write_s` is dropped, and so is whatever it was to be sent. A message is written whole or the
connection ends, also when the sender is cancelled.

The end always has a close frame in both directions, unless the client is gone, dead or too slow. After that the shell
closes the TCP connection, reading away what still comes, since unread bytes would make an RST of the close and destroy
the close frame on its way.

No compression: it costs 100 KB and more a connection, and lets a small frame become a huge message.

Source: RFC 6455.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Awaitable, Callable

import trio
from websockets.exceptions import ProtocolError
from websockets.frames import Frame, Opcode
from websockets.protocol import State

from punchd.errors import PunchdError
from punchd.web.farewell import GONE, drop, part
from punchd.web.handshake import Protocol
from punchd.web.limits import Limits
from punchd.web.messages import MAX_REASON_BYTES, Upgrade
from punchd.web.turns import MOST, Turns

RECEIVE_BYTES = 4096  # what a client says in one turn: some seventy small frames
INBOX_MESSAGES = 32  # whole messages that wait for the application before reading pauses
LATE_BYTES = 65_536  # after our close frame, before the client is dropped: what it says then is parsed for nothing

_WRITE_BYTES = 65_536
_SMALL_BYTES = 512  # a message or a few
_STOP_S = 1.0  # for the client's close frame when the server stops; the server gives the whole 2 s
log = logging.getLogger(__name__)


class WebSocketClosedError(PunchdError):
    """The conversation is over.

    Attributes:
        code: what the client sent; 1005 if its close frame had no code, 1006 if there was no close frame (yet).
        reason: the client's words, or "".
        sent: the code that was sent to the client; None if none was.
    """

    def __init__(self, code: int, reason: str, sent: int | None) -> None:
        super().__init__(f"WebSocket closed: {code} received, {sent or 'none'} sent")
        self.code = code
        self.reason = reason
        self.sent = sent


class WebSocket:
    """One conversation. Handed to `Upgrade.run`; an application never makes one.

    Attributes:
        subprotocol: the one agreed on, or None.
        close_code: what the client's close frame said; 1005 without a code, 1006 without a frame, None while open.
        close_reason: the client's words, or "".
        close_sent: the code that was sent to the client, or None.
        notice_frame: called when frames of any kind have come, before `receive` gives their messages. For an
            application that looks after dead clients itself (`Limits.ping_s` infinite).
    """

    __slots__ = (
        "_audience", "_changed", "_close_by", "_inbox", "_is_cut_off", "_is_over", "_limits", "_message",
        "_message_is_text", "_nursery", "_outbox", "_protocol", "_reading", "_sock", "_source", "_stream", "_turns",
        "_writing", "close_code", "close_reason", "notice_frame", "subprotocol",
    )  # fmt: skip

    def __init__(
        self,
        protocol: Protocol,
        stream: trio.SocketStream | trio.SSLStream[trio.SocketStream],
        sock: trio.socket.SocketType,
        limits: Limits,
        *,
        turns: Turns,
        source: bytes,
        audience: bytes,
    ) -> None:
        """`stream` is `sock`, or TLS on it; the caller's. What comes takes `source`'s turns, what goes `audience`'s."""
        self.subprotocol: str | None = protocol.subprotocol
        self.notice_frame: Callable[[], None] = _pay_no_heed
        self.close_code: int | None = None
        self.close_reason = ""
        self._protocol = protocol
        self._stream = stream
        self._sock = sock
        self._limits = limits
        self._turns = turns
        self._source = source
        self._audience = audience
        self._inbox: list[str | bytes] = []  # is short; an empty deque has 600 bytes
        self._message = bytearray()  # fragments of a message that is not whole
        self._message_is_text = False
        self._outbox = bytearray()
        self._writing = False
        self._is_over = False  # nothing comes any more
        self._is_cut_off = False  # it was over before all was written
        self._reading: trio.CancelScope | None = None
        self._close_by = math.inf  # when the client's close frame is due, once we have sent ours
        self._changed = trio.lowlevel.ParkingLot()  # whoever waits for a message, for room or for the end
        self._nursery: trio.Nursery

    @property
    def close_sent(self) -> int | None:
        """The code that was sent to the client, or None."""
        return None if self._protocol.close_sent is None else int(self._protocol.close_sent.code)

    async def receive(self) -> str | bytes:
        """The next message: str of a text message, bytes of a binary one.

        Messages that came before the end are still delivered. Cancelling loses nothing.

        Raises:
            WebSocketClosedError: the conversation is over, whoever ended it.
        """
        if self._inbox or self._is_over:
            await trio.lowlevel.checkpoint()
        while not self._inbox:
            if self._is_over:
                raise self._closed()
            await self._changed.park()
        await self._turns.take(self._source)
        message = self._inbox.pop(0)
        if len(self._inbox) == INBOX_MESSAGES - 1:
            self._changed.unpark_all()
        return message

    async def send(self, message: str | bytes) -> None:
        """Send a text or a binary message. Returns when it is on its way or queued.

        Waits only while more than `Limits.unread_bytes` are queued. Cancelled while it waits, it has sent nothing.

        Raises:
            WebSocketClosedError: a close frame was sent or received, or the client is gone or was dropped.
        """
        await trio.lowlevel.checkpoint()
        while len(self._outbox) > self._limits.unread_bytes and not self._is_over:
            await self._changed.park()
        if self._is_over or self._protocol.state is not State.OPEN:
            raise self._closed()
        if isinstance(message, str):
            self._protocol.send_text(message.encode())
        else:
            self._protocol.send_binary(message)
        self._flush()

    @property
    def unsent(self) -> int:
        """Bytes that wait because the client does not read."""
        return len(self._outbox)

    def queue(self, message: str) -> None:
        """Send a text message without waiting, however much is `unsent`: the caller sets the bound. Does nothing once
        a close frame was sent or received, or the client is gone."""
        if not self._is_over and self._protocol.state is State.OPEN:
            self._protocol.send_text(message.encode())
            self._flush()

    def ping(self) -> None:
        """Send a ping without waiting; like `queue`."""
        if not self._is_over and self._protocol.state is State.OPEN:
            self._protocol.send_ping(b"")
            self._flush()

    def start_close(self, code: int, reason: str = "", patience_s: float | None = None) -> None:
        """Send a close frame without waiting. The client's has `patience_s` to come (None: `Limits.close_s`)."""
        self._begin_close(code, reason, self._limits.close_s if patience_s is None else patience_s)

    async def drain(self) -> None:
        """Wait until the kernel has all that was sent; returns at once, and without a checkpoint, if it has.

        Raises:
            WebSocketClosedError: the conversation ended before, so the client does not have all of it.
        """
        while self._outbox and not self._is_over:
            await self._changed.park()
        if self._is_cut_off:
            raise self._closed()

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Send a close frame and wait for the client's, at most `Limits.close_s`. Does nothing when it is closed.

        Args:
            code: 1000, 1001, 1003, 1007-1014 or 3000-4999.
            reason: what does not fit in a close frame is cut off.
        """
        self._begin_close(code, reason, self._limits.close_s)
        while not self._is_over:
            await self._changed.park()
        await trio.lowlevel.checkpoint()

    async def wait_closed(self) -> None:
        """Until nothing more can come."""
        while not self._is_over:
            await self._changed.park()
        await trio.lowlevel.checkpoint()

    # --- the shell's side ---------------------------------------------------------------------------------------------

    def shut_down(self) -> None:
        """Tell the client that the server stops (1001)."""
        self._begin_close(self._protocol.code(1001), "the server stops", _STOP_S)

    async def run(self, upgrade: Upgrade, rest: bytes) -> None:
        """Hold the conversation. Returns when both the connection and the application are through.

        Args:
            upgrade: what the application wants.
            rest: bytes that came with the handshake.
        """
        try:
            async with trio.open_nursery() as self._nursery:
                application = trio.CancelScope() if upgrade.cancel_when_closed else None  # entered, it has 700 bytes
                self._nursery.start_soon(self._converse, upgrade.run, application)
                await self._read(rest)
                self._end()
                if application is not None:
                    application.cancel()
                with trio.move_on_after(self._limits.close_s):
                    while self._outbox:
                        await self._changed.park()
                await part(self._stream, self._limits.linger_s)
                self._sock.close()
        finally:
            self._end()
            self._outbox.clear()  # a turn to write it may still come, and there is no nursery any more

    async def _converse(self, run: Callable[[WebSocket], Awaitable[None]], scope: trio.CancelScope | None) -> None:
        code = 1000
        try:
            with scope or contextlib.nullcontext():
                await run(self)
        except Exception as error:  # the edge of the application's session
            if not _only_closed(error):
                log.exception("WebSocket: internal error, closed with 1011")
                code = 1011
        await self.close(code)

    async def _read(self, data: bytes) -> None:
        """Until both close frames are exchanged, the protocol is broken, or the client is gone, dead or too slow."""
        is_pinged, late_bytes = False, 0
        while True:
            if data:
                is_pinged = False
                await self._turns.take(self._source, 1 if len(data) <= _SMALL_BYTES else MOST)
                self._feed(data)
            if self._protocol.eof_sent or self._is_over:
                return
            while self._is_full and self._close_by == math.inf and not self._is_over:
                await self._changed.park()
            deadline = min(self._close_by, trio.current_time() + self._limits.ping_s)
            with trio.CancelScope(deadline=deadline) as self._reading:
                try:
                    data = bytes(await self._stream.receive_some(RECEIVE_BYTES))
                except GONE:
                    return
                if not data:
                    return
            if self._close_by < math.inf:
                late_bytes += len(data)
                if late_bytes > LATE_BYTES:
                    self._drop()
                    return
            if self._reading.cancelled_caught:
                if is_pinged or self._close_by < math.inf:
                    self._drop()
                    return
                data = b""
                is_pinged = True
                self._protocol.send_ping(b"")
                self._flush()

    @property
    def _is_full(self) -> bool:
        return len(self._inbox) >= INBOX_MESSAGES or len(self._outbox) > self._limits.unread_bytes

    def _feed(self, data: bytes) -> None:
        self._protocol.receive_data(data)
        frames = [frame for frame in self._protocol.events_received() if isinstance(frame, Frame)]
        for frame in frames:
            self._take(frame)
        if frames:
            self.notice_frame()
        self._flush()
        if self._inbox:
            self._changed.unpark_all()

    def _take(self, frame: Frame) -> None:
        match frame.opcode:
            case Opcode.TEXT | Opcode.BINARY:
                self._message_is_text = frame.opcode is Opcode.TEXT
                self._message = bytearray(frame.data)
            case Opcode.CONT:
                self._message += frame.data
            case _:
                return
        if not frame.fin or self._close_by < math.inf:
            return  # not whole, or nobody wants it any more
        data, self._message = self._message, bytearray()
        try:
            self._inbox.append(data.decode() if self._message_is_text else bytes(data))
        except UnicodeDecodeError as error:
            self._close_by = trio.current_time()  # nothing after it counts
            if not self._protocol.eof_sent:
                self._protocol.fail(1007, f"text that is not UTF-8 at byte {error.start}")

    def _flush(self) -> None:
        """Hand what the protocol has to say to the kernel, or to the task that writes."""
        self._outbox += b"".join(self._protocol.data_to_send())
        if self._writing or not self._outbox:
            return
        if isinstance(self._stream, trio.SocketStream):
            with contextlib.suppress(OSError):  # the writing task sees the same, and deals with it
                del self._outbox[: os.write(self._sock.fileno(), self._outbox)]
        if self._outbox:
            self._writing = True
            self._turns.call(self._audience, self._start_writing)

    def _start_writing(self) -> None:
        if self._outbox:
            self._nursery.start_soon(self._write)
        else:  # dropped meanwhile
            self._writing = False

    async def _write(self) -> None:
        try:
            while self._outbox:
                data = bytes(self._outbox[:_WRITE_BYTES])
                with trio.move_on_after(self._limits.write_s) as scope:
                    await self._stream.send_all(data)
                if scope.cancelled_caught:
                    self._drop()
                    return
                del self._outbox[: len(data)]
                self._changed.unpark_all()
                if self._outbox:
                    await self._turns.take(self._audience)
        except GONE:
            self._drop()
        finally:
            self._writing = False

    def _begin_close(self, code: int, reason: str, patience_s: float) -> None:
        if self._is_over or self._protocol.state is not State.OPEN:
            return
        try:
            self._protocol.send_close(code, reason.encode()[:MAX_REASON_BYTES].decode(errors="ignore"))
        except ProtocolError:
            raise ValueError(f"close code: expected 1000, 1001, 1003, 1007-1014 or 3000-4999, got {code}") from None
        self._close_by = trio.current_time() + patience_s
        if self._reading is not None:
            self._reading.deadline = self._close_by
        self._flush()
        self._changed.unpark_all()

    def _drop(self) -> None:
        """Let go of a client that is gone, dead or too slow, and of all that waits for it."""
        drop(self._sock)
        self._end()
        self._outbox.clear()

    def _end(self) -> None:
        self._is_cut_off = self._is_cut_off or bool(self._outbox)
        self._is_over = True
        error = self._closed()
        self.close_code, self.close_reason = error.code, error.reason
        self._changed.unpark_all()

    def _closed(self) -> WebSocketClosedError:
        received = self._protocol.close_rcvd
        code, reason = (1006, "") if received is None else (int(received.code), received.reason)
        return WebSocketClosedError(code, reason, self.close_sent)


def _pay_no_heed() -> None:
    """The shell looks after dead clients."""


def _only_closed(error: Exception) -> bool:
    if isinstance(error, ExceptionGroup):
        return error.split(WebSocketClosedError)[1] is None
    return isinstance(error, WebSocketClosedError)
