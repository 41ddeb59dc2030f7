"""The wire format: every datagram of the protocol, from bytes to a value and back. All integers are little-endian.

    headered datagram            0        2          10     18     26
                                 | flag 2 | seq 8    | qpc 8| qpf 8| payload or body …
    with a fragment block        0        2          10     18     26         34        42
      (flag 0x0001 exactly)      | flag 2 | seq 8    | qpc 8| qpf 8| offset 8 | total 8 | payload …
    control body at 26           26        27      28         30              67
      (0x0100, 0x0101, 0x0102)   | version | flags | zero 2   | id 37         | options …
    connection-id datagram       0        2                        39
      (no header)                | 0x1000 | id 37                  | whatever follows is ignored
    START, if configured         "START", five bytes and nothing else

    flag    datagram        control flags                  id
    0x0000  data            -                              -
    0x0001  data, fragment  -                              -
    0x0100  SYN             0                              desired; empty: the responder chooses
    0x0101  SYN-ACK         bit 0: Accept                  assigned; refused: a text for people, or empty
    0x0102  ACK             0                              confirmed
    0x1000  connection id   -                              current

An id is what stands before the first NUL of its 37 bytes; 37 bytes without NUL are an error. It is opaque: compared as
bytes, never an access right, and shown only through `show`. Flags are compared whole, since 0x0101 has bit 0 set and is
no fragment. seq, qpc and qpf of a control frame are sent as 0 and not looked at. Reserved bits are sent as 0 and not
looked at. The layout of another version's body is unknown, so that only its version is read.

Nothing is copied: a payload is a view into the datagram. `parse` is the specification; faster paths are held against
it.

Source: seed 004 §3-§8; media specification C01-C15, C31-C36, C40, C41, D1, D3, D9, D10, D17-D21.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

from punchd.errors import DecodeError
from punchd.media import options as tlv
from punchd.media.counters import Count
from punchd.media.options import NO_OPTIONS, Options

DATA = 0x0000
FRAGMENT = 0x0001
SYN = 0x0100
SYN_ACK = 0x0101
ACK = 0x0102
CONNECTION_ID = 0x1000
START = b"START"

VERSION = 1
ACCEPT = 0x01  # in the flags of a SYN-ACK

HEADER_SIZE = 26
FRAGMENT_HEADER_SIZE = 42
CONTROL_SIZE = 67  # of a control frame without options
CONNECTION_ID_SIZE = 39
ID_FIELD_SIZE = 37
MAX_ID_SIZE = 36
MAX_DATAGRAM_SIZE = 65507  # UDP over IPv4 without options
MAX_U64 = 2**64 - 1

_FLAG = struct.Struct("<H")
_HEADER = struct.Struct("<HQQQ")
_FRAGMENT_HEADER = struct.Struct("<HQQQQQ")
_BODY = struct.Struct("<BBH37s")

Buffer = bytes | bytearray | memoryview


class DatagramError(DecodeError):
    """A datagram that is to be dropped. The only error of `parse`.

    Attributes:
        reason: the validation error to be counted.
    """

    def __init__(self, reason: Count, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class Media(NamedTuple):
    """A data datagram. A tuple, since one is made for each datagram.

    Attributes:
        payload: a view into the datagram; good as long as that is.
        offset, total: of the fragment block, unchecked; total is None without one.
    """

    sequence: int
    qpc: int
    qpf: int
    payload: memoryview
    offset: int = 0
    total: int | None = None


@dataclass(frozen=True, slots=True)
class Syn:
    """`desired` is empty where the responder is to choose; of another version nothing but `version` is known."""

    desired: bytes
    options: Options = NO_OPTIONS
    version: int = VERSION


@dataclass(frozen=True, slots=True)
class SynAck:
    """`text` is the assigned id, or why the SYN was refused."""

    accept: bool
    text: bytes
    options: Options = NO_OPTIONS


@dataclass(frozen=True, slots=True)
class Ack:
    confirmed: bytes
    options: Options = NO_OPTIONS


@dataclass(frozen=True, slots=True)
class ConnectionId:
    id: bytes


@dataclass(frozen=True, slots=True)
class Start:
    """The discovery token of the protocol's predecessor."""


Control = Syn | SynAck | Ack | ConnectionId | Start
Datagram = Media | Control


def parse(data: Buffer, *, legacy_start: bool = False) -> Datagram:
    """What a datagram says. The order of the checks is that of seed §8.

    Args:
        data: of one datagram; a view has format "B".
        legacy_start: whether the five bytes START mean something.

    Raises:
        DatagramError: it is to be dropped.
    """
    size = len(data)
    if legacy_start and size == len(START) and data == START:
        return Start()
    if size < _FLAG.size:
        raise DatagramError(Count.SHORT, f"datagram: expected at least {_FLAG.size} bytes, got {size}")
    flag = data[0] | data[1] << 8
    if flag == CONNECTION_ID:
        if size < CONNECTION_ID_SIZE:
            raise DatagramError(
                Count.CONNECTION_ID_SHORT, f"connection id: expected {CONNECTION_ID_SIZE} bytes, got {size}"
            )
        return ConnectionId(_id(data[_FLAG.size : CONNECTION_ID_SIZE], Count.CONNECTION_ID_UNTERMINATED))
    if flag not in (DATA, FRAGMENT, SYN, SYN_ACK, ACK):
        raise DatagramError(Count.UNKNOWN_FLAG, f"datagram: unknown flag 0x{flag:04x}")
    if size < HEADER_SIZE:
        raise DatagramError(Count.HEADER_SHORT, f"header: expected {HEADER_SIZE} bytes, got {size}")
    if flag == FRAGMENT:
        if size < FRAGMENT_HEADER_SIZE:
            raise DatagramError(
                Count.FRAGMENT_SHORT, f"fragment header: expected {FRAGMENT_HEADER_SIZE} bytes, got {size}"
            )
        _, sequence, qpc, qpf, offset, total = _FRAGMENT_HEADER.unpack_from(data)
        return Media(sequence, qpc, qpf, memoryview(data)[FRAGMENT_HEADER_SIZE:], offset, total)
    if flag == DATA:
        _, sequence, qpc, qpf = _HEADER.unpack_from(data)
        return Media(sequence, qpc, qpf, memoryview(data)[HEADER_SIZE:])
    return _control(flag, data)


