"""Settings: a TOML file and the command line become one frozen value, or one clear error.

Every knob is declared once, below, with its unit, its default and the reason for it. The file uses the names of the
command line (`log-level = "debug"`); a key that is not known is refused, and the nearest known one is named. Nothing
is read from the environment: a daemon that runs as root takes its settings from one place that only root can write.

Pure: `parse` takes the file's bytes; who reads them is `punchd.cli`.

Source: line protocol §1, §4, §12, §13.
"""

from __future__ import annotations

import difflib
import re
import reprlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from ipaddress import IPv6Address
from typing import Any

from punchd.errors import ConfigError

SOCKET = "/tmp/punchd.socket"  # noqa: S108 (named by the line protocol; the server refuses what squats there)
AUTO_TECHNIQUES = ("tcp-syni", "tcp-nutss", "udp")
LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("text", "json")

_HOST_PORT = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+)):([0-9]{1,5})")
_TECHNIQUE = re.compile(r"[a-z][a-z0-9-]{1,15}")
_RESERVED = ("auto", "all", "probe", "hello")  # words of the line protocol where a technique's name may stand
_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = 80
_MAX_ID = 2**32 - 2  # uid_t and gid_t; the largest value means "leave it" to chown(2)


def _knob(default: Any, doc: str, least: float | None = None, most: float | None = None) -> Any:
    return field(default=default, metadata={"doc": doc, "least": least, "most": most})


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of the host one application, one user and all of them may use. Line protocol §4 and §13.8."""

    attempts_per_connection: int = _knob(8, "unfinished attempts and kept ports of one connection", 1, 10_000)
    attempts_per_user: int = _knob(32, "unfinished attempts of one uid", 1, 100_000)
    attempts: int = _knob(128, "unfinished attempts in all; each holds one to a few descriptors", 1, 100_000)
    connections_per_user: int = _knob(16, "connections of one uid", 1, 10_000)
    connections: int = _knob(256, "connections in all", 1, 100_000)
    requests_per_second: int = _knob(20, "lines per second and connection; faster ones are read later", 1, 100_000)
    request_burst: int = _knob(40, "lines that may come at once", 1, 100_000)
    user_requests_per_second: int = _knob(
        100, "lines per second and uid, so that reconnecting gains nothing", 1, 100_000
    )
    user_request_burst: int = _knob(200, "lines of one uid that may come at once", 1, 100_000)
    unread_bytes: int = _knob(65_536, "answers an application may leave unread before it is dropped", 4096, 1 << 24)
    unread_seconds: int = _knob(10, "how long it may leave them unread", 1, 600)
    packets_per_port: int = _knob(64, "punch packets towards one port of the peer in one round", 8, 10_000)
    packets_per_round: int = _knob(512, "punch packets of one round", 8, 100_000)
    kept_port_seconds: int = _knob(120, "how long a probed port is kept for the attempt that names it", 1, 3600)


@dataclass(frozen=True, slots=True)
class Config:
    """Everything the daemon is told from outside."""

    socket: str = _knob(SOCKET, "path of the Unix socket")
    stun: tuple[tuple[str, int], ...] = _knob(
        (), "STUN servers, HOST:PORT; two on different addresses show the mapping"
    )
    group: str | None = _knob(None, "group that may connect, a name or a number (default: punchd, if it exists)")
    mode: int | None = _knob(None, "mode of the socket in octal (default: 0660 with a group, 0600 without)")
    ttl: int = _knob(4, "TTL of packets meant to leave the own NAT and die before the peer's", 1, 64)
    techniques: tuple[str, ...] = _knob(AUTO_TECHNIQUES, "techniques to load; their order is that of `auto`")
    log_level: str = _knob("info", "least level that is logged")
    log_format: str = _knob("text", "text or json")
    trace: str | None = _knob(None, "directory for one explanation a finished attempt")
    allow_private: bool = _knob(False, "let attempts aim at private addresses (RFC 1918, RFC 6598, fc00::/7)")
    allow_users: tuple[str, ...] = _knob((), "users that may connect, names or numbers (default: all the mode lets in)")
    limits: Limits = field(default_factory=Limits, metadata={"doc": "a table, see Limits"})

    techniques_were_named: bool = False  # the default may name techniques that this installation does not have


def key(name: str) -> str:
    """The name of a knob outside Python: `log_level` is `log-level`."""
    return name.replace("_", "-")


def parse(text: bytes, where: str) -> Config:
    """Settings from a configuration file's bytes; `where` names it in errors.

    Raises:
        ConfigError: not TOML, a key that is not known, a value that does not fit.
    """
    try:
        table = tomllib.loads(text.decode())
    except (ValueError, RecursionError) as error:  # ValueError: not UTF-8, not TOML, a number of 5,000 digits
        raise ConfigError(f"{where}: not TOML: {error}") from None
    return build(table, where)


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
            raise ConfigError(f"{where}: {_unknown(name, known)}")
        if attribute == "limits":
            values["limits"] = _limits(value, where, base.limits)
        else:
            values[attribute] = _value(attribute, value, f"{where}: {name}")
        if attribute == "techniques":
            values["techniques_were_named"] = True
    return Config(**values)


def _limits(table: Any, where: str, base: Limits) -> Limits:
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where}: limits: expected a table, got {_shown(table)}")
    known = {key(knob.name): knob for knob in fields(Limits)}
    values = {knob.name: getattr(base, knob.name) for knob in fields(Limits)}
    for name, value in table.items():
        knob = known.get(name)
        if knob is None:
            raise ConfigError(f"{where}: limits: {_unknown(name, known)}")
        values[knob.name] = _integer(value, f"{where}: limits: {name}", knob.metadata["least"], knob.metadata["most"])
    return Limits(**values)


def _unknown(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, 1, 0.5)
    hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
    return f"unknown key {name[:60] if name.isprintable() else _shown(name)}; {hint}"


def _shown(value: Any) -> str:
    """A foreign value in a few characters of one line; `repr` has no bound, and fails for what is deep or huge."""
    try:
        return _BRIEF.repr(value)
    except ValueError:  # Python does not write out integers of more than 4,300 digits
        return "a huge number"


def _value(attribute: str, value: Any, where: str) -> Any:
    match attribute:
        case "stun":
            return tuple(host_port(item, where) for item in _strings(value, where))
        case "techniques":
            return _technique_names(value, where)
        case "mode":
            return _mode(value, where)
        case "ttl":
            return _integer(value, where, 1, 64)
        case "log_level":
            return _choice(value, where, LOG_LEVELS)
        case "log_format":
            return _choice(value, where, LOG_FORMATS)
        case "allow_private":
            if not isinstance(value, bool):
                raise ConfigError(f"{where}: expected true or false, got {_shown(value)}")
            return value
        case "allow_users":
            return tuple(_account(item, where) for item in _strings(value, where, numbers=True))
        case "group":
            return _account(_strings([value], where, numbers=True)[0], where)
        case _:
            return _path(value, where)


def _integer(value: Any, where: str, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ConfigError(f"{where}: expected a whole number from {least} to {most}, got {_shown(value)}")
    return value


def _choice(value: Any, where: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ConfigError(f"{where}: expected one of {', '.join(choices)}, got {_shown(value)}")
    return str(value)


def _strings(value: Any, where: str, *, numbers: bool = False) -> list[Any]:
    allowed = (str, int) if numbers else (str,)
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{where}: expected a list, got {_shown(value)}")
    for item in value:
        if not isinstance(item, allowed) or isinstance(item, bool) or item == "":
            raise ConfigError(f"{where}: expected text, got {_shown(item)}")
    return list(value)


def _account(value: str | int, where: str) -> str:
    """A user or a group: a name, or a number as text."""
    number = value if isinstance(value, int) else int(value) if re.fullmatch("[0-9]{1,10}", value) else None
    if isinstance(value, str) and number is None and value.isprintable() and not value.isdecimal() and value[0] != "-":
        return value
    if number is None or not 0 <= number <= _MAX_ID:
        raise ConfigError(f"{where}: expected a name or a number from 0 to {_MAX_ID}, got {_shown(value)}")
    return str(number)


def _path(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ConfigError(f"{where}: expected a path, got {_shown(value)}")
    return value


def _mode(value: Any, where: str) -> int:
    """Octal digits as text. TOML's numbers are refused: nobody can see whether 440 was meant to be octal."""
    if isinstance(value, str) and re.fullmatch(r"0?[0-7]{3}", value):
        return int(value, 8)
    raise ConfigError(f'{where}: expected octal digits such as "0660", got {_shown(value)}')


def _technique_names(value: Any, where: str) -> tuple[str, ...]:
    names = _strings(value, where)
    for name in names:
        if not _TECHNIQUE.fullmatch(name) or name in _RESERVED:
            raise ConfigError(f"{where}: expected technique names, got {_shown(name)}")
        if names.count(name) > 1:
            raise ConfigError(f"{where}: {name} stands twice")
    if not 1 <= len(names) <= 8:
        raise ConfigError(f"{where}: expected 1 to 8 techniques, got {len(names)}")
    return tuple(names)


def host_port(text: str, where: str) -> tuple[str, int]:
    """`192.0.2.1:3478`, `[2001:db8::1]:3478` or `stun.example.net:3478` as (host, port).

    Raises:
        ConfigError: anything else.
    """
    match = _HOST_PORT.fullmatch(text)
    if match is None or not 1 <= int(match[3]) <= 65535 or (match[1] and not _is_ipv6(match[1])):
        raise ConfigError(f"{where}: expected HOST:PORT, got {_shown(text)}")
    return match[1] or match[2], int(match[3])


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except ValueError:
        return False
    return True
