"""The client's half of the line protocol, without any I/O: both flavours of the library are thin shells around it.

In go the bytes and descriptors that `recvmsg` returned, and what the application asks for; out come `Delivery`s (an
answer and the request it belongs to), bytes to send, and descriptors that nobody wants and the shell must close.

Theory of operation. A stream socket may merge the tail of earlier lines with the segment that carries a descriptor,
or cut a line anywhere, so descriptors cannot be tied to a read. What holds on Linux (measured, line protocol §5): a
descriptor arrives no later than the first byte of its line and `recvmsg` never returns bytes beyond the message that
carried one. Hence the queue rule: descriptors go into a queue as they come, and each attempt's `ok` line takes
exactly one from its head. Two things then mean that the pairing is lost, and with it the trust in which socket leads
where, so they end the connection: an `ok` line that finds the queue empty, and a descriptor that is still queued
after the last complete line although no other line has begun.

An id here is open (somebody waits), cancelled (somebody stopped waiting, the daemon may still answer) or unknown.
Ids count up and are never used twice, so that a late answer cannot be taken for another attempt's.

A token delivered in the moment in which the daemon ends the attempt finds its id free there and may start a new
attempt under it (§3). Nobody waits for that one, so news of an unknown id are answered with `cancel`.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from punchd.client.errors import ClientError, DaemonGoneError, DaemonProtocolError, RequestRefusedError
from punchd.client.events import Event, Failed, Ignored, News, Relay, Trying
from punchd.control.answers import Error, Ok, OkHello, OkProbe, Progress, Stage, parse_answer
from punchd.control.lines import CLIENT, MAX_LINE, VERSION, LineSplitter
from punchd.control.requests import Cancel, Hello, Initiate, Options, Probe, Protocol, format_request, format_respond
from punchd.endpoint import IPAddress, PortSet
from punchd.errors import Code, DecodeError, ProtocolError

HELLO_ID = "-"  # under which the greeting is delivered
TOKEN = re.compile(r"[A-Za-z0-9_-]{19,200}")  # line protocol §2
_LINE = re.compile(rf"[\x20-\x7e]{{1,{MAX_LINE}}}")

# Codes that never end a running attempt (§13.6); before its first news they do mean that it was not taken on.
_HARMLESS = (Code.BAD_MESSAGE, Code.TOO_LONG, Code.DUPLICATE_ID, Code.UNKNOWN_ID)
# What a daemon says to `hello` that does not know the verb, or no common version: then it is version 1 without hello.
_NO_HELLO = (Code.BAD_MESSAGE, Code.BAD_VERSION)


@dataclass(frozen=True, slots=True)
class Granted:
    """An `ok` line with the descriptor that belongs to it; whoever takes this owns the descriptor."""

    answer: Ok
    descriptor: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The end of an attempt or a probe without success."""

    code: str
    text: str


Item = OkHello | OkProbe | Granted | Refused | Event | None  # None: a daemon without hello


@dataclass(frozen=True, slots=True)
class Delivery:
    """Something for whoever waits under `id`. OkProbe, Granted and Refused are the last for their id."""

    id: str
    item: Item


@dataclass(slots=True)
class _Wait:
    """What is known of an open id."""

    is_attempt: bool
    cancelled: bool = False
    round: int = 0
    technique: str = "-"


