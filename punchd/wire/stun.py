"""STUN's Binding method: asking a server from which address and port our packets reach it.

    0        2          4                   8                   20
    | type 2 | length 2 | cookie 2112a442   | transaction id 12 | attributes ...
                                       each: type 2 | length 2 | value | 0-3 bytes of padding

    type         0001 request, 0011 indication, 0101 success response, 0111 error response
    length       of the attributes; as every attribute is padded to 4 bytes, a multiple of 4 (§5)

A NAT rewrites the source of a request; the server says in XOR-MAPPED-ADDRESS what it saw. The address is XORed since
some NATs rewrite their own public address wherever they find it in a payload. Servers of the RFC 3489 era say it in
clear in MAPPED-ADDRESS; that one is believed only where the other is missing.

**What we send** is a bare header. FINGERPRINT tells STUN from other protocols on one port (§7), but its receiver
here is a STUN server and nothing else. SOFTWARE would tell every server on the way which daemon to attack.

**What we believe** of an answer: nobody signed it (a public server shares no key with us), so the twelve random bytes
of the transaction id and the address it came from are all that ties it to a request; comparing those is the caller's
duty (`punchd.nat.discover`). MESSAGE-INTEGRITY is known and skipped, as is whatever follows it except FINGERPRINT
(§14.5); FINGERPRINT is checked wherever it stands, and must be last (§14.7). Of an attribute that stands twice the
first counts (§14). An attribute that must be understood and is not spoils the message (§6.3.3, §6.3.4). The
comprehension-required attributes of RFC 3489 (SOURCE-ADDRESS, CHANGED-ADDRESS and others) count as understood: they
stand in every answer of such a server, and nothing in them is needed. OTHER-ADDRESS and RESPONSE-ORIGIN (RFC 5780)
are optional and skipped: two configured servers answer the same question without asking a stranger to be honest.

`DecodeError` is the only error that a decoder here raises. Encoders raise ValueError for what a programmer did wrong.

Left out: authentication, TURN, the ALTERNATE-SERVER mechanism (an error 300 is an error). The server's half is
`punchd.wire.stun_server`; what stands here of it is the least that a peer of the client needs, as the tests do.

Source: RFC 8489; test vectors from RFC 5769 and from coturn 4.6.1.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from punchd.endpoint import Endpoint
from punchd.errors import DecodeError

DEFAULT_PORT = 3478  # §8.1
HEADER_SIZE = 20
TRANSACTION_ID_SIZE = 12
# The largest honest Binding response: ERROR-CODE, REALM, NONCE and SOFTWARE hold at most 763 bytes of text each (§14).
MAX_SIZE = 4096

COOKIE = b"\x21\x12\xa4\x42"
FINGERPRINT_MASK = 0x5354554E  # "STUN", §14.7
_MAX_REASON_CHARACTERS = 127  # §14.8: fewer than 128

REQUEST, _INDICATION, SUCCESS, ERROR = 0x0001, 0x0011, 0x0101, 0x0111

MAPPED_ADDRESS = 0x0001
MESSAGE_INTEGRITY = 0x0008
ERROR_CODE = 0x0009
MESSAGE_INTEGRITY_SHA256 = 0x001C
XOR_MAPPED_ADDRESS = 0x0020
FINGERPRINT = 0x8028
OPTIONAL = 0x8000  # attribute types from here on are comprehension-optional (§14)

# Comprehension-required attributes that do not spoil a response; those that are not named above are skipped.
_KNOWN_IN_RESPONSES = frozenset(
    {
        MAPPED_ADDRESS,
        0x0002,  # RESPONSE-ADDRESS, RFC 3489
        0x0003,  # CHANGE-REQUEST, RFC 3489 and RFC 5780
        0x0004,  # SOURCE-ADDRESS, RFC 3489
        0x0005,  # CHANGED-ADDRESS, RFC 3489
        0x0006,  # USERNAME
        0x0007,  # PASSWORD, RFC 3489
        MESSAGE_INTEGRITY,
        ERROR_CODE,
        0x000A,  # UNKNOWN-ATTRIBUTES
        0x000B,  # REFLECTED-FROM, RFC 3489
        0x0014,  # REALM
        0x0015,  # NONCE
        MESSAGE_INTEGRITY_SHA256,
        XOR_MAPPED_ADDRESS,
    }
)
# A server that asks for no credentials may skip those it is shown; CHANGE-REQUEST it must not skip.
KNOWN_IN_REQUESTS = frozenset({0x0006, MESSAGE_INTEGRITY, 0x0014, 0x0015, MESSAGE_INTEGRITY_SHA256})

_HEADER = struct.Struct("!HH4s12s")
_ATTRIBUTE = struct.Struct("!HH")
_ADDRESS = struct.Struct("!xBH")  # family, port; the address follows
_CODE = struct.Struct("!xxBB")  # hundreds (and five reserved bits), the rest of the code; the reason follows
_IPV4, _IPV6 = 0x01, 0x02


@dataclass(frozen=True, slots=True)
class BindingSuccess:
    """What the server saw. `mapped` is its word alone: its port may be 0 and its address anything."""

    transaction_id: bytes
    mapped: Endpoint


@dataclass(frozen=True, slots=True)
class BindingError:
    """The server's refusal: a code of 300 to 699 and its reason, printable and at most 127 characters."""

    transaction_id: bytes
    code: int
    reason: str


