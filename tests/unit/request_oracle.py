"""A second reading of the line protocol, to check the first: which line is taken, and which code another one gets.

Written from daemon-api §2, §6 and §13 and Appendix A as amended, with regexes and byte offsets, and on purpose without
anything of `punchd`: where the two disagree, one of them is wrong.
"""

from __future__ import annotations

import binascii
import re
import socket

BUILT_IN = ("tcp-syni", "tcp-nutss", "udp", "tcp-repair")
ID = re.compile(r"[A-Za-z0-9_.]{1,16}")
PORT = r"(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
ITEM = rf"{PORT}(?:-{PORT})?"
PORTS = re.compile(rf"{ITEM}(?:,{ITEM}){{0,3}}")
LPORT = re.compile(rf"0|{PORT}")
OPTION = re.compile(r"[a-z]{2,8}=[A-Za-z0-9.:,_-]{1,64}")
OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
IPV4 = re.compile(rf"{OCTET}(?:\.{OCTET}){{3}}")
TTL = re.compile(r"[1-9]|[1-5][0-9]|6[0-4]")
TIMEOUT = re.compile(r"[1-9][0-9]{3,4}|1[01][0-9]{4}|120000")
STUN = re.compile(rf"(.{{1,58}}):{PORT}")
HELLO = re.compile(r"[1-9][0-9]{0,2}")
CLIENT = re.compile(r"[A-Za-z0-9_.+/-]{1,32}")

FIELDS = {"hello": (2, 3), "probe": (3, 4), "initiate": (5, 6), "respond": (3, 4), "cancel": (2, 2)}
OPTIONS = {
    "probe": {"lport", "local", "stun"},
    "initiate": {"local", "lport", "public", "pports", "timeout", "ttl", "stun", "sock"},
    "respond": {"local", "lport", "public", "pports", "peer", "tech", "timeout", "ttl", "stun", "sock"},
}
# First bits of what nobody may aim at: (prefix as hex digits of whole bytes and a mask), IPv4 and IPv6.
REFUSED_V4 = ["0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3"]
PRIVATE_V4 = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"]
REFUSED_V6 = ["::/96", "::ffff:0:0/96", "fe80::/10", "fec0::/10", "ff00::/8", "fc00::/7"]


def _network(family: int, text: str) -> tuple[int, int, int]:
    """(shift, value, size of the address in bits)"""
    address, _, length = text.partition("/")
    packed = socket.inet_pton(family, address)
    shift = len(packed) * 8 - int(length)
    return shift, int.from_bytes(packed) >> shift, len(packed)


FORBIDDEN = [_network(socket.AF_INET, text) for text in (*REFUSED_V4, *PRIVATE_V4)]
FORBIDDEN += [_network(socket.AF_INET6, text) for text in REFUSED_V6]


def _canonical_v6(packed: bytes) -> str:
    """RFC 5952 §4: lower case, no leading zeros, the first longest run of two or more zero groups as `::`."""
    groups = [f"{int.from_bytes(packed[at : at + 2]):x}" for at in range(0, 16, 2)]
    for size in range(8, 1, -1):
        for start in range(9 - size):
            if groups[start : start + size] == ["0"] * size:
                return ":".join(groups[:start]) + "::" + ":".join(groups[start + size :])
    return ":".join(groups)


def address(text: str) -> bytes | None:
    """The packed address, if it is written as it must be."""
    if IPV4.fullmatch(text):
        return socket.inet_pton(socket.AF_INET, text)
    try:
        packed = socket.inet_pton(socket.AF_INET6, text)
    except (OSError, ValueError):
        return None
    return packed if _canonical_v6(packed) == text and packed[:12] != bytes(10) + b"\xff\xff" else None


def may_be_aimed_at(packed: bytes | None) -> bool:
    if packed is None:
        return False
    number = int.from_bytes(packed)
    return not any(len(packed) == size and number >> shift == value for shift, value, size in FORBIDDEN)


def _good_ports(text: str) -> bool:
    if not PORTS.fullmatch(text):
        return False
    found: list[int] = []
    for item in text.split(","):
        ends = [int(end) for end in item.split("-")]
        if len(ends) == 2 and ends[0] >= ends[1]:
            return False
        if ends[-1] - ends[0] > 15:
            return False
        found += range(ends[0], ends[-1] + 1)
    return len(found) <= 16 and len(found) == len(set(found))


def _good_techniques(text: str, names: tuple[str, ...]) -> bool:
    parts = text.split(",")
    listed = len(parts) <= 8 and all(part in names and parts.count(part) <= 2 for part in parts)
    return text in ("auto", "all") or listed


def _good_host(text: str) -> bool:
    return bool(re.fullmatch(r"[A-Za-z0-9._-]+", text)) or address(text) is not None


def _option_code(key: str, value: str, names: tuple[str, ...]) -> str | None:
    match key:
        case "lport":
            good = LPORT.fullmatch(value) and not 1 <= int(value) <= 1023
            return None if good else "bad-port"
        case "pports":
            return None if _good_ports(value) else "bad-port"
        case "public" | "peer":
            return None if may_be_aimed_at(address(value)) else "bad-address"
        case "local":
            packed = address(value)
            multicast = packed is not None and (packed[0] >> 4 == 14 if len(packed) == 4 else packed[0] == 255)
            return None if packed is not None and any(packed) and not multicast else "bad-address"
        case "tech":
            return None if _good_techniques(value, names) else "bad-technique"
        case "timeout":
            return None if TIMEOUT.fullmatch(value) else "bad-option"
        case "sock":
            return None if value == "1" else "bad-option"
        case "ttl":
            return None if TTL.fullmatch(value) else "bad-option"
        case _:
            match = STUN.fullmatch(value)
            return None if match and _good_host(match[1]) else "bad-option"


