"""The one error tree. A message says what was wrong, what was expected and what came; it never holds a secret.

PunchdError
├── DecodeError      bytes that are not what they claim to be
├── ProtocolError    a request line that cannot be taken, with the code that the line protocol names
├── DeniedError      well-formed, but not allowed here
├── PunchError       a technique (or a whole attempt) that did not work out, with its reason
├── KernelError      the operating system said no
├── ConfigError      a configuration that the daemon cannot start with
└── StoreError       what several servers share cannot be reached
"""

from __future__ import annotations

from enum import StrEnum


class PunchdError(Exception):
    """Whatever this project raises on purpose."""


class DecodeError(PunchdError):
    """Foreign bytes that do not follow their format. The only error that a decoder in `wire` raises."""


class Code(StrEnum):
    """The codes of `error`, `failed` and `ignored` lines (line protocol §6). Applications match on them."""

    BAD_MESSAGE = "bad-message"
    TOO_LONG = "too-long"
    BAD_VERSION = "bad-version"
    BAD_TECHNIQUE = "bad-technique"
    BAD_ADDRESS = "bad-address"
    BAD_PORT = "bad-port"
    BAD_OPTION = "bad-option"
    BAD_TOKEN = "bad-token"  # noqa: S105 (a code, not a secret)
    TOKEN_VERSION = "token-version"  # noqa: S105
    TOKEN_MISMATCH = "token-mismatch"  # noqa: S105
    DUPLICATE_ID = "duplicate-id"
    DUPLICATE_ATTEMPT = "duplicate-attempt"
    UNKNOWN_ID = "unknown-id"
    BUSY = "busy"
    NOT_PERMITTED = "not-permitted"
    NO_PRIVILEGE = "no-privilege"
    NO_ADDRESS = "no-address"
    PORT_IN_USE = "port-in-use"
    NETWORK = "network"
    EXHAUSTED = "exhausted"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    PEER_ABORT = "peer-abort"
    SHUTDOWN = "shutdown"
    INTERNAL = "internal"
    # only in `failed` and `ignored`
    PEER_SKIP = "peer-skip"
    SUPERSEDED = "superseded"
    UNSUPPORTED = "unsupported"
    REFUSED = "refused"
    STALE = "stale"


class ProtocolError(PunchdError):
    """A request line that cannot be taken.

    Attributes:
        code: what the `error` line says.
        attempt_id: the id the error is about; None where no id could be read (the line then says `-`).
    """

    def __init__(self, code: Code, text: str, attempt_id: str | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.attempt_id = attempt_id


class DeniedError(PunchdError):
    """Well-formed, but refused by policy: a quota, an address that is no allowed target, a user.

    Attributes:
        code: what the `error` line says.
    """

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.code = code


class PunchError(PunchdError):
    """A technique did not work out.

    Attributes:
        reason: one of the `failed` reasons of the line protocol.
    """

    def __init__(self, reason: Code, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class KernelError(PunchdError):
    """The operating system refused an effect; the message names the call and the errno."""


class ConfigError(PunchdError):
    """A configuration file or command line that the daemon cannot start with."""


class StoreError(PunchdError):
    """The store of a server does not answer. The message says why, without its address or password."""
