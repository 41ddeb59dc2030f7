"""A connection to Redis or Valkey: commands go out, answers come in their order, and messages between them (RESP3).

Theory of operation. Redis answers in the order in which it was asked, so a queue of those who wait is all that has to
be kept. What is asked while nobody waits is written at once. What is asked while others wait is written by a task, all
of it that came together in one write; and answers that came in one read are all given out before anybody goes on. So
under load many commands share a system call and a turn of the event loop.

Nobody has a timer. A task looks now and then who waits longest: if that is the same one for ANSWER_S, the connection
is given up, and with it all that wait. Turns are counted and not time, so that a process that had to wait for its
processor has read what came meanwhile before it gives anything up.

coredis' parser reads. What coredis 6.9.0 has above that does not serve here: its pool loses a place for each caller
that is cancelled while it connects, and the iteration over messages can end without an error after a reconnect. Its
bare connection takes queues and cancel scopes for each command: with it two brokers told 200 pairs a second of each
other within 16 to 49 ms, with this within 10 to 15 ms (99th percentile, same machine, `./dev bench broker-redis`).

Source: RESP3 (https://github.com/redis/redis-specifications/blob/master/protocol/RESP3.md); Redis commands HELLO,
SUBSCRIBE.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from typing import Any

import trio
from coredis.constants.resp import DataType
from coredis.exceptions import ConnectionError as LostError
from coredis.parser import NotEnoughData, Parser

Word = bytes | int | str

ANSWER_S = 1.5  # for a command and its answer; requests are to fail within 2 s
LOOKS = 6  # within that, at who waits longest

_READ_BYTES = 65_536


class Connection:
    """Over a stream, which it owns. `run` keeps it until it is lost.

    Args:
        hear: called with each message on a channel.
    """

    def __init__(self, stream: trio.abc.Stream, hear: Callable[[bytes], None]) -> None:
        self._stream = stream
        self._fd = stream.socket.fileno() if isinstance(stream, trio.SocketStream) else None  # without TLS
        self._is_writing = False
        self._hear = hear
        self._parser = Parser()
        self._asked: deque[_Question] = deque()
        self._unwritten: list[bytes] = []
        self._has_unwritten = trio.Event()
        self._reason: BaseException | None = None  # why it is over
        self._is_over = False

    async def ask(self, *words: Word) -> Any:
        """The answer to a command. Cancelled, the command may take place all the same.

        Raises:
            LostError: the connection ended before there was one.
            RedisError: the command was refused.
        """
        if self._is_over:
            raise _lost(self._reason)
        data, question = pack(words), _Question()
        if not self._asked:
            data = self._write_at_once(data)
        self._asked.append(question)
        if data:
            self._unwritten.append(data)
            self._has_unwritten.set()
        await question.is_answered.wait()
        answer = question.answer
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async def run(self) -> None:
        """Until it is lost, or cancelled.

        Raises:
            LostError, trio.BrokenResourceError, RedisError, trio.TooSlowError: why it is lost, maybe in groups.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read)
                nursery.start_soon(self._write)
                nursery.start_soon(self._look)
        except Exception as error:
            self._reason = error
            raise
        finally:
            self._is_over, self._fd = True, None
            for question in self._asked:
                question.give(_lost(self._reason))
            self._asked.clear()
            await trio.aclose_forcefully(self._stream)

    async def _read(self) -> None:
        while True:
            data = await self._stream.receive_some(_READ_BYTES)
            if not data:
                raise LostError("the connection ended")
            try:
                self._take(bytes(data))
            except (ValueError, IndexError):  # no number where one stands in RESP
                raise LostError("expected the answers of a Redis") from None

    def _take(self, data: bytes) -> None:
        self._parser.feed(data)
        while not isinstance(found := self._parser.parse(), NotEnoughData):
            kind, answer = found
            match answer:
                case [b"message", _, bytes(message)] if kind == DataType.PUSH:
                    self._hear(message)
                case [name, *_] if kind == DataType.PUSH and name != b"subscribe":
                    pass
                case _ if self._asked:  # a SUBSCRIBE is answered by a push, or by an error
                    self._asked.popleft().give(answer)
                case _:
                    raise LostError("expected the answers of a Redis, got one to no question")

    def _write_at_once(self, data: bytes) -> bytes:
        """What the kernel does not take of it."""
        if self._fd is None or self._unwritten or self._is_writing:
            return data
        try:
            return data[os.write(self._fd, data) :]
        except OSError:  # full, or broken: the writer will see
            return data

    async def _write(self) -> None:
        while True:
            await self._has_unwritten.wait()
            self._has_unwritten = trio.Event()
            data, self._unwritten = b"".join(self._unwritten), []
            self._is_writing = True
            await self._stream.send_all(data)
            self._is_writing = False

    async def _look(self) -> None:
        first, seen = None, 0
        while seen < LOOKS:
            await trio.sleep(ANSWER_S / LOOKS)
            longest = self._asked[0] if self._asked else None
            seen = seen + 1 if longest is first is not None else 0
            first = longest
        raise trio.TooSlowError


class _Question:
    __slots__ = ("answer", "is_answered")

    def __init__(self) -> None:
        self.is_answered = trio.Event()
        self.answer: Any = None

    def give(self, answer: Any) -> None:
        self.answer = answer
        self.is_answered.set()


def pack(words: tuple[Word, ...]) -> bytes:
    """A command, as RESP has it: an array of strings."""
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        text = word if isinstance(word, bytes) else str(word).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(text), text))
    return b"".join(parts)


def _lost(reason: BaseException | None) -> LostError:
    error = LostError("the connection was lost")
    error.__cause__ = reason
    return error
