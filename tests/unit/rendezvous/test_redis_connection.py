"""The connection to Redis, against a Redis of a few lines: what is written when, and who hears what when it is over."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from coredis.exceptions import ConnectionError as LostError
from coredis.exceptions import ResponseError
from coredis.typing import RedisError
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, memory_stream_pair

from punchd.redis.connection import ANSWER_S, LOOKS, Connection, Word, pack

Far = trio.abc.Stream


@asynccontextmanager
async def connected(heard: list[bytes] | None = None) -> AsyncIterator[tuple[Connection, Far]]:
    """A connection that runs, and the stream of whoever is Redis."""
    near, far = memory_stream_pair()
    connection = Connection(near, (heard if heard is not None else []).append)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        yield connection, far
        nursery.cancel_scope.cancel()


@given(st.lists(st.one_of(st.binary(max_size=300), st.integers(-(2**63), 2**63), st.text(max_size=20)), min_size=1))
def test_a_command_is_an_array_of_strings(words: list[Word]) -> None:
    rest, found = pack(tuple(words)), []
    head, _, rest = rest.partition(b"\r\n")
    assert head == b"*%d" % len(words)
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        end = int(size.removeprefix(b"$"))
        found.append(rest[:end])
        assert rest[end : end + 2] == b"\r\n"
        rest = rest[end + 2 :]
    assert found == [one if isinstance(one, bytes) else str(one).encode() for one in words]


async def test_answers_go_to_those_who_asked_in_their_order_and_messages_to_nobody_of_them() -> None:
    heard: list[bytes] = []
    answers: dict[int, object] = {}
    async with connected(heard) as (connection, far):

        async def ask(number: int) -> None:
            try:
                answers[number] = await connection.ask(b"GET", number)
            except ResponseError as error:
                answers[number] = str(error)

        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(ask, number)
                await trio.testing.wait_all_tasks_blocked()
            asked = b""
            while asked.count(b"GET") < 4:
                asked += await far.receive_some()
            whole = b"+a\r\n>3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$5\r\nhello\r\n-ERR no\r\n*2\r\n:1\r\n$-1\r\n_\r\n"
            for at in range(len(whole)):
                await far.send_all(whole[at : at + 1])
    assert answers == {0: b"a", 1: "no", 2: [1, None], 3: None}
    assert heard == [b"hello"]


async def say(far: Far, answer: bytes) -> None:
    """After somebody has asked. Nothing is its end."""
    await trio.testing.wait_all_tasks_blocked()
    if answer:
        await far.send_all(answer)
    else:
        await far.aclose()


async def test_a_subscription_is_answered_by_a_push_and_a_refused_one_by_an_error() -> None:
    async with connected() as (connection, far), trio.open_nursery() as nursery:
        nursery.start_soon(say, far, b">3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n")
        assert await connection.ask(b"SUBSCRIBE", b"c") == [b"subscribe", b"c", 1]
        nursery.start_soon(say, far, b"-NOPERM no\r\n")
        with pytest.raises(RedisError, match="no"):
            await connection.ask(b"SUBSCRIBE", b"c")


async def test_who_does_not_wait_any_more_takes_nobodys_answer() -> None:
    async with connected() as (connection, far), trio.open_nursery() as nursery:
        with trio.move_on_after(0):
            await connection.ask(b"GET", b"a")
        nursery.start_soon(say, far, b"+a\r\n+b\r\n")
        assert await connection.ask(b"GET", b"b") == b"b"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "the connection ended"),
        (b"HTTP/1.1 400 Bad Request\r\n", "Unknown RESP data type"),
        (b"$x\r\n", "expected the answers of a Redis"),
        (b"+a\r\n+b\r\n", "got one to no question"),
    ],
)
async def test_all_that_wait_hear_of_its_end_and_so_does_who_comes_later(answer: bytes, reason: str) -> None:
    near, far = memory_stream_pair()
    connection = Connection(near, lambda _message: None)
    found: list[object] = []

    async def run() -> None:
        with pytest.RaisesGroup(pytest.RaisesExc(RedisError, match=reason)):
            await connection.run()

    async def ask() -> None:
        try:
            found.append(await connection.ask(b"GET", b"a"))
        except LostError as error:
            found.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        for _ in range(1 if answer[:1] == b"+" else 3):
            nursery.start_soon(ask)
        nursery.start_soon(say, far, answer)
    lost = [one for one in found if isinstance(one, LostError)]
    assert found == ([b"a"] if answer[:1] == b"+" else lost)
    with pytest.raises(LostError):
        await connection.ask(b"GET", b"a")


async def test_it_is_given_up_when_one_waits_for_too_long_and_not_while_answers_come(autojump_clock: MockClock) -> None:
    near, far = memory_stream_pair()
    connection = Connection(near, lambda _message: None)

    async def answer() -> None:
        for _ in range(10):
            await trio.sleep(ANSWER_S - 0.1)
            await far.send_all(b"+a\r\n")

    async with trio.open_nursery() as nursery:

        async def run() -> None:
            with pytest.RaisesGroup(trio.TooSlowError):
                await connection.run()

        nursery.start_soon(run)
        nursery.start_soon(answer)
        for _ in range(10):
            assert await connection.ask(b"GET", b"a") == b"a"
        await trio.sleep(100)
        begun = trio.current_time()
        with pytest.raises(LostError):
            await connection.ask(b"GET", b"a")
        assert ANSWER_S <= trio.current_time() - begun <= ANSWER_S * (1 + 1 / LOOKS) + 0.001


async def test_what_the_kernel_does_not_take_at_once_follows_in_order() -> None:
    one, other = socket.socketpair()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    near, far = (trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in (one, other))
    connection = Connection(near, lambda _message: None)
    wanted = b"".join(pack((b"SET", number, b"x" * 100_000)) for number in range(5))
    async with trio.open_nursery() as nursery, far:
        nursery.start_soon(connection.run)
        for number in range(5):
            nursery.start_soon(connection.ask, b"SET", number, b"x" * 100_000)
            await trio.testing.wait_all_tasks_blocked()
        got = bytearray()
        while len(got) < len(wanted):
            got += await far.receive_some()
        assert bytes(got) == wanted
        await far.send_all(b"+OK\r\n" * 5)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
