"""Settings: a TOML file and the command line become one frozen value, or one clear error.

Every knob is declared once, below, with its unit, its default and the reason for it. The file uses the names of the
command line (`log-level = "debug"`); a key that is not known is refused, and the nearest known one is named. Nothing
is read from the environment: a daemon that runs as root takes its settings from one place that only root can write.

Pure: `parse` takes the file's bytes; who reads them is `punchd.cli`.

Source: line protocol §1, §4, §12, §13.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from punchd.errors import ConfigError
from punchd.knobs import (
    LOG_FORMATS,
    LOG_LEVELS,
    boolean,
    choice,
    host_port,
    integer,
    key,
    knob,
    numbers,
    path,
    shown,
    strings,
    toml,
    unknown,
)

__all__ = [
    "Config",
    "Limits",
    "parse",
    "build",
    "key",
    "host_port",
    "SOCKET",
    "AUTO_TECHNIQUES",
    "FIREWALLS",
    "LOG_FORMATS",
    "LOG_LEVELS",
]

SOCKET = "/tmp/punchd.socket"  # noqa: S108 (named by the line protocol; the server refuses what squats there)
AUTO_TECHNIQUES = ("tcp-syni", "tcp-nutss", "udp")
FIREWALLS = ("auto", "nft", "iptables", "none")

_TECHNIQUE = re.compile(r"[a-z][a-z0-9-]{1,15}")
_RESERVED = ("auto", "all", "probe", "hello")  # words of the line protocol where a technique's name may stand
_MAX_ID = 2**32 - 2  # uid_t and gid_t; the largest value means "leave it" to chown(2)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of the host one application, one user and all of them may use. Line protocol §4 and §13.8."""

    attempts_per_connection: int = knob(8, "unfinished attempts and kept ports of one connection", 1, 10_000)
    attempts_per_user: int = knob(32, "unfinished attempts of one uid", 1, 100_000)
    attempts: int = knob(128, "unfinished attempts in all; each holds one to a few descriptors", 1, 100_000)
    connections_per_user: int = knob(16, "connections of one uid", 1, 10_000)
    connections: int = knob(256, "connections in all", 1, 100_000)
    requests_per_second: int = knob(20, "lines per second and connection; faster ones are read later", 1, 100_000)
    request_burst: int = knob(40, "lines that may come at once", 1, 100_000)
    user_requests_per_second: int = knob(
        100, "lines per second and uid, so that reconnecting gains nothing", 1, 100_000
    )
    user_request_burst: int = knob(200, "lines of one uid that may come at once", 1, 100_000)
    user_attempts_per_second: int = knob(
        20, "attempts and probes of one uid that begin in a second; faster ones begin later", 1, 100_000
    )
    user_attempt_burst: int = knob(64, "attempts and probes of one uid that may begin at once", 1, 100_000)
    unread_bytes: int = knob(65_536, "answers an application may leave unread before it is dropped", 4096, 1 << 24)
    unread_seconds: int = knob(10, "how long it may leave them unread", 1, 600)
    packets_per_port: int = knob(64, "punch packets towards one port of the peer in one round", 8, 10_000)
    packets_per_round: int = knob(512, "punch packets of one round", 8, 100_000)
    kept_port_seconds: int = knob(120, "how long a probed port is kept for the attempt that names it", 1, 3600)


@dataclass(frozen=True, slots=True)
class Config:
    """Everything the daemon is told from outside."""

    socket: str = knob(SOCKET, "path of the Unix socket")
    stun: tuple[tuple[str, int], ...] = knob((), "STUN servers, HOST:PORT; two on different addresses show the mapping")
    group: str | None = knob(None, "group that may connect, a name or a number (default: punchd, if it exists)")
    user: str | None = knob(
        None, "user that the daemon becomes if root starts it, a name or a number (default: _punchd, if it exists)"
    )
    mode: int | None = knob(None, "mode of the socket in octal (default: 0660 with a group, 0600 without)")
    ttl: int = knob(4, "TTL of packets meant to leave the own NAT and die before the peer's; learnt if not set", 1, 64)
    techniques: tuple[str, ...] = knob(AUTO_TECHNIQUES, "techniques to load; their order is that of `auto`")
    firewall: str = knob(
        "auto", "what makes exemptions where a technique cannot do without: auto, nft, iptables or none"
    )
    log_level: str = knob("info", "least level that is logged")
    log_format: str = knob("text", "text or json")
    trace: str | None = knob(None, "directory for an explanation and the packets of each finished attempt")
    allow_private: bool = knob(False, "let attempts aim at private addresses (RFC 1918, RFC 6598, fc00::/7)")
    allow_users: tuple[str, ...] = knob((), "users that may connect, names or numbers (default: all the mode lets in)")
    policy: str | None = knob(None, "TOML file that says which users may do what")
    accept_sockets: bool = knob(False, "let applications pass their own sockets in (the option `sock`)")
    limits: Limits = field(default_factory=Limits, metadata={"doc": "a table, see Limits"})

    ttl_was_named: bool = False  # then it is used, and not what a traceroute would teach
    techniques_were_named: bool = False  # the default may name techniques that this installation does not have


