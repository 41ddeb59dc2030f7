"""The fast path takes what GRO brings exactly as the reference takes its datagrams one by one."""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from punchd.media.buffers import Memory
from punchd.media.bulk import Bulk
from punchd.media.counters import Count, Counters
from punchd.media.datagrams import ConnectionId, Media, SynAck, encode
from punchd.media.ends import Incoming
from punchd.media.initiator import Initiator
from punchd.media.receiving import Receiver
from punchd.media.sending import LogicalSend, plan
from punchd.media.settings import ReceiverSettings
from punchd.media.strides import Plain, Row, Strides, best
from punchd.media.strides_numpy import Columns
from tests.unit.media.parts import OTHER, PEER, A, B

STRIDES: tuple[Strides, ...] = (Plain(), Columns())
SMALL = ReceiverSettings(
    max_total=40_000, max_entries=3, max_reserved=1 << 17, max_intervals=2, remembered=8, reassembly_timeout_s=1.0,
    ordered=True, window_s=0.1, max_held=3,
)  # fmt: skip


@dataclass
class End:
    """A receiving end with an established session, and all that came out of it."""

    settings: ReceiverSettings
    strides: Strides | None
    heard: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.counters = Counters()
        self.memory = Memory(1 << 18)
        self.incoming = Incoming(
            Initiator(PEER, A, self.counters), Receiver(self.settings, self.memory, self.counters), self.counters
        )
        self.bulk = None if self.strides is None else Bulk(self.incoming, self.strides)
        self.note(*self.act(self.incoming.initiator.open(0.0)))
        self.note(*self.incoming.take(PEER, encode(SynAck(True, A)), 0.0))

    def act(self, actions: list[Any]) -> tuple[list[Any], tuple[()]]:
        return actions, ()

    def note(self, actions: Any, deliveries: Any) -> None:
        self.heard += [*actions, *[(one.sequence, one.take()) for one in deliveries]]

    def take(self, slot: bytes, segment: int, now: float, peer: object = PEER, *, is_spaced: bool = False) -> None:
        """`is_spaced`: each datagram was in a slot of its own."""
        if self.bulk is not None and is_spaced and segment:
            pieces = [slot[at : at + segment] for at in range(0, len(slot), segment)]
            spaced = b"".join(one.ljust(segment, b"?") + b"between" for one in pieces[:-1]) + b"".join(pieces[-1:])
            actions, deliveries = self.bulk.take(peer, memoryview(spaced), segment, now, distance=segment + 7)
        elif self.bulk is not None:
            actions, deliveries = self.bulk.take(peer, memoryview(slot), segment, now)
        else:
            actions, deliveries = [], []
            step = segment or len(slot) or 1
            for at in range(0, len(slot) or 1, step):  # an empty datagram is one
                more, complete = self.incoming.take(peer, memoryview(slot)[at : at + step], now)
                actions += more
                deliveries += complete
        # Actions and deliveries of one call have no order among each other.
        self.note(actions, deliveries)

    def state(self) -> Any:
        receiver = self.incoming.receiver
        return (
            self.heard,
            self.counters.named(),
            receiver.telemetry.report(),
            receiver.lost_earlier,
            len(receiver.recent),
            len(receiver.reassembly),
            receiver.reassembly.reserved,
            self.memory.reserved,
            self.incoming.next_timeout(),
            self.incoming.initiator.id,
        )


def ends(settings: ReceiverSettings) -> list[End]:
    """The reference first."""
    return [End(settings, None), *(End(settings, strides) for strides in STRIDES)]


def batches(sequence: int, payload: bytes, size: int, qpc: int = 1) -> list[list[bytearray]]:
    send = LogicalSend(sequence, payload, plan(len(payload), size))
    found = []
    while batch := send.batch(qpc):
        found.append(batch)
    return found


def slot_of(datagrams: list[Any]) -> tuple[bytes, int]:
    return b"".join(datagrams), len(datagrams[0])


