"""A WebSocket client on a plain socket, which never waits: see `running.py`. Every frame that comes is held against the
schema of the server's messages."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable
from typing import Any

import trio
import trio.testing
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from punchd.broker import messages
from tests.unit.broker.contract import TAP
from tests.unit.broker.schema import check_server_message

ROUNDS = 400  # of waiting for what has to come
BUSY: list[Callable[[], bool]] = []  # whether a server waits for others than its clients


async def settle() -> None:
    """Until the server has done all that it can do now."""
    await trio.testing.wait_all_tasks_blocked(0.005)
    while any(is_busy() for is_busy in BUSY):
        await trio.sleep(0.001)
        await trio.testing.wait_all_tasks_blocked(0.005)


class Peer:
    """A WebSocket client: `websockets` for the protocol, a plain socket under it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.protocol = ClientProtocol(parse_uri("ws://broker.example/"), state=State.OPEN, max_size=None)
        self.texts: list[str] = []  # all that ever came
        self.pings = 0
        self.close_code: int | None = None  # that the server sent
        self.is_gone = False
        self._given = 0
        self._asked_to_close = False

    @property
    def is_open(self) -> bool:
        """Whether it may still speak."""
        return not self.is_gone and self.protocol.state is State.OPEN

    def say(self, kind: str, **members: Any) -> None:
        self.send(json.dumps({"type": kind, **members}))

    def send(self, text: str) -> None:
        self.protocol.send_text(text.encode())
        self._flush()

    def write(self, data: bytes) -> None:
        """Bytes as they are."""
        self.sock.sendall(data)

    def ping(self, data: bytes = b"") -> None:
        self.protocol.send_ping(data)
        self._flush()

    def close(self, code: int = 1000) -> None:
        self._asked_to_close = True
        self.protocol.send_close(code)
        self._flush()

    def cut(self) -> None:
        """Go without a word."""
        self.sock.close()

    async def heard(self) -> list[dict[str, Any]]:
        """What came since the last time, as members; the bare pong as {"type": "punch.pong"}."""
        await settle()
        self.pull()
        new, self._given = self.texts[self._given :], len(self.texts)
        return [{"type": text} if text == messages.PONG else json.loads(text) for text in new]

    async def kinds(self) -> list[str]:
        return [frame["type"] for frame in await self.heard()]

    async def ended(self) -> int | None:
        """The code of the close frame, once the server has closed the connection; None if there was no frame."""
        await settle()
        for _ in range(ROUNDS):
            self.pull()
            if self.is_gone:
                return self.close_code
            await settle()
        raise AssertionError("the connection is still open")

    def pull(self) -> None:
        """Read what is there, and answer pings and closes."""
        while not self.is_gone:
            try:
                data = self.sock.recv(65_536, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            TAP.sent(data)
            if not data:
                self.is_gone = True
                self.sock.close()
                return
            self.feed(data)

    def feed(self, data: bytes) -> None:
        self.protocol.receive_data(data)
        for event in self.protocol.events_received():
            if not isinstance(event, Frame):
                continue
            if event.opcode is Opcode.TEXT:
                text = bytes(event.data).decode()
                self.texts.append(text)
                members = {} if text == messages.PONG else check_server_message(text)
                if "passphrase" in members:
                    TAP.unlogged.add(members["passphrase"])
            elif event.opcode is Opcode.PING:
                self.pings += 1
            elif event.opcode is Opcode.CLOSE:
                self.close_code = int.from_bytes(event.data[:2], "big")
                if not self._asked_to_close:
                    TAP.close_codes.add(self.close_code)
        with contextlib.suppress(OSError):
            self._flush()

    def _flush(self) -> None:
        for data in self.protocol.data_to_send():
            if data:
                self.sock.sendall(data)
