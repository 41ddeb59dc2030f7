"""The daemon's shell: accepts applications, counts them, and lets go of everything when it is told to stop."""

from __future__ import annotations

import errno
import logging
import socket
import struct
from collections import deque
from collections.abc import Iterable
from contextlib import suppress

import trio

from punchd.control.answers import Error, format_answer
from punchd.control.connection import Connection
from punchd.control.policy import Rule
from punchd.control.state import DaemonState
from punchd.errors import Code, DeniedError
from punchd.kernel.closing import close_unread, has_unread

STOP_S = 2.0  # how long connections may take to hear that the daemon stops
FIRST_LINE_S = 0.3  # how long who was let in just before a stop may take for the first line
FAREWELL_S = 0.1  # how long who is sent away may take to write what nobody will read
SENT_AWAY = 32  # of those at most
GATHER_S = 0.02  # how long those that are to be closed apart wait for others
ACCEPTED_AT_ONCE = 8  # before others have their turn
ACCEPT_PAUSE_S = 0.1  # after running out of descriptors: others have to end first

_UCRED = struct.Struct("iII")
_SO_PEERGROUPS = 59  # asm-generic/socket.h
_MAX_GROUPS = 256  # what Python's getsockopt has room for
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

log = logging.getLogger(__name__)


class Server:
    """Serves applications on listening Unix sockets.

    Args:
        state: what all connections share.
        allowed_uids: who may connect; None lets everybody in whom the socket's mode lets in.
    """

    def __init__(self, state: DaemonState, allowed_uids: frozenset[int] | None = None) -> None:
        self._state = state
        self._allowed_uids = allowed_uids
        self._connections: set[Connection] = set()
        self._sent_away: deque[socket.socket] = deque()
        self._unread: list[socket.socket] = []  # of those, to be closed next
        self._stopping = False
        self._tasks: trio.Nursery

    async def run(self, listeners: list[socket.socket], stop: trio.Event) -> None:
        """Accept and serve until `stop` is set; then end every attempt with a verdict and return.

        The listening sockets stay the caller's.
        """
        async with trio.open_nursery() as self._tasks:
            async with trio.open_nursery() as accepting:
                for listener in listeners:
                    listener.setblocking(False)
                    accepting.start_soon(self._accept, listener)
                await stop.wait()
                accepting.cancel_scope.cancel()
            await self._hear_out()
            self._stopping = True
            for connection in self._connections:
                connection.shut_down()
            self._tasks.cancel_scope.deadline = trio.current_time() + STOP_S

    async def _hear_out(self) -> None:
        """Answer the first line of whoever was let in just before the stop.

        Who comes later waits in the socket's queue, which is the service manager's, for the next daemon. These few
        cannot: without an answer an upgrade would cost them their request.
        """
        await trio.sleep(0.01)  # those that were let in have their tasks then
        with trio.move_on_after(FIRST_LINE_S):
            for connection in list(self._connections):
                await connection.was_heard.wait()

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            await trio.lowlevel.wait_readable(listener)
            for _ in range(ACCEPTED_AT_ONCE):
                try:
                    stream, _ = listener.accept()
                except BlockingIOError:
                    break
                except OSError as error:
                    if error.errno not in _EXHAUSTED:
                        continue  # the application went away between knocking and being let in
                    log.warning("accept: %s", error.strerror)
                    await trio.sleep(ACCEPT_PAUSE_S)
                    break
                self._let_in(stream)

    def _let_in(self, stream: socket.socket) -> None:
        """Serve an application, or send it away at once: who is not served may cost next to nothing."""
        _, uid, gid = _UCRED.unpack(stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        try:
            rule = self._admit(uid, gid, stream)
        except DeniedError as denied:
            self._send_away(stream, denied)
            return
        self._tasks.start_soon(self._serve, trio.socket.from_stdlib_socket(stream), uid, rule)

    def _send_away(self, stream: socket.socket, denied: DeniedError) -> None:
        """One line that says why; it fits into the buffer of a socket that nothing was written to.

        The socket stays open for a moment, or who writes before reading would get EPIPE instead. In a flood that moment
        is shorter.
        """
        with suppress(OSError):
            stream.send(format_answer(Error(None, denied.code, str(denied))).encode() + b"\n", socket.MSG_DONTWAIT)
            stream.shutdown(socket.SHUT_WR)
        if not self._sent_away:
            self._tasks.start_soon(self._forget_sent_away)
        self._sent_away.append(stream)
        if len(self._sent_away) > SENT_AWAY:
            self._forget_oldest()

    async def _forget_sent_away(self) -> None:
        try:
            await trio.sleep(FAREWELL_S)
        finally:
            while self._sent_away:
                self._forget_oldest()

    def _forget_oldest(self) -> None:
        stream = self._sent_away.popleft()
        if not has_unread(stream):
            stream.close()
            return
        if not self._unread:
            self._tasks.start_soon(self._close_unread)
        self._unread.append(stream)

    async def _close_unread(self) -> None:
        """All that came up meanwhile: a thread for each would be dear in a flood."""
        with trio.CancelScope(shield=True):
            await trio.sleep(GATHER_S)
            unread, self._unread = self._unread, []
            await close_unread(*unread)

    async def _serve(self, stream: trio.socket.SocketType, uid: int, rule: Rule) -> None:
        connection = Connection(stream, uid, self._state, rule)
        self._connections.add(connection)
        if self._stopping:  # let in just before
            connection.shut_down()
        try:
            await connection.run()
        except Exception:
            log.exception("uid %d: internal error, connection closed", uid)
        finally:
            self._connections.discard(connection)
            self._state.quotas.disconnect(uid)

    def _admit(self, uid: int, gid: int, stream: socket.socket) -> Rule:
        if self._allowed_uids is not None and uid not in self._allowed_uids:
            raise DeniedError(Code.NOT_PERMITTED, f"uid {uid} is not in allow-users")
        policy = self._state.policy
        rule = policy.rule_for(uid, {gid, *_groups(stream)} if policy.names_groups else ())
        self._state.quotas.connect(uid)
        return rule


def _groups(stream: socket.socket) -> Iterable[int]:
    """The supplementary groups that the application had when it connected (Linux 4.13).

    Raises:
        DeniedError: not-permitted: too many, or the kernel does not tell.
    """
    try:
        return memoryview(stream.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _MAX_GROUPS)).cast("I")
    except OSError as error:
        text = f"the policy goes by groups, and yours cannot be had: {error.strerror} (at most {_MAX_GROUPS})"
        raise DeniedError(Code.NOT_PERMITTED, text) from None
