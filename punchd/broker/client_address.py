"""Where a session is: the URL that is handed to people. Pure.

    https://broker.example/s/show#t=p_…      the page's; what stands behind # is sent to no server
    https://broker.example/s/show?t=p_…      what the broker's API gives
    https://broker.example/s/show            without a token

Source: broker specification §6.2, C-40, C-56.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass, field
from urllib.parse import unquote

from punchd.broker.names import MAX_TOKEN_CHARS, is_name
from punchd.errors import ConfigError
from punchd.web import client_url

_LINK = re.compile(r"(?P<broker>https?://[^?#]+)/s/(?P<name>[^/?#]+)/?(?P<more>[?#].*)?", re.IGNORECASE)
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]+")  # RFC 6750 §2.1


@dataclass(frozen=True, slots=True)
class SessionLink:
    """A session's URL, taken apart. `broker` is what `Broker.open` takes."""

    broker: str
    name: str
    token: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, text: str) -> SessionLink:
        """The parts of a URL.

        Raises:
            ConfigError: it is none; the message does not hold the token.
        """
        found = _LINK.fullmatch(text.strip())
        if found is None:
            raise ConfigError("session URL: expected https://HOST/s/NAME#t=TOKEN")
        name = unquote(found["name"])
        check_name(name, "session URL")
        broker = str(client_url.parse(found["broker"], "session URL"))
        given = [part[2:] for part in re.split("[?#&]", found["more"] or "") if part.startswith("t=")]
        if any(one != given[0] for one in given):
            raise ConfigError("session URL: expected one token, got several")
        token = unquote(given[0]) if given else None
        return cls(broker, name, None if token is None else check_token(token, "session URL"))

    def __str__(self) -> str:
        """For people and browsers; holds the token, if there is one."""
        return f"{self.broker}/s/{self.name}" + ("" if self.token is None else f"#t={self.token}")


def check_name(name: str, where: str) -> str:
    """A session's or stream's name.

    Raises:
        ConfigError: it is none.
    """
    if not is_name(name):
        raise ConfigError(f"{where}: expected a name of 1 to 64 letters, digits, '.', '_' and '-', got {name[:80]!r}")
    return name


def check_token(token: str, where: str) -> str:
    """A token, as far as a client can tell: whether it can stand in a header field.

    Raises:
        ConfigError: it is none; the message does not hold it.
    """
    if len(token) > MAX_TOKEN_CHARS or not _TOKEN.fullmatch(token):
        raise ConfigError(f"{where}: expected a token, p_… of at most {MAX_TOKEN_CHARS} characters")
    return token


def is_for_peers(token: str) -> bool:
    """Whether a token says that it is a peer's. Only to help people: who may do what is for the broker to say."""
    payload = token.removeprefix("p_").partition(".")[0]
    try:
        members = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (ValueError, RecursionError):
        return False
    return isinstance(members, dict) and members.get("role") == "peer"
