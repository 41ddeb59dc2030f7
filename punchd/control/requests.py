"""Requests: what an application asks of the daemon, as values; parsed for the daemon, written for the client.

The grammar stands in `punchd.control.lines`, the fields in `punchd.control.fields`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from punchd.control.fields import (
    ALL,
    AUTO,
    INITIATE_OPTIONS,
    NO_OPTIONS,
    PROBE_OPTIONS,
    RESPOND_OPTIONS,
    Options,
    Rules,
    format_options,
    parse_options,
    parse_ports,
    parse_target,
    parse_techniques,
)
from punchd.control.lines import CLIENT, ID, VERBS
from punchd.endpoint import IPAddress, PortSet, objection
from punchd.errors import Code, DecodeError, ProtocolError
from punchd.wire import token as tokens

__all__ = [
    "ALL",
    "AUTO",
    "Cancel",
    "Hello",
    "Initiate",
    "Options",
    "Probe",
    "Protocol",
    "Request",
    "Respond",
    "Rules",
    "format_request",
    "format_respond",
    "parse_request",
]

_VERSION = re.compile(r"[1-9][0-9]{0,2}")


class Protocol(StrEnum):
    TCP = "tcp"
    UDP = "udp"


@dataclass(frozen=True, slots=True)
class Hello:
    version: int
    client: str | None = None


@dataclass(frozen=True, slots=True)
class Probe:
    id: str
    protocol: Protocol
    options: Options = NO_OPTIONS


@dataclass(frozen=True, slots=True)
class Initiate:
    id: str
    techniques: tuple[str, ...]  # ("auto",), ("all",) or names
    ip: IPAddress
    ports: PortSet
    options: Options = NO_OPTIONS


@dataclass(frozen=True, slots=True)
class Respond:
    id: str
    token: tokens.Token
    options: Options = NO_OPTIONS


@dataclass(frozen=True, slots=True)
class Cancel:
    id: str


Request = Hello | Probe | Initiate | Respond | Cancel


def parse_request(line: bytes, rules: Rules) -> Request:
    """The request in a line that `LineSplitter` let through.

    Raises:
        ProtocolError: with the code and the text for the `error` line, and the id where one could be read.
    """
    words = line.decode("ascii", "replace").split("|")
    known = _PARSERS.get(words[0])
    if known is None:
        shown = "an empty line" if line == b"" else repr(words[0][:32])
        raise ProtocolError(Code.BAD_MESSAGE, f"expected one of {', '.join(VERBS)}, got {shown}")
    attempt_id = words[1] if words[0] != "hello" and len(words) > 1 and ID.fullmatch(words[1]) else None
    try:
        _check_shape(words, known.least, known.most)
        return known.parse(words, rules)
    except ProtocolError as error:
        raise ProtocolError(error.code, str(error), attempt_id) from None


def _check_shape(words: list[str], least: int, most: int) -> None:
    if not least <= len(words) <= most:
        wanted = f"{least}" if least == most else f"{least} or {most}"
        raise ProtocolError(Code.BAD_MESSAGE, f"{words[0]} needs {wanted} fields, got {len(words)}")
    if words[0] != "hello" and not ID.fullmatch(words[1]):
        text = f"field 2: expected an id of 1-16 letters, digits, _ or ., got {words[1][:32]!r}"
        raise ProtocolError(Code.BAD_MESSAGE, text)


def _parse_hello(words: list[str], rules: Rules) -> Request:
    if not _VERSION.fullmatch(words[1]):
        raise ProtocolError(Code.BAD_VERSION, f"field 2: expected a version of 1-999, got {words[1][:32]!r}")
    client = words[2] if len(words) > 2 else None
    if client is not None and not CLIENT.fullmatch(client):
        raise ProtocolError(
            Code.BAD_MESSAGE, f"field 3: expected a client name of 1-32 characters, got {client[:40]!r}"
        )
    return Hello(int(words[1]), client)


def _parse_probe(words: list[str], rules: Rules) -> Request:
    if words[2] not in ("tcp", "udp"):
        raise ProtocolError(Code.BAD_TECHNIQUE, f"field 3: expected tcp or udp, got {words[2][:32]!r}")
    options = parse_options(words, 3, PROBE_OPTIONS, rules, None)
    return Probe(words[1], Protocol(words[2]), options)


def _parse_initiate(words: list[str], rules: Rules) -> Request:
    techniques = parse_techniques("field 3", words[2], rules)
    ip = parse_target("field 4", words[3], rules)
    ports = parse_ports("field 5", words[4])
    options = parse_options(words, 5, INITIATE_OPTIONS, rules, ip)
    return Initiate(words[1], techniques, ip, ports, options)


def _parse_respond(words: list[str], rules: Rules) -> Request:
    try:
        token = tokens.decode(words[2])
    except tokens.NewerLayoutError as error:
        raise ProtocolError(Code.TOKEN_VERSION, f"field 3: {error}") from None
    except DecodeError as error:
        raise ProtocolError(Code.BAD_TOKEN, f"field 3: {error}") from None
    if (why := _token_objection(token, rules)) is not None:
        raise ProtocolError(Code.BAD_ADDRESS, f"field 3: the token names {why}")
    options = parse_options(words, 3, RESPOND_OPTIONS, rules, None)
    return Respond(words[1], token, options)


def _token_objection(token: tokens.Token, rules: Rules) -> str | None:
    """A token is the other side's word: what it names is checked like an address of the application's own."""
    if token.card is None or (token.kind is not tokens.Kind.OFFER and token.card.address.is_unspecified):
        return None
    return objection(token.card.address, allow_private=rules.allow_private)


def _parse_cancel(words: list[str], rules: Rules) -> Request:
    return Cancel(words[1])


@dataclass(frozen=True, slots=True)
class _Verb:
    parse: Callable[[list[str], Rules], Request]
    least: int  # fields, the verb among them
    most: int


_PARSERS = {
    "hello": _Verb(_parse_hello, 2, 3),
    "probe": _Verb(_parse_probe, 3, 4),
    "initiate": _Verb(_parse_initiate, 5, 6),
    "respond": _Verb(_parse_respond, 3, 4),
    "cancel": _Verb(_parse_cancel, 2, 2),
}


# --- writing -------------------------------------------------------------------------------------------------------


def format_request(request: Request) -> str:
    """The line for a request, without its line feed. `parse_request` gives the request back."""
    match request:
        case Hello():
            return "|".join(("hello", str(request.version), *([request.client] if request.client else [])))
        case Probe():
            return "|".join(("probe", request.id, request.protocol, *format_options(request.options)))
        case Initiate():
            techniques = ",".join(request.techniques)
            words = ("initiate", request.id, techniques, str(request.ip), str(request.ports))
            return "|".join((*words, *format_options(request.options)))
        case Respond():
            return format_respond(request.id, tokens.encode(request.token), request.options)
        case Cancel():
            return f"cancel|{request.id}"


def format_respond(attempt_id: str, token: str, options: Options = NO_OPTIONS) -> str:
    """The line that hands in `token` as it came; a client does not look into it."""
    return "|".join(("respond", attempt_id, token, *format_options(options)))
