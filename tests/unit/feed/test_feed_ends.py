"""`punch media` over sockets of loopback, in one process."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from punchd.errors import ConfigError
from punchd.feed import ending
from punchd.feed.options import ReceiveOptions, SendOptions
from punchd.feed.receive import receive
from punchd.feed.send import send
from punchd.media.datagrams import ConnectionId, Datagram, Media, Syn, SynAck, encode, parse
from punchd.media.trio_initiator import Initiator
from punchd.punch.news import News
from punchd.punch.outcomes import EndedError, Exit
from tests.unit.media.pairs import QUICK, connected, until

FAST = SendOptions(None, 100e6, None, 1200)


class Told:
    """News as programs see them."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.news = News(lambda line: self.events.append(json.loads(line)), is_json=True)

    def last(self, name: str) -> dict[str, Any]:
        return [event for event in self.events if event["event"] == name][-1]


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with ExitStack() as stack:
        yield connected(stack)


async def test_a_file_and_its_end(pair: tuple[socket.socket, socket.socket], tmp_path: Path) -> None:
    here, there, sent, came = Told(), Told(), tmp_path / "sent", tmp_path / "came"
    sent.write_bytes(os.urandom(1_000_003))
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            chosen = SendOptions(str(sent), 100e6, None, 1200)
            nursery.start_soon(partial(send, pair[0], chosen, here.news, is_punched=True))
            nursery.start_soon(receive, pair[1], ReceiveOptions(str(came), 0.2, 30.0), there.news)
    assert came.read_bytes() == sent.read_bytes()
    for told in (here, there):
        total = told.last("total")
        assert (total["bytes"], total["logical_sends"], total["lost"]) == (1_000_003, 62, 0)
        assert total["goodput_bps"] > 0
        assert "warning" not in [event["event"] for event in told.events]


async def test_an_empty_file_is_an_end_too(pair: tuple[socket.socket, socket.socket], tmp_path: Path) -> None:
    told, came = Told(), tmp_path / "came"
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            chosen = SendOptions("/dev/null", 1e6, None, 1200)
            nursery.start_soon(partial(send, pair[0], chosen, told.news, is_punched=True))
            nursery.start_soon(receive, pair[1], ReceiveOptions(str(came), 0.2, 30.0), Told().news)
    assert came.read_bytes() == b""
    assert told.last("total")["lost"] == 0


async def test_a_sender_of_another_make_without_an_end_is_an_error_and_what_came_is_there(
    pair: tuple[socket.socket, socket.socket], tmp_path: Path
) -> None:
    came = tmp_path / "came"

    async def answer() -> None:
        await trio.lowlevel.wait_readable(pair[0])
        syn = parse(pair[0].recv(100))
        assert isinstance(syn, Syn)
        pair[0].send(encode(SynAck(True, syn.desired)))
        for number in range(3):
            pair[0].send(encode(Media(number, 0, 0, memoryview(b"%d" % number))))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            with pytest.raises(EndedError, match="nothing was heard for too long") as caught:
                await receive(pair[1], ReceiveOptions(str(came), 0.1, 0.5), Told().news)
    assert caught.value.code is Exit.BROKEN
    assert came.read_bytes() == b"012"


async def test_a_receiver_says_again_what_came_if_its_answer_was_lost(
    pair: tuple[socket.socket, socket.socket], tmp_path: Path
) -> None:
    told = Told()

    async def answer() -> None:
        await trio.lowlevel.wait_readable(pair[0])
        syn = parse(pair[0].recv(100))
        assert isinstance(syn, Syn)
        end = ConnectionId(ending.end(3))
        media: list[Datagram] = [SynAck(True, syn.desired), Media(7, 0, 0, memoryview(b"x")), end, end]
        for datagram in media:
            pair[0].send(encode(datagram))
            await trio.sleep(0.1)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            await receive(pair[1], ReceiveOptions(str(tmp_path / "came"), 0.1, 30.0), told.news)
    pair[0].setblocking(False)
    names = []
    while True:
        try:
            found = parse(pair[0].recv(100))
        except BlockingIOError:
            break
        names += [found.id] if isinstance(found, ConnectionId) else []
    assert names.count(ending.got(1)) >= 2
    assert ending.GIVEN_UP not in names
    assert told.last("total")["lost"] == 2
    assert told.last("warning")["text"] == "2 of 3 logical sends were lost"


async def test_a_receiver_of_another_make_that_does_not_answer_the_end_costs_a_warning(
    pair: tuple[socket.socket, socket.socket], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ending, "ANSWER_S", 0.3)
    told, file = Told(), tmp_path / "sent"
    file.write_bytes(b"all of it")
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            chosen = SendOptions(str(file), 1e6, None, 1200)
            nursery.start_soon(partial(send, pair[0], chosen, told.news, is_punched=True))
            async with Initiator.open(pair[1]) as initiator:
                assert (await initiator.receive()).take() == b"all of it"
                assert list(await initiator.receive_some()) == []
                assert ending.read_end(initiator.id) == 1
                await trio.sleep(0.5)
    assert "has not said" in told.last("warning")["text"]
    assert told.last("total")["lost"] is None


