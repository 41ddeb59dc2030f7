"""The server's half of STUN's Binding method: what a request asks for, and the bytes of an answer.

`punchd.wire.stun` draws the message; it asks and reads answers, this file reads questions and answers them.

    request attribute       what it asks                                              answered by
    CHANGE-REQUEST 0003     answer from the other address, the other port, or both    RESPONSE-ORIGIN, OTHER-ADDRESS
    PADDING        0026     an answer that is as long as a fragmented datagram        PADDING
    RESPONSE-PORT  0027     answer to this port of mine
    FINGERPRINT    8028     (it proves that this is STUN)                             FINGERPRINT
    unknown, below 8000     something that must be understood                         error 420, UNKNOWN-ATTRIBUTES

The first three are RFC 5780 (behaviour discovery). Where it is not offered they are unknown like any other.

**Two dialects.** A request without the magic cookie comes from a client of RFC 3489. All 16 bytes behind the length are
its transaction id and are repeated; it wants MAPPED-ADDRESS in place of XOR-MAPPED-ADDRESS (RFC 5389 §12.2, kept by
RFC 8489 §11), and calls RESPONSE-ORIGIN and OTHER-ADDRESS by their old numbers, SOURCE-ADDRESS and CHANGED-ADDRESS. It
always sends CHANGE-REQUEST; one without a flag asks for nothing and is never unknown in this dialect. RESPONSE-ADDRESS,
by which it may have its answer sent to anybody, is unknown (same section). Its attributes have no padding: values are
multiples of four bytes long (RFC 3489 §11.2), so an odd number of unknown types ends with one of them twice, and
reasons end with spaces.

**No longer than useful.** A source address can be forged, and then the answer goes to a victim. SOFTWARE is left out.
At most MAX_LISTED unknown attributes are named. PADDING in an answer is no longer than that in the request, where RFC
5780 §6.1 says (SHOULD) the interface's MTU: four bytes of padding would bring 1,500.

`DecodeError` is the only error that a decoder here raises; whoever sent such bytes gets no answer (RFC 8489 §6.3).

Left out: credentials (they are known and skipped: nothing here is worth a password), CACHE-TIMEOUT, ALTERNATE-SERVER.

Source: RFC 8489 §6.3, §14; RFC 5780 §6.1, §7, §10; RFC 3489 §11.2; RFC 5389 §12.2.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from punchd.errors import DecodeError
from punchd.wire import stun

MAX_LISTED = 8  # unknown attributes of one request that its refusal names: 16 bytes
MAX_PADDING = 1500  # bytes; Ethernet's MTU, a multiple of four as RFC 5780 §7.6 wants it
ECHO_SIZE = 16  # bytes of a request's header that its answer repeats: magic cookie and transaction id

BARE_REQUEST = struct.pack("!HH4s", stun.REQUEST, 0, stun.COOKIE)
"""How a request without attributes begins; such a request is this and 12 bytes more."""

_CHANGE_REQUEST = 0x0003
_SOURCE_ADDRESS = 0x0004
_CHANGED_ADDRESS = 0x0005
_UNKNOWN_ATTRIBUTES = 0x000A
_PADDING = 0x0026
_RESPONSE_PORT = 0x0027
_RESPONSE_ORIGIN = 0x802B
_OTHER_ADDRESS = 0x802C
_BEHAVIOUR = frozenset({_CHANGE_REQUEST, _PADDING, _RESPONSE_PORT})
_REASONS = {400: "Bad Request", 420: "Unknown Attribute"}

_HEADER = struct.Struct("!HH16s")
_MESSAGE_TYPE = stun.REQUEST.to_bytes(2)
_COOKIE_NUMBER = int.from_bytes(stun.COOKIE)
_COOKIE_PORT = _COOKIE_NUMBER >> 16  # ports are XORed with its first half (RFC 8489 §14.2)
# A header and XOR-MAPPED-ADDRESS for IPv4, in one go: nine answers in ten.
_SUCCESS4 = struct.Struct("!HH16sHHHHI")
_XORED4_SIZE = 12

Address = tuple[bytes, int]
"""A packed IP address (4 or 16 bytes) and a port: what an answer is made of, without the objects of `ipaddress`."""


@dataclass(frozen=True, slots=True)
class BindingRequest:
    """What a client asks.

    Attributes:
        echo: 16 bytes that the answer repeats.
        is_classic: the client speaks RFC 3489.
        change_address: answer from the other address. Only with behaviour discovery, as the next three.
        change_port: answer from the other port.
        padding: bytes of PADDING; None where there is none.
        response_port: where to send the answer, 0-65535; None for where the request came from.
        unknown: attributes that had to be understood, each once, the first MAX_LISTED.
        is_fingerprinted: the request has a FINGERPRINT, and a right one; so should the answer.
    """

    echo: bytes
    is_classic: bool = False
    change_address: bool = False
    change_port: bool = False
    padding: int | None = None
    response_port: int | None = None
    unknown: tuple[int, ...] = ()
    is_fingerprinted: bool = False


@dataclass(frozen=True, slots=True)
class Origin:
    """The attributes that say where an answer comes from and which other endpoint there is, in both dialects."""

    modern: bytes
    classic: bytes

    @classmethod
    def of(cls, here: Address, other: Address) -> Origin:
        """Of an answer that comes from `here`; `other` differs in address and port from where the request came to."""
        here_value, other_value = _value(here), _value(other)
        return cls(
            stun.attribute(_RESPONSE_ORIGIN, here_value) + stun.attribute(_OTHER_ADDRESS, other_value),
            stun.attribute(_SOURCE_ADDRESS, here_value) + stun.attribute(_CHANGED_ADDRESS, other_value),
        )


def is_request(data: bytes) -> bool:
    """Whether a datagram begins like a Binding request; three instructions for what is not."""
    return data.startswith(_MESSAGE_TYPE)


def decode_request(data: bytes, *, behaviour: bool) -> BindingRequest:
    """What a client's datagram (or TCP frame) asks for.

    Args:
        behaviour: whether behaviour discovery is offered where it arrived.

    Raises:
        DecodeError: not one whole Binding request, an attribute that is cut off or has the wrong size, or a wrong
            FINGERPRINT.
    """
    if not is_request(data):
        raise DecodeError(f"STUN message: expected a Binding request (0x0001), got 0x{data[:2].hex()}")
    if len(data) < stun.HEADER_SIZE or len(data) % 4 or int.from_bytes(data[2:4]) != len(data) - stun.HEADER_SIZE:
        raise DecodeError(f"STUN message: {len(data)} bytes, which are not one message")
    is_classic = data[4:8] != stun.COOKIE
    known = stun.KNOWN_IN_REQUESTS | _BEHAVIOUR if behaviour else stun.KNOWN_IN_REQUESTS
    found: dict[int, bytes] = {}
    for kind, value in stun.counting_attributes(data):
        found.setdefault(kind, value)
    flags = int.from_bytes(_sized(found, _CHANGE_REQUEST, (4,)) or b"")
    # RFC 5780 §7.5 does not say whether its two bytes of padding count; coturn counts them.
    response_port = _sized(found, _RESPONSE_PORT, (2, 4))
    if is_classic and not flags:
        found.pop(_CHANGE_REQUEST, None)
    unknown = [kind for kind in found if kind < stun.OPTIONAL and kind not in known]
    padding = found.get(_PADDING)
    return BindingRequest(
        data[4 : stun.HEADER_SIZE],
        is_classic,
        bool(flags & 4),
        bool(flags & 2),
        None if padding is None else len(padding),
        None if response_port is None else int.from_bytes(response_port[:2]),
        tuple(unknown[:MAX_LISTED]),
        stun.FINGERPRINT in found,
    )


def encode_bare_success(echo: bytes, seen: Address, origin: Origin | None) -> bytes:
    """The answer to a request without attributes: 32 bytes for IPv4, 68 with behaviour discovery (IPv6: 44, 116)."""
    ip, port = seen
    more = b"" if origin is None else stun.attribute(stun.MAPPED_ADDRESS, _value(seen)) + origin.modern
    if len(ip) == 4:
        size = _XORED4_SIZE + len(more)
        shown = port ^ _COOKIE_PORT, int.from_bytes(ip) ^ _COOKIE_NUMBER
        return _SUCCESS4.pack(stun.SUCCESS, size, echo, stun.XOR_MAPPED_ADDRESS, 8, 1, *shown) + more
    return _message(stun.SUCCESS, echo, stun.attribute(stun.XOR_MAPPED_ADDRESS, _xored_value(seen, echo)) + more)


def encode_success(request: BindingRequest, seen: Address, origin: Origin | None) -> bytes:
    """The answer to `request`, which came from `seen`. `origin`: with behaviour discovery only."""
    mapped = stun.attribute(stun.MAPPED_ADDRESS, _value(seen))
    if request.is_classic:
        attributes = mapped + (origin.classic if origin else b"")
    else:
        attributes = stun.attribute(stun.XOR_MAPPED_ADDRESS, _xored_value(seen, request.echo))
        attributes += mapped + origin.modern if origin else b""
    if request.padding is not None:
        size = min(request.padding + -request.padding % 4, MAX_PADDING)
        attributes += stun.attribute(_PADDING, bytes(size))
    return _finished(stun.SUCCESS, request, attributes)


def encode_refusal(request: BindingRequest, code: int) -> bytes:
    """Error 400, or 420 with the request's unknown attributes."""
    reason = _REASONS[code].encode()
    listed = request.unknown
    if request.is_classic:
        reason += b" " * (-len(reason) % 4)
        listed += listed[-1:] * (len(listed) % 2)
    attributes = stun.attribute(stun.ERROR_CODE, struct.pack("!xxBB", *divmod(code, 100)) + reason)
    if code == 420:
        attributes += stun.attribute(_UNKNOWN_ATTRIBUTES, struct.pack(f"!{len(listed)}H", *listed))
    return _finished(stun.ERROR, request, attributes)


