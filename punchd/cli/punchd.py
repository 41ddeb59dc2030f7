"""`punchd`, the daemon.

Starting goes from what needs every privilege to what needs none: settings, techniques, the socket; then all
capabilities but two are dropped; then trio starts. Exit codes: 0 after a stop, 2 for a wrong command line, 78
(EX_CONFIG) for settings or a host that it cannot start with, which a service manager should not try again, 130 after
a second Ctrl-C.

Signals. Until the socket is bound there is nothing to clean up, and a signal ends the process as it is; Python's own
way, an exception, gets lost in code that swallows exceptions (measured: 6 of 960 while modules are imported). From the
socket on signals wait until trio listens to them; then each of them is a stop like any other.
"""

from __future__ import annotations

import argparse
import contextlib
import grp
import logging
import os
import pwd
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from punchd import __version__, config, logs, systemd
from punchd.config import Config
from punchd.errors import ConfigError, PunchdError

if TYPE_CHECKING:
    from punchd.control.registry import Registry

EX_USAGE = 2  # what argparse and most programs use
EX_CONFIG = 78
EX_INTERRUPTED = 130  # 128 + SIGINT, as shells count
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SERVICE_USER = "_punchd"
SERVICE_GROUP = "punchd"

log = logging.getLogger("punchd")


class _Parser(argparse.ArgumentParser):
    """One line for a wrong command line, as for every other reason not to start."""

    def error(self, message: str) -> NoReturn:
        self.exit(EX_USAGE, f"punchd: {_one_line(message)}; see punchd --help\n")


def arguments() -> argparse.ArgumentParser:
    parser = _Parser(
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
    parser.add_argument("--mode", metavar="OCTAL", help="mode of the socket (default: 0660, or 0600 without a group)")
    parser.add_argument(
        "--ttl", metavar="N", type=int, help="TTL of packets that die before the peer's NAT (default: 4)"
    )
    parser.add_argument("--techniques", metavar="LIST", help="comma-separated; their order is that of `auto`")
    parser.add_argument("--log-level", metavar="L", help=f"{', '.join(config.LOG_LEVELS)} (default: info)")
    parser.add_argument("--log-format", metavar="F", help="text or json (default: text)")
    parser.add_argument("--trace", metavar="DIR", help="write one explanation of each attempt there")
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
        try:
            text = Path(given.config).read_bytes()
        except OSError as error:
            raise ConfigError(f"{given.config}: {error.strerror}") from None
        base = config.parse(text, given.config)
    table: dict[str, Any] = {
        config.key(name): value
        for name, value in vars(given).items()
        if value is not None and name not in ("config", "check_config")
    }
    if "techniques" in table:
        table["techniques"] = table["techniques"].split(",")
    return config.build(table, "command line", base)


def main(argv: Sequence[str] | None = None) -> int:
    with _interrupts_kill():
        try:
            return _main(arguments().parse_args(argv))
        except KeyboardInterrupt:
            return EX_INTERRUPTED
        except BaseExceptionGroup as group:  # trio's way to raise one
            if group.split(KeyboardInterrupt)[1] is not None:
                raise
            return EX_INTERRUPTED


@contextlib.contextmanager
def _interrupts_kill() -> Iterator[None]:
    """SIGINT ends the process at once, unless whoever started it has it ignored."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """From here to `_stop_on_signal` signals wait; from there to the end an interrupt is trio's KeyboardInterrupt."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    killing = signal.getsignal(signal.SIGINT)
    if killing is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, killing)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _main(given: argparse.Namespace) -> int:
    try:
        chosen = settings(given)
        if given.check_config:
            _load_techniques(chosen)
            print("punchd: the settings are right")
            return 0
        logs.set_up(chosen.log_level, chosen.log_format)
        return _start(chosen)
    except PunchdError as error:
        print(f"punchd: {_one_line(str(error))}", file=sys.stderr)
        return EX_CONFIG


def _one_line(text: str) -> str:
    """Paths and keys may hold line feeds and worse; a log or a terminal gets them escaped."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _start(chosen: Config) -> int:
    techniques = _load_techniques(chosen)
    allowed_uids = frozenset(_uid(user) for user in chosen.allow_users) or None
    service = _service_user()
    with _signals_wait(), contextlib.ExitStack() as owned:
        sockets = _sockets(chosen, service, owned)
        registry = _drop_and_register(techniques, service)
        if chosen.trace is not None and not os.access(chosen.trace, os.W_OK | os.X_OK):
            raise ConfigError(f"trace {chosen.trace}: expected a directory that uid {os.geteuid()} can write to")
        import trio  # after the capabilities are dropped: they belong to threads, and trio makes some

        trio.run(_serve, chosen, registry, allowed_uids, sockets)
    return 0


def _load_techniques(chosen: Config) -> list[Any]:
    import difflib

    from punchd.technique import installed, load

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


def _service_user() -> pwd.struct_passwd | None:
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(SERVICE_USER)
    except KeyError:
        return None


def _uid(user: str) -> int:
    if user.isdecimal():
        return int(user)
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise ConfigError(f"allow-users: no user {user}") from None


def _gid(group: str) -> int:
    if group.isdecimal():
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise ConfigError(f"group: no group {group}") from None


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
        gid = _gid(chosen.group)
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


def _drop_and_register(techniques: list[Any], service: pwd.struct_passwd | None) -> Registry:
    from punchd.control.registry import Registry
    from punchd.kernel import privileges

    if privileges.can_drop():
        privileges.drop(service)
        if service is None:
            log.info("no user %s: staying uid 0, with CAP_NET_RAW and CAP_NET_ADMIN only", SERVICE_USER)
    registry = Registry(techniques, privileges.held())
    for name, missing in registry.lacking.items():
        log.warning("technique %s cannot be used: it needs %s", name, missing)
    if not registry.usable:
        raise ConfigError("techniques: none can be used without more privileges")
    return registry


async def _serve(
    chosen: Config, registry: Registry, allowed_uids: frozenset[int] | None, sockets: list[socket.socket]
) -> None:
    import trio

    from punchd.control.launch import Launcher
    from punchd.control.quotas import Quotas
    from punchd.control.requests import Rules
    from punchd.control.server import Server
    from punchd.control.state import DaemonState
    from punchd.kernel.routes import Routes
    from punchd.nat.servers import StunServers

    stop = trio.Event()
    with Routes() as routes:
        state = DaemonState(
            config=chosen,
            registry=registry,
            rules=Rules(registry.names, chosen.allow_private),
            launcher=Launcher(chosen, registry, routes, StunServers(chosen.stun)),
            quotas=Quotas(chosen.limits),
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(_stop_on_signal, stop)  # READY means that a signal is heard, too
            nursery.start_soon(systemd.heartbeat)
            systemd.notify("READY=1")
            places = ", ".join(str(item.getsockname()) for item in sockets)
            log.info("serving %s with %s", places, ", ".join(registry.usable))
            await Server(state, allowed_uids).run(sockets, stop)
            nursery.cancel_scope.cancel()


async def _stop_on_signal(stop: Any, task_status: Any) -> None:
    """The first signal asks every attempt to end with a verdict; the second one ends the process as it is."""
    import trio

    with trio.open_signal_receiver(*STOPPING) as signals:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
        task_status.started()
        async for number in signals:
            log.info("stopping on %s", signal.Signals(number).name)
            systemd.notify("STOPPING=1")
            stop.set()
            break
    await trio.sleep_forever()


if __name__ == "__main__":
    sys.exit(main())
