"""A client of the session broker for benches: it speaks bytes, so that it costs the other core little."""

from __future__ import annotations

import json
import socket
import ssl
from functools import cache
from typing import Any

HOST = b"Host: bench\r\n"


def frame(text: str) -> bytes:
    """A text frame, masked with zeros; of at most 65,535 bytes."""
    data = text.encode()
    size = bytes([0x80 | len(data)]) if len(data) < 126 else b"\xfe" + len(data).to_bytes(2, "big")
    return b"\x81" + size + bytes(4) + data


CLOSE = b"\x88\x82" + bytes(4) + (1000).to_bytes(2, "big")
PING = b"\x89\x80" + bytes(4)
PONG = b"\x8a\x80" + bytes(4)
KEEP_ALIVE = frame("punch.ping")


def opening(session: str, token: str) -> bytes:
    return (
        f"GET /api/ws/{session}?t={token} HTTP/1.1\r\nHost: bench\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ).encode()


def register(port: int) -> bytes:
    return frame(json.dumps({"type": "register", "port": port}))


class Frames:
    """The server's bytes after its 101, taken apart: (opcode, payload)."""

    def __init__(self, *, is_open: bool = False) -> None:
        self._data = bytearray()
        self._is_open = is_open  # the 101 was read

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        self._data += data
        if not self._is_open:
            end = self._data.find(b"\r\n\r\n")
            if end < 0:
                return []
            if not self._data.startswith(b"HTTP/1.1 101"):
                raise ConnectionError(f"no WebSocket: {bytes(self._data[:300])!r}")
            del self._data[: end + 4]
            self._is_open = True
            return [(0, b""), *self._frames()]
        return self._frames()

    def _frames(self) -> list[tuple[int, bytes]]:
        found = []
        while len(self._data) >= 2:
            size, start = self._data[1], 2
            if size == 126:
                size, start = int.from_bytes(self._data[2:4], "big"), 4
            if len(self._data) < start + size:
                break
            found.append((self._data[0] & 15, bytes(self._data[start : start + size])))
            del self._data[: start + size]
        return found


class Peer:
    """One WebSocket of a blocking client."""

    def __init__(self, sock: socket.socket, session: str, token: str) -> None:
        self.sock = sock
        self._frames = Frames()
        self._heard: list[tuple[int, bytes]] = []
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(opening(session, token))

    def opened(self) -> None:
        """Wait for the 101."""
        self._until(lambda opcode, _: opcode == 0)

    def until(self, kind: str) -> None:
        """Wait for a message of this type; those before it are dropped."""
        mark = f'"type":"{kind}"'.encode()
        self._until(lambda _, data: mark in data)

    def closed(self) -> None:
        """Wait for the server's close frame, and close."""
        self._until(lambda opcode, _: opcode == 8)
        self.sock.close()

    def _until(self, wanted: Any) -> None:
        while True:
            while self._heard:
                if wanted(*self._heard.pop(0)):
                    return
            data = self.sock.recv(65_536)
            if not data:
                raise ConnectionError("the server closed the connection")
            self._heard = self._frames.feed(data)
            if any(opcode == 9 for opcode, _ in self._heard):
                self.sock.sendall(PONG)


class Http:
    """Creates sessions over one connection."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def create(self, name: str, **members: Any) -> dict[str, Any]:
        """A session; the body of the answer."""
        body = json.dumps({"name": name, **members}).encode()
        fields = b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        self._sock.sendall(b"POST /api/session HTTP/1.1\r\n" + HOST + fields + body)
        head, body = read_answer(self._sock)
        if not head.startswith(b"HTTP/1.1 201"):
            raise ConnectionError(f"no session: {head!r} {body!r}")
        return dict(json.loads(body))


def read_answer(sock: socket.socket) -> tuple[bytes, bytes]:
    """Head and body of an answer that has a Content-Length."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += sock.recv(65_536) or _ended(data)
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
    while len(body) < length:
        body += sock.recv(65_536) or _ended(data)
    return head, body


def _ended(data: bytes) -> bytes:
    raise ConnectionError(f"the server closed after {data[:300]!r}")


@cache
def trusting() -> ssl.SSLContext:
    """For a server whose certificate nobody signed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
