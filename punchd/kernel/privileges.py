"""Capabilities: which this process holds, and how a daemon started by root lets go of all others.

Theory of operation. `sudo punchd` starts with everything, and an ordinary user may start it with more than it needs. It
binds its socket and then, before trio starts (system calls below act on one thread only), goes down in named stages:

    1  bounding set      nothing but the two capabilities can ever be had again, not even by exec (this needs
                         CAP_SETPCAP, which a container may have taken away; stages 4 and 5 then do the same)
    2  keep              PR_SET_KEEPCAPS: permitted capabilities survive the change of user
    3  user              setgroups, setresgid, setresuid to the user that is given; else root's groups go, and no
                         real or saved id stays that differs from the effective one
    4  capabilities      CAP_NET_RAW and CAP_NET_ADMIN permitted and effective, nothing inheritable
    5  no new privileges no setuid program can give anything back
    6  not dumpable      no core file and no ptrace by others: the process holds keys of attempts
    7  check             what the kernel says of the process now: with anything beyond that it does not run

Where there is nothing to drop, because a service manager has done it, only 5 to 7 happen: its filter of system calls
may end a process that so much as asks for the others.

Whoever stays uid 0 (`--user root`) has just the two capabilities, but the host's files are its own: no file of others
can be read (that needs CAP_DAC_OVERRIDE), no other process killed, and yet /etc/crontab be written to.

Source: capabilities(7), prctl(2), capset(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import resource
import struct
from collections.abc import Sequence

from punchd.errors import KernelError
from punchd.technique import Capability

# linux/prctl.h
_PR_SET_DUMPABLE = 4
_PR_SET_KEEPCAPS = 8
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_VERSION_3 = 0x20080522  # linux/capability.h

MOST_DESCRIPTORS = 65_536

_SETPCAP = 8  # linux/capability.h
_TO_BECOME = {"CAP_CHOWN": 0, "CAP_FOWNER": 3, "CAP_SETGID": 6, "CAP_SETUID": 7}
_NUMBERS = {Capability.NET_ADMIN: 12, Capability.NET_RAW: 13}
_TWO = sum(1 << number for number in _NUMBERS.values())


def held() -> Capability:
    """The capabilities that are effective in this process now, of those that techniques need."""
    effective = _status_mask("CapEff")
    found = Capability.NONE
    for capability, number in _NUMBERS.items():
        if effective >> number & 1:
            found |= capability
    return found


def can_drop() -> bool:
    """Whether there is more than the two capabilities, or another user or group to be had back."""
    return bool(_excess())


def drop(user: pwd.struct_passwd | None) -> None:
    """Go down to the two capabilities, as `user` if there is one. Single-threaded programs only.

    Raises:
        KernelError: a stage failed, or more than that is left; the process may be half-way and must end.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if user is not None or can_drop():
        _let_go(libc, user)
    _check("forbid new privileges", libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _check("forbid dumps", libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0))
    if left := _excess():
        raise KernelError(f"more privileges are left than punchd needs: {left}")


def refuse_unless_able(user: pwd.struct_passwd) -> None:
    """Before anything is made: whether this process can give a socket to that user, and become it.

    Raises:
        KernelError: it cannot; what is missing, and what to do.
    """
    effective = _status_mask("CapEff")
    missing = [name for name, number in _TO_BECOME.items() if not effective >> number & 1]
    for what, number in (("uid", user.pw_uid), ("gid", user.pw_gid)):
        if not _is_mapped(f"/proc/self/{what}_map", number):
            missing.append(f"a namespace that has {what} {number}")
    if missing:
        raise KernelError(f"become {user.pw_name}: that needs {', '.join(missing)}; another user, or root: --user NAME")


def _is_mapped(path: str, number: int) -> bool:
    """Whether this user namespace has that number; a line is: first, its number outside, count (user_namespaces(7))."""
    with open(path, encoding="ascii") as file:
        ranges = [[int(word) for word in line.split()] for line in file]
    return any(first <= number < first + count for first, _, count in ranges)


def _let_go(libc: ctypes.CDLL, user: pwd.struct_passwd | None) -> None:
    keep = _status_mask("CapPrm") & _TWO
    may_bound = _status_mask("CapEff") >> _SETPCAP & 1
    for number in range(_last_capability() + 1) if may_bound else ():
        if not keep >> number & 1:
            _check("drop from the bounding set", libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0))
    _check("keep capabilities", libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0))
    _change_user(user)
    header = struct.pack("Ii", _VERSION_3, 0)
    low, high = keep & 0xFFFFFFFF, keep >> 32
    data = struct.pack("6I", low, low, 0, high, high, 0)
    _check("set capabilities", libc.capset(header, data))


def _change_user(user: pwd.struct_passwd | None) -> None:
    uid, gid = (user.pw_uid, user.pw_gid) if user is not None else (os.geteuid(), os.getegid())
    try:
        if user is not None:
            os.setgroups([])
        elif uid == 0:
            with contextlib.suppress(PermissionError):  # a container's root may not; its groups are the container's
                os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    except OSError as error:
        name = user.pw_name if user is not None else f"uid {uid} and nobody else"
        raise KernelError(f"become {name}: {error.strerror}") from None


def _excess() -> str:
    """What this process has beyond the two capabilities and its one user; empty: nothing."""
    masks = {name: _status_mask(name) & ~_TWO for name in ("CapPrm", "CapEff", "CapInh", "CapAmb")}
    found = [f"{name} {mask:#x}" for name, mask in masks.items() if mask]
    for name, ids in (("uids", os.getresuid()), ("gids", os.getresgid())):
        if len(set(ids)) > 1:
            found.append(f"{name} {', '.join(map(str, ids))}")
    return "; ".join(found)


def allow_descriptors() -> None:
    """Raise the limit of open files to what the process may have: a full house of attempts takes thousands."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_DESCRIPTORS if most == resource.RLIM_INFINITY else min(most, MOST_DESCRIPTORS)
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < wanted:
        with contextlib.suppress(OSError, ValueError):  # a filter of system calls; the host's own limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def _check(what: str, result: int) -> None:
    if result != 0:
        raise KernelError(f"{what}: {os.strerror(ctypes.get_errno())}")


def _status_mask(name: str) -> int:
    return int(_status_line(name), 16)


def _status_line(name: str) -> str:
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        lines: Sequence[str] = [line for line in status if line.startswith(f"{name}:")]
    if not lines:
        raise KernelError(f"/proc/self/status: expected a line {name}, found none")
    return lines[0].split()[1]


def _last_capability() -> int:
    with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
        return int(file.read())
