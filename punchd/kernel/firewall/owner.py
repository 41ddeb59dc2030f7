"""Whose rule it is, and whether that process still lives.

A process id alone does not tell: ids are used again, so the time of its start belongs to it; and a container's ids
mean nothing outside, so its pid namespace does, too. Of processes in another pid namespace nothing can be found out,
and they count as alive: rather a leftover that stays than a rule that is taken from a daemon at work.

/proc may hide other users' processes (ProtectProc=invisible, the hidepid mount option), so the first question is
kill(2) with signal 0, which tells "none such" from "not yours" in any case.

Source: proc(5), kill(2), pid_namespaces(7).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache

from punchd.errors import KernelError


@dataclass(frozen=True, slots=True)
class Owner:
    """A process.

    Attributes:
        pid: as its pid namespace counts.
        start: clock ticks since the machine started.
        namespace: inode of its pid namespace.
    """

    pid: int
    start: int
    namespace: int


def this_process() -> Owner:
    """The calling process. Raises KernelError without /proc."""
    return _of(os.getpid())


@cache
def _of(pid: int) -> Owner:
    try:
        state = _state(pid)
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError as error:
        raise KernelError(f"firewall iptables: {error.filename}: {error.strerror}") from None
    return Owner(pid, state[1], namespace)


def is_dead(owner: Owner) -> bool:
    """Whether that process has ended for certain."""
    if owner.namespace != this_process().namespace:
        return False
    try:
        os.kill(owner.pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass  # alive, or its id has been given to another user's process
    try:
        state, start = _state(owner.pid)
    except FileNotFoundError:
        return False  # hidden
    except ProcessLookupError:
        return True  # ended between the two questions
    return start != owner.start or state in "ZX"  # Z: killed, but its parent has not noticed yet


def _state(pid: int) -> tuple[str, int]:
    """State and start time: fields 3 and 22 of /proc/PID/stat. The name before them may hold spaces and brackets."""
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()
    return fields[0], int(fields[19])
