"""One WebSocket connection of a client: the protocol of `websockets`, without its I/O, over a stream of trio's.

The token goes in the field Authorization, which no proxy logs. A broker that does not look there (401) gets it as
seed 000 §6.1 has it, in the query.

Frames are bounded, so is what waits to be written; what is not taken by the network for WRITE_S ends the connection.
No compression is offered, no redirect followed.

Source: RFC 6455 §4.1, §5, §7; seed 000 §6.1; broker specification B-050, C-40.
"""

from __future__ import annotations

import logging
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import quote

import trio
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.uri import parse_uri

from punchd import __version__
from punchd.broker import client_answers, client_version
from punchd.broker.client_errors import BrokerError
from punchd.broker.server_messages import RESERVED_CLOSE_CODES
from punchd.web.client_http import retry_after_s
from punchd.web.client_stream import Server, Stream, connect, reason

if TYPE_CHECKING:
    import ssl

MAX_MESSAGE_BYTES = 65_536  # a broker's longest, a `peer` with its `meta`, has 5 KiB
OPEN_S = 10.0
WRITE_S = 20.0
READ_BYTES = 16_384
MOST_UNSENT_BYTES = 65_536  # beyond, whoever speaks waits, and nothing is read that would have to be answered

_library_log = logging.getLogger("punchd.broker.frames")
_library_log.setLevel(logging.CRITICAL)  # below that it logs payloads


