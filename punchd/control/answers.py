"""Answers: what the daemon says to an application, as values; written by the daemon, parsed by the client.

The grammar stands in `punchd.control.lines`. The client's side ignores extra fields at the end and accepts stages and
codes that it does not know, so that the daemon can learn new ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from punchd.control.lines import VERSION, clean_text
from punchd.control.requests import Protocol
from punchd.endpoint import MAX_PORTS, MAX_RUNS, Endpoint, IPAddress, PortSet, parse_ip
from punchd.errors import DecodeError

MAX_NUMBER = 65535  # no number of an answer is larger than a port


class Stage(StrEnum):
    RELAY = "relay"
    TRYING = "trying"
    FAILED = "failed"
    IGNORED = "ignored"


@dataclass(frozen=True, slots=True)
class OkHello:
    """The daemon's greeting: its version, usable techniques in `auto` order, attempts per connection, its verbs."""

    version: int
    techniques: tuple[str, ...]
    max_attempts: int
    verbs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OkProbe:
    """The own public address: what to tell peers. `lport` is kept for the next attempt that names it."""

    id: str
    protocol: Protocol
    ip: IPAddress
    ports: PortSet
    mapping: str  # open, endpoint-independent, sequential+N, random, unknown
    lport: int


@dataclass(frozen=True, slots=True)
class Ok:
    """The attempt succeeded; the line carries the connected socket's descriptor."""

    id: str
    technique: str
    protocol: Protocol
    local: Endpoint
    remote: Endpoint


@dataclass(frozen=True, slots=True)
class Progress:
    """News of a running attempt. `detail` is a token (relay), a code (failed, ignored) or `-` (trying)."""

    id: str
    round: int
    technique: str
    stage: str
    detail: str
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Error:
    """The end of an attempt, or (id None) a complaint about a line that belongs to none."""

    id: str | None
    code: str
    text: str


Answer = OkHello | OkProbe | Ok | Progress | Error


def format_answer(answer: Answer) -> str:
    """The line, without its line feed; `parse_answer` gives the answer back."""
    match answer:
        case OkHello():
            techniques = ",".join(answer.techniques) or "-"
            words: tuple[object, ...] = ("ok", "-", "hello", answer.version, techniques, answer.max_attempts)
            return _join(*words, ",".join(answer.verbs) or "-")
        case OkProbe():
            words = ("ok", answer.id, "probe", answer.protocol, answer.ip, answer.ports, answer.mapping)
            return _join(*words, answer.lport)
        case Ok():
            ends = (answer.local.ip, answer.local.port, answer.remote.ip, answer.remote.port)
            return _join("ok", answer.id, answer.technique, answer.protocol, *ends)
        case Progress():
            words = ("progress", answer.id, answer.round, answer.technique, answer.stage, answer.detail)
            return _join(*words, *([clean_text(answer.text)] if answer.text else []))
        case Error():
            return _join("error", answer.id or "-", answer.code, clean_text(answer.text) or "-")


def _join(*words: object) -> str:
    return "|".join(str(word) for word in words)


def parse_answer(line: str) -> Answer:
    """The answer in a line without its line feed.

    Raises:
        DecodeError: the line is no answer of this protocol.
    """
    words = line.split("|")
    try:
        match words:
            case ["ok", "-", "hello", version, techniques, number, *extra]:
                verbs = _names(extra[0]) if extra else ()
                return OkHello(_number(version), _names(techniques), _number(number), verbs)
            case ["ok", attempt_id, "probe", protocol, ip, ports, mapping, lport, *_]:
                public = parse_ip(ip)
                return OkProbe(attempt_id, Protocol(protocol), public, parse_ports(ports), mapping, _number(lport))
            case ["ok", attempt_id, technique, protocol, ip, port, peer_ip, peer_port, *_]:
                local = Endpoint(parse_ip(ip), _number(port))
                remote = Endpoint(parse_ip(peer_ip), _number(peer_port))
                return Ok(attempt_id, technique, Protocol(protocol), local, remote)
            case ["progress", attempt_id, number, technique, stage, detail, *extra]:
                return Progress(attempt_id, _number(number), technique, stage, detail, extra[0] if extra else None)
            case ["error", attempt_id, code, text, *_]:
                return Error(None if attempt_id == "-" else attempt_id, code, text)
            case _:
                pass
    except ValueError as error:
        raise DecodeError(f"answer: {error} in {line[:80]!r}") from None
    raise DecodeError(f"answer: expected version {VERSION} of the line protocol, got {line[:80]!r}")


def _names(text: str) -> tuple[str, ...]:
    return () if text == "-" else tuple(text.split(","))


def _number(text: str) -> int:
    """A port, or something smaller; `int` alone would take `+1`, ` 1`, `1_0` and any size."""
    if not text.isascii() or not text.isdecimal() or len(text) > 5 or int(text) > MAX_NUMBER:
        raise ValueError(f"invalid literal {text[:20]!r}, expected a number of 0-{MAX_NUMBER}")
    return int(text)


def parse_ports(text: str) -> PortSet:
    """The ports in the form `40000-40003,50000`. Raises ValueError for anything else, and for more than 16."""
    items = text.split(",", MAX_RUNS)
    if len(items) > MAX_RUNS:
        raise ValueError(f"expected at most {MAX_RUNS} ports or ranges")
    ports: list[int] = []
    for item in items:
        first_text, dash, last_text = item.partition("-")
        first = _number(first_text)
        last = _number(last_text) if dash else first
        if dash and last <= first:
            raise ValueError(f"range {item} does not ascend")
        ports.extend(range(first, min(last, first + MAX_PORTS) + 1))
    return PortSet(tuple(ports))
