"""What the commands are told: command line over environment over file. Pure.

    rendezvous = "https://rendezvous.example:5025"
    techniques = ["tcp-syni"]

How knobs are declared and refused: `punchd.knobs`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from punchd import knobs
from punchd.errors import ConfigError, DecodeError
from punchd.knobs import key, knob
from punchd.punch.target import is_target
from punchd.web import client_url
from punchd.web.client_url import Url

VARIABLE = "PUNCH_RENDEZVOUS"
BROKER_VARIABLE = "PUNCH_BROKER"
LEAST_TIMEOUT_S = 5
MOST_TIMEOUT_S = 120

_FORWARD = re.compile(r"([0-9]{1,5}):(.+)")


@dataclass(frozen=True, slots=True)
class Settings:
    """See the explanations. None: not given."""

    rendezvous: str | None = knob(None, "URL of the rendezvous server, https://HOST:PORT")
    ca: str | None = knob(None, "PEM file: trust this certificate authority instead of the system's")
    socket: str | None = knob(None, "path of punchd's socket")
    techniques: tuple[str, ...] | None = knob(None, "what to try, in this order")
    stun: tuple[str, int] | None = knob(None, "STUN server, HOST:PORT, instead of the daemon's")
    timeout: int = knob(45, "seconds until a call must be connected", LEAST_TIMEOUT_S, MOST_TIMEOUT_S)
    broker: str | None = knob(None, "URL of the session broker, https://HOST")


@dataclass(frozen=True, slots=True)
class Forward:
    """A local port (0: any), and what the listener is to connect it to."""

    port: int
    target: str


def parse(text: bytes, where: str) -> Settings:
    """Settings from a file's bytes; `where` names it in errors.

    Raises:
        ConfigError: not TOML, a key that is not known, a value that does not fit.
    """
    return build(knobs.toml(text, where), where, Settings())


def build(table: Mapping[str, Any], where: str, base: Settings) -> Settings:
    """`base` with the values of `table` put over it.

    Raises:
        ConfigError: a key that is not known, a value that does not fit.
    """
    known = {key(one.name): one.name for one in fields(Settings)}
    for name, value in table.items():
        if name not in known:
            raise ConfigError(f"{where}: {knobs.unknown(name, known)}")
        base = replace(base, **{known[name]: _value(known[name], value, f"{where}: {name}")})
    return base


def environment(variables: Mapping[str, str], base: Settings) -> Settings:
    """`base` with what the environment says put over it."""
    rendezvous = variables.get(VARIABLE) or base.rendezvous
    return replace(base, rendezvous=rendezvous, broker=variables.get(BROKER_VARIABLE) or base.broker)


def server(settings: Settings) -> Url:
    """Where the rendezvous server is.

    Raises:
        ConfigError: no URL, or none that can be used.
    """
    if settings.rendezvous is None:
        raise ConfigError(
            "no rendezvous server: expected --rendezvous URL, PUNCH_RENDEZVOUS, or the configuration file"
        )
    return client_url.parse(settings.rendezvous, "rendezvous URL")


def read_key(text: str, where: str) -> bytes:
    """The fingerprint in an ADDRESS or KEY.

    Raises:
        ConfigError: it is none.
    """
    from punchd.rendezvous.identity import read_address  # SHA-256 of OpenSSL's, which --help can do without

    try:
        return read_address(text)
    except DecodeError as error:
        raise ConfigError(f"{where}: {error}") from None


def read_target(text: str, where: str) -> str:
    """HOST:PORT.

    Raises:
        ConfigError: anything else.
    """
    if not is_target(text):
        raise ConfigError(f"{where}: expected HOST:PORT, got {knobs.shown(text)}")
    return text


def read_forward(text: str, where: str) -> Forward:
    """LPORT:HOST:PORT.

    Raises:
        ConfigError: anything else.
    """
    match = _FORWARD.fullmatch(text)
    if match is None or int(match[1]) > 65_535 or not is_target(match[2]):
        raise ConfigError(f"{where}: expected LPORT:HOST:PORT, got {knobs.shown(text)}")
    return Forward(int(match[1]), match[2])


def _value(name: str, value: Any, where: str) -> Any:
    match name:
        case "timeout":
            return knobs.integer(value, where, LEAST_TIMEOUT_S, MOST_TIMEOUT_S)
        case "techniques":
            from punchd.client.options import to_techniques  # the grammar of a whole request; few give a list

            given = value.split(",") if isinstance(value, str) else knobs.strings(value, where)
            try:
                return to_techniques(given)
            except DecodeError as error:
                raise ConfigError(f"{where}: {error}") from None
        case "stun" if isinstance(value, str):
            return knobs.host_port(value, where)
        case "rendezvous" | "broker" if isinstance(value, str) and value:
            return value
        case "rendezvous" | "broker" | "stun":
            raise ConfigError(f"{where}: expected text, got {knobs.shown(value)}")
        case _:
            return knobs.path(value, where)
