"""One HTTP/1.1 connection of a client: h11 over a stream of trio's. Deadlines are its owner's matter."""

from __future__ import annotations

import h11
import trio

from punchd.web.client_http import Reply
from punchd.web.client_stream import Server, Stream, reason

HEAD_BYTES = 16_384
BODY_BYTES = 1 << 20  # five times 32 signals of 1 KiB whose every character is escaped

_READ_BYTES = 65_536

Fields = list[tuple[str, str]]


class Connection:
    """One TCP or TLS connection. Owns it."""

    def __init__(self, server: Server, stream: Stream) -> None:
        self._server = server
        self._stream = stream
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES)
        self._is_over = False  # the server will say no more
        self.has_heard = False  # anything of the answer to the last request

    @property
    def is_reusable(self) -> bool:
        """Whether another request may follow."""
        return self._http.our_state is h11.IDLE

    def close(self) -> None:
        self._stream.close()

    async def exchange(self, method: str, target: str, fields: Fields, body: bytes) -> Reply:
        """Send a request and read its answer.

        Raises:
            `Server.unreachable`, `Server.foreign`: there is none.
        """
        self.has_heard = False
        request = h11.Request(method=method, target=target, headers=fields)
        parts = (request, h11.Data(data=body), h11.EndOfMessage())
        try:
            await self._stream.send_all(b"".join(self._http.send(part) or b"" for part in parts))
            reply = await self._read()
        except (trio.BrokenResourceError, OSError) as error:
            raise self._server.unreachable(f"{self._server}: the connection broke: {reason(error)}") from None
        except h11.RemoteProtocolError as error:
            if self._is_over:
                ended = f"{self._server}: expected an answer, got the end of the connection"
                raise self._server.unreachable(ended) from None
            raise self._server.foreign(f"{self._server}: expected HTTP, got {str(error)[:100]}") from None
        if self._http.their_state is h11.DONE and not self._http.trailing_data[0]:
            self._http.start_next_cycle()
        return reply

    async def _read(self) -> Reply:
        head: h11.Response | None = None
        body = bytearray()
        while True:
            event = self._http.next_event()
            match event:
                case h11.Response():
                    head = event
                case h11.Data():
                    body += event.data
                    if len(body) > BODY_BYTES:
                        raise self._server.foreign(f"{self._server}: expected at most {BODY_BYTES} bytes, got more")
                case h11.EndOfMessage() if head is not None:
                    fields = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
                    return Reply(head.status_code, fields, bytes(body))
                case h11.NEED_DATA:
                    self._hear(await self._stream.receive_some(_READ_BYTES))
                case h11.InformationalResponse():  # the answer is still to come
                    pass
                case _:
                    raise self._server.foreign(f"{self._server}: expected an answer, got {type(event).__name__}")

    def _hear(self, data: bytes) -> None:
        if data and not self.has_heard and not data.startswith(b"HTTP/"[: len(data)]):
            hint = "" if self._server.url.is_tls else f"; maybe it is https://{self._server.url.authority}"
            raise self._server.foreign(f"{self._server}: expected HTTP, got {data[:20]!r}{hint}")
        self.has_heard = self.has_heard or bool(data)
        self._is_over = not data
        self._http.receive_data(data)