class Link:
    """A connection. Owns its stream: `close` it.

    Attributes:
        ip_version: 4 or 6, which it uses.
        close_code: of the broker's close frame; None if there was none.
        why: in a few words, once it is over.
    """

    def __init__(self, server: Server, stream: Stream, protocol: ClientProtocol) -> None:
        self._server = server
        self._stream = stream
        self._protocol = protocol
        peer = ip_address(stream.tcp.socket.getpeername()[0].partition("%")[0])
        self.ip_version = 4 if peer.version == 4 or peer.ipv4_mapped else 6
        self.close_code: int | None = None
        self.why = ""
        self._outbox = bytearray()
        self._changed = trio.lowlevel.ParkingLot()
        self._message = bytearray()  # fragments of one that is not whole
        self._is_text = False

    @classmethod
    async def open(
        cls,
        server: Server,
        tls: ssl.SSLContext | None,
        path: str,
        token: str,
        *,
        in_query: bool,
        ip_version: int | None,
    ) -> Link:
        """A conversation.

        Args:
            path: of the WebSocket, without the token.
            in_query: where the token stands.

        Raises:
            BrokerError: it cannot be had.
        """
        with trio.move_on_after(OPEN_S):
            stream = await connect(server, tls, ip_version)
            try:
                return cls(server, stream, await _shake_hands(server, stream, path, token, in_query=in_query))
            except OSError as error:  # it ended before it could be asked for its address
                stream.close()
                raise server.unreachable(f"{server}: the connection broke: {reason(error)}") from None
            except BaseException:
                stream.close()
                raise
        raise server.unreachable(f"{server}: expected a WebSocket within {OPEN_S:g} s, got none")

    def close(self) -> None:
        """At once."""
        self._stream.close()
        self._outbox.clear()
        self._changed.unpark_all()

    @property
    def unsent(self) -> int:
        """Bytes that wait."""
        return len(self._outbox)

    def send(self, text: str) -> None:
        """Queue a text frame; nothing, if the connection is about to end."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_text(text.encode())
            self._flush()

    def ping(self) -> None:
        """Queue a ping."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_ping(b"")
            self._flush()

    def hang_up(self) -> None:
        """Queue a close frame, 1000. `receive` goes on until the broker's has come."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(1000)
            self._flush()

    async def drain(self) -> None:
        """Until nothing waits to be written, or it is closed."""
        while self._outbox:
            await self._changed.park()

    async def write(self) -> None:
        """Write what waits, again and again, until the connection breaks."""
        try:
            while True:
                while not self._outbox:
                    await self._changed.park()
                data = bytes(self._outbox)
                with trio.move_on_after(WRITE_S) as scope:
                    await self._stream.send_all(data)
                if scope.cancelled_caught:
                    self._over(f"the broker took nothing for {WRITE_S:g} s")
                    return
                del self._outbox[: len(data)]
                self._changed.unpark_all()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._over(f"the connection broke: {reason(error)}")

    async def receive(self) -> list[str | bytes | None]:
        """What came: texts, bytes of binary messages, None for frames of other kinds. Nothing: it is over."""
        while True:
            found = self._take()
            if found or self.why:
                return found
            while len(self._outbox) > MOST_UNSENT_BYTES:
                await self._changed.park()
            try:
                data = await self._stream.receive_some(READ_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                self._over(f"the connection broke: {reason(error)}")
                return []
            if data:
                self._protocol.receive_data(data)
            else:
                self._protocol.receive_eof()
                self._over("the broker closed the connection without a word")

    def _take(self) -> list[str | bytes | None]:
        found: list[str | bytes | None] = []
        for event in self._protocol.events_received():
            if isinstance(event, Frame) and not self.why:
                self._hear(event, found)
        error = self._protocol.parser_exc
        if error is not None and not self.why:
            self.why = f"expected WebSocket frames of at most {MAX_MESSAGE_BYTES} bytes, got {str(error)[:100]}"
        self._flush()
        return found

    def _hear(self, frame: Frame, found: list[str | bytes | None]) -> None:
        match frame.opcode:
            case Opcode.CLOSE:
                received = self._protocol.close_rcvd
                # 1005: a frame without a code.
                self.close_code = None if received is None or received.code == 1005 else int(received.code)
                self.why = f"the broker closed the connection ({_in_words(self.close_code)})"
                return
            case Opcode.TEXT | Opcode.BINARY:
                self._is_text, self._message = frame.opcode is Opcode.TEXT, bytearray(frame.data)
            case Opcode.CONT:
                self._message += frame.data
            case _:
                found.append(None)
                return
        if not frame.fin:
            found.append(None)
            return
        data, self._message = self._message, bytearray()
        try:
            found.append(data.decode() if self._is_text else bytes(data))
        except UnicodeDecodeError:
            self.why = "expected text in UTF-8, got other bytes"
            self._protocol.fail(1007)

    def _over(self, why: str) -> None:
        self.why = self.why or why

    def _flush(self) -> None:
        self._outbox += b"".join(self._protocol.data_to_send())
        if self._outbox:
            self._changed.unpark_all()


async def _shake_hands(server: Server, stream: Stream, path: str, token: str, *, in_query: bool) -> ClientProtocol:
    url = server.url
    target = f"{url.prefix}{path}" + (f"?t={quote(token, safe='')}" if in_query else "")
    uri = parse_uri(f"{'wss' if url.is_tls else 'ws'}://{url.authority}{target}")
    protocol = ClientProtocol(uri, max_size=MAX_MESSAGE_BYTES, logger=_library_log)
    request = protocol.connect()
    request.headers["User-Agent"] = f"punchd/{__version__}"
    if not in_query:
        request.headers["Authorization"] = f"Bearer {token}"
    protocol.send_request(request)
    try:
        await stream.send_all(b"".join(protocol.data_to_send()))
        head = b""
        while protocol.state is State.CONNECTING and protocol.handshake_exc is None:
            data = await stream.receive_some(READ_BYTES)
            head = head or data[:20]
            if head and not head.startswith(b"HTTP/"[: len(head)]):
                hint = "" if url.is_tls else f"; maybe it is https://{url.authority}"
                raise server.foreign(f"{server}: expected HTTP, got {head!r}{hint}")
            if data:
                protocol.receive_data(data)
            else:
                protocol.receive_eof()
    except trio.BrokenResourceError as error:
        raise server.unreachable(f"{server}: the connection broke: {reason(error)}") from None
    failure = protocol.handshake_exc
    if failure is not None:
        raise _refused(server, failure)
    _check_version(server, protocol)
    return protocol


def _check_version(server: Server, protocol: ClientProtocol) -> None:
    """Of the answer, which is the first event; those that follow it are kept."""
    events = protocol.events_received()
    for event in events:
        if isinstance(event, Response):
            client_version.check(str(server), _fields(event).get(client_version.FIELD))
    protocol.events[:0] = [event for event in events if not isinstance(event, Response)]


def _refused(server: Server, failure: Exception) -> BrokerError:
    if isinstance(failure, InvalidStatus):
        fields = _fields(failure.response)
        after_s = retry_after_s(fields["retry-after"]) if "retry-after" in fields else None
        body = bytes(failure.response.body or b"")
        who = f"{server}: WebSocket"
        return client_answers.refusal(who, failure.response.status_code, fields, body, retry_after_s=after_s)
    cause = failure.__cause__
    if isinstance(cause, EOFError):
        ended = f"{server}: expected an answer, got the end of the connection"
        return _broker_error(server.unreachable(ended))
    got = str(cause or failure)[:100]
    return _broker_error(server.foreign(f"{server}: expected a WebSocket, got {got}"))


def _broker_error(error: Exception) -> BrokerError:
    assert isinstance(error, BrokerError)  # noqa: S101 (what the client's Server makes)
    return error


def _fields(response: Response) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.raw_items()}


def _in_words(code: int | None) -> str:
    if code is None:
        return "no code"
    return f"{code}, {RESERVED_CLOSE_CODES[code]}" if code in RESERVED_CLOSE_CODES else str(code)
