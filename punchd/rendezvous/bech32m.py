"""Bech32m: bytes as text that people copy, with a type in front and a checksum behind.

    punch 1 rx99ds65qaeremrlvl5sxextjkkuu5yy 29xukq
    |     | |                                |
    |     | data, 5 bits a character        checksum, 6 characters
    type  separator

Lower-case letters and digits only, without those that look alike: one double-click selects it, no shell quotes it, and
a QR code holds it in capitals. The checksum finds any four wrong characters, and others with a chance of one in 2^30.

Source: BIP 173 (alphabet, checksum's polynomial), BIP 350 (its constant; test vectors).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from punchd.errors import DecodeError

_ALPHABET = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_GENERATOR = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_CONSTANT = 0x2BC830A3
_CHECKSUM_SIZE = 6


def encode(kind: str, data: bytes) -> str:
    """`data` as text of that kind (lower-case ASCII letters)."""
    digits = list(_digits(data))
    check = _polymod([*_expanded(kind), *digits, *bytes(_CHECKSUM_SIZE)]) ^ _CONSTANT
    digits += [check >> 5 * (_CHECKSUM_SIZE - 1 - place) & 31 for place in range(_CHECKSUM_SIZE)]
    return f"{kind}1{''.join(_ALPHABET[digit] for digit in digits)}"


def decode(kind: str, text: str, size: int) -> bytes:
    """The `size` bytes in a text of that kind, in lower or upper case but not both.

    Raises:
        DecodeError: it is none. The message does not hold the text.
    """
    if text not in (text.lower(), text.upper()):
        raise DecodeError("mixed upper and lower case: a character was mistyped")
    prefix, _, body = text.lower().rpartition("1")
    if prefix != kind:
        raise DecodeError(f"expected it to begin with {kind}1")
    length = (size * 8 + 4) // 5 + _CHECKSUM_SIZE
    if len(body) != length:
        raise DecodeError(f"expected {length} characters after {kind}1, got {len(body)}")
    digits = [_ALPHABET.find(character) for character in body]
    if min(digits) < 0:
        raise DecodeError(f"character {body[digits.index(min(digits))]!r} never stands in one")
    if _polymod([*_expanded(kind), *digits]) != _CONSTANT:
        raise DecodeError("the checksum is wrong: a character was mistyped or is missing")
    bits = 0
    for digit in digits[:-_CHECKSUM_SIZE]:
        bits = bits << 5 | digit
    padding = (length - _CHECKSUM_SIZE) * 5 - size * 8
    if bits & ((1 << padding) - 1):
        raise DecodeError("its last character has bits that must be zero")
    return (bits >> padding).to_bytes(size, "big")


def _digits(data: bytes) -> Iterator[int]:
    count = (len(data) * 8 + 4) // 5
    bits = int.from_bytes(data, "big") << count * 5 - len(data) * 8
    return (bits >> 5 * place & 31 for place in reversed(range(count)))


def _expanded(kind: str) -> list[int]:
    return [ord(letter) >> 5 for letter in kind] + [0] + [ord(letter) & 31 for letter in kind]


def _polymod(digits: Iterable[int]) -> int:
    check = 1
    for digit in digits:
        top = check >> 25
        check = (check & 0x1FFFFFF) << 5 ^ digit
        for place, term in enumerate(_GENERATOR):
            if top >> place & 1:
                check ^= term
    return check
