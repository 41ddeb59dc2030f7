"""The fields of a request line: techniques, addresses, ports and options, each with the error that it may be.

The grammar stands in `punchd.control.lines`; which field has which code, in §13.6 of the line protocol.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields, replace

from punchd.control.lines import TECHNIQUE
from punchd.endpoint import MAX_RUNS, IPAddress, PortSet, objection, parse_ip
from punchd.errors import Code, DecodeError, ProtocolError

MAX_TECHNIQUES = 8
MAX_REPEATS = 2  # "a name may be given twice (tried again later)"
TIMEOUT_MS = range(1000, 120_001)
TTL = range(1, 65)
LOWEST_PORT = 1024  # below, binding would need a capability that the daemon does not keep

AUTO = "auto"
ALL = "all"

_NUMBER = re.compile(r"0|[1-9][0-9]{0,5}")
_OPTION = re.compile(r"([a-z]{2,8})=([A-Za-z0-9.:,_-]{1,64})")
_STUN = re.compile(r"(.{1,58}):([1-9][0-9]{0,4})")
_HOST_NAME = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Rules:
    """What this daemon allows where the grammar alone does not decide."""

    known_techniques: Collection[str]
    allow_private: bool = False


@dataclass(frozen=True, slots=True)
class Options:
    """The `key=value` part of a request; None is "not given".

    Attributes:
        local: address to bind.
        lport: local port, 0 = any.
        public: own public address as the application knows it.
        pports: own public ports as the application knows them.
        peer: the address that a token must name (respond).
        techniques: what the application agrees to (respond).
        timeout_ms: for the whole attempt.
        ttl: of packets meant to die on the way.
        stun: (host, port) of a STUN server for this request.
        sock: the application's own socket comes with the line, as a descriptor.
    """

    local: IPAddress | None = None
    lport: int = 0
    public: IPAddress | None = None
    pports: PortSet | None = None
    peer: IPAddress | None = None
    techniques: tuple[str, ...] | None = None
    timeout_ms: int | None = None
    ttl: int | None = None
    stun: tuple[str, int] | None = None
    sock: bool = False


NO_OPTIONS = Options()


# --- words --------------------------------------------------------------------------------------------------------


def parse_techniques(where: str, text: str, rules: Rules) -> tuple[str, ...]:
    if text in (AUTO, ALL):
        return (text,)
    names = tuple(text.split(","))
    if len(names) > MAX_TECHNIQUES:
        raise ProtocolError(
            Code.BAD_TECHNIQUE, f"{where}: expected at most {MAX_TECHNIQUES} techniques, got {len(names)}"
        )
    for name in names:
        if not TECHNIQUE.fullmatch(name) or name not in rules.known_techniques:
            known = ", ".join((AUTO, ALL, *rules.known_techniques))
            raise ProtocolError(Code.BAD_TECHNIQUE, f"{where}: expected some of {known}, got {name[:20]!r}")
        if names.count(name) > MAX_REPEATS:
            raise ProtocolError(Code.BAD_TECHNIQUE, f"{where}: {name} stands more than {MAX_REPEATS} times")
    return names


def parse_address(where: str, text: str) -> IPAddress:
    try:
        return parse_ip(text)
    except DecodeError as error:
        raise ProtocolError(Code.BAD_ADDRESS, f"{where}: {error}") from None


def parse_target(where: str, text: str, rules: Rules) -> IPAddress:
    ip = parse_address(where, text)
    if (why := objection(ip, allow_private=rules.allow_private)) is not None:
        raise ProtocolError(Code.BAD_ADDRESS, f"{where}: {why}")
    return ip


def parse_port(where: str, text: str, least: int = 1) -> int:
    if not _NUMBER.fullmatch(text) or not least <= int(text) <= 65535:
        raise ProtocolError(Code.BAD_PORT, f"{where}: expected a port of {least}-65535, got {text[:20]!r}")
    return int(text)


def parse_ports(where: str, text: str) -> PortSet:
    items = text.split(",")
    if len(items) > MAX_RUNS:
        raise ProtocolError(Code.BAD_PORT, f"{where}: expected at most {MAX_RUNS} ports or ranges, got {len(items)}")
    ports: list[int] = []
    for item in items:
        first_text, dash, last_text = item.partition("-")
        first = parse_port(where, first_text)
        last = parse_port(where, last_text) if dash else first
        if dash and last <= first:
            raise ProtocolError(Code.BAD_PORT, f"{where}: range {item} does not ascend")
        ports.extend(range(first, min(last, first + 16) + 1))
    try:
        return PortSet(tuple(ports))
    except ValueError:
        problem = "a port stands twice" if len(set(ports)) < len(ports) else "expected 1 to 16 ports, got more"
        raise ProtocolError(Code.BAD_PORT, f"{where}: {problem}") from None


# --- options -------------------------------------------------------------------------------------------------------


def parse_options(
    words: list[str], index: int, allowed: Collection[str], rules: Rules, ip: IPAddress | None
) -> Options:
    options = Options()
    if len(words) <= index:
        return options
    seen: set[str] = set()
    family = ip.version if ip is not None else None
    for part in words[index].split(";"):
        where = f"field {index + 1}"
        match = _OPTION.fullmatch(part)
        if match is None:
            raise ProtocolError(Code.BAD_OPTION, f"{where}: expected key=value, got {part[:40]!r}")
        key, value = match.groups()
        if key not in allowed:
            raise ProtocolError(Code.BAD_OPTION, f"{where}: expected one of {', '.join(allowed)}, got {key}")
        if key in seen:
            raise ProtocolError(Code.BAD_OPTION, f"{where}: {key} stands twice")
        seen.add(key)
        options = _OPTIONS[key](options, f"{where}: {key}", value, rules)
        address: IPAddress | None = getattr(options, key) if key in ("local", "public", "peer") else None
        if address is not None:
            if family is not None and address.version != family:
                text = f"{where}: {key} is IPv{address.version}, the other addresses are IPv{family}"
                raise ProtocolError(Code.BAD_ADDRESS, text)
            family = address.version
    return options


def _option_local(options: Options, where: str, value: str, rules: Rules) -> Options:
    ip = parse_address(where, value)
    if ip.is_unspecified or ip.is_multicast:
        raise ProtocolError(Code.BAD_ADDRESS, f"{where}: {ip} is no address of one interface")
    return replace(options, local=ip)


def _option_lport(options: Options, where: str, value: str, rules: Rules) -> Options:
    port = parse_port(where, value, least=0)
    if 0 < port < LOWEST_PORT:
        raise ProtocolError(Code.BAD_PORT, f"{where}: expected 0 or {LOWEST_PORT}-65535, got {port}")
    return replace(options, lport=port)


def _option_public(options: Options, where: str, value: str, rules: Rules) -> Options:
    return replace(options, public=parse_target(where, value, rules))


def _option_pports(options: Options, where: str, value: str, rules: Rules) -> Options:
    return replace(options, pports=parse_ports(where, value))


def _option_peer(options: Options, where: str, value: str, rules: Rules) -> Options:
    return replace(options, peer=parse_target(where, value, rules))


def _option_tech(options: Options, where: str, value: str, rules: Rules) -> Options:
    return replace(options, techniques=parse_techniques(where, value, rules))


def _option_timeout(options: Options, where: str, value: str, rules: Rules) -> Options:
    return replace(options, timeout_ms=_parse_range(where, value, TIMEOUT_MS))


def _option_ttl(options: Options, where: str, value: str, rules: Rules) -> Options:
    return replace(options, ttl=_parse_range(where, value, TTL))


def _option_stun(options: Options, where: str, value: str, rules: Rules) -> Options:
    match = _STUN.fullmatch(value)
    if match is None or int(match[2]) > 65535 or not _is_host(match[1]):
        raise ProtocolError(Code.BAD_OPTION, f"{where}: expected HOST:PORT, got {value!r}")
    return replace(options, stun=(match[1], int(match[2])))


def _option_sock(options: Options, where: str, value: str, rules: Rules) -> Options:
    if value != "1":
        raise ProtocolError(Code.BAD_OPTION, f"{where}: expected 1, got {value[:20]!r}")
    return replace(options, sock=True)


def _is_host(text: str) -> bool:
    """A name, an IPv4 address, or an IPv6 address, which stands without brackets: an option cannot hold them."""
    if _HOST_NAME.fullmatch(text):
        return True
    try:
        parse_ip(text)
    except DecodeError:
        return False
    return True


def _parse_range(where: str, text: str, allowed: range) -> int:
    if not _NUMBER.fullmatch(text) or int(text) not in allowed:
        raise ProtocolError(Code.BAD_OPTION, f"{where}: expected {allowed.start}-{allowed.stop - 1}, got {text[:20]!r}")
    return int(text)


_OPTIONS: dict[str, Callable[[Options, str, str, Rules], Options]] = {
    "local": _option_local,
    "lport": _option_lport,
    "public": _option_public,
    "pports": _option_pports,
    "peer": _option_peer,
    "tech": _option_tech,
    "timeout": _option_timeout,
    "ttl": _option_ttl,
    "stun": _option_stun,
    "sock": _option_sock,
}
PROBE_OPTIONS = ("lport", "local", "stun")
INITIATE_OPTIONS = ("local", "lport", "public", "pports", "timeout", "ttl", "stun", "sock")
RESPOND_OPTIONS = ("local", "lport", "public", "pports", "peer", "tech", "timeout", "ttl", "stun", "sock")


def format_options(options: Options) -> list[str]:
    """The options field, or nothing when every option has its default."""
    parts = []
    for field in fields(Options):
        value = getattr(options, field.name)
        if value == field.default:
            continue
        key = _KEYS.get(field.name, field.name)
        match value:
            case bool():
                parts.append(f"{key}=1")
            case (str(host), int(port)):
                parts.append(f"{key}={host}:{port}")
            case tuple():
                parts.append(f"{key}={','.join(value)}")
            case _:
                parts.append(f"{key}={value}")
    return [";".join(parts)] if parts else []


_KEYS = {"techniques": "tech", "timeout_ms": "timeout"}