def _control(flag: int, data: Buffer) -> Control:
    if len(data) < CONTROL_SIZE:
        raise DatagramError(Count.CONTROL_SHORT, f"control frame: expected {CONTROL_SIZE} bytes, got {len(data)}")
    version, bits, _, field = _BODY.unpack_from(data, HEADER_SIZE)
    if version != VERSION:
        if flag == SYN:
            return Syn(b"", version=version)
        raise DatagramError(Count.VERSION, f"control frame: expected version {VERSION}, got {version}")
    text = _id(field, Count.CONTROL_ID_UNTERMINATED)
    options = tlv.parse(bytes(data[CONTROL_SIZE:]))
    if flag == SYN:
        return Syn(text, options)
    if flag == ACK:
        return Ack(text, options)
    accept = bool(bits & ACCEPT)
    if accept and not text:
        raise DatagramError(Count.ASSIGNED_ID_EMPTY, "SYN-ACK: accepts, but assigns no connection id")
    return SynAck(accept, text, options)


def _id(field: Buffer, unterminated: Count) -> bytes:
    text, end, _ = bytes(field).partition(b"\0")
    if not end:
        raise DatagramError(unterminated, f"connection id: expected a NUL within {ID_FIELD_SIZE} bytes, got none")
    return text


def show(text: bytes) -> str:
    """A foreign id or text for logs: printable ASCII, anything else escaped."""
    return "".join(chr(byte) if 0x20 <= byte < 0x7F and byte != 0x5C else f"\\x{byte:02x}" for byte in text)


# --- encoding --------------------------------------------------------------------------------------------------------


def encode(datagram: Datagram, max_size: int = MAX_DATAGRAM_SIZE) -> bytes:
    """The datagram's bytes. Options that would make a control frame longer than `max_size` are left out.

    Raises:
        ValueError: a number out of its range, an id with NUL or of more than 36 bytes, a payload that does not fit.
    """
    match datagram:
        case Media(sequence, qpc, qpf, payload, offset, total):
            header = bytearray(HEADER_SIZE if total is None else FRAGMENT_HEADER_SIZE)
            if len(header) + len(payload) > max_size:
                raise ValueError(f"payload: expected at most {max_size - len(header)} bytes, got {len(payload)}")
            write_header(header, 0, sequence, qpc, qpf, offset=offset, total=total)
            return bytes(header) + payload
        case Syn(desired, options, version):
            return _encode_control(SYN, 0, desired, options, max_size, version=version)
        case SynAck(accept, text, options):
            if accept and not text:
                raise ValueError("SYN-ACK: expected a connection id with Accept=1, got none")
            return _encode_control(SYN_ACK, ACCEPT if accept else 0, text, options, max_size)
        case Ack(confirmed, options):
            return _encode_control(ACK, 0, confirmed, options, max_size)
        case ConnectionId(text):
            return _FLAG.pack(CONNECTION_ID) + _field(text)
        case Start():
            return START


def write_header(
    buffer: bytearray | memoryview,
    at: int,
    sequence: int,
    qpc: int,
    qpf: int,
    *,
    offset: int = 0,
    total: int | None = None,
) -> int:
    """Writes a data datagram's header, with a fragment block unless `total` is None. Returns where the payload begins.

    Raises:
        ValueError: a number that is not of 64 bits, or too little room.
    """
    try:
        if total is None:
            _HEADER.pack_into(buffer, at, DATA, sequence, qpc, qpf)
            return at + HEADER_SIZE
        _FRAGMENT_HEADER.pack_into(buffer, at, FRAGMENT, sequence, qpc, qpf, offset, total)
        return at + FRAGMENT_HEADER_SIZE
    except struct.error as error:
        raise ValueError(f"header: {error}") from None


def _encode_control(
    flag: int, bits: int, text: bytes, options: Options, max_size: int, *, version: int = VERSION
) -> bytes:
    if not 0 <= version <= 255:
        raise ValueError(f"version: expected 0 to 255, got {version}")
    body = _BODY.pack(version, bits, 0, _field(text))
    return _HEADER.pack(flag, 0, 0, 0) + body + tlv.encode(options, max_size - CONTROL_SIZE)


def _field(text: bytes) -> bytes:
    if len(text) > MAX_ID_SIZE or b"\0" in text:
        raise ValueError(f"connection id: expected at most {MAX_ID_SIZE} bytes without NUL, got {text!r}")
    return text.ljust(ID_FIELD_SIZE, b"\0")


def canonical_id(entropy: bytes) -> bytes:
    """A connection id in its canonical form: a random UUID's text, of 16 bytes of entropy (RFC 9562 §5.4)."""
    if len(entropy) != 16:
        raise ValueError(f"entropy: expected 16 bytes, got {len(entropy)}")
    digits = bytes((*entropy[:6], entropy[6] & 0x0F | 0x40, entropy[7], entropy[8] & 0x3F | 0x80, *entropy[9:])).hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])).encode()
