"""The wire format, datagram by datagram, against bytes that were written by hand."""

from __future__ import annotations

import pytest

from punchd.media.counters import Count
from punchd.media.datagrams import (
    Ack,
    ConnectionId,
    Control,
    DatagramError,
    Media,
    Start,
    Syn,
    SynAck,
    canonical_id,
    encode,
    parse,
    show,
    write_header,
)
from punchd.media.options import Options
from tests.unit.media.parts import A, C

ID_A = A + b"\0"
HEADER_ZEROS = bytes(24)
SYN = b"\x00\x01" + HEADER_ZEROS + b"\x01\x00\x00\x00" + ID_A
SYN_ACK = b"\x01\x01" + HEADER_ZEROS + b"\x01\x01\x00\x00" + ID_A
ACK = b"\x02\x01" + HEADER_ZEROS + b"\x01\x00\x00\x00" + ID_A
CONNECTION_ID = b"\x00\x10" + ID_A
NUMBERS = bytes.fromhex("0807060504030201 1817161514131211 2827262524232221")
DATA = b"\x00\x00" + NUMBERS + b"payload"
FRAGMENT = b"\x01\x00" + NUMBERS + bytes.fromhex("0300000000000000 0a00000000000000") + b"payload"
WHOLE: dict[bytes, Control] = {
    SYN: Syn(A),
    SYN_ACK: SynAck(True, A),
    ACK: Ack(A),
    CONNECTION_ID: ConnectionId(A),
}


def reason(data: bytes, *, legacy_start: bool = False) -> Count:
    with pytest.raises(DatagramError) as caught:
        parse(data, legacy_start=legacy_start)
    return caught.value.reason


def field(text: bytes) -> bytes:
    return text.ljust(37, b"\0")


@pytest.mark.parametrize(("data", "value"), WHOLE.items(), ids=["syn", "syn_ack", "ack", "connection_id"])
def test_msp_c12_msp_c13_msp_c14_msp_c31_control_datagrams_are_these_bytes_both_ways(
    data: bytes, value: Control
) -> None:
    assert parse(data) == value
    assert encode(value) == data


def test_msp_c12_c13_c14_c31_sizes() -> None:
    assert [len(data) for data in WHOLE] == [67, 67, 67, 39]


def test_msp_c01_msp_c03_msp_c09_a_header_is_26_bytes_of_little_endian_numbers() -> None:
    media = parse(DATA)
    assert isinstance(media, Media)
    assert media[:3] == (0x0102030405060708, 0x1112131415161718, 0x2122232425262728)
    assert (bytes(media.payload), media.offset, media.total) == (b"payload", 0, None)
    assert encode(media) == DATA


def test_msp_c06_msp_c43_fragments_have_16_bytes_more() -> None:
    media = parse(FRAGMENT)
    assert isinstance(media, Media)
    assert (media.offset, media.total, bytes(media.payload)) == (3, 10, b"payload")
    assert encode(media) == FRAGMENT
    assert reason(FRAGMENT[:41]) is Count.FRAGMENT_SHORT
    assert parse(FRAGMENT[:42]) == media._replace(payload=memoryview(b""))


def test_msp_c01_a_big_endian_syn_is_no_syn() -> None:
    assert not isinstance(parse(b"\x01\x00" + SYN[2:]), Syn)
    assert reason(b"\x10\x00" + CONNECTION_ID[2:]) is Count.UNKNOWN_FLAG


def test_msp_c02_msp_c35_d_21_the_connection_id_is_tested_first_and_has_no_header() -> None:
    assert parse(b"\x00\x10" + NUMBERS + bytes(13)) == ConnectionId(NUMBERS)
    assert reason(b"\x00\x10" + NUMBERS) is Count.CONNECTION_ID_SHORT


def test_msp_c04_msp_c05_every_other_flag_is_rejected_and_counted() -> None:
    known = {0x0000, 0x0001, 0x0100, 0x0101, 0x0102, 0x1000}
    for flag in range(1 << 16):
        data = flag.to_bytes(2, "little") + SYN[2:]
        if flag not in known:
            assert reason(data) is Count.UNKNOWN_FLAG
        else:
            parse(data)


