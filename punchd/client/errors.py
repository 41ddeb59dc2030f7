"""What can go wrong between an application and its punchd. Each message is one line that can be shown to a person.

PunchdError
└── ClientError
    ├── DaemonUnreachableError   nothing to talk to: no socket, no permission, nobody listening
    ├── UntrustedDaemonError     somebody listens, but not a user whose descriptors may be trusted
    ├── DaemonGoneError          the connection ended while an answer was awaited
    ├── DaemonProtocolError      the daemon broke the line protocol; the connection is closed
    ├── RequestRefusedError      the daemon objects to this program or to a line, without naming an attempt
    └── AttemptError             one attempt, or one probe, ended without success
"""

from __future__ import annotations

from punchd.errors import PunchdError


class ClientError(PunchdError):
    """Whatever the client library raises on purpose."""


class DaemonUnreachableError(ClientError):
    """No connection to a daemon; the message names the path, the reason and what to look at."""


class UntrustedDaemonError(ClientError):
    """The socket belongs to a user who is not trusted.

    Attributes:
        uid: of the process that listens there, as the kernel tells it (SO_PEERCRED).
    """

    def __init__(self, text: str, uid: int) -> None:
        super().__init__(text)
        self.uid = uid


class DaemonGoneError(ClientError):
    """The connection to the daemon ended; every attempt on it is over. Sockets received before go on working."""


class DaemonProtocolError(ClientError):
    """The daemon sent what the line protocol does not allow; nothing more is read from it."""


class RequestRefusedError(ClientError):
    """The daemon refused this program, or a line that it could not tie to an attempt (`error|-|CODE|TEXT`).

    Attributes:
        code: a word of line protocol §6; codes that this library does not know are possible.
        text: the daemon's explanation, for people.
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text


class AttemptError(ClientError):
    """One attempt, or one probe, ended without success.

    Attributes:
        code: a word of line protocol §6, comparable with `punchd.errors.Code`; treat unknown ones like `internal`.
        text: the daemon's explanation, for people.
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text
