"""Who may use the processor next: short rounds, and no waiting behind those who want much."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from time import perf_counter

import pytest
import trio
import trio.lowlevel
import trio.testing

from punchd.web.limits import Limits
from punchd.web.turns import AT_ONCE, CREDIT, HANDSHAKE_S, MOST, YOUNG_S, Turns
from punchd.web.websocket import WebSocket
from tests.unit.web.raw_websocket import OPENING, TEXT, frame
from tests.unit.web.site import PATIENCE_S, emptied, read_answer, serving
from tests.unit.web.test_websocket import upgrading

FLOODERS = 20
FLOOD = 30  # messages of each that wait


@pytest.fixture
def is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every round is, so that there is one turn in each, and none is had at once."""
    monkeypatch.setattr("punchd.web.turns.YOUNG_S", -1.0)
    monkeypatch.setattr("punchd.web.turns.AT_ONCE", 0)


def work() -> None:
    end = perf_counter() + YOUNG_S
    while perf_counter() < end:
        pass


async def want(turns: Turns, served: list[str], name: str, cost: int = 1) -> None:
    await turns.take(name.encode(), cost)
    served.append(name)


async def test_in_a_young_round_a_turn_is_had_at_once(nursery: trio.Nursery) -> None:
    turns = Turns()
    nursery.start_soon(turns.run)
    await trio.testing.wait_all_tasks_blocked()
    before = trio.lowlevel.current_statistics().tasks_runnable
    await turns.take(b"a")
    assert (len(turns), trio.lowlevel.current_statistics().tasks_runnable) == (0, before)


@pytest.mark.usefixtures("is_old")
async def test_where_nobody_gives_turns_they_are_had_at_once() -> None:
    turns = Turns()
    with trio.fail_after(PATIENCE_S):
        await turns.take(b"a", MOST)


@pytest.mark.usefixtures("is_old")
async def test_who_wants_little_is_served_before_the_rest_of_who_wants_much(nursery: trio.Nursery) -> None:
    turns, served = Turns(), list[str]()
    nursery.start_soon(turns.run)
    await trio.testing.wait_all_tasks_blocked()
    async with trio.open_nursery() as wishes:
        for _ in range(100):
            wishes.start_soon(want, turns, served, "much")
        await trio.lowlevel.checkpoint()
        wishes.start_soon(want, turns, served, "little")
    assert Counter(served) == {"much": 100, "little": 1}
    assert served.index("little") <= CREDIT + MOST


@pytest.mark.usefixtures("is_old")
async def test_heavy_work_pays_with_the_turns_of_its_source(nursery: trio.Nursery) -> None:
    turns, served = Turns(), list[str]()
    nursery.start_soon(turns.run)
    await trio.testing.wait_all_tasks_blocked()
    async with trio.open_nursery() as wishes:
        for _ in range(10):
            wishes.start_soon(want, turns, served, "heavy", MOST)
            for _ in range(10):
                wishes.start_soon(want, turns, served, "light")
    assert Counter(served) == {"heavy": 10, "light": 100}
    last_light = len(served) - 1 - served[::-1].index("light")
    heavy_before = served[:last_light].count("heavy")
    assert heavy_before <= 100 // MOST + 2, "as much work for both, as long as both want some"


@pytest.mark.usefixtures("is_old")
@pytest.mark.parametrize("sources", [1, 7])
async def test_all_are_served_however_many_and_heavy(nursery: trio.Nursery, sources: int) -> None:
    turns, served = Turns(), list[str]()
    nursery.start_soon(turns.run)
    await trio.testing.wait_all_tasks_blocked()
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as wishes:
            for number in range(300):
                wishes.start_soon(want, turns, served, str(number % sources), 1 + number % MOST)
    assert len(served) == 300
    assert len(turns) == 0


@pytest.mark.usefixtures("is_old")
async def test_who_gives_up_waiting_takes_no_turn(nursery: trio.Nursery) -> None:
    turns, served = Turns(), list[str]()
    nursery.start_soon(turns.run)
    await trio.testing.wait_all_tasks_blocked()
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as wishes, trio.open_nursery() as given_up:
            for _ in range(50):
                given_up.start_soon(want, turns, served, "a")
                wishes.start_soon(want, turns, served, "b")
            await trio.lowlevel.checkpoint()
            given_up.cancel_scope.cancel()
    assert served.count("b") == 50
    assert len(turns) == 0


@pytest.mark.usefixtures("is_old")
async def test_when_the_giving_ends_nobody_waits_on(nursery: trio.Nursery) -> None:
    turns, served = Turns(), list[str]()
    async with trio.open_nursery() as giving:
        giving.start_soon(turns.run)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(50):
            nursery.start_soon(want, turns, served, "a", MOST)
        await trio.lowlevel.checkpoint()
        giving.cancel_scope.cancel()
    with trio.fail_after(PATIENCE_S):
        while len(served) < 50:  # noqa: ASYNC110 (what is tested has no event)
            await trio.sleep(0.001)


