"""One connection to the daemon, shared by any number of tasks: the shell around `Session` for trio.

There is no background task, hence no nursery and no exception groups: whoever waits and finds nobody reading becomes
the reader, sorts what it reads into the mailboxes and wakes the others. A cancelled reader has either fed the session
all that a `recvmsg` returned or has not called it, so nothing is lost.

Requests are small, so they are written without waiting (and can be written while being cancelled, which is how a
cancelled attempt tells the daemon). What the socket does not take stays in a bounded buffer that the reader empties.

A send that fails is not an error here: reading finds what the daemon said before it went away.
"""

from __future__ import annotations

import socket
from collections import deque

import trio

from punchd.client.errors import ClientError
from punchd.client.session import Delivery, Granted, Item, Session
from punchd.client.transport import Received, close_all, receive

MAX_UNSENT = 65536  # bytes; as much as the daemon queues in the other direction (line protocol §4)


class TrioLink:
    """Owns the (non-blocking) socket and the session."""

    def __init__(self, connection: socket.socket) -> None:
        self.session = Session()
        self._socket = connection
        self._unsent = bytearray()
        self._mailboxes: dict[str, deque[Item]] = {}
        self._someone_reads = False
        self._changed = trio.Event()  # replaced whenever something was read or reading stopped

    def open(self, request_id: str) -> None:
        """Make the mailbox of a request and send it."""
        self._mailboxes[request_id] = deque()
        self.flush()

    def flush(self) -> bool:
        """Send what the socket takes at once; whether that was everything."""
        self._unsent += self.session.take_outgoing()
        if len(self._unsent) > MAX_UNSENT:
            self.session.stall(len(self._unsent))
        if self.session.failure is not None:
            self._unsent.clear()
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            return False
        except OSError:
            self._unsent.clear()
        return True

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