class Session:
    """One connection to the daemon. Not safe for threads: the shell brings the lock.

    Attributes:
        failure: makes the error that everyone who still waits gets; None while the connection is sound.
    """

    def __init__(self) -> None:
        self.failure: Callable[[], ClientError] | None = None
        self._splitter = LineSplitter()
        self._descriptors: deque[int] = deque()
        self._surplus: list[int] = []
        self._outgoing = bytearray()
        self._open: dict[str, _Wait] = {}
        self._cancelled: set[str] = set()
        self._counter = 0

    # --- requests ---------------------------------------------------------------------------------------------------

    def hello(self, client: str | None) -> str:
        """Greet the daemon; only as the first request. Returns the id to wait under."""
        if client is not None and not CLIENT.fullmatch(client):
            raise DecodeError(f"client name: expected 1-32 of A-Z a-z 0-9 _ . + / -, got {client[:40]!r}")
        self._open[HELLO_ID] = _Wait(is_attempt=False)
        self._write(format_request(Hello(VERSION, client)))
        return HELLO_ID

    def probe(self, protocol: Protocol, options: Options) -> str:
        """Ask for the own public address; returns the id to wait under."""
        request_id = self._next_id("p")
        self._write(format_request(Probe(request_id, protocol, options)))
        self._open[request_id] = _Wait(is_attempt=False)
        return request_id

    def initiate(self, ip: IPAddress, ports: PortSet, techniques: tuple[str, ...], options: Options) -> str:
        """Start an attempt; returns its id."""
        attempt_id = self._next_id("i")
        self._write(format_request(Initiate(attempt_id, techniques, ip, ports, options)))
        self._open[attempt_id] = _Wait(is_attempt=True)
        return attempt_id

    def respond(self, token: str, options: Options) -> str:
        """Take up an attempt of the other side; returns its id. Raises DecodeError for what is no token."""
        attempt_id = self._next_id("r")
        if not TOKEN.fullmatch(token):
            raise DecodeError("token: expected 19-200 characters of base64url, got something else")
        self._write(format_respond(attempt_id, token, options))
        self._open[attempt_id] = _Wait(is_attempt=True)
        return attempt_id

    def deliver(self, attempt_id: str, token: str) -> list[Delivery]:
        """Hand a later token to an open attempt; one that is over, or a malformed token, is passed over."""
        wait = self._open.get(attempt_id)
        if wait is None:
            return []
        if not TOKEN.fullmatch(token):
            text = "expected 19-200 characters of base64url; not handed to the daemon"
            return [Delivery(attempt_id, Ignored(wait.round, wait.technique, Code.BAD_TOKEN, text))]
        self._write(format_respond(attempt_id, token))
        return []

    def cancel(self, attempt_id: str) -> None:
        """End an attempt early; news and its last answer still come. Does nothing when it is over."""
        wait = self._open.get(attempt_id)
        if wait is not None and not wait.cancelled:
            wait.cancelled = True
            self._write(format_request(Cancel(attempt_id)))

    def leave(self, request_id: str) -> None:
        """Nobody waits under this id any more: cancels an attempt or a probe that is still running."""
        wait = self._open.pop(request_id, None)
        if wait is not None:
            self._cancelled.add(request_id)
            if not wait.cancelled:
                self._write(format_request(Cancel(request_id)))

    def close(self) -> None:
        """This program closes the connection: nothing is awaited any more."""
        self._fail(partial(DaemonGoneError, "the connection to punchd was closed by this program"))

    def stall(self, unsent_bytes: int) -> None:
        """The daemon does not read: nothing more is awaited from it."""
        self._fail(partial(DaemonGoneError, f"punchd takes no more requests: {unsent_bytes} bytes wait to be sent"))

    @property
    def has_outgoing(self) -> bool:
        """Whether there is something to send."""
        return bool(self._outgoing)

    def take_outgoing(self) -> bytes:
        """The bytes to send now, in order; the caller has to send all of them."""
        data = bytes(self._outgoing)
        self._outgoing.clear()
        return data

    def take_surplus(self) -> list[int]:
        """Descriptors that belong to nobody; the caller has to close them."""
        surplus, self._surplus = self._surplus, []
        return surplus

    def _next_id(self, prefix: str) -> str:
        self._counter += 1
        return f"{prefix}{self._counter}"

    def _write(self, line: str) -> None:
        if not _LINE.fullmatch(line):
            raise DecodeError(f"request: expected 1-{MAX_LINE} printable characters, got {len(line)}: {line[:80]!r}")
        if self.failure is None:
            self._outgoing += line.encode("ascii") + b"\n"

    # --- answers ----------------------------------------------------------------------------------------------------

    def feed(self, data: bytes, descriptors: Sequence[int] = (), *, truncated: bool = False) -> list[Delivery]:
        """What one `recvmsg` returned. No data: the daemon has closed the connection.

        Args:
            data: any number of bytes, cut anywhere.
            descriptors: that came with them; the session owns them from here on.
            truncated: MSG_CTRUNC was set, descriptors were lost.

        Returns:
            What `data` completes, in order. If the connection breaks in the middle, `failure` is set and the list
            holds what came before.
        """
        if self.failure is not None:
            self._surplus += descriptors
            return []
        self._descriptors += descriptors
        if truncated:
            return self._break("lost descriptors: the kernel cut them off (MSG_CTRUNC; is RLIMIT_NOFILE reached?)")
        if not data:
            return self._fail(partial(DaemonGoneError, "punchd closed the connection: it was stopped, or it failed"))
        deliveries: list[Delivery] = []
        for line in self._splitter.feed(data):
            if isinstance(line, ProtocolError):
                return [*deliveries, *self._break(f"sent a line that is none: {line}")]
            deliveries += self._feed_line(line.decode("ascii"))
            if self.failure is not None:
                return deliveries
        if self._descriptors and data.endswith(b"\n"):
            return [*deliveries, *self._break(f"sent {len(self._descriptors)} descriptor(s) without an ok line")]
        return deliveries

    def _feed_line(self, line: str) -> list[Delivery]:
        try:
            answer = parse_answer(line)
        except DecodeError as error:
            return self._break(str(error))
        match answer:
            case OkHello():
                return self._last(HELLO_ID, answer)
            case OkProbe():
                return self._probed(answer)
            case Ok():
                return self._granted(answer)
            case Progress():
                return self._progress(answer)
            case Error():
                return self._error(answer)

    def _probed(self, answer: OkProbe) -> list[Delivery]:
        wait = self._open.get(answer.id)
        if wait is not None and wait.is_attempt:
            return self._break(f"answered attempt {answer.id} as if it were a probe")
        return self._last(answer.id, answer)

    def _granted(self, answer: Ok) -> list[Delivery]:
        if not self._descriptors:
            return self._break("sent an ok line without its descriptor")
        descriptor = self._descriptors.popleft()
        wait = self._open.get(answer.id)
        if wait is None or not wait.is_attempt:
            self._surplus.append(descriptor)
            return []
        if wait.cancelled:  # §4: the daemon was faster than the cancel; what it sent must be closed
            self._surplus.append(descriptor)
            text = "cancelled by the application; the socket that was already on its way is closed"
            return self._last(answer.id, Refused(Code.CANCELLED, text))
        return self._last(answer.id, Granted(answer, descriptor))

    def _progress(self, answer: Progress) -> list[Delivery]:
        wait = self._open.get(answer.id)
        if wait is None:
            if answer.id not in self._cancelled:
                self._cancelled.add(answer.id)
                self._write(format_request(Cancel(answer.id)))
            return []
        wait.round, wait.technique = answer.round, answer.technique
        return [Delivery(answer.id, _event(answer))]

    def _error(self, answer: Error) -> list[Delivery]:
        if answer.id is None:
            if HELLO_ID not in self._open:
                return self._fail(partial(RequestRefusedError, answer.code, answer.text))
            return self._last(HELLO_ID, None if answer.code in _NO_HELLO else Refused(answer.code, answer.text))
        self._cancelled.discard(answer.id)
        wait = self._open.get(answer.id)
        if wait is not None and wait.round and answer.code in _HARMLESS:
            return [Delivery(answer.id, Ignored(wait.round, wait.technique, answer.code, answer.text))]
        return self._last(answer.id, Refused(answer.code, answer.text))

    def _last(self, request_id: str, item: Item) -> list[Delivery]:
        """The final answer of an id; passed over when nobody waits for it."""
        return [Delivery(request_id, item)] if self._open.pop(request_id, None) is not None else []

    def _break(self, what: str) -> list[Delivery]:
        return self._fail(partial(DaemonProtocolError, f"punchd {what}"))

    def _fail(self, failure: Callable[[], ClientError]) -> list[Delivery]:
        self._surplus += self._descriptors
        self._descriptors.clear()
        self._outgoing.clear()
        self._open.clear()
        if self.failure is None:
            self.failure = failure
        return []


def _event(answer: Progress) -> Event:
    match answer.stage:
        case Stage.RELAY:
            return Relay(answer.round, answer.technique, answer.detail)
        case Stage.TRYING:
            return Trying(answer.round, answer.technique)
        case Stage.FAILED:
            return Failed(answer.round, answer.technique, answer.detail, answer.text)
        case Stage.IGNORED:
            return Ignored(answer.round, answer.technique, answer.detail, answer.text)
        case _:
            return News(answer.round, answer.technique, answer.stage, answer.detail)
