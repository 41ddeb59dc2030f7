"""Signals to calls, with a rendezvous server that is a few lists."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from punchd.punch import messages
from punchd.punch.mail import MOST_REJECTS, REJECT_S, Mailroom
from punchd.punch.messages import Bye, Code, Message, Ready, Reject
from punchd.punch.news import News
from punchd.rendezvous.client import IdentityLostError, PeerGoneError, RefusedError, Signal, UnreachableError
from tests.unit.punch.call_pair import TCP_CALL

ID, OTHER_ID = "0123456789abcdef", "fedcba9876543210"
A, B = b"a" * 16, b"b" * 16
FULL = b"f" * 16  # a client that does not fetch its signals: the server has others wait


class Service:
    """What `Rendezvous` looks like to a mailroom. Errors that are put in are raised."""

    def __init__(self) -> None:
        self.put, self._taken = trio.open_memory_channel[Any](100)
        self.sent: list[tuple[bytes, str]] = []
        self.send_error: Exception | None = None
        self.renew_errors: list[Exception] = []
        self.receptions = 0

    async def receive(self) -> Signal:
        self.receptions += 1
        found = await self._taken.receive()
        if isinstance(found, Exception):
            raise found
        return Signal(*found)

    async def send(self, client_id: bytes, text: str) -> None:
        await trio.lowlevel.checkpoint()
        if self.send_error is not None:
            raise self.send_error
        if client_id == FULL:
            await trio.sleep_forever()
        self.sent.append((client_id, text))

    async def renew(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.renew_errors:
            raise self.renew_errors.pop(0)


class Desk:
    """A running mailroom and what it did."""

    def __init__(self) -> None:
        self.service = Service()
        self.lines: list[str] = []
        self.calls: list[tuple[bytes, str]] = []
        self.mailroom = Mailroom(
            self.service,  # type: ignore[arg-type]
            News(self.lines.append),
            lambda sender, call_id, call, age_s: self.calls.append((sender, call_id)),
        )

    async def hear(self, sender: bytes, text: str, age_s: int = 0) -> None:
        self.service.put.send_nowait((sender, text, age_s))
        await trio.testing.wait_all_tasks_blocked()


@asynccontextmanager
async def desk() -> AsyncIterator[Desk]:
    async with trio.open_nursery() as nursery:
        found = Desk()
        nursery.start_soon(found.mailroom.run)
        yield found
        nursery.cancel_scope.cancel()


async def test_a_signal_reaches_its_call_and_no_other() -> None:
    async with desk() as one:
        heard: list[Message] = []
        with one.mailroom.box(A, ID, heard.append) as box:
            await one.hear(A, messages.encode(ID, Ready()))
            await one.hear(B, messages.encode(ID, Bye()))  # right id, wrong sender
            await one.hear(A, messages.encode(OTHER_ID, Bye()))
            await one.hear(A, "no signal of ours")
            await one.hear(A, messages.encode(ID, TCP_CALL))  # it came twice
            assert heard == [Ready(), TCP_CALL]
            box.peer = B
            await one.hear(B, messages.encode(ID, Bye()))
            assert heard == [Ready(), TCP_CALL, Bye()]
        await one.hear(B, messages.encode(ID, Bye()))
        assert len(heard) == 3
        assert one.calls == []


async def test_a_new_call_is_told_apart_and_one_of_a_newer_punch_is_rejected() -> None:
    async with desk() as one:
        await one.hear(A, messages.encode(ID, TCP_CALL))
        assert one.calls == [(A, ID)]
        await one.hear(A, messages.encode(OTHER_ID, TCP_CALL).replace('"v":1', '"v":2'))
        assert one.calls == [(A, ID)]
        ((receiver, text),) = one.service.sent
        call_id, found = messages.decode(text)
        assert (receiver, call_id) == (A, OTHER_ID)
        assert isinstance(found, Reject)
        assert found.code is Code.VERSION


async def test_a_caller_that_takes_no_answer_keeps_nobody_else_waiting(autojump_clock: trio.testing.MockClock) -> None:
    async with desk() as one:
        for _ in range(MOST_REJECTS + 10):
            await one.hear(FULL, messages.encode(OTHER_ID, TCP_CALL).replace('"v":1', '"v":2'))
        await one.hear(A, messages.encode(ID, TCP_CALL))
        assert one.calls == [(A, ID)]
        assert not one.mailroom.reject(A, ID, Reject(Code.BUSY, "x"))  # too many wait
        await trio.sleep((MOST_REJECTS + 1) * REJECT_S + 1)
        assert one.mailroom.reject(A, ID, Reject(Code.BUSY, "x"))
        await trio.testing.wait_all_tasks_blocked()
        assert [receiver for receiver, _ in one.service.sent] == [A]


async def test_what_is_posted_is_sent_or_lost_but_never_an_error() -> None:
    async with desk() as one:
        assert await one.mailroom.post(A, ID, Ready())
        assert one.service.sent == [(A, messages.encode(ID, Ready()))]
        for error, is_there in [
            (PeerGoneError("x"), False),
            (UnreachableError("x"), True),
            (RefusedError("x", 429, "RATE_LIMITED"), True),
            (IdentityLostError("x"), True),
        ]:
            one.service.send_error = error
            assert await one.mailroom.post(A, ID, Ready()) is is_there


async def test_a_lost_registration_is_renewed_until_it_works_and_questions_wait_for_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with desk() as one:
        started_at = trio.current_time()
        one.service.renew_errors = [UnreachableError("down"), UnreachableError("down")]
        failures = [IdentityLostError("lost")]

        async def question() -> str:
            await trio.lowlevel.checkpoint()
            if failures:
                raise failures.pop()
            return "yes"

        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                assert await one.mailroom.ask(question) == "yes"
                assert one.mailroom.renewals == 1

            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            one.service.put.send_nowait(IdentityLostError("lost"))
        assert trio.current_time() - started_at == pytest.approx(1.5)  # half a second, then a whole one
        assert "punch: registered again" in one.lines
        await one.hear(A, messages.encode(ID, TCP_CALL))  # and it goes on
        assert one.calls == [(A, ID)]


async def test_trouble_with_the_server_is_told_once_and_does_not_spin(autojump_clock: trio.testing.MockClock) -> None:
    async with desk() as one:
        for _ in range(20):
            one.service.put.send_nowait(RefusedError("not today", 403, "NO"))
        await trio.sleep(5.1)
        assert one.service.receptions <= 12
        assert len([line for line in one.lines if "not today" in line]) == 1


@pytest.mark.parametrize("is_json", [False, True])
def test_news_are_one_line_each(is_json: bool) -> None:
    lines: list[str] = []
    news = News(lines.append, is_json).of_call(ID, is_one_of_many=True)
    news.say("trying", "trying udp", technique="udp")
    News(lines.append, is_json, is_quiet=True).say("trying", "trying udp")
    News(lines.append, is_json, is_quiet=True).fail(3, "no server")
    if is_json:
        assert lines == [
            f'{{"event": "trying", "call": "{ID}", "technique": "udp"}}',
            '{"event": "error", "code": 3, "text": "no server"}',
        ]
    else:
        assert lines == ["punch: [0123] trying udp", "punch: no server"]
