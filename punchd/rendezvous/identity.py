"""Addresses that prove themselves: a long-lived Ed25519 key, its fingerprint as text, and signed bindings.

A client's id is new with each registration; what people hand around must last longer. So a client may own a key pair.
Its ADDRESS is the fingerprint of the public key, the first 20 bytes of a SHA-256 (nobody finds a second key to one;
160 bits are what second preimages cost), as Bech32m text:

    punch1rx99ds65qaeremrlvl5sxextjkkuu5yy29xukq      44 characters, one double-click

A binding says "this address is now this client id": a signature by the key over

    "punchd alias v1" 00 | fingerprint 20 | client id 16 | unix seconds 8, big endian

Whoever asks for the address gets the binding with its public key and signature, and can check it without trusting the
server that kept it. The words in front keep a signature from meaning anything elsewhere.

Keys are files: PKCS #8 in PEM, as openssl and others read, mode 0600. A file that others may read is refused.

`cryptography` is imported where it is used: a program that only checks an address need not wait for it.

Source: rendezvous specification §8; RFC 8032 (Ed25519), RFC 8410 (its keys in PKCS #8).
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from punchd.errors import ConfigError, DecodeError
from punchd.rendezvous import bech32m

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

KIND = "punch"
FINGERPRINT_SIZE = 20
PUBLIC_KEY_SIZE = 32
SIGNATURE_SIZE = 64

_MAX_FILE_BYTES = 16_384  # an Ed25519 key takes 119
_KEY_CONTEXT = b"punchd address v1\0"
_BINDING_CONTEXT = b"punchd alias v1\0"


@dataclass(frozen=True, slots=True)
class Binding:
    """An address's claim to be a client, signed at `timestamp` (Unix seconds)."""

    client_id: bytes
    public_key: bytes
    timestamp: int
    signature: bytes

    @property
    def fingerprint(self) -> bytes:
        """Whose claim it is."""
        return fingerprint(self.public_key)

    def is_authentic(self) -> bool:
        """Whether the owner of the public key signed it."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        message = _binding_message(self.fingerprint, self.client_id, self.timestamp)
        try:
            Ed25519PublicKey.from_public_bytes(self.public_key).verify(self.signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True


class Identity:
    """A key pair. Its `repr` shows the address only."""

    __slots__ = ("_private_key", "public_key")

    def __init__(self, private_key: Ed25519PrivateKey) -> None:
        self._private_key = private_key
        self.public_key: bytes = raw(private_key.public_key())

    def __repr__(self) -> str:
        return f"Identity({self.address})"

    @property
    def private_key(self) -> Ed25519PrivateKey:
        """For what else the key is good for, such as a certificate."""
        return self._private_key

    @property
    def address(self) -> str:
        """What to hand around."""
        return address(fingerprint(self.public_key))

    def bind(self, client_id: bytes, timestamp: int) -> Binding:
        """The claim that the address is that client, from now (Unix seconds) on."""
        message = _binding_message(fingerprint(self.public_key), client_id, timestamp)
        return Binding(client_id, self.public_key, timestamp, self._private_key.sign(message))


def fingerprint(public_key: bytes) -> bytes:
    """The 20 bytes that stand for a public key of 32."""
    return hashlib.sha256(_KEY_CONTEXT + public_key).digest()[:FINGERPRINT_SIZE]


def address(print_of_key: bytes) -> str:
    """A fingerprint as text."""
    return bech32m.encode(KIND, print_of_key)


def read_address(text: str) -> bytes:
    """The fingerprint in an address.

    Raises:
        DecodeError: it is none.
    """
    try:
        return bech32m.decode(KIND, text, FINGERPRINT_SIZE)
    except DecodeError as error:
        raise DecodeError(f"address {text[:60]!r}: {error}") from None


def raw(key: Ed25519PublicKey) -> bytes:
    """The 32 bytes of a public key. Its method `public_bytes_raw` is younger than Debian 12's cryptography 38."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def generate() -> Identity:
    """A new key pair."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Identity(Ed25519PrivateKey.generate())


def save(identity: Identity, path: Path) -> None:
    """Write the key to a new file, mode 0600; it is there as a whole or not at all.

    Raises:
        ConfigError: there is a file already, or it cannot be written.
    """
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    pem = identity.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "wb") as file:
                file.write(pem)
                file.flush()
                os.fsync(fd)
            os.link(draft, path)  # unlike rename, it does not take the place of another key
        finally:
            os.unlink(draft)
    except OSError as error:
        raise ConfigError(f"key {path}: {error.strerror}") from None


def load(path: Path) -> Identity:
    """Read a key from its file.

    Raises:
        ConfigError: there is none, others may read it, or it is no Ed25519 key in PEM without a passphrase.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            pem = file.read(_MAX_FILE_BYTES)
    except OSError as error:
        raise ConfigError(f"key {path}: {error.strerror}") from None
    if stat.S_IMODE(status.st_mode) & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        raise ConfigError(f"key {path}: expected mode 0600, got {mode:04o}: others may have read it")
    key: Any
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError) as error:  # TypeError: it is encrypted
        kind = "a key without a passphrase" if isinstance(error, TypeError) else "an Ed25519 key in PEM (PKCS #8)"
        raise ConfigError(f"key {path}: expected {kind}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"key {path}: expected an Ed25519 key, got another kind")
    return Identity(key)


def _binding_message(print_of_key: bytes, client_id: bytes, timestamp: int) -> bytes:
    return _BINDING_CONTEXT + print_of_key + client_id + timestamp.to_bytes(8, "big")
