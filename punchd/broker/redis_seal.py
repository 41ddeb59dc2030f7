"""What keeps a session's passphrases, addresses and `meta` from whoever reads Redis, its memory dumps or its disks.

    sealed    key's name 8 | salt 16 | nonce 12 | AES-256-GCM of the text, tag at the end

Keys are derived from the lines of the secret file (HKDF-SHA256): the first seals, all of them open, so that secrets are
rotated while sessions live. Each salt has a key of its own (HMAC-SHA256 of it), and each session a salt, so that the
random nonces of one key stay far below the 2^32 that GCM takes. What a sealed text is for stands in its additional
data: one that was moved to another place, or back from an earlier time, is not opened.

A source (an address) is known to Redis only by an HMAC under a third key: enough to count, and nothing to read.

Pure: nonces are arguments.

Source: RFC 5869; NIST SP 800-38D §8.2.2, §8.3.
"""

from __future__ import annotations

import hmac
from functools import lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from punchd.broker.tokens import Keys
from punchd.errors import DecodeError

SALT_SIZE = 16
NONCE_SIZE = 12
_NAME_SIZE = 8
_SALT_AT = _NAME_SIZE + SALT_SIZE
_HEAD_SIZE = _SALT_AT + NONCE_SIZE
_BLIND_SIZE = 16
_CIPHERS = 1024  # of salts, a hundred bytes each


class Sealer:
    """Seals and opens under the keys of one secret file."""

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        masters = [(_name(key), key) for key in keys.derived(b"punchd broker seal")]
        self._first, self._masters = masters[0], dict(masters)
        self._blind = keys.derived(b"punchd broker sources")[0]

    def __repr__(self) -> str:
        return "Sealer(***)"

    def seal(self, text: bytes, salt: bytes, nonce: bytes, place: bytes) -> bytes:
        """Seal a text for `place`."""
        name, key = self._first
        return name + salt + nonce + _cipher(key, salt).encrypt(nonce, text, place)

    def open(self, sealed: bytes, place: bytes) -> bytes:
        """The text.

        Raises:
            DecodeError: it was sealed under another secret, or for another place, or was changed.
        """
        key = self._masters.get(sealed[:_NAME_SIZE])
        if key is None:
            raise DecodeError("sealed under a secret that is not in the secret file")
        nonce = sealed[_SALT_AT:_HEAD_SIZE]
        try:
            return _cipher(key, salt_of(sealed)).decrypt(nonce, sealed[_HEAD_SIZE:], place)
        except (InvalidTag, ValueError):
            raise DecodeError("sealed: changed, or meant for another place") from None

    def blind(self, source: bytes) -> bytes:
        """A source as Redis may know it: 16 bytes."""
        return hmac.digest(self._blind, source, "sha256")[:_BLIND_SIZE]


def salt_of(sealed: bytes) -> bytes:
    """The salt that a text was sealed with."""
    return sealed[_NAME_SIZE:_SALT_AT]


@lru_cache(_CIPHERS)
def _cipher(key: bytes, salt: bytes) -> AESGCM:
    return AESGCM(hmac.digest(key, salt, "sha256"))


def _name(key: bytes) -> bytes:
    return hmac.digest(key, b"name", "sha256")[:_NAME_SIZE]
