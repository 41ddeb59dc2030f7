"""Passphrases of a session: what encrypts its media. They stand apart from everything else that is known of it.

The session machine never sees one: `peer` and `peer_match` messages get theirs when they are encoded
(`server_messages.encode`). So neither a machine's state, nor its actions, nor a log of either can give one away, and
a passphrase is gone when its session's `Passphrases` is.

Source: seed 000 §9.2; broker specification B-102 to B-105, C-41.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping
from enum import Enum

PASSPHRASE_BYTES = 32  # 256 bits, seed 000 §9.2; 43 characters, of 10 to 79 that SRT takes


class Scope(Enum):
    """What has a passphrase of its own."""

    SESSION = "session"  # the seed's words
    STREAM = "stream"  # a peer of one stream cannot read another one that it captured


class Passphrases:
    """Those of one session."""

    __slots__ = ("_by_stream",)

    def __init__(self, by_stream: Mapping[str, str]) -> None:
        self._by_stream = dict(by_stream)

    @classmethod
    def draw(cls, streams: Iterable[str], scope: Scope, entropy: Callable[[int], bytes]) -> Passphrases:
        """New ones; `entropy` gives that many bytes of the system's randomness."""
        if scope is Scope.SESSION:
            return cls(dict.fromkeys(streams, _draw(entropy)))
        return cls({stream: _draw(entropy) for stream in streams})

    def __repr__(self) -> str:
        return "Passphrases(***)"

    def of(self, stream: str) -> str:
        """The passphrase of a stream.

        Raises:
            KeyError: no such stream, or they were forgotten.
        """
        return self._by_stream[stream]

    def to_plain(self) -> dict[str, str]:
        """By stream; only for what is sealed at once (`redis_codec.py`)."""
        return dict(self._by_stream)

    def forget(self) -> None:
        """The session is over."""
        self._by_stream.clear()


def _draw(entropy: Callable[[int], bytes]) -> str:
    return base64.urlsafe_b64encode(entropy(PASSPHRASE_BYTES)).rstrip(b"=").decode()