@pytest.mark.parametrize("side", ["sender", "receiver"])
async def test_who_gives_up_says_so_and_the_other_one_ends(
    pair: tuple[socket.socket, socket.socket], side: str, tmp_path: Path
) -> None:
    here, there, came = Told(), Told(), tmp_path / "came"
    reading, writing = os.pipe()
    os.write(writing, b"x" * 1000)
    is_cancelled = False

    async def cancelled_once_it_has_come(use: Any) -> None:
        nonlocal is_cancelled
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(use)
                await until(lambda: came.exists() and came.stat().st_size == 1000)
                scope.cancel()
        is_cancelled = scope.cancelled_caught

    chosen = SendOptions(f"/dev/fd/{reading}", 1e6, None, 1200)
    sender = partial(send, pair[0], chosen, here.news, is_punched=True)
    receiver = partial(receive, pair[1], ReceiveOptions(str(came), 0.05, 30.0), there.news)
    one, other = (sender, receiver) if side == "sender" else (receiver, sender)
    try:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cancelled_once_it_has_come, one)
                with pytest.raises(EndedError, match="the other side has given up") as caught:
                    await other()
    finally:
        os.close(reading)
        os.close(writing)
    assert is_cancelled
    assert caught.value.code is Exit.BROKEN
    assert came.read_bytes() == b"x" * 1000


async def test_a_full_disk_ends_both_sides(pair: tuple[socket.socket, socket.socket], tmp_path: Path) -> None:
    sent = tmp_path / "sent"
    sent.write_bytes(bytes(400_000))
    failures = []

    async def fails(use: Any) -> None:
        with pytest.raises(EndedError) as caught:
            await use()
        failures.append((caught.value.code, str(caught.value)))

    chosen = SendOptions(str(sent), 1e6, None, 1200)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fails, partial(send, pair[0], chosen, Told().news, is_punched=True))
            nursery.start_soon(fails, partial(receive, pair[1], ReceiveOptions("/dev/full", 0.05, 30.0), Told().news))
    assert failures == [
        (Exit.BROKEN, "writing failed: No space left on device"),
        (Exit.BROKEN, "the other side has given up"),
    ]


async def test_a_sender_has_one_receiver_and_refuses_another(tmp_path: Path) -> None:
    with ExitStack() as stack:
        here, *others = (stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(3))
        here.bind(("127.0.0.1", 0))
        for sock in others:
            sock.connect(here.getsockname())
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                chosen = replace(FAST, source="/dev/zero")
                nursery.start_soon(partial(send, here, chosen, Told().news, is_punched=False))
                async with Initiator.open(others[0]) as initiator:
                    assert (await initiator.receive()).payload.nbytes > 0
                    with pytest.raises(EndedError, match="refused it: busy") as caught:
                        await receive(others[1], ReceiveOptions(str(tmp_path / "came"), 0.2, 30.0), Told().news)
                    nursery.cancel_scope.cancel()
        assert caught.value.code is Exit.REFUSED


async def test_a_file_is_not_touched_before_somebody_sends(
    pair: tuple[socket.socket, socket.socket], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("punchd.feed.receive.Timing", lambda idle_s: QUICK)
    file = tmp_path / "of yesterday"
    file.write_bytes(b"precious")
    with pytest.raises(EndedError, match="does not answer") as caught:
        await receive(pair[1], ReceiveOptions(str(file), 0.05, 30.0), Told().news)
    assert caught.value.code is Exit.NOT_ONLINE
    assert file.read_bytes() == b"precious"


async def test_a_file_that_cannot_be_written_ends_both_sides(pair: tuple[socket.socket, socket.socket]) -> None:
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:

            async def take() -> None:
                with pytest.raises(ConfigError, match="/proc/version/x: "):
                    await receive(pair[1], ReceiveOptions("/proc/version/x", 0.05, 30.0), Told().news)

            nursery.start_soon(take)
            with pytest.raises(EndedError, match="the other side has given up"):
                await send(pair[0], replace(FAST, source="/dev/null"), Told().news, is_punched=True)


async def test_a_side_that_has_done_does_not_say_that_it_gives_up(
    pair: tuple[socket.socket, socket.socket], tmp_path: Path
) -> None:
    file = tmp_path / "sent"
    names: list[bytes] = []
    file.write_bytes(b"all of it")
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            chosen = SendOptions(str(file), 1e6, None, 1200)
            nursery.start_soon(partial(send, pair[0], chosen, Told().news, is_punched=True))
            async with Initiator.open(pair[1]) as initiator:
                await initiator.receive()
                while not names or ending.read_end(names[-1]) is None:
                    await initiator.receive_some()
                    names.append(initiator.id)
                initiator.reidentify(ending.got(1))
                with trio.move_on_after(0.5):
                    await initiator.receive_some()
                names.append(initiator.id)
    assert names[-1] == ending.got(1)


async def test_a_receiver_that_goes_away_is_an_error(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("punchd.feed.send.IDLE_S", 0.3)
    reading, writing = os.pipe()
    try:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:

                async def ask() -> None:
                    async with Initiator.open(pair[1]):
                        pass

                nursery.start_soon(ask)
                chosen = SendOptions(f"/dev/fd/{reading}", 1e6, None, 1200)
                os.write(writing, b"x" * 1000)
                monkeypatch.setattr("punchd.feed.send.READ_SIZE", 1)
                with pytest.raises(EndedError, match="nothing was heard for too long") as caught:
                    await send(pair[0], chosen, Told().news, is_punched=True)
        assert caught.value.code is Exit.BROKEN
    finally:
        os.close(reading)
        os.close(writing)


async def test_a_hole_through_which_nobody_asks_is_no_connection(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("punchd.feed.send.ASKED_S", 0.1)
    with pytest.raises(EndedError, match="nobody has asked") as caught:
        await send(pair[0], FAST, Told().news, is_punched=True)
    assert caught.value.code is Exit.NO_CONNECTION
