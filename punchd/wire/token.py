"""Tokens: what two daemons tell each other through the side channel of their applications. Layout 2.

An application hands a token on unchanged; to it, it is 19 to 200 characters of canonical base64url. Between the
daemons it is (big endian):

    offset  size  field
    0       1     layout = 2
    1       1     kind: 1 offer, 2 answer, 3 skip, 4 abort, 5 note
    2       8     attempt nonce, random, chosen by the initiator's daemon
    10      1     round, 1-255
    11      1     technique: 1 tcp-syni, 2 tcp-nutss, 3 udp, 4 tcp-repair; from 128 on techniques of others
    12      1     flags: bit 0 IPv6, bit 1 ports are predictions, bit 2 roles are reversed; others 0
    13      1     offer, answer, note: the low TTL in use (1-64); skip, abort: reason
    -- skip and abort end here --
    14      1     counter: 0 in offers and answers, 1-255 in the notes of one round, ascending
    15      2     the sender's STUN round-trip time in ms, 0 = unknown
    17      4/16  the sender's public address; all zero in the answer of a sender that does not know it yet
    +0      1     n, 1-16
    +1      2n    the sender's public ports, best first
    +0      1     k, 0-4
    +1      3k    runs of the receiver's ports that the sender has opened its NAT for: first port 2, how many 1
    +0      ...   what the technique adds: tcp-syni the initial sequence number of its SYN 4, MSS 2, window scale 1
                  (255 none), options 1 (bit 0 SACK), all zero from the side that sends no SYN; tcp-nutss nothing;
                  udp 16 bytes of key; tcp-repair the sequence number 4; techniques of others one byte length, then
                  as many bytes

Every length must match exactly and unused bits must be 0, so that a value has one token and a token one value.
`DecodeError` is the only error that leaves this file; `NewerLayoutError`, a kind of it, marks a newer daemon.

What layout 1 lacked: the round-trip time (the budget of a round is made from it), the opened ports (a side may only
send at full TTL what the other's NAT expects) and notes (either side's ports may turn out to be others).

Source: line protocol, Appendix A as amended by §13.3 and §13.4.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address

from punchd.endpoint import MAX_PORTS, MAX_RUNS, IPAddress, PortSet, runs
from punchd.errors import DecodeError

LAYOUT = 2
MIN_CHARACTERS = 19  # skip and abort
MAX_CHARACTERS = 200  # keeps a `respond` line with all its options under 500 bytes
NONCE_SIZE = 8
MAX_ROUND = 255
MAX_COUNTER = 255
MAX_TTL = 64
MAX_RTT_MS = 0xFFFF

_HEAD = struct.Struct("!BB8sBBBB")
_CARD = struct.Struct("!BH")
_RUN = struct.Struct("!HB")
_ALPHABET = re.compile(r"[A-Za-z0-9_-]+")
_IPV6, _PREDICTED, _REVERSED = 1, 2, 4

TECHNIQUE_NUMBERS = {"tcp-syni": 1, "tcp-nutss": 2, "udp": 3, "tcp-repair": 4}
FIRST_PLUGIN_NUMBER = 128
# What a technique adds to a card has one exact size; None: techniques of others, length-prefixed.
_BODY_SIZES: dict[int, int] = {1: 8, 3: 16, 4: 4}


class NewerLayoutError(DecodeError):
    """The token comes from a daemon that speaks a newer layout than this one."""


class Kind(IntEnum):
    OFFER = 1
    ANSWER = 2
    SKIP = 3
    ABORT = 4
    NOTE = 5


class Farewell(IntEnum):
    """Why a side skips a round or ends the attempt."""

    CANCELLED = 1
    TIMEOUT = 2
    EXHAUSTED = 3
    NO_PRIVILEGE = 7
    UNSUPPORTED = 8
    NOT_AGREED = 9


@dataclass(frozen=True, slots=True)
class Card:
    """What one side tells the other about itself, in an offer, an answer or a note.

    Attributes:
        address: the sender's public address; unspecified in the answer of a responder that is still asking.
        ports: the sender's public ports, best first.
        predicted: the ports are predictions, none of them was seen.
        opened: the receiver's ports that the sender has opened its NAT for; at most 16 in four runs.
        ttl: the low TTL the sender uses, 1-64.
        rtt_ms: the sender's STUN round-trip time, 0 = unknown.
        body: what the technique adds.
        reversed_roles: the roles of the technique are swapped.
    """

    address: IPAddress
    ports: PortSet
    opened: tuple[int, ...] = ()
    predicted: bool = False
    ttl: int = 4
    rtt_ms: int = 0
    body: bytes = b""
    reversed_roles: bool = False


@dataclass(frozen=True, slots=True)
class Token:
    """One message from daemon to daemon. Exactly one of `card` and `farewell` is there, as `kind` says."""

    kind: Kind
    nonce: bytes
    round: int
    technique: int
    card: Card | None = None
    farewell: Farewell | None = None
    counter: int = 0


def encode(token: Token) -> str:
    """The token as an application sees it.

    Raises:
        ValueError: a field is out of its range; that is a fault of this daemon, not of the peer.
    """
    raw = _encode_farewell(token) if token.card is None else _encode_card(token, token.card)
    text = base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"token of {len(text)} characters, at most {MAX_CHARACTERS}")
    return text


def _encode_farewell(token: Token) -> bytes:
    if token.farewell is None or token.kind not in (Kind.SKIP, Kind.ABORT):
        raise ValueError(f"{token.kind.name} needs a card")
    if token.counter != 0:
        raise ValueError(f"counter {token.counter} in a {token.kind.name}")
    return _head(token, 0, token.farewell)


def _encode_card(token: Token, card: Card) -> bytes:
    if token.kind in (Kind.SKIP, Kind.ABORT) or token.farewell is not None:
        raise ValueError(f"{token.kind.name} has no card")
    if not 1 <= card.ttl <= MAX_TTL or not 0 <= card.rtt_ms <= MAX_RTT_MS:
        raise ValueError(f"ttl {card.ttl} or rtt {card.rtt_ms} ms out of range")
    if (token.counter == 0) == (token.kind is Kind.NOTE) or not 0 <= token.counter <= MAX_COUNTER:
        raise ValueError(f"counter {token.counter} in a {token.kind.name}")
    opened = runs(PortSet(card.opened)) if card.opened else []
    if len(opened) > MAX_RUNS:
        raise ValueError(f"{len(card.opened)} opened ports in {len(opened)} runs")
    flags = (
        (_IPV6 if card.address.version == 6 else 0)
        | (_PREDICTED if card.predicted else 0)
        | (_REVERSED if card.reversed_roles else 0)
    )
    return b"".join(
        (
            _head(token, flags, card.ttl),
            _CARD.pack(token.counter, card.rtt_ms),
            card.address.packed,
            bytes((len(card.ports),)),
            struct.pack(f"!{len(card.ports)}H", *card.ports),
            bytes((len(opened),)),
            *(_RUN.pack(first, last - first + 1) for first, last in opened),
            _encode_body(token.technique, card.body),
        )
    )


def _head(token: Token, flags: int, detail: int) -> bytes:
    if len(token.nonce) != NONCE_SIZE or not 1 <= token.round <= MAX_ROUND or not 1 <= token.technique <= 255:
        raise ValueError(f"nonce, round {token.round} or technique {token.technique} out of range")
    return _HEAD.pack(LAYOUT, token.kind, token.nonce, token.round, token.technique, flags, detail)


def _encode_body(technique: int, body: bytes) -> bytes:
    if technique >= FIRST_PLUGIN_NUMBER:
        return bytes((len(body),)) + body
    if technique not in TECHNIQUE_NUMBERS.values():
        raise ValueError(f"technique {technique} is unknown")
    if len(body) != _BODY_SIZES.get(technique, 0):
        raise ValueError(f"technique {technique} adds {_BODY_SIZES.get(technique, 0)} bytes, got {len(body)}")
    return body


def decode(text: str) -> Token:
    """The token behind `text`.

    Raises:
        NewerLayoutError: the layout is newer than this daemon's.
        DecodeError: anything else that `encode` would not have produced.
    """
    raw = _unwrap(text)
    if len(raw) < 1 or raw[0] != LAYOUT:
        if len(raw) >= _HEAD.size and raw[0] > LAYOUT:
            raise NewerLayoutError(f"token: layout {raw[0]}, this daemon speaks layout {LAYOUT}")
        raise DecodeError(f"token: expected layout {LAYOUT}, got {raw[0] if raw else 'nothing'}")
    if len(raw) < _HEAD.size:
        raise DecodeError(f"token: expected at least {_HEAD.size} bytes, got {len(raw)}")
    _, kind_number, nonce, round_number, technique, flags, detail = _HEAD.unpack_from(raw)
    try:
        kind = Kind(kind_number)
    except ValueError:
        raise DecodeError(f"token: expected kind 1-5, got {kind_number}") from None
    if round_number == 0 or technique == 0:
        raise DecodeError(f"token: round {round_number}, technique {technique}: both start at 1")
    if kind in (Kind.SKIP, Kind.ABORT):
        farewell = _decode_farewell(raw, flags, detail)
        return Token(kind, nonce, round_number, technique, farewell=farewell)
    counter, card = _decode_card(raw, technique, flags, detail)
    if (counter == 0) == (kind is Kind.NOTE):
        raise DecodeError(f"token: counter {counter} in a {kind.name.lower()}")
    return Token(kind, nonce, round_number, technique, card=card, counter=counter)


def _unwrap(text: str) -> bytes:
    if not MIN_CHARACTERS <= len(text) <= MAX_CHARACTERS or not _ALPHABET.fullmatch(text):
        raise DecodeError(f"token: expected {MIN_CHARACTERS}-{MAX_CHARACTERS} characters of base64url")
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error:
        raise DecodeError(f"token: {len(text)} characters are no base64url") from None
    if base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii") != text:
        raise DecodeError("token: base64url is not canonical, unused bits are set")
    return raw


def _decode_farewell(raw: bytes, flags: int, detail: int) -> Farewell:
    if len(raw) != _HEAD.size or flags != 0:
        raise DecodeError(f"token: skip and abort have {_HEAD.size} bytes and no flags, got {len(raw)}")
    try:
        return Farewell(detail)
    except ValueError:
        raise DecodeError(f"token: unknown reason {detail}") from None


def _decode_card(raw: bytes, technique: int, flags: int, ttl: int) -> tuple[int, Card]:
    if flags & ~(_IPV6 | _PREDICTED | _REVERSED):
        raise DecodeError(f"token: unknown flags {flags:#04x}")
    if not 1 <= ttl <= MAX_TTL:
        raise DecodeError(f"token: expected a TTL of 1-{MAX_TTL}, got {ttl}")
    reader = _Reader(raw, _HEAD.size)
    counter, rtt_ms = _CARD.unpack(reader.take(_CARD.size))
    address = IPv6Address(reader.take(16)) if flags & _IPV6 else IPv4Address(reader.take(4))
    count = reader.take(1)[0]
    try:
        ports = PortSet(struct.unpack(f"!{count}H", reader.take(2 * count)))
    except ValueError as error:
        raise DecodeError(f"token: ports: {error}") from None
    opened = _decode_opened(reader)
    body = _decode_body(reader, technique)
    reader.end()
    card = Card(
        address=address,
        ports=ports,
        opened=opened,
        predicted=bool(flags & _PREDICTED),
        ttl=ttl,
        rtt_ms=rtt_ms,
        body=body,
        reversed_roles=bool(flags & _REVERSED),
    )
    return counter, card


def _decode_opened(reader: _Reader) -> tuple[int, ...]:
    count = reader.take(1)[0]
    if count > MAX_RUNS:
        raise DecodeError(f"token: expected at most {MAX_RUNS} runs of opened ports, got {count}")
    opened: list[int] = []
    for _ in range(count):
        first, length = _RUN.unpack(reader.take(_RUN.size))
        if not 1 <= length <= MAX_PORTS or first == 0 or first + length > 65536:
            raise DecodeError(f"token: run of {length} opened ports from {first}")
        if opened and opened[-1] + 1 == first:
            raise DecodeError("token: two runs of opened ports are one")
        opened.extend(range(first, first + length))
    if len(opened) > MAX_PORTS or len(set(opened)) != len(opened):
        raise DecodeError(f"token: {len(opened)} opened ports, at most {MAX_PORTS}, each once")
    return tuple(opened)


def _decode_body(reader: _Reader, technique: int) -> bytes:
    if technique >= FIRST_PLUGIN_NUMBER:
        return reader.take(reader.take(1)[0])
    if technique not in TECHNIQUE_NUMBERS.values():
        raise DecodeError(f"token: unknown technique {technique}")
    return reader.take(_BODY_SIZES.get(technique, 0))


class _Reader:
    """Takes exact pieces from a byte string; too few or too many are a DecodeError."""

    def __init__(self, raw: bytes, offset: int) -> None:
        self._raw = raw
        self._offset = offset

    def take(self, size: int) -> bytes:
        piece = self._raw[self._offset : self._offset + size]
        if len(piece) != size:
            raise DecodeError(f"token: cut off at byte {len(self._raw)}, {size - len(piece)} more expected")
        self._offset += size
        return piece

    def end(self) -> None:
        if self._offset != len(self._raw):
            raise DecodeError(f"token: {len(self._raw) - self._offset} bytes too many")


def openable(ports: Iterable[int]) -> tuple[int, ...]:
    """The first of `ports` that fit a card's `opened`: at most 16 in four runs."""
    kept = tuple(dict.fromkeys(port for port in ports if 1 <= port <= 65535))
    return PortSet.of(kept).ports if kept else ()