def parse(text: bytes, where: str) -> Config:
    """Settings from a configuration file's bytes; `where` names it in errors.

    Raises:
        ConfigError: not TOML, a key that is not known, a value that does not fit.
    """
    return build(toml(text, where), where)


def build(table: Mapping[str, Any], where: str, base: Config | None = None) -> Config:
    """`base` (or the defaults) with the values of `table` (named as in the file) put over it.

    Raises:
        ConfigError: a key that is not known, a value that does not fit.
    """
    base = base or Config()
    known = {key(knob.name): knob.name for knob in fields(Config) if "doc" in knob.metadata}
    values = {knob.name: getattr(base, knob.name) for knob in fields(Config)}
    for name, value in table.items():
        attribute = known.get(name)
        if attribute is None:
            raise ConfigError(f"{where}: {unknown(name, known)}")
        if attribute == "limits":
            values["limits"] = numbers("limits", value, where, base.limits)
        else:
            values[attribute] = _value(attribute, value, f"{where}: {name}")
        if attribute == "techniques":
            values["techniques_were_named"] = True
        if attribute == "ttl":
            values["ttl_was_named"] = True
    return Config(**values)


def _value(attribute: str, value: Any, where: str) -> Any:
    match attribute:
        case "stun":
            return tuple(host_port(item, where) for item in strings(value, where))
        case "techniques":
            return _technique_names(value, where)
        case "mode":
            return _mode(value, where)
        case "ttl":
            return integer(value, where, 1, 64)
        case "firewall":
            return choice(value, where, FIREWALLS)
        case "log_level":
            return choice(value, where, LOG_LEVELS)
        case "log_format":
            return choice(value, where, LOG_FORMATS)
        case "allow_private" | "accept_sockets":
            return boolean(value, where)
        case "allow_users":
            return tuple(_account(item, where) for item in strings(value, where, numbers=True))
        case "group" | "user":
            return _account(strings([value], where, numbers=True)[0], where)
        case _:
            return path(value, where)


def _account(value: str | int, where: str) -> str:
    """A user or a group: a name, or a number as text."""
    number = value if isinstance(value, int) else int(value) if re.fullmatch("[0-9]{1,10}", value) else None
    if isinstance(value, str) and number is None and value.isprintable() and not value.isdecimal() and value[0] != "-":
        return value
    if number is None or not 0 <= number <= _MAX_ID:
        raise ConfigError(f"{where}: expected a name or a number from 0 to {_MAX_ID}, got {shown(value)}")
    return str(number)


def _mode(value: Any, where: str) -> int:
    """Octal digits as text. TOML's numbers are refused: nobody can see whether 440 was meant to be octal."""
    if isinstance(value, str) and re.fullmatch(r"0?[0-7]{3}", value):
        return int(value, 8)
    raise ConfigError(f'{where}: expected octal digits such as "0660", got {shown(value)}')


def _technique_names(value: Any, where: str) -> tuple[str, ...]:
    names = strings(value, where)
    for name in names:
        if not _TECHNIQUE.fullmatch(name) or name in _RESERVED:
            raise ConfigError(f"{where}: expected technique names, got {shown(name)}")
        if names.count(name) > 1:
            raise ConfigError(f"{where}: {name} stands twice")
    if not 1 <= len(names) <= 8:
        raise ConfigError(f"{where}: expected 1 to 8 techniques, got {len(names)}")
    return tuple(names)
