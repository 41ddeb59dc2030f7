"""The Unix socket of the daemon: made at a path where others may write, found again at a path that it made itself.

/tmp is open to everybody, so what stands at the path is looked at before anything is done to it:

    nothing                                    bind
    a socket that takes a connection           refuse: a daemon is running there
    a dead socket of root or of the daemon     unlink, bind (after kill -9)
    a dead socket of somebody else             refuse: squatted
    a socket that answers in any other way     refuse: not a stream socket, or not for us
    anything else, links as well               refuse: squatted

Between the look and the bind nobody can win anything: `bind` fails if something is there again, and in a sticky
directory nobody but the owner can replace what was bound. The socket is bound with mode 0600 and opened to its group
only when it belongs to it. It listens right after it is bound: until then another daemon that starts in the same moment
would take it for a dead one. The few microseconds in between stay; the loser of that race notices and ends.

Source: line protocol §1, §13.10; unix(7).
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass

from punchd.errors import ConfigError

BACKLOG = 128
_MAX_PATH = 107  # bytes, sockaddr_un less its final NUL


@dataclass(frozen=True, slots=True)
class Access:
    """Who may use the socket.

    Attributes:
        uid: owner; it must be the one the daemon runs as later, or the daemon could not unlink it from a sticky /tmp.
        gid: group, or None to leave it.
        mode: permission bits.
    """

    uid: int
    gid: int | None
    mode: int


class Listener:
    """A listening Unix socket and the path it was bound to. Owns both: `close` removes them."""

    def __init__(self, path: str, access: Access, trusted_uids: frozenset[int]) -> None:
        """Bind and listen at `path`.

        Args:
            path: where; see the table above.
            access: owner, group and mode that the socket gets.
            trusted_uids: whose dead socket may be replaced.

        Raises:
            ConfigError: the path is taken, or cannot be used; the message says what stands there.
        """
        if len(os.fsencode(path)) > _MAX_PATH:
            raise ConfigError(f"socket {path}: expected a path of at most {_MAX_PATH} bytes")
        self.path = path
        _make_room(path, trusted_uids)
        self._identity: tuple[int, int] | None = None
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            _with_mask(0o177, lambda: self.socket.bind(path))
            self.socket.listen(BACKLOG)
            self._identity = _identity(path)
            self._open_up(access)
            self._insist()
        except (OSError, ConfigError) as error:
            self.close()
            if isinstance(error, ConfigError):
                raise
            name = errno.errorcode.get(error.errno or 0, "?")
            # OSError without a number: the path holds what no path may hold
            raise ConfigError(f"socket {path}: {error.strerror or error} ({name})") from None

    def close(self) -> None:
        """Remove the path if it is still ours, and close the socket; in this order, so that nobody finds a dead one."""
        try:
            # The socket keeps its inode, so that nobody else's can have the same number while it is open.
            if self._identity is not None and _identity(self.path) == self._identity:
                os.unlink(self.path)
        except OSError:
            pass  # gone already, or not ours to remove
        self._identity = None  # with the socket closed, its number is free for others
        self.socket.close()

    def _open_up(self, access: Access) -> None:
        """Give the socket its owner, group and mode: this very inode, whatever stands at the path by now.

        From the change of owner on, the owner can put something else there, even in a sticky directory.
        """
        own = os.open(self.path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            found = os.fstat(own)
            if (found.st_dev, found.st_ino) == self._identity:  # if not, `_insist` says so
                os.chown(f"/proc/self/fd/{own}", access.uid, -1 if access.gid is None else access.gid)
                os.chmod(f"/proc/self/fd/{own}", access.mode)
        finally:
            os.close(own)

    def _insist(self) -> None:
        if _identity(self.path) != self._identity:
            raise ConfigError(f"socket {self.path}: already running: another daemon started in the same moment")


def _identity(path: str) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino


def _make_room(path: str, trusted_uids: frozenset[int]) -> None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"socket {path}: {error.strerror}") from None
    if not stat.S_ISSOCK(found.st_mode):
        what = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "not a socket"
        raise ConfigError(f"socket {path}: taken: expected nothing or an old socket of punchd, found {what}")
    if found.st_uid not in trusted_uids:
        raise ConfigError(f"socket {path}: taken: it belongs to uid {found.st_uid}, not to root or punchd")
    _refuse_alive(path)
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"socket {path}: cannot remove an old socket: {error.strerror}") from None


def _refuse_alive(path: str) -> None:
    """Raise ConfigError unless whoever made the socket is gone; a full backlog is a sign of life."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as trial:
        try:
            trial.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except BlockingIOError:
            pass
        except OSError as error:  # EPROTOTYPE: somebody's datagram socket
            text = f"taken: expected nothing or an old socket of punchd, found one that says: {error.strerror}"
            raise ConfigError(f"socket {path}: {text}") from None
        raise ConfigError(f"socket {path}: already running: another daemon answers there")


def _with_mask(mask: int, action: Callable[[], object]) -> None:
    old = os.umask(mask)
    try:
        action()
    finally:
        os.umask(old)
