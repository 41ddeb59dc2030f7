"""Pulses and their replies: bytes to values and back.

    pulse   32 bytes   the client's private key
            64 bytes   the same as hexadecimal digits of either case
            68 bytes   signed pulse, an extension:

            0        4                   20            28            36                   68
            | "SRP1" | client id 16      | unix ms 8   | cookie 8    | HMAC-SHA256 32     |

    reply   4 bytes    code, big endian: 1020 accepted, 1050 verify again, 1060 no such client
            12 bytes   code 1051 and a cookie of 8 bytes; only to a signed pulse

A plain pulse shows its key to everybody on the way. A signed one does not: the key makes the HMAC of all that stands
before it. Its time (milliseconds, greater than that of the last accepted pulse, at most 60 s off) stops replays. Its
cookie stops a key's owner from naming a victim as its address: the server sends the cookie to the source address of
a pulse, and learns that address only from a pulse that carries the cookie back. The cookie is a truncated HMAC of the
address and the minute under a secret of the server, so nothing is stored; it is good in its minute and the next.

A datagram of any other length, or one of these lengths that does not follow its form, is no pulse and gets no reply.
A reply is never longer than what it answers.

Source: seed 001, "UDP Heartbeating"; rendezvous specification D-01, D-02, §4, §6.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
import struct
from dataclasses import dataclass
from enum import IntEnum

from punchd.errors import DecodeError

KEY_SIZE = 32
TEXT_SIZE = 64
SIGNED_SIZE = 68
ID_SIZE = 16
COOKIE_SIZE = 8
NO_COOKIE = bytes(COOKIE_SIZE)

EPOCH_S = 60  # how long a cookie is the current one
CLOCK_SKEW_MS = 60_000  # how far the time of a signed pulse may be off

_MAGIC = b"SRP1"
_HEAD = struct.Struct("!4s16sQ8s")
_CODE = struct.Struct("!i")


class Code(IntEnum):
    """What a reply says; the first three are the seed's."""

    ACCEPTED = 1020
    VERIFY = 1050
    COOKIE = 1051
    UNKNOWN = 1060


ACCEPTED = _CODE.pack(Code.ACCEPTED)
VERIFY = _CODE.pack(Code.VERIFY)
UNKNOWN = _CODE.pack(Code.UNKNOWN)
NO_REPLY = b""


@dataclass(frozen=True, slots=True)
class SignedPulse:
    """A signed pulse as it came; whether its signature is right is for `is_authentic` to say."""

    client_id: bytes
    unix_ms: int
    cookie: bytes
    signed: bytes
    mac: bytes

    def is_authentic(self, key: bytes) -> bool:
        """Whether the owner of `key` made it."""
        return hmac.compare_digest(hmac.digest(key, self.signed, "sha256"), self.mac)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a client got back. `cookie` is there with Code.COOKIE only."""

    code: Code
    cookie: bytes | None = None


def read_key(datagram: bytes) -> bytes | None:
    """The private key in a plain pulse of 32 or 64 bytes; None for anything else."""
    if len(datagram) == KEY_SIZE:
        return datagram
    if len(datagram) != TEXT_SIZE:
        return None
    try:
        return binascii.unhexlify(datagram)
    except ValueError:
        return None


def read_signed(datagram: bytes) -> SignedPulse | None:
    """A signed pulse; None for anything else."""
    if len(datagram) != SIGNED_SIZE or not datagram.startswith(_MAGIC):
        return None
    _, client_id, unix_ms, cookie = _HEAD.unpack_from(datagram)
    return SignedPulse(client_id, unix_ms, cookie, datagram[: _HEAD.size], datagram[_HEAD.size :])


def sign(key: bytes, client_id: bytes, unix_ms: int, cookie: bytes = NO_COOKIE) -> bytes:
    """A signed pulse: `cookie` is what the last 1051 brought; none was known at first."""
    head = _HEAD.pack(_MAGIC, client_id, unix_ms, cookie)
    return head + hmac.digest(key, head, "sha256")


def make_cookie(secret: bytes, source: bytes, unix_s: int) -> bytes:
    """The cookie for a (packed) source address in the minute of `unix_s`."""
    epoch = (unix_s // EPOCH_S).to_bytes(8, "big", signed=True)
    return hmac.digest(secret, epoch + source, "sha256")[:COOKIE_SIZE]


def is_cookie(cookie: bytes, secret: bytes, source: bytes, unix_s: int) -> bool:
    """Whether `cookie` was made for that source in this minute or the one before."""
    current = hmac.compare_digest(cookie, make_cookie(secret, source, unix_s))
    return current or hmac.compare_digest(cookie, make_cookie(secret, source, unix_s - EPOCH_S))


def cookie_reply(cookie: bytes) -> bytes:
    """Code 1051 with a cookie."""
    return _CODE.pack(Code.COOKIE) + cookie


def key_digest(key: bytes) -> bytes:
    """By what keys are looked up: how long a look-up takes tells nothing about a key's bytes."""
    return hashlib.sha256(key).digest()


def read_reply(datagram: bytes) -> Reply:
    """What a server's reply says.

    Raises:
        DecodeError: it is none.
    """
    size = len(datagram)
    code = _CODE.unpack_from(datagram)[0] if size >= _CODE.size else None
    if code == Code.COOKIE and size == _CODE.size + COOKIE_SIZE:
        return Reply(Code.COOKIE, datagram[_CODE.size :])
    if size != _CODE.size or code not in (Code.ACCEPTED, Code.VERIFY, Code.UNKNOWN):
        raise DecodeError(
            f"pulse reply: expected 4 bytes with 1020, 1050 or 1060, or 1051 and a cookie, got {size} bytes"
        )
    return Reply(Code(code))