@pytest.mark.parametrize("is_spaced", [False, True])
@pytest.mark.parametrize("strides", STRIDES, ids=lambda one: one.name)
@pytest.mark.parametrize("size", [1, 1157, 1174, 1175, 16_384, 65_536, 250_000])
def test_a_logical_send_of_any_length_arrives(strides: Strides, size: int, is_spaced: bool) -> None:
    end = End(ReceiverSettings(), strides)
    payload = random.Random(size).randbytes(size)
    for batch in batches(7, payload, 1200):
        end.take(*slot_of(batch), now=0.1, is_spaced=is_spaced)
    assert end.heard[-1] == (7, payload)
    assert end.counters[Count.COMPLETED] == 1
    assert end.memory.reserved == 0


@pytest.mark.parametrize("kind", [Plain, Columns])
def test_fragments_in_order_come_by_runs_and_not_one_by_one(
    kind: type[Plain | Columns], monkeypatch: pytest.MonkeyPatch
) -> None:
    gathered, gather = 0, kind.gather

    def count(self: Any, slot: memoryview, row: Row, place: memoryview) -> None:
        nonlocal gathered
        gathered += row.fragments
        gather(self, slot, row, place)

    monkeypatch.setattr(kind, "gather", count)
    end = End(ReceiverSettings(), kind())
    for batch in batches(7, bytes(60_000), 1400):
        end.take(*slot_of(batch), now=0.1)
    assert gathered == 45


@pytest.mark.parametrize("place", [0, 1, 2, 10, 17, 18, 25, 26, 33, 34, 41])
def test_a_header_that_differs_in_one_byte_has_the_effect_that_it_has_alone(place: int) -> None:
    [batch, *_] = batches(7, bytes(20_000), 1200)
    batch[5][place] ^= 4
    reference, *fast = ends(SMALL)
    for end in (reference, *fast):
        end.take(*slot_of(batch), now=0.1)
        assert end.state() == reference.state()


def chance(draw: random.Random) -> list[tuple[bytes, int, float, object]]:
    """Slots as a network, an implementation of another make, or somebody with bad intentions would bring them."""
    made: list[tuple[bytes, int, float, object]] = []
    pool: list[list[Any]] = []
    now = 0.1
    for sequence in range(draw.randint(1, 6)):
        total = draw.choice([0, 5, 700, 3_000, 9_000, 30_000, 60_000])
        size = draw.choice([43, 60, 100, 542, 1042]) if total < 9_000 else draw.choice([542, 1042])
        pool += batches(draw.choice([sequence, 1]), draw.randbytes(total), size, draw.choice([1, 1, sequence]))
    for _ in range(draw.randint(1, 12)):
        batch = [bytearray(one) for one in draw.choice(pool)]
        match draw.randrange(9):
            case 0:
                del batch[draw.randrange(len(batch))]
            case 1:
                batch[draw.randrange(len(batch))] = bytearray(draw.choice(draw.choice(pool)))
            case 2:
                draw.shuffle(batch)
            case 3:
                one = draw.choice(batch)
                one[draw.randrange(len(one[:45]))] ^= 1 << draw.randrange(8)
            case 4:
                batch += draw.choice(pool)
            case 5:
                batch.insert(draw.randint(0, len(batch)), bytearray(encode(ConnectionId(draw.choice([A, B])))))
            case 6:
                one = draw.choice(batch)
                at = draw.choice([18, 26, 34])
                if len(one) >= 42:
                    one[at : at + 8] = draw.choice([2**64 - 1, 2**63, 2**64 - 1042, 0, 39_999]).to_bytes(8, "little")
            case _:
                pass
        slot, segment = slot_of(batch) if batch else (b"", 0)
        made.append((slot, draw.choice([segment] * 8 + [0, 1, 41, 42, 43]), now, draw.choice([PEER] * 9 + [OTHER])))
        now += draw.choice([0, 0, 0.01, 0.2, 1.1])
    return made


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**64))
def test_msp_c44_msp_c48_whatever_comes_has_the_effect_that_it_has_one_by_one(seed: int) -> None:
    draw = random.Random(seed)
    slots = chance(draw)
    limits = replace(SMALL, ordered=draw.random() < 0.5, max_intervals=draw.choice([1, 2, 256]))
    reference, *fast = ends(limits)
    for slot, segment, now, peer in slots:
        spaced = draw.random() < 0.3
        for end in (reference, *fast):
            end.note(*end.incoming.handle_timeout(now))
            end.take(slot, segment, now, peer, is_spaced=spaced)
            assert end.state() == reference.state()


