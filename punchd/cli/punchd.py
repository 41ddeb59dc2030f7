"""`punchd`, the daemon.

Starting goes from what needs every privilege to what needs none: settings, techniques, the firewall, the socket; then
all capabilities but two are dropped; then trio starts. Exit codes: 0 after a stop, 2 for a wrong command line, 78
(EX_CONFIG) for settings or a host that it cannot start with, which a service manager should not try again, 130 after
a second Ctrl-C.

Signals: see `punchd.cli.process`; each of them is a stop.
"""

from __future__ import annotations

import argparse
import contextlib
import grp
import logging
import os
import pwd
import socket
import stat
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from punchd import __version__, config, logs, systemd
from punchd.cli import process, users
from punchd.cli.process import EX_CONFIG, Parser, one_line, signals_wait
from punchd.cli.users import SERVICE_GROUP, SERVICE_USER
from punchd.config import Config
from punchd.errors import ConfigError, PunchdError

if TYPE_CHECKING:
    from punchd.control.policy import Policy
    from punchd.control.registry import Registry
    from punchd.kernel.firewall import Firewall

log = logging.getLogger("punchd")


def arguments() -> argparse.ArgumentParser:
    parser = Parser(
        prog="punchd",
        description="Gives local programs connected sockets to peers behind NATs.",
        allow_abbrev=False,
    )
    parser.add_argument("--socket", metavar="PATH", help=f"Unix socket to serve (default: {config.SOCKET})")
    parser.add_argument("--config", metavar="FILE", help="TOML file with the same names; the command line wins")
    parser.add_argument("--stun", metavar="HOST:PORT", action="append", help="STUN server; give two, they are compared")
    parser.add_argument(
        "--group", metavar="NAME", help=f"group that may connect (default: {SERVICE_GROUP}, if it exists)"
    )
    parser.add_argument(
        "--user",
        metavar="NAME",
        help=f"user that it becomes if root starts it (default: {SERVICE_USER}, if it exists, else a uid without name)",
    )
    parser.add_argument("--mode", metavar="OCTAL", help="mode of the socket (default: 0660, or 0600 without a group)")
    parser.add_argument(
        "--ttl",
        metavar="N",
        type=int,
        help="TTL of packets that die before the peer's NAT (default: learnt, 4 until then)",
    )
    parser.add_argument("--techniques", metavar="LIST", help="comma-separated; their order is that of `auto`")
    parser.add_argument(
        "--firewall", metavar="F", help=f"makes exemptions where needed: {', '.join(config.FIREWALLS)} (default: auto)"
    )
    parser.add_argument("--log-level", metavar="L", help=f"{', '.join(config.LOG_LEVELS)} (default: info)")
    parser.add_argument("--log-format", metavar="F", help="text or json (default: text)")
    parser.add_argument("--trace", metavar="DIR", help="write an explanation and the packets of each attempt there")
    parser.add_argument("--check-config", action="store_true", help="say whether the settings are right, and exit")
    parser.add_argument("--version", action="version", version=f"punchd {__version__}")
    return parser


def settings(given: argparse.Namespace) -> Config:
    """File and command line as one.

    Raises:
        ConfigError: either is wrong.
    """
    base = Config()
    if given.config is not None:
        base = config.parse(_read(given.config), given.config)
    table: dict[str, Any] = {
        config.key(name): value
        for name, value in vars(given).items()
        if value is not None and name not in ("config", "check_config")
    }
    if "techniques" in table:
        table["techniques"] = table["techniques"].split(",")
    return config.build(table, "command line", base)


def _read(path: str) -> bytes:
    """A file of settings. Root takes none that everybody may write to.

    Raises:
        ConfigError: it cannot be read, or should not be.
    """
    try:
        with Path(path).open("rb") as file:
            if os.geteuid() == 0 and os.fstat(file.fileno()).st_mode & stat.S_IWOTH:
                raise ConfigError(f"{path}: everybody can write to it, and this is root: chmod o-w")
            return file.read()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None


def main(argv: Sequence[str] | None = None) -> int:
    return process.run(lambda: _main(arguments().parse_args(argv)))


def _main(given: argparse.Namespace) -> int:
    try:
        chosen = settings(given)
        if given.check_config:
            _load_techniques(chosen)
            _policy(chosen)
            print("punchd: the settings are right")
            return 0
        logs.set_up(chosen.log_level, chosen.log_format)
        return _start(chosen)
    except PunchdError as error:
        print(f"punchd: {one_line(str(error))}", file=sys.stderr)
        return EX_CONFIG


