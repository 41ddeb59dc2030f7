"""The Unix socket of the daemon: made at a path where others may write, found again at a path that it made itself.

/tmp is open to everybody, so what stands at the path is looked at before anything is done to it:

    nothing                                    bind
    a socket that takes a connection           refuse: a daemon is running there
    a dead socket of root or of the daemon     unlink, bind (after kill -9)
    a dead socket of somebody else             refuse: squatted
    anything else, links as well               refuse: squatted

Between the look and the bind nobody can win anything: `bind` fails if something is there again, and in a sticky
directory nobody but the owner can replace what was bound. The socket is bound with mode 0600 and opened to its group
only when it belongs to it.

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
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            _with_mask(0o177, lambda: self.socket.bind(path))
            found = os.lstat(path)
            self._identity = (found.st_dev, found.st_ino)
            os.chown(path, access.uid, -1 if access.gid is None else access.gid, follow_symlinks=False)
            os.chmod(path, access.mode)
            self.socket.listen(BACKLOG)
        except OSError as error:
            self.socket.close()
            raise ConfigError(
                f"socket {path}: {error.strerror} ({errno.errorcode.get(error.errno or 0, '?')})"
            ) from None

    def close(self) -> None:
        """Close the socket, and remove the path if it is still ours."""
        self.socket.close()
        try:
            found = os.lstat(self.path)
            if (found.st_dev, found.st_ino) == self._identity:
                os.unlink(self.path)
        except OSError:
            return  # gone already, or not ours to remove


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
    if _is_alive(path):
        raise ConfigError(f"socket {path}: already running: another daemon answers there")
    try:
        os.unlink(path)
    except OSError as error:
        raise ConfigError(f"socket {path}: cannot remove an old socket: {error.strerror}") from None


def _is_alive(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as trial:
        try:
            trial.connect(path)
        except ConnectionRefusedError:
            return False
        except BlockingIOError:
            return True  # its backlog is full: busy, and so alive
        except OSError:
            return False
        return True


def _with_mask(mask: int, action: Callable[[], object]) -> None:
    old = os.umask(mask)
    try:
        action()
    finally:
        os.umask(old)