def encode_request(transaction_id: bytes) -> bytes:
    """A Binding request, 20 bytes. `transaction_id`: 12 bytes that nobody else can guess."""
    return _message(REQUEST, transaction_id, b"")


def encode_indication(transaction_id: bytes) -> bytes:
    """A Binding indication, 20 bytes: keeps a mapping alive and is never answered."""
    return _message(_INDICATION, transaction_id, b"")


def encode_success(transaction_id: bytes, mapped: Endpoint) -> bytes:
    """A server's answer: the request `transaction_id` came from `mapped`."""
    shown = _xored(mapped, transaction_id)
    value = _ADDRESS.pack(_IPV4 if shown.ip.version == 4 else _IPV6, shown.port) + shown.ip.packed
    return _message(SUCCESS, transaction_id, attribute(XOR_MAPPED_ADDRESS, value))


def encode_error(transaction_id: bytes, code: int, reason: str) -> bytes:
    """A server's refusal. `code` is 300 to 699."""
    if not 300 <= code <= 699 or len(reason) > _MAX_REASON_CHARACTERS:
        raise ValueError(f"error code {code}, reason of {len(reason)} characters")
    value = _CODE.pack(*divmod(code, 100)) + reason.encode()
    return _message(ERROR, transaction_id, attribute(ERROR_CODE, value))


def is_stun(data: bytes) -> bool:
    """Whether a datagram claims to be exactly one STUN message (§6): the header's form, nothing of the attributes."""
    return _objection(data) is None and len(data) == HEADER_SIZE + _length(data)


def frame_size(head: bytes) -> int:
    """How many bytes the message takes that starts with the 20 bytes `head` (STUN over TCP, §6.2.2).

    Raises:
        DecodeError: no STUN header, or a message of more than MAX_SIZE bytes: the connection is of no use any more.
    """
    if (objection := _objection(head)) is not None:
        raise DecodeError(objection)
    size = HEADER_SIZE + _length(head)
    if size > MAX_SIZE:
        raise DecodeError(f"STUN message: expected at most {MAX_SIZE} bytes, the header announces {size}")
    return size


def decode_response(data: bytes) -> BindingSuccess | BindingError:
    """What a server's datagram (or TCP frame) says.

    Raises:
        DecodeError: not one whole Binding response, an attribute that must be understood and is not, a wrong
            FINGERPRINT, or an answer without the attribute that makes it one.
    """
    kind, transaction_id = _header(data)
    if kind not in (SUCCESS, ERROR):
        raise DecodeError(f"STUN message: expected a Binding response (0x0101, 0x0111), got type 0x{kind:04x}")
    attributes = _attributes(data, _KNOWN_IN_RESPONSES)
    if kind == ERROR:
        return BindingError(transaction_id, *_error_code(attributes.get(ERROR_CODE, b"")))
    if (value := attributes.get(XOR_MAPPED_ADDRESS)) is not None:
        return BindingSuccess(transaction_id, _xored(_address(value), transaction_id))
    if (value := attributes.get(MAPPED_ADDRESS)) is not None:
        return BindingSuccess(transaction_id, _address(value))
    raise DecodeError("STUN response: neither XOR-MAPPED-ADDRESS nor MAPPED-ADDRESS")


def decode_request(data: bytes) -> bytes:
    """The transaction id of a Binding request, for a server.

    Raises:
        DecodeError: not one whole Binding request, an attribute that must be understood and is not, or a wrong
            FINGERPRINT.
    """
    kind, transaction_id = _header(data)
    if kind != REQUEST:
        raise DecodeError(f"STUN message: expected a Binding request (0x0001), got type 0x{kind:04x}")
    _attributes(data, KNOWN_IN_REQUESTS)
    return transaction_id


