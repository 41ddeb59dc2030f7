"""What the settings of all programs have in common: how a knob is declared, read, and refused.

A knob is a field of a frozen dataclass with its explanation and, for a number, its range. In files and on the command
line `log_level` is `log-level`. A key that is not known is refused, and the nearest known one is named. A refusal is
one line that names the file, the knob, what was expected and what came.

Pure. The settings themselves: `punchd.config`, `punchd.rendezvous.settings`, `punchd.broker.settings`.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import field, fields
from ipaddress import IPv6Address, ip_address
from typing import Any, TypeVar

from punchd.errors import ConfigError

LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("text", "json")

_HOST_PORT = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+)):([0-9]{1,5})")
_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = 80

_TableT = TypeVar("_TableT")


def knob(default: Any, doc: str, least: float | None = None, most: float | None = None) -> Any:
    """A field of settings."""
    return field(default=default, metadata={"doc": doc, "least": least, "most": most})


def key(name: str) -> str:
    """The name of a knob outside Python: `log_level` is `log-level`."""
    return name.replace("_", "-")


def toml(text: bytes, where: str) -> dict[str, Any]:
    """The table in a file's bytes; `where` names it in errors.

    Raises:
        ConfigError: not TOML.
    """
    import tomllib  # many run without a file

    try:
        return tomllib.loads(text.decode())
    except (ValueError, RecursionError) as error:  # ValueError: not UTF-8, not TOML, a number of 5,000 digits
        raise ConfigError(f"{where}: not TOML: {error}") from None


def numbers(name: str, table: Any, where: str, base: _TableT) -> _TableT:
    """`base`, a dataclass of whole numbers, with the values of the table `name` put over it.

    Raises:
        ConfigError: not a table, a key that is not known, a value that is out of its range.
    """
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where}: {name}: expected a table, got {shown(table)}")
    known = {key(one.name): one for one in fields(base)}  # type: ignore[arg-type]
    values = {one.name: getattr(base, one.name) for one in known.values()}
    for given, value in table.items():
        one = known.get(given)
        if one is None:
            raise ConfigError(f"{where}: {name}: {unknown(given, known)}")
        values[one.name] = integer(value, f"{where}: {name}: {given}", one.metadata["least"], one.metadata["most"])
    return type(base)(**values)


def overlay(
    base: _TableT,
    table: Mapping[str, Any],
    where: str,
    *,
    tables: Collection[str],
    read: Callable[[str, Any, str], Any],
) -> _TableT:
    """`base`, a frozen dataclass, with the values of `table` (named as in the file) put over it.

    Args:
        tables: attributes that are tables of numbers.
        read: the value of any other attribute, from its name, what the file has, and where that is.

    Raises:
        ConfigError: a key that is not known, a value that does not fit.
    """
    names = [one.name for one in fields(base)]  # type: ignore[arg-type]
    known = {key(name): name for name in names}
    values = {name: getattr(base, name) for name in names}
    for name, value in table.items():
        attribute = known.get(name)
        if attribute is None:
            raise ConfigError(f"{where}: {unknown(name, known)}")
        if attribute in tables:
            values[attribute] = numbers(attribute, value, where, values[attribute])
        else:
            values[attribute] = read(attribute, value, f"{where}: {name}")
    return type(base)(**values)


def unknown(name: str, known: Mapping[str, Any]) -> str:
    """What to say of a key that is not known."""
    import difflib  # for a mistake only

    near = difflib.get_close_matches(name, known, 1, 0.5)
    hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
    return f"unknown key {name[:60] if name.isprintable() else shown(name)}; {hint}"


def shown(value: Any) -> str:
    """A foreign value in a few characters of one line; `repr` has no bound, and fails for what is deep or huge."""
    try:
        return _BRIEF.repr(value)
    except ValueError:  # Python does not write out integers of more than 4,300 digits
        return "a huge number"


def integer(value: Any, where: str, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ConfigError(f"{where}: expected a whole number from {least} to {most}, got {shown(value)}")
    return value


def boolean(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{where}: expected true or false, got {shown(value)}")
    return value


def choice(value: Any, where: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ConfigError(f"{where}: expected one of {', '.join(choices)}, got {shown(value)}")
    return str(value)


def strings(value: Any, where: str, *, numbers: bool = False) -> list[Any]:
    """A list of texts that are not empty; with `numbers` also of whole numbers."""
    allowed = (str, int) if numbers else (str,)
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{where}: expected a list, got {shown(value)}")
    for item in value:
        if not isinstance(item, allowed) or isinstance(item, bool) or item == "":
            raise ConfigError(f"{where}: expected text, got {shown(item)}")
    return list(value)


def path(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ConfigError(f"{where}: expected a path, got {shown(value)}")
    return value


def host_port(text: str, where: str) -> tuple[str, int]:
    """`192.0.2.1:3478`, `[2001:db8::1]:3478` or `stun.example.net:3478` as (host, port).

    Raises:
        ConfigError: anything else.
    """
    match = _HOST_PORT.fullmatch(text)
    if match is None or not 1 <= int(match[3]) <= 65535 or (match[1] and not _is_ipv6(match[1])):
        raise ConfigError(f"{where}: expected HOST:PORT, got {shown(text)}")
    return match[1] or match[2], int(match[3])


def place(text: str, where: str) -> str:
    """Where a server listens: `HOST:PORT`, or `*:PORT` for every address.

    Raises:
        ConfigError: anything else.
    """
    host_port(text.replace("*:", "any:", 1), where)
    return text


def ip(text: str, where: str) -> str:
    """An address in its normal form.

    Raises:
        ConfigError: it is none.
    """
    try:
        return str(ip_address(text))
    except ValueError:
        raise ConfigError(f"{where}: expected an IPv4 or IPv6 address, got {shown(text)}") from None


def is_loopback(host: str) -> bool:
    """Whether only this host reaches `host`, an address or a name."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except ValueError:
        return False
    return True
