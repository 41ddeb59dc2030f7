"""Where much comes, a receiver lets it gather for a moment; nothing else is ever held up."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from punchd.media.naps import Naps
from tests.unit.media.pairs import WAYS, Pair, carried, session

MIB = 1 << 20


@pytest.mark.parametrize(
    ("room", "read", "passed_s", "is_due"),
    [
        pytest.param(8 * MIB, 2 * MIB, 0.001, True, id="16 Gbit/s and 8 MiB"),
        pytest.param(8 * MIB, 4 * MIB, 0.002, True, id="the same, looked at less often"),
        pytest.param(8 * MIB, 0, 0.001, False, id="nothing came"),
        pytest.param(8 * MIB, 100_000, 0.001, False, id="little comes"),
        pytest.param(8 * MIB, 2 * MIB, 0.1, False, id="much came, over a long time"),
        pytest.param(8 * MIB, 64_000, 0.00001, False, id="one batch, right after the last"),
        pytest.param(425_984, 2 * MIB, 0.001, False, id="the buffer of a kernel that was not told otherwise"),
        pytest.param(425_984, 300_000, 0.001, False, id="what would fill most of a buffer"),
        pytest.param(8 * MIB, 3 * MIB, 0.001, False, id="more than is safe"),
    ],
)
def test_a_nap_is_due_where_much_comes_and_there_is_room_for_more(
    room: int, read: int, passed_s: float, is_due: bool
) -> None:
    naps = Naps(room, 5.0)
    naps.note(read // 2)
    naps.note(read - read // 2)
    assert naps.is_due(5.0 + passed_s) == is_due


def test_each_nap_has_to_be_earned_anew() -> None:
    naps = Naps(8 * MIB, 0.0)
    naps.note(2 * MIB)
    assert naps.is_due(0.001)
    assert not naps.is_due(0.002)


@pytest.mark.parametrize("way", WAYS)
async def test_naps_go_by_what_came_however_it_came(way: str, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    async with session(pair, WAYS[way]) as (stream, initiator):
        noted: list[int] = []
        monkeypatch.setattr(Naps, "note", lambda _, size: noted.append(size))
        await carried(stream, initiator, [b"x" * 5000])
    assert 5000 < sum(noted) < 6 * 1200


async def test_a_receiver_that_naps_reads_what_has_gathered_and_can_be_called_meanwhile(
    pair: Pair, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    autojump_clock.autojump_threshold = 0.05
    async with session(pair) as (stream, initiator):
        monkeypatch.setattr("punchd.media.trio_initiator.NAP_S", 7.0)
        monkeypatch.setattr(Naps, "is_due", lambda *_: True)
        async with trio.open_nursery() as nursery:
            began_at = trio.current_time()
            nursery.start_soon(stream.send, b"x" * 5000)
            await trio.testing.wait_all_tasks_blocked()
            assert (await initiator.receive()).take() == b"x" * 5000
            assert trio.current_time() == began_at

            nursery.start_soon(initiator.receive_some)
            await trio.testing.wait_all_tasks_blocked()
            await stream.send(b"y" * 5000)
            await trio.sleep(6.9)
            assert initiator.counters.named()["completed"] == 1
            await trio.sleep(0.2)
            assert initiator.counters.named()["completed"] == 2

            nursery.start_soon(initiator.receive_some)
            await trio.testing.wait_all_tasks_blocked()
            named_at = trio.current_time()
            initiator.reidentify(b"anew")
        assert trio.current_time() == named_at
