"""A broker that says whatever a test wants, for its clients: the n-th connection gets the n-th script."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol

from punchd.broker.client import Broker, Event, Register

TOKEN = "p_abc.def~/+"  # noqa: S105 (no secret)
PATIENCE_S = 30.0  # of real time; generous, since the machine may be busy

PEER = {
    "type": "peer", "stream": "wide", "ip": "192.0.2.7", "port": 6000, "localPort": 5000,
    "passphrase": "a-passphrase-of-some-length", "latency": 200,
}  # fmt: skip
SESSION = {
    "type": "session", "state": "READY", "streams": {"wide": {"state": "READY", "peers": 2}},
    "connected": 2, "total": 2,
}  # fmt: skip
CLOSED = {"type": "session_closed", "reason": "admin_closed"}


class Conversation:
    """One connection of a client."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.protocol = ServerProtocol(max_size=None)
        self.request: Request
        self.pings = 0
        self.close_code: int | None = None  # that the client sent
        self._frames: list[Frame] = []

    async def read_request(self) -> Request:
        while True:
            for event in await self._more():
                if isinstance(event, Request):
                    self.request = event
                    return event

    async def read_http(self) -> bytes:
        """The head of a request that is no upgrade."""
        head = b""
        while b"\r\n\r\n" not in head:
            head += await self.stream.receive_some(65_536)
        return head

    async def accept(self, version: str | None = "1.0.0") -> None:
        """Answer the upgrade with 101."""
        response = self.protocol.accept(await self.read_request())
        if version is not None:
            response.headers["Punch-Version"] = version
        self.protocol.send_response(response)
        await self._flush()

    async def refuse(self, status: int, code: str, **fields: str) -> None:
        await self.read_request()
        await self.answer(status, json.dumps({"error": code, "message": "no", "code": code}).encode(), **fields)

    async def answer(self, status: int, body: bytes, **fields: str) -> None:
        """Anything that looks like HTTP."""
        lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
        await self.stream.send_all("\r\n".join([*lines, "", ""]).encode() + body)

    async def say(self, *messages: Any) -> None:
        """Texts as they are, anything else as JSON."""
        for message in messages:
            self.protocol.send_text((message if isinstance(message, str) else json.dumps(message)).encode())
        await self._flush()

    async def hear(self) -> str:
        """The next text of the client; "" if it is gone."""
        while True:
            while self._frames:
                frame = self._frames.pop(0)
                if frame.opcode is Opcode.TEXT:
                    return bytes(frame.data).decode()
                if frame.opcode is Opcode.PING:
                    self.pings += 1
                if frame.opcode is Opcode.CLOSE:
                    self.close_code = int.from_bytes(frame.data[:2], "big")
            if self.close_code is not None:
                return ""
            events = await self._more()
            if events is None:
                return ""
            self._frames += [event for event in events if isinstance(event, Frame)]

    async def heard(self) -> Any:
        """The same, as JSON."""
        return json.loads(await self.hear())

    async def close(self, code: int | None) -> None:
        """With a close frame (None: one without a code), and TCP after it."""
        self.protocol.send_close(code)
        await self._flush()
        while await self.hear():
            pass

    async def _more(self) -> Any:
        data = await self.stream.receive_some(65_536)
        if not data:
            return None
        self.protocol.receive_data(data)
        await self._flush()
        return self.protocol.events_received()

    async def _flush(self) -> None:
        await self.stream.send_all(b"".join(self.protocol.data_to_send()))


Script = Callable[[Conversation], Awaitable[None]]


@asynccontextmanager
async def fake(*scripts: Script, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """Its URL. What a script leaves open is cut; after the last script nobody answers."""
    listener = (await trio.open_tcp_listeners(port, host=host))[0]
    port = listener.socket.getsockname()[1]

    async def serve(nursery: trio.Nursery) -> None:
        async with listener:
            for script in scripts:
                nursery.start_soon(converse, await listener.accept(), script)

    async def converse(stream: trio.SocketStream, script: Script) -> None:
        async with stream:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await script(Conversation(stream))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, nursery)
        yield f"http://{f'[{host}]' if ':' in host else host}:{port}"
        nursery.cancel_scope.cancel()


async def events(url: str, *, token: str = TOKEN) -> list[Event]:
    """All that a peer is told until the session is over."""
    async with (
        Broker.open(url) as broker,
        broker.join("show", token, register=Register(port=5000)) as joined,
    ):
        return [event async for event in joined]


def saying(*messages: Any) -> Script:
    """Takes a peer, says that, and closes the session."""

    async def script(at: Conversation) -> None:
        await at.accept()
        assert (await at.heard())["type"] == "register"
        await at.say(*messages, CLOSED)
        await at.hear()

    return script
