"""The UDP punch datagram: 30 bytes that open a NAT and prove that the peer is the peer.

    "PCH1" | type 1 | role 1 | nonce 8 | HMAC-SHA256(key, bytes 0-13), first 16 bytes

The key travels in the offer. The role keeps a datagram from being reflected to its sender. A datagram that does not
check is dropped without a word: anybody can send to an open port.

Sixteen bytes of MAC are plenty for something that lives for seconds, and 30 bytes in all give the socket filter of a
handed-over socket a length that an application's short datagrams never have.

Source: line protocol, Appendix B.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from enum import IntEnum

from punchd.errors import DecodeError
from punchd.wire.token import NONCE_SIZE

MAGIC = b"PCH1"
SIZE = 30
KEY_SIZE = 16
_MAC_SIZE = 16
_SIGNED = SIZE - _MAC_SIZE


class Type(IntEnum):
    PROBE = 1
    ACK = 2
    DONE = 3


class Role(IntEnum):
    INITIATOR = 1
    RESPONDER = 2


@dataclass(frozen=True, slots=True)
class Probe:
    type: Type
    role: Role
    nonce: bytes


def encode(probe: Probe, key: bytes) -> bytes:
    """The datagram. `key` is the offer's, 16 bytes."""
    if len(probe.nonce) != NONCE_SIZE or len(key) != KEY_SIZE:
        raise ValueError(f"nonce of {len(probe.nonce)} and key of {len(key)} bytes")
    signed = MAGIC + bytes((probe.type, probe.role)) + probe.nonce
    return signed + _mac(signed, key)


def is_probe(data: bytes) -> bool:
    """Whether `data` claims to be a punch datagram; the socket filter drops exactly these."""
    return len(data) >= SIZE and data.startswith(MAGIC)


def decode(data: bytes, key: bytes) -> Probe:
    """The probe in `data`, its MAC checked in constant time.

    Raises:
        DecodeError: not 30 bytes, not ours, an unknown type or role, or a wrong MAC.
        ValueError: a key of another size; that is a fault of this daemon.
    """
    if len(key) != KEY_SIZE:
        raise ValueError(f"key of {len(key)} bytes")
    if len(data) != SIZE or not data.startswith(MAGIC):
        raise DecodeError(f"punch datagram: expected {SIZE} bytes starting with {MAGIC!r}, got {len(data)}")
    if not hmac.compare_digest(_mac(data[:_SIGNED], key), data[_SIGNED:]):
        raise DecodeError("punch datagram: wrong MAC")
    try:
        return Probe(Type(data[4]), Role(data[5]), data[6:_SIGNED])
    except ValueError:
        raise DecodeError(f"punch datagram: unknown type {data[4]} or role {data[5]}") from None


def _mac(signed: bytes, key: bytes) -> bytes:
    return hmac.digest(key, signed, hashlib.sha256)[:_MAC_SIZE]
