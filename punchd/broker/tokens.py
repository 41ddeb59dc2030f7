"""Tokens: who may do what in which session, signed so that nothing has to be looked up to believe it.

    token  = "p_" part "." part             at most 512 characters
    part   = base64url without padding, in its one canonical form
    part 1 = payload: a JSON object with exactly session, role, stream, exp
    part 2 = HMAC-SHA256 of the payload's bytes as they came, under the deployment's secret

A lenient base64 decoder gives the same bytes for padding, spare bits, line feeds, blanks and the standard alphabet's
"+" and "/". Then one token had many spellings, and neither revoking nor redacting it by its value would work; so parts
are decoded, encoded again and compared.

A token is checked in this order, and the first that fails is the answer (C-30):

    form, signature, payload, session   401
    the session exists and is open      404: only the holder of a genuine token gets to hear it
    it was issued for this instance     401: a name may live again while tokens of its former life have not expired
    not expired                         401
    the role, the stream                403

Two tokens with one payload would be the same bytes: neither could be revoked alone, and a revoked one could be minted
again. So no payload is used twice in a session: its exp is lowered by a second until it is new (C-57).

Pure: `now_ms` is Unix time.

Source: seed 000 §7; broker specification §7, C-15, C-29 to C-33, C-57.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Any

from punchd.broker import strict_json
from punchd.broker.names import MAX_TOKEN_CHARS, MAX_TOKENS, MIN_SECRET_BYTES, is_name
from punchd.errors import ConfigError, DecodeError, PunchdError

_FORM = re.compile(r"p_([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)", re.ASCII)
_SIGNATURE_BYTES = 32
_MEMBERS = frozenset({"session", "role", "stream", "exp"})


class Role(StrEnum):
    """What a token makes its holder."""

    ADMIN = "admin"
    PEER = "peer"


@dataclass(frozen=True, slots=True)
class Grant:
    """What a token says.

    Attributes:
        stream: of a peer; None for an admin.
        exp: the Unix second at which it expires.
    """

    session: str
    role: Role
    stream: str | None
    exp: int


class Refusal(Enum):
    """At which check a token failed, in the order of the checks."""

    FORM = "form"
    SIGNATURE = "signature"
    PAYLOAD = "payload"
    SESSION = "session mismatch"
    NOT_FOUND = "session not found"
    NOT_ISSUED = "not issued"
    EXPIRED = "expired"
    SCOPE = "scope"

    @property
    def status(self) -> int:
        """Of the HTTP answer."""
        return {Refusal.NOT_FOUND: 404, Refusal.SCOPE: 403}.get(self, 401)


class TokenError(PunchdError):
    """A token that is not good for what it was used for. The message has nothing of the token in it."""

    def __init__(self, refusal: Refusal, text: str) -> None:
        super().__init__(f"{refusal.value}: {text}")
        self.refusal = refusal


class LimitError(PunchdError):
    """The session has as many tokens as it may have."""


class Keys:
    """The deployment's secrets: the first signs, any of them is believed (rotation).

    Raises:
        ConfigError: none, or one that is too short.
    """

    __slots__ = ("_keys",)

    def __init__(self, secrets: Sequence[str]) -> None:
        self._keys = tuple(secret.encode() for secret in secrets)
        if not self._keys:
            raise ConfigError("secret: expected at least one")
        for number, key in enumerate(self._keys, 1):
            if len(key) < MIN_SECRET_BYTES:
                raise ConfigError(f"secret {number}: expected at least {MIN_SECRET_BYTES} bytes, got {len(key)}")

    def __repr__(self) -> str:
        return f"Keys({len(self._keys)} of them: ***)"

    def sign(self, payload: bytes) -> bytes:
        """32 bytes."""
        return hmac.digest(self._keys[0], payload, "sha256")

    def has_signed(self, payload: bytes, signature: bytes) -> bool:
        """Whether one of the keys made it. Takes as long whichever did."""
        matches = [hmac.compare_digest(hmac.digest(key, payload, "sha256"), signature) for key in self._keys]
        return any(matches)

    def derived(self, purpose: bytes) -> tuple[bytes, ...]:
        """A key of 32 bytes for another purpose from each secret: HKDF-SHA256 without salt (RFC 5869)."""
        return tuple(
            hmac.digest(hmac.digest(bytes(_SIGNATURE_BYTES), key, "sha256"), purpose + b"\x01", "sha256")
            for key in self._keys
        )


def digest(token: str) -> bytes:
    """What a session remembers of a token: its SHA-256."""
    return hashlib.sha256(token.encode()).digest()


@dataclass(slots=True)
class Ledger:
    """The tokens of one living session: which ones are good, and which payloads were ever used.

    Attributes:
        live: digests of the tokens that were issued and not revoked.
        used: (stream, exp) of all; the stream is None for admins.
        former: the same of sessions that had the name before, as far as they have not expired: a token of theirs must
            not come to life again because a new session of that name ends in the same second.
    """

    live: set[bytes] = field(default_factory=set)
    used: set[tuple[str | None, int]] = field(default_factory=set)
    former: frozenset[tuple[str | None, int]] = frozenset()

    def mint(self, keys: Keys, grant: Grant) -> tuple[str, Grant]:
        """A new token, and what it says: `grant`, with the next lower exp if its payload was used before.

        Raises:
            LimitError: the session has too many.
        """
        if len(self.used) >= MAX_TOKENS:
            raise LimitError(f"expected at most {MAX_TOKENS} tokens of a session")
        exp = grant.exp
        while (grant.stream, exp) in self.used or (grant.stream, exp) in self.former:
            exp -= 1
        unique = Grant(grant.session, grant.role, grant.stream, exp)
        token = mint(keys, unique)
        self.used.add((unique.stream, exp))
        self.live.add(digest(token))
        return token, unique

    def revoke(self, token_digest: bytes) -> bool:
        """Whether it was good until now. Its payload stays used."""
        was_live = token_digest in self.live
        self.live.discard(token_digest)
        return was_live

    def unexpired(self, now_ms: int) -> frozenset[tuple[str | None, int]]:
        """What a next session of the name has to know: its `former`."""
        return frozenset(one for one in (*self.used, *self.former) if one[1] * 1000 > now_ms)

    def to_plain(self) -> dict[str, Any]:
        """For JSON; holds no token."""
        used, former = (
            [list(one) for one in sorted(ones, key=lambda one: (one[0] or "", one[1]))]
            for ones in (self.used, self.former)
        )
        return {"live": sorted(one.hex() for one in self.live), "used": used, "former": former}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Ledger:
        """From what `to_plain` gave."""
        used, former = ([(stream, exp) for stream, exp in plain[name]] for name in ("used", "former"))
        return cls({bytes.fromhex(one) for one in plain["live"]}, set(used), frozenset(former))


def mint(keys: Keys, grant: Grant) -> str:
    """The token that says `grant`. Use `Ledger.mint`: a token that no ledger knows is refused."""
    members = {"session": grant.session, "role": grant.role.value, "stream": grant.stream, "exp": grant.exp}
    payload = strict_json.encode(members).encode()
    return f"p_{_to_text(payload)}.{_to_text(keys.sign(payload))}"


def read(token: str, keys: Keys) -> Grant:
    """What a token says, if it is genuine: form, signature and payload. Whether it is good here, `check` says.

    Raises:
        TokenError: FORM, SIGNATURE or PAYLOAD.
    """
    match = _FORM.fullmatch(token) if len(token) <= MAX_TOKEN_CHARS else None
    payload, signature = (_from_text(match[1]), _from_text(match[2])) if match is not None else (None, None)
    if payload is None or signature is None or len(signature) != _SIGNATURE_BYTES:
        raise TokenError(Refusal.FORM, "expected p_PAYLOAD.SIGNATURE in canonical base64url")
    if not keys.has_signed(payload, signature):
        raise TokenError(Refusal.SIGNATURE, "this server did not sign it")
    try:
        return _grant(strict_json.decode(payload))
    except DecodeError as error:
        raise TokenError(Refusal.PAYLOAD, str(error)) from None


def check_session(grant: Grant, name: str) -> None:
    """The token is for the session that the request names. Before anything is looked up under that name.

    Raises:
        TokenError: SESSION.
    """
    if grant.session != name:
        raise TokenError(Refusal.SESSION, "the token is for another session")


def check(grant: Grant, token_digest: bytes, issued: Container[bytes] | None, now_ms: int) -> None:
    """The session lives, has issued the token, and the token has not expired.

    Args:
        issued: `Ledger.live` of the open session of the grant's name; None if there is none.

    Raises:
        TokenError: NOT_FOUND, NOT_ISSUED or EXPIRED.
    """
    if issued is None:
        raise TokenError(Refusal.NOT_FOUND, "no open session has this name")
    if token_digest not in issued:
        raise TokenError(Refusal.NOT_ISSUED, "the token is not, or not any more, one of this session")
    if now_ms >= grant.exp * 1000:
        raise TokenError(Refusal.EXPIRED, "the token has expired")


def check_admin(grant: Grant) -> None:
    """The grant is an admin's.

    Raises:
        TokenError: SCOPE.
    """
    if grant.role is not Role.ADMIN:
        raise TokenError(Refusal.SCOPE, "this takes an admin token")


def check_stream(grant: Grant, stream: str) -> None:
    """The grant is an admin's, or a peer's for this stream.

    Raises:
        TokenError: SCOPE.
    """
    if grant.role is Role.PEER and grant.stream != stream:
        raise TokenError(Refusal.SCOPE, "the token is for another stream")


def expiry(expires_ms: int) -> int:
    """The exp of a session's tokens: never before the session's own end (C-33)."""
    return -(-expires_ms // 1000)


def _grant(value: Any) -> Grant:
    if not isinstance(value, dict) or value.keys() != _MEMBERS:
        raise DecodeError("members: expected exactly session, role, stream and exp")
    session, role, stream, exp = value["session"], value["role"], value["stream"], value["exp"]
    if not isinstance(session, str) or not is_name(session):
        raise DecodeError("session: expected a name")
    if role not in ("admin", "peer"):
        raise DecodeError("role: expected admin or peer")
    if role == "admin" and stream is not None:
        raise DecodeError("stream: expected null, since it is an admin's")
    if role == "peer" and not (isinstance(stream, str) and is_name(stream)):
        raise DecodeError("stream: expected a name, since it is a peer's")
    if not isinstance(exp, int) or isinstance(exp, bool):
        raise DecodeError("exp: expected whole Unix seconds")
    return Grant(session, Role(role), stream, exp)


def _to_text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _from_text(text: str) -> bytes | None:
    """None if the text is not the one spelling of its bytes."""
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:  # binascii.Error
        return None
    return data if _to_text(data) == text else None