def test_a_batch_of_media_is_heard_once_and_stops_the_repeated_ack() -> None:
    end = End(ReceiverSettings(), Plain())
    assert end.incoming.next_timeout() == 0.5
    end.take(*slot_of(batches(7, bytes(20_000), 1200)[0]), now=0.1)
    assert end.incoming.next_timeout() == 15.0


@pytest.mark.parametrize("strides", STRIDES, ids=lambda one: one.name)
def test_d_31_a_batch_that_was_written_is_what_the_reference_writes(strides: Strides) -> None:
    draw = random.Random(5)
    for _ in range(60):
        total, size = draw.choice([20_000, 60_000, 5_790]), draw.choice([43, 500, 1200, 1400])
        payload = draw.randbytes(total)
        cut = plan(total, size)
        send, offset = LogicalSend(3, payload, cut), 0
        writer = strides.writer(65_507)
        while batch := send.batch(9):
            length = writer.fragments(3, 9, memoryview(payload), offset=offset, step=cut.step, count=len(batch))
            assert writer.buffer[:length] == b"".join(batch)
            offset += len(batch) * cut.step


@pytest.mark.parametrize("strides", STRIDES, ids=lambda one: one.name)
@pytest.mark.parametrize(("length", "size", "count"), [(0, 0, 1), (1, 1, 1), (1316 * 7, 1316, 7), (3000, 1316, 3)])
def test_sends_that_share_a_batch_have_numbers_of_their_own(
    strides: Strides, length: int, size: int, count: int
) -> None:
    pieces = random.Random(1).randbytes(length)
    writer = strides.writer(65_507)
    for _ in range(2):
        written = writer.wholes(2**64 - count, 5, memoryview(pieces), size, count)
        expected = [
            encode(Media(2**64 - count + number, 5, 10**9, memoryview(pieces)[number * size : number * size + size]))
            for number in range(count)
        ]
        assert writer.buffer[:written] == b"".join(expected)


def test_the_cap_of_the_process_is_that_of_the_reference() -> None:
    reference, *fast = ends(ReceiverSettings())
    for sequence in range(20):
        for batch in batches(sequence, bytes(100_000), 1400)[:1]:
            for end in (reference, *fast):
                end.take(*slot_of(batch), now=0.1)
                assert end.state() == reference.state()
    assert reference.counters[Count.EVICTIONS]


def test_a_number_that_is_held_back_and_that_deduplication_has_forgotten_is_a_duplicate() -> None:
    end = End(SMALL, Plain())
    for sequence in [0, 2**63, *range(1, 9), 2**63]:
        end.take(encode(Media(sequence, 0, 0, memoryview(b"x"))), 0, now=0.1)
    assert end.counters[Count.DUPLICATES] == 1
    end.note(*end.incoming.handle_timeout(1.0))
    assert [one[0] for one in end.heard if isinstance(one, tuple)] == [*range(9), 2**63]


@pytest.mark.parametrize(("is_there", "name"), [(True, "numpy"), (False, "stdlib")])
def test_numpy_is_used_where_it_is_installed(is_there: bool, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not is_there:
        monkeypatch.setitem(sys.modules, "punchd.media.strides_numpy", None)
    best.cache_clear()
    try:
        assert best().name == name
    finally:
        best.cache_clear()