def _sized(found: dict[int, bytes], kind: int, sizes: tuple[int, ...]) -> bytes | None:
    """The attribute, if it is there.

    Raises:
        DecodeError: its size is none of `sizes`.
    """
    value = found.get(kind)
    if value is not None and len(value) not in sizes:
        raise DecodeError(f"STUN attribute 0x{kind:04x}: expected {sizes[-1]} bytes, got {len(value)}")
    return value


def _value(address: Address) -> bytes:
    ip, port = address
    return struct.pack("!HH", 1 if len(ip) == 4 else 2, port) + ip


def _xored_value(address: Address, echo: bytes) -> bytes:
    """XORed with the magic cookie and, for IPv6, the transaction id behind it (RFC 8489 §14.2)."""
    ip, port = address
    shown = int.from_bytes(ip) ^ int.from_bytes(echo[: len(ip)])
    return _value((shown.to_bytes(len(ip)), port ^ _COOKIE_PORT))


def _message(kind: int, echo: bytes, attributes: bytes) -> bytes:
    return _HEADER.pack(kind, len(attributes), echo) + attributes


def _finished(kind: int, request: BindingRequest, attributes: bytes) -> bytes:
    if not request.is_fingerprinted:
        return _message(kind, request.echo, attributes)
    head = _HEADER.pack(kind, len(attributes) + 8, request.echo) + attributes
    return head + stun.attribute(stun.FINGERPRINT, (zlib.crc32(head) ^ stun.FINGERPRINT_MASK).to_bytes(4))