def _start(chosen: Config) -> int:
    from punchd.cli import serving
    from punchd.kernel import privileges
    from punchd.kernel.firewall import guard

    techniques = _load_techniques(chosen)
    allowed_uids = frozenset(users.uid_of(user) for user in chosen.allow_users) or None
    policy = _policy(chosen)
    service = users.to_become(chosen.user)
    if service is not None:
        privileges.refuse_unless_able(service)
    with (
        contextlib.closing(_firewall(chosen, techniques)) as firewall,
        signals_wait(serving.STOPPING),
        contextlib.ExitStack() as owned,
    ):
        sockets = _sockets(chosen, service, owned)
        if chosen.trace is not None:
            from punchd.attempt import trace

            trace.prepare()
        registry = _drop_and_register(techniques, service, firewall)
        table = guard.post(os.geteuid())  # it watches the user that the daemon has become
        if table is not None:
            owned.callback(table.close)
        if chosen.trace is not None:
            _check_trace_directory(chosen.trace)
        serving.run(chosen, registry, firewall, (policy, allowed_uids), sockets)
    return 0


def _check_trace_directory(path: str) -> None:
    if not os.access(path, os.W_OK | os.X_OK):
        raise ConfigError(f"trace {path}: expected a directory that uid {os.geteuid()} can write to (chown)")
    mode = os.stat(path).st_mode
    if mode & (stat.S_IWGRP | stat.S_IWOTH) and not mode & stat.S_ISVTX:  # links there would be followed
        raise ConfigError(f"trace {path}: expected a directory that only its owner can write to")


def _load_techniques(chosen: Config) -> list[Any]:
    import difflib

    from punchd.plugins import installed, load

    found, absent = load(chosen.techniques)
    if absent and chosen.techniques_were_named:
        near = difflib.get_close_matches(absent[0], installed(), 1)
        hint = f"did you mean {near[0]}?" if near else f"installed are {', '.join(sorted(installed()))}"
        raise ConfigError(f"techniques: {absent[0]} is not installed; {hint}")
    if not found:
        raise ConfigError(f"techniques: none of {', '.join(chosen.techniques)} is installed")
    for name in absent:
        log.info("technique %s: not installed", name)
    return found


def _firewall(chosen: Config, techniques: list[Any]) -> Firewall:
    """The backend for exemptions, opened before anything is dropped: its files are root's. `auto` opens one only
    where a technique could ask for it, a named one in any case.

    A signal may end the process here: nft's table goes with it, and iptables' is not changed but by a sweep.
    """
    from punchd.kernel.firewall import choose
    from punchd.technique import Capability

    is_wanted = any(Capability.LOW_TTL_SYN in technique.needs for technique in techniques)
    return choose(chosen.firewall if is_wanted or chosen.firewall != "auto" else "none")


def _policy(chosen: Config) -> Policy:
    """The policy of the file that the settings name; without one everybody may do all that the settings allow."""
    from punchd.control import policy

    if chosen.policy is None:
        return policy.Policy()
    return policy.parse(
        _read(chosen.policy),
        chosen.policy,
        uid_of=partial(users.uid_of, where="users"),
        gid_of=partial(users.gid_of, where="groups"),
    )


def _sockets(chosen: Config, service: pwd.struct_passwd | None, owned: contextlib.ExitStack) -> list[socket.socket]:
    """The service manager's sockets, or one of our own."""
    from punchd.control.listener import Access, Listener

    try:
        passed = systemd.listening_sockets()
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if passed:
        for item in passed:
            owned.callback(item.close)
        return passed
    gid: int | None = None
    if chosen.group is not None:
        gid = users.gid_of(chosen.group)
    else:
        with contextlib.suppress(KeyError):
            gid = grp.getgrnam(SERVICE_GROUP).gr_gid
    if gid is None and chosen.mode is None:
        log.warning("no group %s: only %s may connect; see --group and --mode", SERVICE_GROUP, _owner_name(service))
    mode = chosen.mode if chosen.mode is not None else (0o600 if gid is None else 0o660)
    uid = service.pw_uid if service is not None else os.geteuid()
    listener = Listener(chosen.socket, Access(uid, gid, mode), frozenset({0, os.geteuid(), uid}))
    owned.callback(listener.close)
    return [listener.socket]


def _owner_name(service: pwd.struct_passwd | None) -> str:
    return f"root and {service.pw_name}" if service is not None else f"root and uid {os.geteuid()}"


def _drop_and_register(techniques: list[Any], service: pwd.struct_passwd | None, firewall: Firewall) -> Registry:
    from punchd.control.registry import Registry, with_firewall
    from punchd.kernel import privileges

    privileges.allow_descriptors()
    privileges.drop(service)
    if os.geteuid() == 0:
        log.warning("staying uid 0, whose files are the host's: whoever takes punchd over can write to them")
    registry = Registry(techniques, with_firewall(privileges.held(), can_exempt=bool(firewall.families)))
    for name, missing in registry.lacking.items():
        log.warning("technique %s cannot be used: it needs %s", name, missing)
    if not registry.usable:
        raise ConfigError("techniques: none can be used without more privileges")
    return registry


if __name__ == "__main__":
    sys.exit(main())
