"""What it takes to check an HMAC-SHA256 without its key.

A server that checks signed pulses needs something of each client's key, and a store that several servers share must
not hold the keys: who reads it would be every client. HMAC starts by hashing one block made of the key, once with
each of two paddings; all that follows depends only on the two chaining values that come out. They are kept in place of
the key. Who reads them can sign pulses, but can neither find the key nor act for the client over HTTP.

No library lets SHA-256 start from a chaining value, so its compression function stands here: FIPS 180-4 §6.2.2, 32 bit
words, about 0.1 ms a block. `hashlib` makes everything else, and the tests hold one to the other.

Pure. Source: RFC 2104 §2 and §4 ("Implementation Note" on just these values); FIPS 180-4.
"""

from __future__ import annotations

import hmac
import struct
from math import isqrt

STATE_SIZE = 64  # two chaining values
_BLOCK = 64
_INNER, _OUTER = 0x36, 0x5C
_MASK = 0xFFFFFFFF
_EIGHT = struct.Struct(">8I")
_SIXTEEN = struct.Struct(">16I")


def of_key(key: bytes) -> bytes:
    """The state that stands for a key of at most 64 bytes."""
    padded = key.ljust(_BLOCK, b"\0")
    start = _EIGHT.pack(*_START)
    return b"".join(_compress(start, bytes(byte ^ padding for byte in padded)) for padding in (_INNER, _OUTER))


def digest(state: bytes, message: bytes) -> bytes:
    """The 32 bytes that HMAC-SHA256 gives for a message, under the key of the state."""
    inner = _finish(state[:32], message)
    return _finish(state[32:], inner)


def is_authentic(state: bytes, message: bytes, mac: bytes) -> bool:
    """Whether the owner of the key made `mac` for the message; tells nothing by the time it takes."""
    return hmac.compare_digest(digest(state, message), mac)


def _finish(chaining: bytes, message: bytes) -> bytes:
    """Hash what follows the first block."""
    padded = message + b"\x80"
    padded += bytes(-(len(padded) + 8) % _BLOCK) + ((_BLOCK + len(message)) * 8).to_bytes(8, "big")
    for start in range(0, len(padded), _BLOCK):
        chaining = _compress(chaining, padded[start : start + _BLOCK])
    return chaining


def _compress(chaining: bytes, block: bytes) -> bytes:
    words = list(_SIXTEEN.unpack(block))
    for t in range(16, 64):
        early, late = words[t - 15], words[t - 2]
        low = _turn(early, 7) ^ _turn(early, 18) ^ early >> 3
        high = _turn(late, 17) ^ _turn(late, 19) ^ late >> 10
        words.append((words[t - 16] + low + words[t - 7] + high) & _MASK)
    before = _EIGHT.unpack(chaining)
    a, b, c, d, e, f, g, h = before
    for constant, word in zip(_CONSTANTS, words, strict=True):
        one = h + (_turn(e, 6) ^ _turn(e, 11) ^ _turn(e, 25)) + (e & f ^ ~e & g) + constant + word
        two = (_turn(a, 2) ^ _turn(a, 13) ^ _turn(a, 22)) + (a & b ^ a & c ^ b & c)
        h, g, f, e, d, c, b, a = g, f, e, (d + one) & _MASK, c, b, a, (one + two) & _MASK
    return _EIGHT.pack(*((old + new) & _MASK for old, new in zip(before, (a, b, c, d, e, f, g, h), strict=True)))


def _turn(word: int, bits: int) -> int:
    return word >> bits | word << 32 - bits & _MASK


def _cube_root(number: int) -> int:
    low, high = 0, 1 << number.bit_length() // 3 + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if middle * middle * middle <= number else (low, middle)
    return low


# The first 32 bits of the fractions of square and cube roots of the first primes (FIPS 180-4 §4.2.2, §5.3.3).
_PRIMES = [number for number in range(2, 312) if all(number % small for small in range(2, isqrt(number) + 1))]
_START = [isqrt(prime << 64) & _MASK for prime in _PRIMES[:8]]
_CONSTANTS = [_cube_root(prime << 96) & _MASK for prime in _PRIMES]
