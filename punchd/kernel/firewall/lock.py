"""The lock that all writers of the legacy tables share.

A change of a legacy table is: read the whole table, change the copy, write the whole table back. Two that do so at
the same time lose each other's changes, without an error: two writers of 100 rules each left 163 (measured). So
iptables(8) and its relatives hold an flock(2) on one file meanwhile. python-iptables does not; we do it for it.

The file stays open as long as the backend lives: it belongs to root with mode 0600, and the daemon may have become a
service user since.

Source: iptables 1.8.9, iptables/xshared.c (XT_LOCK_NAME, xtables_lock); flock(2).
"""

from __future__ import annotations

import fcntl
import os

from punchd.errors import KernelError

PATH = "/run/xtables.lock"  # iptables' own; its environment variable XTABLES_LOCKFILE is not honoured


class XtablesLock:
    """The lock file. Owns a descriptor.

    Raises:
        KernelError: it can be neither opened nor made; then no change can be made safely.
    """

    def __init__(self, path: str = PATH) -> None:
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise KernelError(f"firewall iptables: open the lock {path}: {error.strerror}") from None

    def acquire(self) -> bool:
        """Take it, at once or not at all. False: another process has it. Not for two threads at a time."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            raise KernelError(f"firewall iptables: lock: {error.strerror}") from None
        return True

    def release(self) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Lets go of the lock, too. Twice is fine."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
