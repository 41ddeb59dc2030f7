"""Users and groups by name or number, and the user that a daemon becomes that root has started."""

from __future__ import annotations

import grp
import os
import pwd

from punchd.errors import ConfigError

SERVICE_USER = "_punchd"
SERVICE_GROUP = "punchd"
# Where there is no service user. No account has it: systemd leaves 65520 to 65533 unused (systemd.io/UIDS-GIDS),
# Debian reserves 65000 to 65533 (policy 9.2.2); and it is below 65536, which is where most containers' users end.
NAMELESS = 65_527
MAKE_ONE = f"make a user for punchd: useradd --system --no-create-home --shell /usr/sbin/nologin {SERVICE_USER}"


def uid_of(user: str, where: str = "allow-users") -> int:
    """Raises ConfigError: there is no such user."""
    if user.isdecimal():
        return int(user)
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise ConfigError(f"{where}: no user {user}") from None


def gid_of(group: str, where: str = "group") -> int:
    """Raises ConfigError: there is no such group."""
    if group.isdecimal():
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise ConfigError(f"{where}: no group {group}") from None


def to_become(wanted: str | None) -> pwd.struct_passwd | None:
    """Which user the daemon is to become; None: it stays who it is.

    Root's daemon becomes the one that is `wanted`, or the service user, or, where there is none, a number that no
    account has: uid 0 owns the host's files, and needs no capability to write to them.

    Args:
        wanted: the setting `user`.

    Raises:
        ConfigError: there is no such user, or only root could become it, or somebody has the number.
    """
    if os.geteuid() != 0:
        if wanted is not None and uid_of(wanted, "user") != os.geteuid():
            raise ConfigError(f"user {wanted}: only root can become another user, and this is uid {os.geteuid()}")
        return None
    if wanted is not None:
        account = _account(uid_of(wanted, "user"))
        return account if account.pw_uid else None
    try:
        return pwd.getpwnam(SERVICE_USER)
    except KeyError:
        account = _account(NAMELESS)
    if account.pw_name != f"uid {NAMELESS}":
        raise ConfigError(f"there is no user {SERVICE_USER}, and uid {NAMELESS} is {account.pw_name}'s; {MAKE_ONE}")
    return account


def _account(uid: int) -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(uid)
    except KeyError:
        return pwd.struct_passwd((f"uid {uid}", "x", uid, uid, "", "/", "/usr/sbin/nologin"))
