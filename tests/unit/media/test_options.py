"""The options of control frames."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from punchd.media.datagrams import Ack, Syn, SynAck, encode, parse
from punchd.media.options import MAX_OPTIONS, Options
from punchd.media.options import encode as encode_options
from punchd.media.options import parse as parse_options
from tests.unit.media.parts import A

u64 = st.none() | st.integers(0, 2**64 - 1)
options = st.builds(Options, u64, st.none() | st.integers(0, 65535), u64)
TOTAL = bytes.fromhex("0180 0800 0000100000000000")
DATAGRAM = bytes.fromhex("0280 0200 b004")
RATE = bytes.fromhex("0380 0800 40420f0000000000")


def test_d_17_types_and_lengths_are_little_endian_and_follow_each_other() -> None:
    value = Options(1 << 20, 1200, 1_000_000)
    assert encode_options(value, 1000) == TOTAL + DATAGRAM + RATE
    assert parse_options(TOTAL + DATAGRAM + RATE) == value


@settings(deadline=None)
@given(options)
def test_d_17_options_survive_every_control_frame(value: Options) -> None:
    for frame in (Syn(A, value), SynAck(True, A, value), Ack(A, value)):
        assert parse(encode(frame)) == frame


@pytest.mark.parametrize(
    ("data", "ignored"),
    [
        (b"", 0),
        (bytes.fromhex("0000 0000"), 1),  # type 0
        (bytes.fromhex("2a00 0300 010203"), 1),  # a type that nobody knows
        (bytes.fromhex("0180 0400 01020304"), 1),  # a known type of another length
        (b"\x01", 1),  # half a head
        (bytes.fromhex("0180 0800 00"), 1),  # cut off
        (bytes.fromhex("0180 ffff"), 1),
        (b"\0" * 4 * MAX_OPTIONS, MAX_OPTIONS),
        (b"\0" * 65000, MAX_OPTIONS + 1),
    ],
)
def test_msp_c15_d_17_what_is_not_understood_is_ignored_and_counted(data: bytes, ignored: int) -> None:
    for before in (b"", DATAGRAM):
        found = parse_options(before + data)
        assert found == Options(max_datagram=1200 if before else None)
        if len(data) < 100:
            assert found.ignored == ignored
    head = encode(Syn(A))
    assert parse(head + data) == Syn(A)


def test_d_17_the_first_of_two_counts() -> None:
    found = parse_options(DATAGRAM + bytes.fromhex("0280 0200 0000"))
    assert (found.max_datagram, found.ignored) == (1200, 1)


def test_d_17_at_most_so_many_are_read() -> None:
    for before, found in ((31, (1200, 31)), (32, (None, 33))):
        read = parse_options(bytes(4 * before) + DATAGRAM)
        assert (read.max_datagram, read.ignored) == found


@pytest.mark.parametrize("values", [{"max_total": -1}, {"max_total": 1 << 64}, {"max_datagram": 65536}])
def test_an_option_out_of_its_range_is_refused(values: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="option max"):
        Options(**values)
