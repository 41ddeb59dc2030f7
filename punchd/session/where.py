"""Which session a command is about, and with which token. Pure but for the files that it is told to read.

The broker: the session's URL, else --broker, PUNCH_BROKER, `broker` in the configuration file.
The token: --token-file (`-`: standard input), else the session's URL, else PUNCH_TOKEN. There is no option that takes a
token itself: everybody on the host can see the words of a command line (ps).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from punchd.broker.client_address import SessionLink, check_name, check_token
from punchd.errors import ConfigError
from punchd.web import client_url

if TYPE_CHECKING:
    from punchd.punch.settings import Settings

TOKEN_VARIABLE = "PUNCH_TOKEN"  # noqa: S105 (a name)
MAX_FILE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Place:
    """A broker.

    Attributes:
        url: what `Broker.open` takes.
        ca: a PEM file of certificate authorities; None: the system's.
        allow_plain: --insecure was said.
    """

    url: str
    ca: str | None
    allow_plain: bool


@dataclass(frozen=True, slots=True)
class Where:
    """A session of a broker, and a token of it."""

    place: Place
    name: str
    token: str = field(repr=False)


def add_broker(parser: argparse.ArgumentParser) -> None:
    """The options that say which broker."""
    parser.add_argument("--broker", metavar="URL", help="of the session broker, https://HOST (or $PUNCH_BROKER)")
    parser.add_argument("--ca", metavar="FILE", help="trust the certificates in it for the broker")
    parser.add_argument("--insecure", action="store_true", help="http:// to other hosts, too: everybody reads along")


def add_session(parser: argparse.ArgumentParser) -> None:
    """The words and options that say which session."""
    parser.add_argument("session", metavar="SESSION", help="its URL, https://HOST/s/NAME#t=TOKEN, or its NAME")
    parser.add_argument("--token-file", metavar="FILE", help="has the token; - is standard input (or $PUNCH_TOKEN)")
    add_broker(parser)


def broker(given: argparse.Namespace, chosen: Settings) -> Place:
    """The broker that is meant.

    Raises:
        ConfigError: none is.
    """
    url = given.broker or chosen.broker
    if url is None:
        raise ConfigError("no broker: expected --broker URL, PUNCH_BROKER, or the configuration file")
    return Place(url, given.ca or chosen.ca, given.insecure)


def session(given: argparse.Namespace, chosen: Settings, variables: Mapping[str, str]) -> Where:
    """The session that is meant, and the token.

    Raises:
        ConfigError: something is missing or wrong.
    """
    if "://" in given.session:
        link = SessionLink.parse(given.session)
        if given.broker is not None and str(client_url.parse(given.broker, "--broker")) != link.broker:
            raise ConfigError(f"--broker: expected the session URL's, {link.broker}, or none")
        name, token, place = link.name, link.token, Place(link.broker, given.ca or chosen.ca, given.insecure)
    else:
        name, token, place = check_name(given.session, "SESSION"), None, broker(given, chosen)
    if given.token_file is not None:
        token = read_token(given.token_file)
    elif token is None and variables.get(TOKEN_VARIABLE):
        token = check_token(variables[TOKEN_VARIABLE], TOKEN_VARIABLE)
    if token is None:
        raise ConfigError("no token: expected a session URL with #t=TOKEN, --token-file FILE, or PUNCH_TOKEN")
    return Where(place, name, token)


def read_token(path: str) -> str:
    """The token on a file's first line; `-` is standard input, which is waited for.

    Raises:
        ConfigError: it cannot be read, or holds none.
    """
    try:
        if path == "-":
            text = sys.stdin.buffer.readline(MAX_FILE_BYTES) if sys.stdin is not None else b""
        else:
            with Path(path).open("rb") as file:
                text = file.readline(MAX_FILE_BYTES)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"token file {path}: {why}") from None
    return check_token(text.decode("latin-1").strip(), f"token file {path}")