def test_msp_c07_msp_c08_control_frames_have_zero_numbers_and_are_taken_with_others() -> None:
    for data, value in list(WHOLE.items())[:3]:
        assert encode(value)[2:26] == HEADER_ZEROS
        assert parse(data[:2] + NUMBERS + data[26:]) == value


def test_d_10_a_syn_ack_has_bit_0_set_and_is_no_fragment() -> None:
    assert parse(SYN_ACK) == SynAck(True, A)
    for flag in (0x0003, 0x0103, 0x1001):
        assert reason(flag.to_bytes(2, "little") + SYN_ACK[2:]) is Count.UNKNOWN_FLAG


def test_d_19_reserved_bits_are_sent_as_zero_and_not_looked_at() -> None:
    assert parse(SYN[:27] + b"\xff\xff\xff" + SYN[30:]) == Syn(A)
    assert parse(ACK[:27] + b"\xff\xff\xff" + ACK[30:]) == Ack(A)
    assert parse(SYN_ACK[:27] + b"\xff\xff\xff" + SYN_ACK[30:]) == SynAck(True, A)
    assert parse(SYN_ACK[:27] + b"\xfe\xff\xff" + SYN_ACK[30:]) == SynAck(False, A)


def test_msp_c10_msp_c11_d_01_start_means_something_only_where_it_is_configured() -> None:
    assert parse(b"START", legacy_start=True) == Start()
    assert encode(Start()) == b"START"
    assert reason(b"START") is Count.UNKNOWN_FLAG
    for other in (b"START\0", b"START ", b"start", b"STAR"):
        assert reason(other, legacy_start=True) is Count.UNKNOWN_FLAG
    assert parse(SYN, legacy_start=True) == Syn(A)


@pytest.mark.parametrize(
    ("size", "data", "expected"),
    [
        (0, SYN, Count.SHORT),
        (1, SYN, Count.SHORT),
        (2, SYN, Count.HEADER_SHORT),
        (25, DATA, Count.HEADER_SHORT),
        (26, FRAGMENT, Count.FRAGMENT_SHORT),
        (2, CONNECTION_ID, Count.CONNECTION_ID_SHORT),
        (38, CONNECTION_ID, Count.CONNECTION_ID_SHORT),
    ],
)
def test_msp_c40_msp_c32_lengths_are_checked_in_this_order(size: int, data: bytes, expected: Count) -> None:
    assert reason(data[:size]) is expected


def test_msp_c40_data_of_26_bytes_are_an_empty_payload() -> None:
    media = parse(DATA[:26])
    assert isinstance(media, Media)
    assert bytes(media.payload) == b""


@pytest.mark.parametrize("data", [SYN, SYN_ACK, ACK])
def test_d_20_a_control_body_is_whole(data: bytes) -> None:
    for size in range(26, 67):
        assert reason(data[:size]) is Count.CONTROL_SHORT


def test_msp_c33_msp_c34_37_bytes_are_taken_and_the_rest_is_ignored() -> None:
    assert parse(CONNECTION_ID + b"trailing") == ConnectionId(A)
    assert parse(b"\x00\x10" + field(b"short") + b"x") == ConnectionId(b"short")


@pytest.mark.parametrize("text", [C, b"", b"\xff\xfe", b"\n\x1b[31m", b"x" * 36])
def test_msp_c36_any_string_is_an_id(text: bytes) -> None:
    assert parse(b"\x00\x10" + field(text)) == ConnectionId(text)
    assert parse(SYN[:30] + field(text)) == Syn(text)
    assert encode(ConnectionId(text)) == b"\x00\x10" + field(text)


def test_msp_c36_d_03_an_id_ends_at_its_first_nul_and_37_bytes_without_one_are_none() -> None:
    assert parse(b"\x00\x10" + field(b"one\0two")) == ConnectionId(b"one")
    assert reason(b"\x00\x10" + b"x" * 37) is Count.CONNECTION_ID_UNTERMINATED
    assert reason(b"\x00\x10" + b"x" * 37 + b"\0") is Count.CONNECTION_ID_UNTERMINATED
    for data in (SYN, SYN_ACK, ACK):
        assert reason(data[:30] + b"x" * 37) is Count.CONTROL_ID_UNTERMINATED