@pytest.mark.usefixtures("is_old")
async def test_an_act_is_called_once_with_its_turn(nursery: trio.Nursery) -> None:
    turns, served = Turns(), list[int]()
    turns.call(b"a", lambda: served.append(-1))
    assert served == [-1], "at once, where nobody gives turns"
    nursery.start_soon(turns.run)
    await trio.testing.wait_all_tasks_blocked()
    for number in range(50):
        turns.call(b"a", partial(served.append, number))
    assert served == [-1]
    await trio.testing.wait_all_tasks_blocked()
    assert served == [-1, *range(50)]
    assert len(turns) == 0


async def test_in_an_old_round_the_first_few_sources_have_one_small_turn_at_once(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("punchd.web.turns.YOUNG_S", -1.0)
    turns, served = Turns(), list[str]()
    nursery.start_soon(turns.run)
    await trio.testing.wait_all_tasks_blocked()
    await trio.lowlevel.checkpoint()
    for name in ("a", "a", "b", *map(str, range(AT_ONCE + 1))):
        turns.call(name.encode(), partial(served.append, name))
    nursery.start_soon(want, turns, served, "heavy", MOST)
    assert served == ["a", "b", *map(str, range(AT_ONCE - 2))]
    assert len(turns) == 1 + 3, "a second one of the same source, and three sources too many"
    await trio.testing.wait_all_tasks_blocked()
    assert Counter(served) == {"a": 2, "b": 1, "heavy": 1} | dict.fromkeys(map(str, range(AT_ONCE + 1)), 1)
    for _ in range(100):
        turns.call(b"a", partial(served.append, "a"))
        await trio.lowlevel.checkpoint()
    assert served.count("a") == 102, "in a new round it may have one again"


async def shake(turns: Turns, begun: list[float]) -> None:
    await turns.take_handshake(b"a")
    begun.append(perf_counter())


async def test_between_two_handshakes_there_is_time_for_others(nursery: trio.Nursery) -> None:
    turns, begun = Turns(), list[float]()
    await shake(turns, begun)  # at once, where nobody gives turns
    nursery.start_soon(turns.run)
    await trio.testing.wait_all_tasks_blocked()
    async with trio.open_nursery() as wishes:
        for _ in range(20):
            wishes.start_soon(shake, turns, begun)
        await trio.lowlevel.checkpoint()
        begun_before = len(begun)
        await turns.take(b"b")
        assert len(begun) <= begun_before + 1, "other work does not wait for them"
    assert len(begun) == 21
    assert begun[-1] - begun[1] >= 18 * HANDSHAKE_S
    assert len(turns) == 0


async def test_a_handshake_of_a_quiet_source_does_not_wait_for_all_of_a_loud_one(nursery: trio.Nursery) -> None:
    turns, served = Turns(), list[str]()

    async def wish(name: str) -> None:
        await turns.take_handshake(name.encode())
        served.append(name)

    nursery.start_soon(turns.run)
    await trio.testing.wait_all_tasks_blocked()
    async with trio.open_nursery() as wishes:
        for _ in range(50):
            wishes.start_soon(wish, "loud")
        await trio.sleep(10 * HANDSHAKE_S)
        before = len(served)
        wishes.start_soon(wish, "quiet")
    assert served.index("quiet") - before <= CREDIT


async def test_a_client_with_one_message_does_not_wait_for_those_of_many_others() -> None:
    handled = Counter[str]()
    between = 0

    async def converse(ws: WebSocket) -> None:
        while True:
            text = await ws.receive()
            assert isinstance(text, str)
            handled[text] += 1
            work()
            if text == "one":
                ws.queue(text)

    async with serving(upgrading(converse, cancel_when_closed=True)) as site:

        async def opened(source: str) -> trio.SocketStream:
            stream = await trio.open_tcp_stream("127.0.0.1", site.port, local_address=source)
            await stream.send_all(OPENING + b"\r\n")
            await read_answer(stream)
            return stream

        flooders = [await opened(f"127.0.0.{2 + number % 4}") for number in range(FLOODERS)]
        polite = await opened("127.0.0.99")
        for stream in flooders:
            await stream.send_all(frame(TEXT, b"many") * FLOOD)
        while handled["many"] < FLOODERS:
            await trio.lowlevel.checkpoint()
        before = handled["many"]
        await polite.send_all(frame(TEXT, b"one"))
        with trio.fail_after(PATIENCE_S):
            await polite.receive_some(100)
        between = handled["many"] - before
        for stream in (*flooders, polite):
            await stream.aclose()
    assert handled["one"] == 1
    assert between < 2 * FLOODERS, f"{between} of others' messages came before it"


async def test_a_turn_to_write_that_comes_after_the_end_of_the_conversation_does_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    acts: list[Callable[[], None]] = []
    monkeypatch.setattr(Turns, "call", lambda _turns, _source, act: acts.append(act))

    async def converse(ws: WebSocket) -> None:
        ws.queue("x" * 10_000_000)
        await ws.wait_closed()

    async with serving(upgrading(converse), Limits(close_s=0.1)) as site:
        async with await site.connect() as stream:
            await stream.send_all(OPENING + b"\r\n")
            await read_answer(stream)
        await emptied(site)
        assert len(acts) == 1
        acts[0]()