def _options_code(verb: str, text: str, target: bytes | None, names: tuple[str, ...]) -> str | None:
    seen: set[str] = set()
    family = len(target) if target else 0
    for part in text.split(";"):
        key, _, value = part.partition("=")
        if not OPTION.fullmatch(part) or key not in OPTIONS[verb] or key in seen:
            return "bad-option"
        seen.add(key)
        if (code := _option_code(key, value, names)) is not None:
            return code
        if key in ("local", "public", "peer"):
            size = len(address(value) or b"")
            if family and size != family:
                return "bad-address"
            family = size
    return None


def _token_code(text: str) -> str | None:
    if not re.fullmatch(r"[A-Za-z0-9_-]{19,200}", text) or len(text) % 4 == 1:
        return "bad-token"
    raw = binascii.a2b_base64(text.replace("-", "+").replace("_", "/") + "=" * (-len(text) % 4))
    if binascii.b2a_base64(raw, newline=False).decode().rstrip("=").replace("+", "-").replace("/", "_") != text:
        return "bad-token"
    if raw[0] > 2:
        return "token-version"
    kind, round_number, technique, flags, detail = raw[1], raw[10], raw[11], raw[12], raw[13]
    if raw[0] != 2 or not 1 <= kind <= 5 or round_number == 0 or technique == 0:
        return "bad-token"
    if kind in (3, 4):
        return None if len(raw) == 14 and flags == 0 and detail in (1, 2, 3, 7, 8, 9) else "bad-token"
    if flags > 7 or not 1 <= detail <= 64 or len(raw) < 17 or (raw[14] == 0) == (kind == 5):
        return "bad-token"
    ports_at = 17 + (16 if flags & 1 else 4)
    return _card_code(raw, kind, technique, ports_at)


def _card_code(raw: bytes, kind: int, technique: int, ports_at: int) -> str | None:
    padded = raw + bytes(700)  # too short shows at the end, where the length must match
    count = padded[ports_at]
    runs_at = ports_at + 1 + 2 * count
    ports = [int.from_bytes(padded[at : at + 2]) for at in range(ports_at + 1, runs_at, 2)]
    if not 1 <= count <= 16 or 0 in ports or len(set(ports)) != count or padded[runs_at] > 4:
        return "bad-token"
    body_at = runs_at + 1 + 3 * padded[runs_at]
    opened: list[int] = []
    for at in range(runs_at + 1, body_at, 3):
        first, size = int.from_bytes(padded[at : at + 2]), padded[at + 2]
        if size == 0 or first == 0 or first + size > 65536 or first - 1 in opened[-1:]:
            return "bad-token"
        opened += range(first, first + size)
    if len(opened) > 16 or len(set(opened)) != len(opened):
        return "bad-token"
    body = 1 + padded[body_at] if technique >= 128 else {1: 8, 2: 0, 3: 16, 4: 4}.get(technique, -1)
    if body < 0 or body_at + body != len(raw):
        return "bad-token"
    sender = raw[17:ports_at]
    unknown = kind != 1 and not any(sender)
    return None if unknown or may_be_aimed_at(sender) else "bad-address"


def verdict(line: bytes, names: tuple[str, ...]) -> tuple[str | None, str | None]:
    """(code, id) of the error line that the line gets; code None: it is a request."""
    if any(not 0x20 <= byte <= 0x7E for byte in line[:500]):
        return "bad-message", None
    if len(line) > 500:
        return "too-long", None
    verb, *rest = line.decode("ascii").split("|")
    if verb not in FIELDS:
        return "bad-message", None
    attempt_id = rest[0] if verb != "hello" and rest and ID.fullmatch(rest[0]) else None
    least, most = FIELDS[verb]
    if not least <= len(rest) + 1 <= most or (verb != "hello" and attempt_id is None):
        return "bad-message", attempt_id
    return _fields_code(verb, rest, names), attempt_id


def _fields_code(verb: str, rest: list[str], names: tuple[str, ...]) -> str | None:
    code: str | None = None
    target = None
    match verb:
        case "hello":
            good = len(rest) == 1 or CLIENT.fullmatch(rest[1])
            return "bad-version" if not HELLO.fullmatch(rest[0]) else None if good else "bad-message"
        case "cancel":
            return None
        case "probe":
            code, left = (None if rest[1] in ("tcp", "udp") else "bad-technique"), rest[2:]
        case "respond":
            code, left = _token_code(rest[1]), rest[2:]
        case _:
            target, left = address(rest[2]), rest[4:]
            if not _good_techniques(rest[1], names):
                code = "bad-technique"
            elif not may_be_aimed_at(target):
                code = "bad-address"
            elif not _good_ports(rest[3]):
                code = "bad-port"
    return code if code is not None or not left else _options_code(verb, left[0], target, names)