def test_d_03_d_08_foreign_text_is_shown_escaped() -> None:
    assert show(b"plain text") == "plain text"
    assert show(b"\n\x1b[0m\x7f\xff\\") == "\\x0a\\x1b[0m\\x7f\\xff\\x5c"


def test_d_08_a_refusal_may_have_no_text_and_acceptance_has_an_id() -> None:
    assert parse(SYN_ACK[:27] + b"\0\0\0" + bytes(37)) == SynAck(False, b"")
    assert reason(SYN_ACK[:30] + bytes(37)) is Count.ASSIGNED_ID_EMPTY


def test_d_18_of_another_version_only_a_syn_is_taken_and_nothing_else_of_it_is_read() -> None:
    for version in (0, 2, 255):
        other = bytes((version,))
        assert parse(SYN[:26] + other + SYN[27:30] + b"x" * 37) == Syn(b"", version=version)
        assert reason(SYN_ACK[:26] + other + SYN_ACK[27:]) is Count.VERSION
        assert reason(ACK[:26] + other + ACK[27:]) is Count.VERSION
        assert encode(Syn(A, version=version)) == SYN[:26] + other + SYN[27:]


def test_msp_c16_a_syn_without_a_desired_id_has_zeros() -> None:
    assert encode(Syn(b""))[30:] == bytes(37)
    assert parse(encode(Syn(b""))) == Syn(b"")


def test_d_04_media_hold_no_connection_id() -> None:
    media = parse(b"\x00\x00" + NUMBERS + CONNECTION_ID)
    assert isinstance(media, Media)
    assert bytes(media.payload) == CONNECTION_ID


def test_payloads_are_views_into_the_datagram() -> None:
    buffer = bytearray(FRAGMENT)
    media = parse(memoryview(buffer))
    assert isinstance(media, Media)
    buffer[42:] = b"PAYLOAD"
    assert bytes(media.payload) == b"PAYLOAD"


@pytest.mark.parametrize(
    "value",
    [
        ConnectionId(b"x" * 37),
        ConnectionId(b"a\0b"),
        Syn(b"x" * 37),
        Syn(A, version=256),
        Syn(A, version=-1),
        SynAck(True, b""),
        Media(1 << 64, 0, 0, memoryview(b"")),
        Media(-1, 0, 0, memoryview(b"")),
        Media(0, 0, 0, memoryview(b""), 1 << 64, 1),
        Media(0, 0, 0, memoryview(bytes(65507 - 25))),
        Media(0, 0, 0, memoryview(bytes(65507 - 41)), 0, 1),
    ],
)
def test_what_the_format_cannot_hold_is_refused(value: Control | Media) -> None:
    with pytest.raises(ValueError, match=r"connection id|version|header|payload"):
        encode(value)


def test_a_payload_that_does_not_fit_is_told_what_would() -> None:
    for total, room in ((None, 100 - 26), (1000, 100 - 42)):
        assert len(encode(Media(0, 0, 0, memoryview(bytes(room)), 0, total), 100)) == 100
        with pytest.raises(ValueError, match=f"expected at most {room} bytes, got {room + 1}"):
            encode(Media(0, 0, 0, memoryview(bytes(room + 1)), 0, total), 100)


def test_d_31_datagrams_of_65507_bytes_are_taken() -> None:
    data = encode(Media(0, 0, 0, memoryview(bytes(65507 - 26))))
    assert len(data) == 65507
    media = parse(data)
    assert isinstance(media, Media)
    assert len(media.payload) == 65507 - 26


def test_a_header_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="header"):
        write_header(bytearray(41), 0, 1, 2, 3, offset=0, total=1)


def test_msp_c31_a_canonical_id_is_the_text_of_a_random_uuid() -> None:
    assert canonical_id(bytes(16)) == b"00000000-0000-4000-8000-000000000000"
    assert canonical_id(b"\xff" * 16) == b"ffffffff-ffff-4fff-bfff-ffffffffffff"
    with pytest.raises(ValueError, match="16 bytes"):
        canonical_id(b"")


def test_d_05_options_that_would_make_a_frame_too_long_are_left_out() -> None:
    full = SynAck(True, A, Options(1, 2, 3))
    assert [len(encode(full, size)) for size in (72, 78, 79, 85, 96, 97, 200)] == [67, 73, 79, 85, 85, 97, 97]
