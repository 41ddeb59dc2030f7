"""A WebSocket client that speaks bytes, so that it can break every rule (RFC 6455 §5.2)."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from tests.unit.web.site import PATIENCE_S, Site

OPENING = (
    b"GET /ws HTTP/1.1\r\nHost: test\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
_MASK = b"\x01\x02\x03\x04"


def frame(opcode: int, data: bytes = b"", *, fin: bool = True, rsv: int = 0, masked: bool = True) -> bytes:
    first = (0x80 if fin else 0) | rsv << 4 | opcode
    bit = 0x80 if masked else 0
    if len(data) < 126:
        head = struct.pack("!BB", first, bit | len(data))
    elif len(data) < 65536:
        head = struct.pack("!BBH", first, bit | 126, len(data))
    else:
        head = struct.pack("!BBQ", first, bit | 127, len(data))
    if not masked:
        return head + data
    return head + _MASK + bytes(byte ^ _MASK[index % 4] for index, byte in enumerate(data))


def closing(code: int, reason: bytes = b"") -> bytes:
    return frame(CLOSE, struct.pack("!H", code) + reason)


@dataclass
class RawSocket:
    """After the handshake."""

    stream: trio.SocketStream
    answer: bytes
    buffer: bytearray = field(default_factory=bytearray)

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def frame(self) -> tuple[int, bytes] | None:
        """(opcode, payload) of the next frame; None at the end of the connection. An RST is a failure."""
        with trio.fail_after(PATIENCE_S):
            if not await self._has(2):
                return None
            assert self.buffer[0] & 0xF0 == 0x80, "whole frames without extensions"
            size, start = self.buffer[1], 2
            if size == 126:
                assert await self._has(4)
                size, start = int.from_bytes(self.buffer[2:4], "big"), 4
            elif size == 127:
                assert await self._has(10)
                size, start = int.from_bytes(self.buffer[2:10], "big"), 10
            assert await self._has(start + size)
            opcode, data = self.buffer[0] & 0x0F, bytes(self.buffer[start : start + size])
            del self.buffer[: start + size]
            return opcode, data

    async def close_code(self) -> int:
        """Of the close frame that comes next; after it the server closes the connection."""
        got = await self.frame()
        assert got is not None
        assert got[0] == CLOSE
        await self.stream.send_eof()
        assert await self.frame() is None
        return int.from_bytes(got[1][:2], "big") if got[1] else 1005

    async def _has(self, size: int) -> bool:
        while len(self.buffer) < size:
            data = await self.stream.receive_some(65_536)
            if not data:
                return False
            self.buffer += data
        return True


@asynccontextmanager
async def raw_websocket(site: Site, fields: bytes = b"", rest: bytes = b"") -> AsyncIterator[RawSocket]:
    """`rest` goes with the handshake."""
    async with await site.connect() as stream:
        await stream.send_all(OPENING + fields + b"\r\n" + rest)
        head = bytearray()
        with trio.fail_after(PATIENCE_S):
            while not head.endswith(b"\r\n\r\n"):
                more = await stream.receive_some(1)
                assert more, bytes(head)
                head += more
        assert head.startswith(b"HTTP/1.1 101 "), bytes(head)
        yield RawSocket(stream, bytes(head))
