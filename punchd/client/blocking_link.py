"""One connection to the daemon, shared by any number of threads: the shell around `Session` for blocking sockets.

There is no background thread. Whoever waits and finds nobody reading becomes the reader, sorts what it reads into
the mailboxes, and wakes the others; when its own mailbox is filled it leaves, and one of the others takes over.

Two locks: `_changed` guards the session, the mailboxes and who reads, and is never held during a system call that
can wait; `_sending` keeps the lines of several threads whole and in order.

A send that fails is not an error here. The daemon may have answered before it went away, perhaps with the wanted
socket; reading finds that first and the end of the connection after it.
"""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from punchd.client.errors import ClientError
from punchd.client.session import Delivery, Granted, Item, Session
from punchd.client.transport import close_all, receive, send_with


class BlockingLink:
    """Owns the socket and the session."""

    def __init__(self, connection: socket.socket) -> None:
        self.session = Session()  # touched only under `changed`
        self.changed = threading.Condition()
        self._socket = connection
        self._sending = threading.Lock()
        self._mailboxes: dict[str, deque[Item]] = {}
        self._someone_reads = False
        self._closed = False

    def fileno(self) -> int:
        return self._socket.fileno()

    def open(self, request_id: str) -> None:
        """Make the mailbox of a request; call under `changed`, together with the request."""
        self._mailboxes[request_id] = deque()

    def flush(self) -> None:
        """Send what the session has to say. Waits while the daemon does not read."""
        with self._sending:
            with self.changed:
                data = self.session.take_outgoing()
            with suppress(OSError):
                self._socket.sendall(data)

    def request(self, ask: Callable[[], str], descriptor: int | None) -> str:
        """Send a request, with a descriptor if there is one; returns its id, whose mailbox is open.

        `ask` is called under `changed`. The descriptor travels with the first byte of its own line.
        """
        with self._sending:
            with self.changed:
                before = self.session.take_outgoing()
                request_id = ask()
                line = self.session.take_outgoing()
                self.open(request_id)
            with suppress(OSError):
                self._socket.sendall(before)
                if descriptor is not None and line:
                    line = line[send_with(self._socket, line, descriptor) :]
                self._socket.sendall(line)
        return request_id

    def wait(self, request_id: str) -> Item:
        """The next item for `request_id`. Raises the connection's failure when there will be none."""
        with self.changed:
            mailbox = self._mailboxes[request_id]
            while not mailbox:
                self._raise_failure()
                if self._someone_reads:
                    self.changed.wait()
                else:
                    self._read()
            item = mailbox.popleft()
            must_answer = self.session.has_outgoing
        if must_answer:
            self.flush()
        return item

    def poll(self, request_id: str) -> Delivery | None:
        """The next item for `request_id` if there is one now. Raises RuntimeError while another thread reads."""
        with self.changed:
            mailbox = self._mailboxes[request_id]
            if not mailbox:
                self._raise_failure()
                if self._someone_reads:
                    raise RuntimeError(
                        "poll() is for programs that use one thread per Daemon; another thread is reading"
                    )
                try:
                    self._read(socket.MSG_DONTWAIT)
                except BlockingIOError:
                    return None
            if not mailbox:
                self._raise_failure()
                return None
            item = mailbox.popleft()
            must_answer = self.session.has_outgoing
        if must_answer:
            self.flush()
        return Delivery(request_id, item)

    def deliver(self, attempt_id: str, token: str) -> None:
        with self.changed:
            self._sort(self.session.deliver(attempt_id, token))
        self.flush()

    def cancel(self, attempt_id: str) -> None:
        with self.changed:
            self.session.cancel(attempt_id)
        self.flush()

    def leave(self, request_id: str) -> None:
        """Nobody waits any more: cancels what still runs and closes what was not fetched."""
        with self.changed:
            self.session.leave(request_id)
            mailbox = self._mailboxes.pop(request_id, deque())
            close_all(item.descriptor for item in mailbox if isinstance(item, Granted))
        self.flush()

    def close(self) -> None:
        """Close the connection; threads that wait get the session's failure. May be called twice."""
        with self.changed:
            if not self._closed:
                self._closed = True
                self.session.close()
                close_all(self.session.take_surplus())
                with suppress(OSError):  # wakes whoever reads or sends
                    self._socket.shutdown(socket.SHUT_RDWR)
                self.changed.notify_all()
            while self._someone_reads:
                self.changed.wait()
        with self._sending:
            self._socket.close()

    def _read(self, flags: int = 0) -> None:
        """One read, `changed` released meanwhile."""
        self._someone_reads = True
        self.changed.release()
        try:
            received = receive(self._socket, flags)
        finally:
            self.changed.acquire()
            self._someone_reads = False
            self.changed.notify_all()
        feed = self.session.feed
        self._sort(feed(received.data, received.descriptors, truncated=received.truncated))

    def _sort(self, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            self._mailboxes[delivery.id].append(delivery.item)
        close_all(self.session.take_surplus())
        self.changed.notify_all()

    def _raise_failure(self) -> None:
        if self.session.failure is not None:
            failure: ClientError = self.session.failure()
            raise failure