def _message(kind: int, transaction_id: bytes, attributes: bytes) -> bytes:
    if len(transaction_id) != TRANSACTION_ID_SIZE:
        raise ValueError(f"transaction id: expected {TRANSACTION_ID_SIZE} bytes, got {len(transaction_id)}")
    return _HEADER.pack(kind, len(attributes), COOKIE, transaction_id) + attributes


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute with its padding. `value` has at most 65,535 bytes."""
    return _ATTRIBUTE.pack(kind, len(value)) + value + bytes(-len(value) % 4)


def _objection(head: bytes) -> str | None:
    """Why `head` does not begin a STUN message; None where it does."""
    if len(head) < HEADER_SIZE:
        return f"STUN message: expected at least {HEADER_SIZE} bytes, got {len(head)}"
    if head[0] & 0xC0:
        return f"STUN message: the first two bits must be 0, got 0x{head[0]:02x}"
    if head[4:8] != COOKIE:
        return f"STUN message: expected the magic cookie {COOKIE.hex()}, got {head[4:8].hex()}"
    if _length(head) % 4:
        return f"STUN message: expected a length that is a multiple of 4, got {_length(head)}"
    return None


def _length(head: bytes) -> int:
    return int.from_bytes(head[2:4])


def _header(data: bytes) -> tuple[int, bytes]:
    """Type and transaction id of a message that is whole."""
    if (size := frame_size(data)) != len(data):
        raise DecodeError(f"STUN message: the header announces {size} bytes, got {len(data)}")
    return int.from_bytes(data[:2]), data[8:HEADER_SIZE]


def counting_attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes that count, type and value, in their order; a right FINGERPRINT is one of them.

    Args:
        data: a whole message of any dialect. Its length is a multiple of 4, so a started attribute has its 4 bytes.

    Raises:
        DecodeError: an attribute that is longer than what is left, or a wrong FINGERPRINT.
    """
    is_sealed = False
    offset = HEADER_SIZE
    while offset < len(data):
        kind, size = _ATTRIBUTE.unpack_from(data, offset)
        start, end = offset + _ATTRIBUTE.size, offset + _ATTRIBUTE.size + size
        if end > len(data):
            raise DecodeError(f"STUN attribute 0x{kind:04x}: {size} bytes announced, {len(data) - start} left")
        if kind == FINGERPRINT:
            _check_fingerprint(data, offset, size)
        if kind == FINGERPRINT or not is_sealed:
            yield kind, data[start:end]
        is_sealed = is_sealed or kind in (MESSAGE_INTEGRITY, MESSAGE_INTEGRITY_SHA256)
        offset = end + -size % 4


def _attributes(data: bytes, known: frozenset[int]) -> dict[int, bytes]:
    """The first of each type."""
    found: dict[int, bytes] = {}
    for kind, value in counting_attributes(data):
        if kind < OPTIONAL and kind not in known:
            raise DecodeError(f"STUN attribute 0x{kind:04x}: must be understood, but is unknown")
        found.setdefault(kind, value)
    return found


def _check_fingerprint(data: bytes, offset: int, size: int) -> None:
    if size != 4 or offset + _ATTRIBUTE.size + size != len(data):
        raise DecodeError("STUN FINGERPRINT: expected 4 bytes at the message's end")
    expected = zlib.crc32(data[:offset]) ^ FINGERPRINT_MASK
    if (got := int.from_bytes(data[-4:])) != expected:
        raise DecodeError(f"STUN FINGERPRINT: expected 0x{expected:08x}, got 0x{got:08x}")


def _address(value: bytes) -> Endpoint:
    if len(value) in (_ADDRESS.size + 4, _ADDRESS.size + 16):
        family, port = _ADDRESS.unpack_from(value)
        packed = value[_ADDRESS.size :]
        if family == _IPV4 and len(packed) == 4:
            return Endpoint(IPv4Address(packed), port)
        if family == _IPV6 and len(packed) == 16:
            return Endpoint(IPv6Address(packed), port)
    raise DecodeError(f"STUN address: expected family 1 with 8 bytes or 2 with 20, got 0x{value[:8].hex()}")


def _xored(endpoint: Endpoint, transaction_id: bytes) -> Endpoint:
    """Port and address XORed with the cookie and, for IPv6, the transaction id (§14.2). It is its own inverse."""
    pad = COOKIE + transaction_id
    port = endpoint.port ^ int.from_bytes(pad[:2])
    if endpoint.ip.version == 4:
        return Endpoint(IPv4Address(int(endpoint.ip) ^ int.from_bytes(pad[:4])), port)
    return Endpoint(IPv6Address(int(endpoint.ip) ^ int.from_bytes(pad)), port)


def _error_code(value: bytes) -> tuple[int, str]:
    if len(value) < _CODE.size:
        raise DecodeError(f"STUN error response: expected an ERROR-CODE of at least 4 bytes, got {len(value)}")
    hundreds, rest = _CODE.unpack_from(value)
    hundreds &= 0x07  # the five bits above are reserved (§14.8)
    if not 3 <= hundreds <= 6 or rest > 99:
        raise DecodeError(f"STUN error response: expected a code of 300 to 699, got {hundreds} hundreds and {rest}")
    # coturn 4.6.1 counts the padding of its reason as part of it, hence the zeros.
    reason = value[_CODE.size :].rstrip(b"\0").decode(errors="replace")[:_MAX_REASON_CHARACTERS]
    # A stranger's words end up in logs and error lines: no control characters, no line feeds.
    return hundreds * 100 + rest, "".join(letter if letter.isprintable() else "?" for letter in reason)
