"""One connection to the daemon, shared by any number of tasks: the shell around `Session` for trio.

There is no background task, hence no nursery and no exception groups: whoever waits and finds nobody reading becomes
the reader, sorts what it reads into the mailboxes and wakes the others. A cancelled reader has either fed the session
all that a `recvmsg` returned or has not called it, so nothing is lost.

Requests are small, so they are written without waiting (and can be written while being cancelled, which is how a
cancelled attempt tells the daemon). What the socket does not take stays in a bounded buffer that the reader empties.

A send that fails is not an error here: reading finds what the daemon said before it went away.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from dataclasses import dataclass

import trio

from punchd.client.errors import ClientError
from punchd.client.session import Delivery, Granted, Item, Session
from punchd.client.transport import Received, close_all, receive, send_with

MAX_UNSENT = 65536  # bytes; as much as the daemon queues in the other direction (line protocol §4)


@dataclass(slots=True)
class _Letter:
    """Bytes to send, the first of them with a descriptor, which belongs to the letter."""

    data: bytearray
    descriptor: int | None = None

    def close(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


class TrioLink:
    """Owns the (non-blocking) socket and the session."""

    def __init__(self, connection: socket.socket) -> None:
        self.session = Session()
        self._socket = connection
        self._unsent: deque[_Letter] = deque()
        self._mailboxes: dict[str, deque[Item]] = {}
        self._someone_reads = False
        self._changed = trio.Event()  # replaced whenever something was read or reading stopped

    def open(self, request_id: str, descriptor: int | None = None) -> None:
        """Make the mailbox of a request and send it.

        Args:
            descriptor: to go with it; it stays the caller's. The request's line is then all that the session has to
                say: call `flush` before making the request.
        """
        self._mailboxes[request_id] = deque()
        line = self.session.take_outgoing()
        self._unsent.append(_Letter(bytearray(line), None if descriptor is None else os.dup(descriptor)))
        self.flush()

    def flush(self) -> bool:
        """Send what the socket takes at once; whether that was everything."""
        if self.session.has_outgoing:
            self._unsent.append(_Letter(bytearray(self.session.take_outgoing())))
        unsent = sum(len(letter.data) for letter in self._unsent)
        if unsent > MAX_UNSENT:
            self.session.stall(unsent)
        if self.session.failure is not None:
            self._forget_unsent()
        try:
            while self._unsent:
                self._send(self._unsent[0])
                if not self._unsent[0].data:
                    self._unsent.popleft().close()
        except BlockingIOError:
            return False
        except OSError:
            self._forget_unsent()
        return True

    def _send(self, letter: _Letter) -> None:
        if not letter.data:
            return
        if letter.descriptor is None:
            del letter.data[: self._socket.send(letter.data)]
            return
        sent = send_with(self._socket, bytes(letter.data), letter.descriptor)
        del letter.data[:sent]
        letter.close()

    def _forget_unsent(self) -> None:
        while self._unsent:
            self._unsent.popleft().close()

    async def wait(self, request_id: str) -> Item:
        """The next item for `request_id`. Raises the connection's failure when there will be none.

        Cancelled, it has taken nothing.
        """
        await trio.lowlevel.checkpoint()
        mailbox = self._mailboxes[request_id]
        while not mailbox:
            if self.session.failure is not None:
                failure: ClientError = self.session.failure()
                raise failure
            if self._someone_reads:
                await self._changed.wait()
            else:
                await self._read()
        return mailbox.popleft()

    def deliver(self, attempt_id: str, token: str) -> None:
        self._sort(self.session.deliver(attempt_id, token))

    def cancel(self, attempt_id: str) -> None:
        self.session.cancel(attempt_id)
        self.flush()

    def leave(self, request_id: str) -> None:
        """Nobody waits any more: cancels what still runs and closes what was not fetched. Does not wait."""
        self.session.leave(request_id)
        mailbox = self._mailboxes.pop(request_id, deque())
        close_all(item.descriptor for item in mailbox if isinstance(item, Granted))
        self.flush()

    def close(self) -> None:
        """Close the connection; tasks that wait get the session's failure. May be called twice."""
        self.session.close()
        self._sort([])
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()

    async def _read(self) -> None:
        self._someone_reads = True
        try:
            while not self.flush():
                await trio.lowlevel.wait_writable(self._socket)
            received = await self._receive()
            feed = self.session.feed
            self._sort(feed(received.data, received.descriptors, truncated=received.truncated))
        except trio.ClosedResourceError:
            return  # by close(), which has set the failure
        finally:
            self._someone_reads = False
            self._wake()

    async def _receive(self) -> Received:
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            try:
                return receive(self._socket)
            except BlockingIOError:
                continue

    def _sort(self, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            self._mailboxes[delivery.id].append(delivery.item)
        close_all(self.session.take_surplus())
        self.flush()
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
