"""The daemon's shell: accepts applications, counts them, and lets go of everything when it is told to stop."""

from __future__ import annotations

import errno
import logging
import socket
import struct

import trio

from punchd.control.answers import Error, format_answer
from punchd.control.connection import Connection
from punchd.control.state import DaemonState
from punchd.errors import Code, DeniedError

STOP_S = 2.0  # how long connections may take to hear that the daemon stops
ACCEPT_PAUSE_S = 0.1  # after running out of descriptors: others have to end first

_UCRED = struct.Struct("iII")
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
        self._stopping = False
        self._tasks: trio.Nursery

    async def run(self, listeners: list[socket.socket], stop: trio.Event) -> None:
        """Accept and serve until `stop` is set; then end every attempt with a verdict and return.

        The listening sockets stay the caller's.
        """
        async with trio.open_nursery() as self._tasks:
            async with trio.open_nursery() as accepting:
                for listener in listeners:
                    accepting.start_soon(self._accept, trio.socket.from_stdlib_socket(listener))
                await stop.wait()
                accepting.cancel_scope.cancel()
            self._stopping = True
            for connection in self._connections:
                connection.shut_down()
            self._tasks.cancel_scope.deadline = trio.current_time() + STOP_S

    async def _accept(self, listener: trio.socket.SocketType) -> None:
        while True:
            try:
                stream, _ = await listener.accept()
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    continue  # the application went away between knocking and being let in
                log.warning("accept: %s", error.strerror)
                await trio.sleep(ACCEPT_PAUSE_S)
                continue
            self._tasks.start_soon(self._serve, stream)

    async def _serve(self, stream: trio.socket.SocketType) -> None:
        _, uid, _ = _UCRED.unpack(stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        try:
            self._admit(uid)
        except DeniedError as denied:
            await _send_away(stream, denied)
            return
        connection = Connection(stream, uid, self._state)
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

    def _admit(self, uid: int) -> None:
        if self._allowed_uids is not None and uid not in self._allowed_uids:
            raise DeniedError(Code.NOT_PERMITTED, f"uid {uid} is not in allow-users")
        self._state.quotas.connect(uid)


async def _send_away(stream: trio.socket.SocketType, denied: DeniedError) -> None:
    """One line that says why, if the application takes it at once."""
    with stream, trio.move_on_after(0.1):
        try:
            await stream.send(format_answer(Error(None, denied.code, str(denied))).encode() + b"\n")
        except OSError:
            return
