"""Where a server is: the URL of its HTTP side, as its clients take it. Pure.

    https://rendezvous.example:5025        http://192.0.2.1:5025        https://example.org/broker

A port that is not given is that of the scheme (RFC 9110 §4.2: 443, 80), as for every URL. A path goes before every
route, for a server behind a reverse proxy.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from punchd.errors import ConfigError

_PORTS = {"https": 443, "http": 80}
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}|[0-9A-Fa-f:.]{2,45}")  # a name or IPv4, IPv6
_ACCOUNT = re.compile("//.*@")
_SECRET = re.compile("[?#].*", re.DOTALL)  # a session's URL has its token there
_PATH = re.compile(r"(?:/[A-Za-z0-9._~%!$&'()*+,;=:@-]+)*/?")


@dataclass(frozen=True, slots=True)
class Url:
    """Its `str` is what to show to people.

    Attributes:
        host: a name or an address, without brackets.
        prefix: of every path, without a slash at its end.
    """

    is_tls: bool
    host: str
    port: int
    prefix: str = ""

    def __str__(self) -> str:
        scheme = "https" if self.is_tls else "http"
        shown_port = "" if self.port == _PORTS[scheme] else f":{self.port}"
        return f"{scheme}://{self._bracketed}{shown_port}{self.prefix}"

    @property
    def authority(self) -> str:
        """For the field Host."""
        return f"{self._bracketed}:{self.port}"

    @property
    def _bracketed(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host


def parse(text: str, what: str) -> Url:
    """The URL of a server; `what` names it in errors: "rendezvous URL".

    Raises:
        ConfigError: it is none. What it says holds no account, query or fragment.
    """
    shown = _SECRET.sub("", _ACCOUNT.sub("//***@", text))[:100]
    expected = ConfigError(f"{what} {shown!r}: expected https://HOST:PORT (or http://HOST:PORT)")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:  # brackets, port
        raise expected from None
    if parts.scheme not in _PORTS or host is None or not _HOST.fullmatch(host) or port == 0:
        raise expected
    if "@" in parts.netloc or parts.query or parts.fragment or not _PATH.fullmatch(parts.path):
        raise expected
    return Url(parts.scheme == "https", host, port or _PORTS[parts.scheme], parts.path.rstrip("/"))
