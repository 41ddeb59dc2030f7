"""The shell around a call's machine, with attempts that are scripts, real sockets, signals in a list, virtual time."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from typing import Any

import pytest
import trio
import trio.testing

from punchd.client.errors import AttemptError, DaemonGoneError
from punchd.client.events import Connected, Event, Failed, Relay, Trying
from punchd.control.requests import Protocol
from punchd.endpoint import Endpoint
from punchd.punch import calls
from punchd.punch.conductor import Conductor, Means
from punchd.punch.hole import Hole, Secured
from punchd.punch.messages import Bye, Call, Code, Message, Ready, Reject, Token
from punchd.punch.news import News
from punchd.punch.outcomes import EndedError, Exit
from punchd.punch.tls import BrokenHandshakeError, RejectedError, UnsafeError
from tests.unit.punch.call_pair import PLAIN_CALL, TCP_CALL, token

Step = Event | Connected[Any] | Exception | float  # a float: seconds to wait
PLACE = Endpoint(IPv4Address("192.0.2.1"), 40000)


class Attempt:
    """Plays its steps, and keeps what is delivered."""

    def __init__(self, steps: list[Step]) -> None:
        self.steps, self.delivered = steps, list[str]()

    def deliver(self, text: str) -> None:
        self.delivered.append(text)

    async def __aiter__(self) -> AsyncIterator[Any]:
        for step in self.steps:
            await trio.sleep(step if isinstance(step, float) else 0.01)
            if isinstance(step, Exception):
                raise step
            if not isinstance(step, float):
                yield step


class Scene:
    """A conductor with scripted attempts, one after the other.

    Attributes:
        posted: signals that were sent.
        opened: attempts that were started, with the offers that they follow.
    """

    def __init__(self, call: Call = TCP_CALL, *scripts: list[Step]) -> None:
        self.call = call
        self.posted: list[Message] = []
        self.opened: list[tuple[str | None, Attempt]] = []
        self.sockets: list[trio.socket.SocketType] = []
        self.secure: Callable[[Connected[Any]], Awaitable[Secured]] = self._secure
        self.post: Callable[[Message], Awaitable[None]] = self._post
        self.lines: list[str] = []
        self._scripts = list(scripts)
        self._far: list[trio.socket.SocketType] = []

    def connected(self, protocol: Protocol = Protocol.TCP) -> Connected[Any]:
        near, far = trio.socket.socketpair()
        self.sockets.append(near)
        self._far.append(far)
        return Connected(near, "tcp-syni", protocol, PLACE, PLACE)

    def connector(self) -> tuple[Conductor, Callable[[], Awaitable[Hole]]]:
        side = calls.Connector(self.call, trio.current_time(), 45.0)
        conductor = Conductor(side, self._means(), News(self.lines.append))
        return conductor, lambda: conductor.run(side.begin(trio.current_time()))

    def listener(self) -> tuple[Conductor, Callable[[], Awaitable[Hole]]]:
        side = calls.Listener(self.call, trio.current_time(), 45.0)
        conductor = Conductor(side, self._means(), News(self.lines.append))
        return conductor, lambda: conductor.run(side.begin())

    def close(self) -> None:
        for sock in (*self.sockets, *self._far):
            sock.close()

    def _means(self) -> Means:
        return Means(Protocol.TCP, self.post, self._attempt, self.secure)

    @asynccontextmanager
    async def _attempt(self, offer: str | None) -> AsyncIterator[Any]:
        found = Attempt(self._scripts.pop(0))
        self.opened.append((offer, found))
        yield found

    async def _post(self, message: Message) -> None:
        await trio.lowlevel.checkpoint()
        self.posted.append(message)

    async def _secure(self, connected: Connected[Any]) -> Secured:
        await trio.sleep(0.1)
        return Secured()


async def play(run: Callable[[], Awaitable[Hole]], at: dict[float, Callable[[], object]]) -> Hole | EndedError:
    """What comes of it, when things are done at these times."""
    started_at = trio.current_time()
    found: list[Hole | EndedError] = []
    with trio.fail_after(300):
        async with trio.open_nursery() as nursery:

            async def conduct() -> None:
                try:
                    found.append(await run())
                except EndedError as error:
                    found.append(error)
                nursery.cancel_scope.cancel()

            nursery.start_soon(conduct)
            for when, what in at.items():
                await trio.sleep_until(started_at + when)
                what()
            await trio.sleep(math.inf)
    return found[0]


def ended(found: Hole | EndedError) -> tuple[Exit, str]:
    assert isinstance(found, EndedError)
    return found.code, str(found)


OFFER, ANSWER = token("offer1"), token("answer1")


async def test_a_connector_calls_follows_the_offer_and_has_a_hole(autojump_clock: trio.testing.MockClock) -> None:
    scene = Scene(TCP_CALL)
    scene._scripts.append([Trying(1, "tcp-syni"), Relay(1, "tcp-syni", ANSWER), 0.5, scene.connected()])
    conductor, run = scene.connector()
    found = await play(run, {0.1: lambda: conductor.take(Token(OFFER)), 0.3: lambda: conductor.take(Token("note" * 5))})
    assert isinstance(found, Hole)
    assert found.connected.socket.fileno() >= 0
    assert scene.posted == [TCP_CALL, Token(ANSWER)]
    ((offer, attempt),) = scene.opened
    assert (offer, attempt.delivered) == (OFFER, ["note" * 5])
    assert scene.lines == ["punch: trying tcp-syni (round 1)"]
    scene.close()


async def test_a_listener_initiates_and_tokens_that_come_first_wait(autojump_clock: trio.testing.MockClock) -> None:
    scene = Scene(TCP_CALL)
    scene._scripts.append([Relay(1, "tcp-syni", OFFER), 1.0, scene.connected()])
    side = calls.Listener(TCP_CALL, trio.current_time(), 45.0)
    conductor = Conductor(side, scene._means(), News(scene.lines.append))
    found = await play(lambda: conductor.run(side.begin(), [Token(ANSWER)]), {})
    assert isinstance(found, Hole)
    assert scene.opened[0][1].delivered == [ANSWER]
    assert scene.posted == [Token(OFFER)]
    scene.close()


async def test_a_call_that_was_given_up_while_it_waited_for_its_turn_is_not_punched(
    autojump_clock: trio.testing.MockClock,
) -> None:
    scene = Scene(TCP_CALL, [Relay(1, "tcp-syni", OFFER)])
    side = calls.Listener(TCP_CALL, trio.current_time(), 45.0)
    conductor = Conductor(side, scene._means(), News(scene.lines.append))
    found = await play(lambda: conductor.run(side.begin(), [Bye()]), {})
    assert ended(found) == (Exit.NO_CONNECTION, "the other side has given up")
    assert (scene.opened, scene.posted) == ([], [])


async def test_a_plain_call_is_confirmed_by_ready_both_ways(autojump_clock: trio.testing.MockClock) -> None:
    scene = Scene(PLAIN_CALL)
    scene._scripts.append([scene.connected()])
    conductor, run = scene.listener()

    def hear() -> None:
        for message in (Ready(), Bye()):
            conductor.take(message)

    found = await play(run, {0.5: hear})
    assert isinstance(found, Hole)
    assert scene.posted == [Ready()]
    assert found.late == [Bye()]  # for the talk that begins now
    scene.close()


@pytest.mark.parametrize(
    ("failure", "code", "text"),
    [
        (AttemptError("exhausted", "nothing worked"), Exit.NO_CONNECTION, "exhausted: nothing worked"),
        (DaemonGoneError("punchd has gone"), Exit.DAEMON, "punchd has gone"),
        (EndedError(Exit.DAEMON, "no technique"), Exit.DAEMON, "no technique"),
    ],
)
async def test_an_attempt_that_fails_ends_the_call_and_the_other_side_hears_of_it(
    autojump_clock: trio.testing.MockClock, failure: Exception, code: Exit, text: str
) -> None:
    scene = Scene(TCP_CALL, [Failed(1, "tcp-syni", "timeout"), failure])
    _, run = scene.listener()
    assert ended(await play(run, {})) == (code, text)
    assert scene.posted == ([Bye()] if isinstance(failure, EndedError) else [Reject(Code.FAILED, text)])


async def test_a_token_that_is_no_offer_is_no_failure(autojump_clock: trio.testing.MockClock) -> None:
    scene = Scene(TCP_CALL, [AttemptError("bad-token", "no offer")])
    scene._scripts.append([Trying(1, "tcp-syni"), scene.connected()])
    conductor, run = scene.connector()
    found = await play(run, {0.1: lambda: conductor.take(Token(ANSWER)), 0.2: lambda: conductor.take(Token(OFFER))})
    assert isinstance(found, Hole)
    assert [offer for offer, _ in scene.opened] == [ANSWER, OFFER]
    scene.close()


async def test_an_offer_after_success_replaces_the_socket(autojump_clock: trio.testing.MockClock) -> None:
    scene = Scene(TCP_CALL)
    first, second = scene.connected(), scene.connected()
    scene._scripts += [[Trying(1, "tcp-syni"), first], [Trying(2, "tcp-nutss"), 0.2, second]]

    async def secure(connected: Connected[Any]) -> Secured:
        if connected is first:
            await connected.socket.recv(1)  # TLS that waits for a side that has given this socket up
        return Secured()

    scene.secure = secure
    conductor, run = scene.connector()
    late = token("offer2")
    found = await play(run, {0.1: lambda: conductor.take(Token(OFFER)), 1.0: lambda: conductor.take(Token(late))})
    assert isinstance(found, Hole)
    assert found.connected is second
    assert first.socket.fileno() < 0
    scene.close()


@pytest.mark.parametrize(
    ("failure", "code", "after_s"),
    [
        (UnsafeError("another key"), Exit.NO_CONNECTION, 0.0),
        (RejectedError(Reject(Code.NOT_ALLOWED, "no")), Exit.REFUSED, 0.0),
        (BrokenHandshakeError("reset"), Exit.NO_CONNECTION, calls.LATE_OFFER_S),
        (OSError("reset"), Exit.NO_CONNECTION, calls.LATE_OFFER_S),
    ],
)
async def test_what_is_wrong_with_the_other_side_is_told_and_the_socket_is_closed(
    autojump_clock: trio.testing.MockClock, failure: Exception, code: Exit, after_s: float
) -> None:
    scene = Scene(TCP_CALL)
    scene._scripts.append([Trying(1, "tcp-syni"), scene.connected()])

    async def secure(connected: Connected[Any]) -> Secured:
        raise failure

    scene.secure = secure
    conductor, run = scene.connector()
    started_at = trio.current_time()
    assert ended(await play(run, {0.1: lambda: conductor.take(Token(OFFER))})) == (code, str(failure))
    assert trio.current_time() - started_at == pytest.approx(after_s, abs=0.3)
    assert scene.sockets[0].fileno() < 0
    scene.close()


async def test_a_socket_of_the_wrong_protocol_is_none(autojump_clock: trio.testing.MockClock) -> None:
    scene = Scene(TCP_CALL)
    scene._scripts.append([scene.connected(Protocol.UDP)])
    _, run = scene.listener()
    assert ended(await play(run, {}))[1] == "tcp-syni gives no TCP connection"
    assert scene.sockets[0].fileno() < 0
    scene.close()


async def test_cancelled_it_says_goodbye_and_leaves_no_socket(autojump_clock: trio.testing.MockClock) -> None:
    scene = Scene(TCP_CALL)
    scene._scripts.append([Trying(1, "tcp-syni"), scene.connected()])
    closed: list[bool] = []

    async def secure(connected: Connected[Any]) -> Secured:
        try:
            await trio.sleep_forever()
        finally:
            closed.append(True)
        raise AssertionError

    scene.secure = secure
    conductor, run = scene.connector()
    with trio.move_on_after(5):
        await play(run, {0.1: lambda: conductor.take(Token(OFFER))})
    assert scene.posted == [TCP_CALL, Bye()]
    assert scene.sockets[0].fileno() < 0
    assert closed == [True]
    scene.close()


async def test_a_server_that_does_not_take_signals_holds_up_nothing(autojump_clock: trio.testing.MockClock) -> None:
    scene = Scene(TCP_CALL)
    scene._scripts.append([Relay(1, "tcp-syni", OFFER), scene.connected()])

    async def post(message: Message) -> None:
        await trio.sleep_forever()

    scene.post = post
    _, run = scene.listener()
    started_at = trio.current_time()
    assert isinstance(await play(run, {}), Hole)
    assert trio.current_time() - started_at < 3.0
    scene.close()


async def test_whoever_is_not_there_ends_the_call_at_once(autojump_clock: trio.testing.MockClock) -> None:
    scene = Scene(TCP_CALL)

    async def post(message: Message) -> None:
        await trio.lowlevel.checkpoint()
        raise EndedError(Exit.NOT_ONLINE, "not online")

    scene.post = post
    _, run = scene.connector()
    assert ended(await play(run, {})) == (Exit.NOT_ONLINE, "not online")
