"""TCP segments: against scapy both ways, against what the kernel does with odd options, and sequence arithmetic."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from punchd.endpoint import IPAddress
from punchd.errors import DecodeError
from punchd.wire import ip, tcp
from punchd.wire.tcp import NO_OPTIONS, SYN_ACK, Flags, Options, Segment, Timestamps

A4, B4 = IPv4Address("192.0.2.1"), IPv4Address("198.51.100.7")
A6, B6 = IPv6Address("2001:db8::1"), IPv6Address("2001:db8::2")
SYN = Segment(40000, 50000, 1000, 0, Flags.SYN, 64240)
TOP = 2**32 - 1

Pair = tuple[IPAddress, IPAddress]
pairs: SearchStrategy[Pair] = st.one_of(
    st.tuples(st.integers(0, 2**32 - 1).map(IPv4Address), st.integers(0, 2**32 - 1).map(IPv4Address)),
    st.tuples(st.integers(0, 2**128 - 1).map(IPv6Address), st.integers(0, 2**128 - 1).map(IPv6Address)),
)
numbers16 = st.integers(0, 0xFFFF)
against_scapy = settings(deadline=None)  # its import takes 0.5 s, within the first example
numbers32 = st.one_of(st.integers(0, TOP), st.sampled_from([0, 1, 2**31 - 1, 2**31, TOP]))


def any_options(others: SearchStrategy[tuple[tuple[int, bytes], ...]]) -> SearchStrategy[Options]:
    return st.builds(
        Options,
        mss=st.none() | numbers16,
        window_scale=st.none() | st.integers(0, 255),
        sack_permitted=st.booleans(),
        timestamps=st.none() | st.builds(Timestamps, numbers32, numbers32),
        others=others,
    )


# Fast open cookies, SACK blocks, experiments: up to 20 bytes fit beside everything else.
unknown = st.tuples(st.sampled_from([5, 30, 34, 253, 254, 255]), st.binary(max_size=8))
full_options = any_options(st.lists(unknown, max_size=2).map(tuple))


def any_segment(options: SearchStrategy[Options]) -> SearchStrategy[Segment]:
    return st.builds(
        Segment,
        source_port=numbers16,
        destination_port=numbers16,
        seq=numbers32,
        ack=numbers32,
        flags=st.integers(0, 255).map(Flags),
        window=numbers16,
        options=options,
        payload=st.binary(max_size=40),
        urgent=numbers16,
    )


def with_options(raw: bytes) -> bytes:
    """A SYN with these bytes where its options stand, filled up with the kernel's favourite, 0 (end)."""
    raw += bytes(-len(raw) % 4)
    header = bytearray(tcp.encode(SYN, A4, B4))
    header[12] = (5 + len(raw) // 4) << 4 | 0x0F  # the reserved bits are nobody's business
    return bytes(header) + raw


# --- an independent implementation -----------------------------------------------------------------------------------


def scapy_options(options: Options) -> list[tuple[str | int, object]]:
    """What scapy calls them, in our order, padding included."""
    found: list[tuple[str | int, object]] = []
    if options.mss is not None:
        found.append(("MSS", options.mss))
    if options.timestamps is not None:
        found.extend([("SAckOK", b"")] if options.sack_permitted else [("NOP", None)] * 2)
        found.append(("Timestamp", (options.timestamps.value, options.timestamps.echo)))
    elif options.sack_permitted:
        found.extend([("NOP", None), ("NOP", None), ("SAckOK", b"")])
    if options.window_scale is not None:
        found.extend([("NOP", None), ("WScale", options.window_scale)])
    return found


@against_scapy
@given(any_segment(any_options(st.just(()))), pairs)
def test_scapy_builds_our_segment(segment: Segment, pair: Pair) -> None:
    from scapy.layers.inet import IP, TCP
    from scapy.layers.inet6 import IPv6

    source, destination = pair
    theirs = TCP(
        sport=segment.source_port,
        dport=segment.destination_port,
        seq=segment.seq,
        ack=segment.ack,
        flags=int(segment.flags),
        window=segment.window,
        urgptr=segment.urgent,
        options=scapy_options(segment.options),
    )
    if source.version == 4:
        packet, header = IP(src=str(source), dst=str(destination), flags="DF", id=0, ttl=7), 20
    else:
        packet, header = IPv6(src=str(source), dst=str(destination), hlim=7), 40
    expected = bytes(packet / theirs / segment.payload)
    data = tcp.encode(segment, source, destination)
    assert data == expected[header:]
    assert ip.encode(source, destination, ip.TCP, data, 7) == expected
    assert tcp.decode(ip.decode(expected).payload) == segment


SCAPYS = st.lists(
    st.one_of(
        st.just(("NOP", None)),
        st.tuples(st.just("MSS"), numbers16),
        st.tuples(st.just("WScale"), st.integers(0, 14)),
        st.just(("SAckOK", b"")),
        st.tuples(st.just("Timestamp"), st.tuples(numbers32, numbers32)),
        st.tuples(st.just("SAck"), st.tuples(numbers32, numbers32)),
    ),
    max_size=4,
)


@against_scapy
@given(SCAPYS)
def test_we_read_scapys_options_in_any_order_and_number(theirs: list[tuple[str, object]]) -> None:
    from scapy.layers.inet import TCP

    said = dict(theirs)  # of a repeated one the last counts, there as here
    options = tcp.decode(bytes(TCP(options=theirs))).options
    assert options.mss == said.get("MSS")
    assert options.window_scale == said.get("WScale")
    assert options.sack_permitted == ("SAckOK" in said)
    stamps = options.timestamps and (options.timestamps.value, options.timestamps.echo)
    assert stamps == said.get("Timestamp")
    assert [kind for kind, _ in options.others] == [5 for name, _ in theirs if name == "SAck"]


# --- encoding --------------------------------------------------------------------------------------------------------


@given(any_segment(full_options), pairs)
def test_every_segment_is_read_as_it_was_written(segment: Segment, pair: Pair) -> None:
    data = tcp.encode(segment, *pair)
    assert tcp.decode(data) == segment
    assert (len(data) - len(segment.payload)) % 4 == 0
    assert tcp.is_checksum_valid(data, *pair)


@given(any_segment(full_options), pairs, st.integers(0, 8 * 60 - 1))
def test_one_flipped_bit_spoils_the_checksum(segment: Segment, pair: Pair, bit: int) -> None:
    data = bytearray(tcp.encode(segment, *pair))
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    assert not tcp.is_checksum_valid(bytes(data), *pair)


@pytest.mark.parametrize("pair", [(A4, B4), (A6, B6)])
def test_a_segment_between_other_addresses_has_another_checksum(pair: Pair) -> None:
    data = tcp.encode(SYN, *pair)
    assert tcp.is_checksum_valid(data, *pair)
    assert tcp.is_checksum_valid(data, *pair[::-1]), "the sum does not care for the order"
    assert not tcp.is_checksum_valid(data, pair[0], pair[0])


STAMPS = Timestamps(0x01020304, 0x05060708)
LAYOUTS = [
    pytest.param(NO_OPTIONS, "", id="none"),
    pytest.param(Options(mss=1460), "020405b4", id="MSS"),
    pytest.param(Options(window_scale=7), "01030307", id="window scale"),
    pytest.param(Options(sack_permitted=True), "01010402", id="SACK"),
    pytest.param(Options(timestamps=STAMPS), "0101080a0102030405060708", id="timestamps"),
    pytest.param(Options(1460, 7, True), "020405b40101040201030307", id="what a SYN without timestamps says"),
    pytest.param(
        Options(1460, 7, True, STAMPS),
        "020405b4" + "0402080a0102030405060708" + "01030307",
        id="a SYN of Linux: SACK takes the place of the timestamps' padding",
    ),
    pytest.param(Options(others=((34, b""),)), "22020101", id="two bytes of padding"),
    pytest.param(Options(others=((34, b"a"),)), "22036101", id="one byte of padding"),
    pytest.param(Options(1460, others=((254, b"\1"), (5, b"\2"))), "020405b4fe03010503020101", id="others last"),
]


@pytest.mark.parametrize(("options", "expected"), LAYOUTS)
def test_options_are_laid_out_as_linux_does(options: Options, expected: str) -> None:
    data = tcp.encode(replace(SYN, options=options), A4, B4)
    assert data[20:].hex() == expected
    assert data[12] >> 4 == 5 + len(expected) // 8


WRONG = [
    pytest.param(replace(SYN, source_port=65536), "TCP header", id="port above"),
    pytest.param(replace(SYN, destination_port=-1), "TCP header", id="port below"),
    pytest.param(replace(SYN, seq=2**32), "TCP header", id="sequence number"),
    pytest.param(replace(SYN, ack=-1), "TCP header", id="acknowledgement number"),
    pytest.param(replace(SYN, window=65536), "TCP header", id="a window that was scaled"),
    pytest.param(replace(SYN, options=Options(mss=65536)), "TCP options", id="MSS"),
    pytest.param(replace(SYN, options=Options(window_scale=256)), "TCP options", id="window scale"),
    pytest.param(replace(SYN, options=Options(timestamps=Timestamps(-1, 0))), "TCP options", id="timestamps"),
    pytest.param(replace(SYN, options=Options(others=((0, b""),))), "kind 0", id="an end that is none"),
    pytest.param(replace(SYN, options=Options(others=((1, b""),))), "kind 1 ", id="padding"),
    pytest.param(replace(SYN, options=Options(others=((256, b""),))), "kind 256", id="kind"),
    pytest.param(replace(SYN, options=Options(others=((9, bytes(39)),))), "39 bytes", id="one option too long"),
    pytest.param(
        replace(SYN, options=Options(1, others=((9, bytes(35)),))), "most 40 bytes, got 44", id="all too long"
    ),
]


@pytest.mark.parametrize(("segment", "why"), WRONG)
def test_what_does_not_fit_its_field_is_not_written(segment: Segment, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        tcp.encode(segment, A4, B4)


@pytest.mark.parametrize(
    "options",
    [
        Options(others=((9, bytes(38)),)),
        Options(1460, 7, True, others=((34, bytes(28)),)),  # with the padding of Linux these would take 41 bytes
        Options(1460, 7, True, STAMPS, others=((34, bytes(18)),)),
    ],
)
def test_options_that_just_fit_are_written_without_padding(options: Options) -> None:
    data = tcp.encode(replace(SYN, options=options), A4, B4)
    assert len(data) == 60
    assert tcp.decode(data) == replace(SYN, options=options)


# --- decoding --------------------------------------------------------------------------------------------------------

# Verified with raw SYNs to a listener on Linux 6.18: its SYN-ACK mirrors window scale and SACK where they were read.
ODD_OPTIONS = [
    pytest.param("0402" "00" "00" "02040202", Options(sack_permitted=True), id="nothing counts behind the end"),
    pytest.param("02040202" "0400" "0402", Options(514), id="a length of 0"),
    pytest.param("02040202" "0401" "0402", Options(514), id="a length of 1"),
    pytest.param("02040202" "0309" "0101", Options(514), id="a length beyond the header"),
    pytest.param("0402" "2203", Options(sack_permitted=True), id="a length one byte beyond the header"),
    pytest.param("02040202" "010101" "04", Options(514), id="a kind and no length"),
    pytest.param("020309" "01" "0402", Options(sack_permitted=True, others=((2, b"\t"),)), id="an MSS of one byte"),
    pytest.param("0302" "0402", Options(sack_permitted=True, others=((3, b""),)), id="a window scale of no byte"),
    pytest.param("04030a" "01", Options(others=((4, b"\n"),)), id="a SACK permitted with a value"),
    pytest.param("0806" "00000001" "0402", Options(None, None, True, others=((8, b"\0\0\0\1"),)), id="one timestamp"),
    pytest.param("02040101" "02040202", Options(514), id="of a repeated one the last counts"),
    pytest.param("0303ff" "01", Options(window_scale=255), id="a window scale above 14 stays as it came"),
    pytest.param("02040000", Options(mss=0), id="an MSS of 0 stays as it came"),
    pytest.param("01010101", NO_OPTIONS, id="nothing but padding"),
    pytest.param("00ffffff", NO_OPTIONS, id="an end at once"),
]  # fmt: skip


@pytest.mark.parametrize(("raw", "options"), ODD_OPTIONS)
def test_odd_options_are_read_as_the_kernel_reads_them(raw: str, options: Options) -> None:
    data = with_options(bytes.fromhex(raw))
    assert tcp.decode(data) == replace(SYN, options=options)


REFUSED = [
    pytest.param(b"", "at least 20 bytes, got 0", id="nothing"),
    pytest.param(tcp.encode(SYN, A4, B4)[:19], "at least 20 bytes, got 19", id="one byte short"),
    pytest.param(bytes(12) + b"\x40" + bytes(7), "20 to 20 bytes, got 16", id="an offset inside the header"),
    pytest.param(bytes(20), "20 to 20 bytes, got 0", id="zeros"),
    pytest.param(bytes(12) + b"\x60" + bytes(10), "20 to 23 bytes, got 24", id="an offset beyond the end"),
    pytest.param(bytes(12) + b"\xf0" + bytes(46), "20 to 59 bytes, got 60", id="the largest one, a byte short"),
]


@pytest.mark.parametrize(("data", "why"), REFUSED)
def test_a_segment_whose_header_is_not_whole_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(DecodeError, match=why):
        tcp.decode(data)


option_shaped = st.builds(
    lambda kind, size, value: bytes((kind, size)) + value,
    st.sampled_from([0, 1, 2, 3, 4, 5, 8, 34, 255]),
    st.sampled_from([0, 1, 2, 3, 4, 6, 10, 39, 40, 255]),
    st.binary(max_size=9),
)


@given(st.lists(option_shaped, max_size=6).map(b"".join), st.integers(0, 15), st.integers(0, 12))
def test_whatever_comes_is_a_segment_or_a_decode_error(raw: bytes, words: int, cut: int) -> None:
    data = bytearray(with_options(raw[:40]))
    data[12] = words << 4
    data = data[: len(data) - cut]
    with contextlib.suppress(DecodeError):
        segment = tcp.decode(bytes(data))
        assert segment.payload == data[words * 4 :]
        # What was understood survives being written and read again: that is how a sniffed SYN-ACK is replayed.
        assert tcp.decode(tcp.encode(segment, A4, B4)) == segment


@given(any_segment(full_options), st.integers(0, 8 * 60 - 1), st.integers(0, 30))
def test_a_flipped_bit_or_a_cut_gives_a_segment_or_a_decode_error(segment: Segment, bit: int, cut: int) -> None:
    data = bytearray(tcp.encode(segment, A4, B4))
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    with contextlib.suppress(DecodeError):
        assert isinstance(tcp.decode(bytes(data[: len(data) - cut])), Segment)


# --- sequence numbers ------------------------------------------------------------------------------------------------


@given(numbers32, st.integers(-(2**33), 2**33))
def test_sequence_numbers_wrap_around(number: int, amount: int) -> None:
    moved = tcp.plus(number, amount)
    assert 0 <= moved <= TOP
    assert (moved - number - amount) % 2**32 == 0


@given(numbers32, st.integers(1, 2**31 - 1))
def test_a_number_is_before_those_less_than_half_a_circle_ahead(number: int, distance: int) -> None:
    ahead = tcp.plus(number, distance)
    assert tcp.is_before(number, ahead)
    assert not tcp.is_before(ahead, number)
    assert not tcp.is_before(number, number)


@given(numbers32)
def test_opposite_numbers_are_before_each_other_as_in_the_kernel(number: int) -> None:
    opposite = tcp.plus(number, 2**31)
    assert tcp.is_before(number, opposite)
    assert tcp.is_before(opposite, number)


@pytest.mark.parametrize(
    ("una", "ack", "nxt", "verdict"),
    [
        (100, 101, 101, True),
        (100, 100, 101, False),
        (100, 102, 101, False),
        (TOP, 0, 0, True),
    ],
)
def test_an_acceptable_ack_is_of_something_sent_and_not_acknowledged(
    una: int, ack: int, nxt: int, *, verdict: bool
) -> None:
    assert tcp.is_acceptable_ack(una, ack, nxt) is verdict


@pytest.mark.parametrize(
    ("nxt", "seq", "window", "verdict"),
    [
        (1000, 1000, 1, True),
        (1000, 999, 1, False),  # ISN-1: why an ICMP error about the low-TTL SYN does not kill the real one
        (1000, 1001, 1, False),
        (1000, 1000, 0, False),
        (TOP, 0, 2, True),
        (TOP, 1, 2, False),
        (0, TOP, 2, False),
    ],
)
def test_the_window_begins_with_what_is_expected_next(nxt: int, seq: int, window: int, *, verdict: bool) -> None:
    assert tcp.is_in_window(nxt, seq, window) is verdict


@pytest.mark.parametrize(
    ("flags", "payload", "length"),
    [
        (Flags.ACK, b"", 0),
        (Flags.SYN, b"", 1),
        (SYN_ACK, b"early", 6),
        (Flags.FIN | Flags.ACK, b"last", 5),
    ],
)
def test_syn_and_fin_take_a_sequence_number_each(flags: Flags, payload: bytes, length: int) -> None:
    assert replace(SYN, flags=flags, payload=payload).length == length


# --- traces ----------------------------------------------------------------------------------------------------------

LINES = [
    pytest.param(SYN, "SYN seq=1000 win=64240", id="an ack without ACK means nothing"),
    pytest.param(
        Segment(1, 2, 7, 1001, SYN_ACK, 100, Options(1460, 7, True, Timestamps(5, 6))),
        "SYN-ACK seq=7 ack=1001 win=100 mss=1460 sack ts=5/6 scale=7",
        id="every option",
    ),
    pytest.param(
        Segment(1, 2, 7, 8, Flags.PSH | Flags.ACK, 100, Options(others=((5, bytes(8)),)), b"secret"),
        "PSH-ACK seq=7 ack=8 win=100 option-5 len=6",
        id="the payload's size, never the payload",
    ),
    pytest.param(replace(SYN, flags=Flags(0)), "no-flags seq=1000 win=64240", id="no flag"),
    pytest.param(replace(SYN, flags=Flags(255)), "FIN-SYN-RST-PSH-ACK-URG-ECE-CWR seq=1000 ack=0 win=64240", id="all"),
]


@pytest.mark.parametrize(("segment", "line"), LINES)
def test_a_trace_line_says_what_matters(segment: Segment, line: str) -> None:
    assert tcp.describe(segment) == line
