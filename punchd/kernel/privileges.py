"""Capabilities: which this process holds, and how a daemon started by root lets go of all others.

Theory of operation. `sudo punchd` starts with everything. It binds its socket and then, before trio starts (system
calls below act on one thread only), goes down in named stages:

    1  bounding set      nothing but the two capabilities can ever be had again, not even by exec (this needs
                         CAP_SETPCAP, which a container may have taken away; stages 4 and 5 then do the same)
    2  keep              PR_SET_KEEPCAPS: permitted capabilities survive the change of user
    3  user              setgroups, setresgid, setresuid to the service user, if there is one
    4  capabilities      CAP_NET_RAW and CAP_NET_ADMIN permitted and effective, nothing inheritable
    5  no new privileges no setuid program can give anything back
    6  not dumpable      no core file and no ptrace by others: the process holds keys of attempts

Without a service user it stays uid 0 with just the two capabilities: still no file of others can be read (that needs
CAP_DAC_OVERRIDE), no other process killed.

Under systemd the unit does all of it, and nothing is left to do here.

Source: capabilities(7), prctl(2), capset(2).
"""

from __future__ import annotations

import ctypes
import os
import pwd
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

_SETPCAP = 8  # linux/capability.h
_NUMBERS = {Capability.NET_ADMIN: 12, Capability.NET_RAW: 13}


def held() -> Capability:
    """The capabilities that are effective in this process now, of those that techniques need."""
    effective = _status_mask("CapEff")
    found = Capability.NONE
    for capability, number in _NUMBERS.items():
        if effective >> number & 1:
            found |= capability
    return found


def can_drop() -> bool:
    """Whether this is root with more than the two capabilities."""
    return os.geteuid() == 0 and bool(_status_mask("CapEff") & ~sum(1 << number for number in _NUMBERS.values()))


def drop(user: pwd.struct_passwd | None) -> None:
    """Go down to the two capabilities, as `user` if there is one. Single-threaded programs only.

    Raises:
        KernelError: a stage failed; the process may be half-way and must end.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    keep = _status_mask("CapPrm") & sum(1 << number for number in _NUMBERS.values())
    may_bound = _status_mask("CapEff") >> _SETPCAP & 1
    for number in range(_last_capability() + 1) if may_bound else ():
        if not keep >> number & 1:
            _check("drop from the bounding set", libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0))
    if user is not None:
        _check("keep capabilities", libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0))
        try:
            os.setgroups([])
            os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
            os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
        except OSError as error:
            raise KernelError(f"become {user.pw_name}: {error.strerror}") from None
    header = struct.pack("Ii", _VERSION_3, 0)
    low, high = keep & 0xFFFFFFFF, keep >> 32
    data = struct.pack("6I", low, low, 0, high, high, 0)
    _check("set capabilities", libc.capset(header, data))
    _check("forbid new privileges", libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _check("forbid dumps", libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0))


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
