"""Where Redis or Valkey is: a URL and its parts.

    redis://[USER[:PASSWORD]@]HOST[:PORT][/NUMBER]      TCP
    rediss://...                                        TLS; the certificate must be good for HOST
    unix://[USER[:PASSWORD]@]/PATH[?db=NUMBER]          a socket of this host

`:PASSWORD@` without a user is the password of the user `default`. What is special in a URL is percent-encoded. There
are no other options: nothing that weakens TLS can come in through a URL. An error, a log line and `str` never show
user or password.

Pure. Source: the registered URI scheme `redis`, and what redis-cli takes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from punchd import knobs
from punchd.errors import ConfigError

MEMORY = "memory"
SCHEMES = ("redis", "rediss", "unix")
PORT = 6379
_MOST_DATABASES = 1 << 16  # Redis has 16, unless told otherwise
_EXPECTED = "expected memory, redis://HOST:PORT/NUMBER, rediss://HOST:PORT/NUMBER or unix:///PATH"


@dataclass(frozen=True, slots=True)
class Place:
    """A Redis: `path` is that of a socket, or empty; then it is `host` and `port`."""

    host: str = ""
    port: int = PORT
    path: str = ""
    number: int = 0
    is_tls: bool = False
    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        if self.path:
            return self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse(url: str, where: str) -> Place:
    """The parts of a URL; `where` names it in errors.

    Raises:
        ConfigError: it is none of the forms above. What it says holds nothing of the URL but its scheme.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ConfigError(f"{where}: {_EXPECTED}, with a port from 1 to 65535") from None
    if parts.scheme not in SCHEMES or parts.fragment or "\0" in unquote(url):
        raise ConfigError(f"{where}: {_EXPECTED}")
    user = unquote(parts.username) if parts.username else None
    password = unquote(parts.password) if parts.password else None
    if parts.scheme == "unix":
        path, number = unquote(parts.path), _option(parts, where)
        if parts.hostname or port or not path.startswith("/") or path == "/":
            raise ConfigError(f"{where}: {_EXPECTED}, the path an absolute one")
        return Place(path=path, number=_number(number, where), user=user, password=password)
    if parts.query or not parts.hostname or port == 0:
        raise ConfigError(f"{where}: {_EXPECTED}, without options")
    number = parts.path.removeprefix("/")
    is_tls = parts.scheme == "rediss"
    return Place(parts.hostname, port or PORT, "", _number(number, where), is_tls, user, password)


def choice(value: Any, where: str) -> str:
    """The value of a setting that is MEMORY or a URL.

    Raises:
        ConfigError: it is neither.
    """
    if not isinstance(value, str):
        raise ConfigError(f"{where}: expected {MEMORY} or a URL, got {knobs.shown(value)}")
    if value != MEMORY:
        parse(value, where)
    return value


def _option(parts: SplitResult, where: str) -> str:
    options = parse_qs(parts.query, keep_blank_values=True)
    if options.keys() - {"db"} or len(options.get("db", [])) > 1:
        raise ConfigError(f"{where}: {_EXPECTED}; the only option is ?db=NUMBER after a path")
    return options.get("db", [""])[0]


def _number(text: str, where: str) -> int:
    if not text:
        return 0
    if not text.isascii() or not text.isdigit() or len(text) > 5 or int(text) >= _MOST_DATABASES:
        raise ConfigError(f"{where}: {_EXPECTED}, NUMBER that of a database from 0 to {_MOST_DATABASES - 1}")
    return int(text)
