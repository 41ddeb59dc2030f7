"""Floods, forgeries and noise: bounded memory, no exception, and counters that tell."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from punchd.media.buffers import MAX_IDLE, Memory
from punchd.media.counters import Count, Counters
from punchd.media.datagrams import Ack, ConnectionId, Start, Syn, SynAck, encode
from punchd.media.ends import Incoming, Outgoing
from punchd.media.initiator import Initiator
from punchd.media.links import Link
from punchd.media.moves import Established, Send
from punchd.media.options import Options
from punchd.media.receiving import Receiver
from punchd.media.responder import Responder
from punchd.media.settings import ReceiverSettings, ResponderSettings
from tests.unit.media.parts import (
    DEFAULT,
    ENTROPY,
    MIB,
    OTHER,
    PEER,
    A,
    B,
    data,
    delivered,
    fragment,
    media,
    only,
    receiver,
    tell,
)

FLOOD = 20_000
GROWTH = 16 * MIB  # of which pages of pooled blocks that nobody had written to before are the most


# --- media -----------------------------------------------------------------------------------------------------------


def test_msp_c45_d_14_a_flood_of_sequence_numbers_keeps_8192_and_64_entries() -> None:
    machine, counters, memory = receiver()
    for sequence in range(FLOOD):
        machine.receive(media(sequence * 2**40), sequence * 1e-6)
        machine.receive(media(sequence * 2**40 + 1, b"x", 5, 10), sequence * 1e-6)
        assert len(machine.recent) <= 8192
        assert len(machine.reassembly) <= 64
    assert memory.reserved == machine.reassembly.reserved == 64 * 4096
    assert counters[Count.EVICTIONS] == FLOOD - 64
    assert counters[Count.COMPLETED] == FLOOD


def test_d_13_d_14_claims_of_64_mib_reserve_192_mib_and_pool_no_more_than_64() -> None:
    machine, counters, memory = receiver()
    for sequence in range(500):
        machine.receive(media(sequence, b"x", sequence, 64 * MIB), 0.0)
        assert memory.reserved <= 192 * MIB
        assert memory.idle <= MAX_IDLE
    assert len(machine.reassembly) == 3
    assert counters[Count.EVICTIONS] == 497
    machine.handle_timeout(5.0)
    assert (memory.reserved, counters[Count.TIMEOUTS]) == (0, 3)
    assert memory.idle <= MAX_IDLE


def test_d_13_lengths_of_2_to_the_63_reserve_nothing() -> None:
    machine, counters, memory = receiver()
    for number in range(2000):
        machine.receive(media(number, b"x", 2**64 - 1 - number, 2**63 + number), 0.0)
        machine.receive(media(number, b"x", 2**64 - 1 - number, 64 * MIB), 0.0)
    assert (memory.reserved, memory.idle, len(machine.reassembly), len(machine.recent)) == (0, 0, 0, 0)
    assert (counters[Count.TOTAL_TOO_LARGE], counters[Count.BEYOND_END]) == (2000, 2000)


def test_d_11_d_14_single_bytes_everywhere_make_at_most_256_intervals() -> None:
    machine, counters, _ = receiver()
    for offset in range(2, 20_000, 2):
        machine.receive(media(1, b"x", offset, MIB), 0.0)
    assert machine.reassembly.intervals(1) == 256
    assert counters[Count.TOO_MANY_INTERVALS] == 9999 - 256


def test_d_11_overlaps_change_no_byte_that_is_there() -> None:
    machine, counters, _ = receiver()
    assert delivered(machine, media(1, b"good" * 10, 40, 120)) == []
    found = [one for offset in range(120) for one in delivered(machine, media(1, b"evil" * 10, offset, 120))]
    assert found == [(1, b"evil" * 10 + b"good" * 10 + b"evil" * 10)]
    assert counters[Count.OVERLAP] == 39  # those that begin below byte 80 and end beyond it


def test_d_27_held_sends_are_bounded() -> None:
    machine, _, _ = receiver(ReceiverSettings(ordered=True, max_held_bytes=MIB))
    chance = random.Random(1)
    held = 0
    for number in range(5000):
        found = machine.receive(media(chance.randrange(2**64), bytes(chance.randrange(5000))), number * 1e-6)
        held += 1 - len(found)
        assert machine.ordering is not None
        assert len(machine.ordering) <= 1024
        assert machine.ordering._held_bytes <= MIB


# --- the handshake ---------------------------------------------------------------------------------------------------


def test_d_24_a_flood_of_syns_keeps_1024_half_open_tuples_and_touches_no_session() -> None:
    counters = Counters()
    machine = Responder(ResponderSettings(), counters, ENTROPY)
    tell(machine, Syn(A))
    tell(machine, Ack(A))
    sent_bytes = 0
    for number in range(FLOOD):
        actions = tell(machine, Syn(b"%d" % number), number * 1e-5, ("203.0.113.1", number))
        sent_bytes += sum(len(action.data) for action in only(actions, Send))
        assert len(machine.links) <= 1025
        assert len(machine.timers) <= 2 * 1025 + 65
    assert sent_bytes <= FLOOD * 67
    assert counters[Count.HALF_OPEN_EVICTED] == FLOOD - 1024
    assert machine.allowance(PEER) is None
    for second in range(60):
        machine.handle_timeout(float(second))
    assert len(machine.links) == 1
    assert counters[Count.HALF_OPEN_EXPIRED] == 1024


def test_d_24_a_handshake_among_a_flood_succeeds_if_it_is_quicker_than_1024_syns() -> None:
    machine = Responder(ResponderSettings(), Counters(), ENTROPY)
    for number in range(5000):
        tell(machine, Syn(b"x"), 0.0, ("203.0.113.1", number))
        if number == 4000:
            tell(machine, Syn(A))
    assert only(tell(machine, Ack(A)), Established)


def test_d_07_d_24_floods_of_anything_but_syns_make_no_state() -> None:
    machine = Responder(ResponderSettings(legacy_start=True), Counters(), ENTROPY)
    for number in range(2000):
        for datagram in (Ack(A), ConnectionId(A), SynAck(True, A), SynAck(False, b"")):
            assert tell(machine, datagram, 0.0, ("203.0.113.1", number)) == []
    assert len(machine.links) == len(machine.timers) == 0


def test_d_01_a_flood_of_starts_opens_256_streams_at_most() -> None:
    machine = Responder(ResponderSettings(legacy_start=True), Counters(), ENTROPY)
    for number in range(2000):
        assert not only(tell(machine, Start(), 0.0, ("203.0.113.1", number)), Send)
    assert len(machine.links) == 256


def test_d_26_forged_ids_flush_once_a_second_and_sends_still_get_through() -> None:
    end, counters = session()
    arrived = 0
    for step in range(10_000):
        now, sequence = step / 1000, step // 4
        end.take(PEER, encode(ConnectionId(b"forged %d" % step)), now)
        arrived += len(end.take(PEER, fragment(sequence, step % 4, 4, b"x"), now)[1])
    assert counters[Count.FLUSHES] <= 4 + 10 + 1
    assert arrived >= 2500 - counters[Count.FLUSHES]


def test_msp_c38_ids_of_control_characters_do_no_harm() -> None:
    end, _ = session()
    actions, _ = end.take(PEER, encode(ConnectionId(b"\x1b]0;evil\x07\n\xff")), 0.0)
    assert "\x1b" not in repr(actions)


# --- noise -----------------------------------------------------------------------------------------------------------


def session() -> tuple[Incoming, Counters]:
    """An incoming session A at 0 s."""
    counters = Counters()
    asking = Initiator(PEER, A, counters)
    asking.open(0.0)
    end = Incoming(asking, Receiver(DEFAULT, Memory(256 * MIB), counters), counters)
    end.take(PEER, encode(SynAck(True, A)), 0.0)
    return end, counters


def noise(seed: int, count: int) -> Iterator[bytes]:
    """Datagrams that were good before they were cut, stretched and changed."""
    chance = random.Random(seed)
    good = [
        *(data(sequence, bytes(size)) for sequence in range(20) for size in (0, 1, 100, 1174)),
        *(fragment(sequence, offset, 1000, bytes(100)) for sequence in range(20, 40) for offset in range(0, 1000, 100)),
        *(fragment(sequence, sequence * 17, 2**sequence, b"xyz") for sequence in range(40, 64)),
        *(encode(ConnectionId(id_)) for id_ in (A, B, b"", b"x")),
        *(encode(Syn(id_, options)) for id_ in (A, B, b"") for options in (Options(), Options(1, 2, 3))),
        *(encode(SynAck(accept, id_)) for accept in (True, False) for id_ in (A, B)),
        *(encode(Ack(id_)) for id_ in (A, B, b"")),
        b"START",
    ]
    for _ in range(count):
        datagram = bytearray(chance.choice(good))
        for _ in range(chance.choice((0, 1, 1, 2, 4))):
            place = int(chance.random() ** 2 * len(datagram))  # rather in front
            datagram[place] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.getrandbits(8)))
        fate = chance.random()
        if fate < 0.1:
            del datagram[int(chance.random() * len(datagram)) :]
        elif fate < 0.15:
            datagram += chance.randbytes(chance.getrandbits(6))
        yield bytes(datagram)


def resident() -> int:
    """Bytes of this process that are in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def survive(seed: int, count: int) -> None:
    """Both ends under noise: bounds hold all the time, errors are counted, and after a tenth of it nothing grows."""
    end, here = session()
    there = Counters()
    settings = ResponderSettings(legacy_start=True, max_half_open=16, max_open=16)
    outgoing = Outgoing(Responder(settings, there, ENTROPY), there)
    reassembly, memory = end.receiver.reassembly, end.receiver.reassembly._memory
    peers = [PEER, OTHER, *(("203.0.113.1", port) for port in range(40))]
    controls = early = 0
    for number, datagram in enumerate(noise(seed, count)):
        now = number * 1e-4
        actions, deliveries = end.take(OTHER if number % 16 == 0 else PEER, datagram, now)
        controls += len(actions)
        for one in deliveries:
            one.release()
        outgoing.take(peers[number % len(peers)], datagram, now)
        if number % 64 == 0:
            end.handle_timeout(now)
            outgoing.responder.handle_timeout(now)
            assert len(reassembly) <= 64
            assert reassembly.reserved == memory.reserved <= 192 * MIB
            assert len(outgoing.responder.links) <= 32
            assert len(outgoing.responder.timers) <= 2 * 32 + 65
            links: list[Link] = list(outgoing.responder.links._half_open.values())
            assert all(link.sent <= 3 * link.received for link in links if not link.validated)
        if number == count // 10:
            early = resident()
    late = resident()
    print(f"resident: {early / MIB:.1f} MiB after {count // 10} datagrams, {late / MIB:.1f} MiB after {count}")
    assert late - early < GROWTH
    for counters in (here, there):
        assert counters.validation_errors > 0
    assert there[Count.FLUSHES_REFUSED] > 0
    assert controls > 0


def test_a_hundred_thousand_datagrams_of_noise() -> None:
    survive(1, 100_000)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_ten_million_datagrams_of_noise() -> None:
    survive(2, 10_000_000)  # one session of a thousand seconds
