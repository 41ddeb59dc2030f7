"""Pulses and replies, byte for byte; whatever is no pulse is none."""

from __future__ import annotations

import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from punchd.errors import DecodeError
from punchd.rendezvous import pulse
from punchd.rendezvous.pulse import Code, Reply

KEY = bytes(range(32))
TEXT = b"000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
ID = bytes(range(16, 32))


def test_v_007_d_01_replies_are_four_bytes_big_endian() -> None:
    replies = (pulse.ACCEPTED, pulse.VERIFY, pulse.UNKNOWN)
    assert [reply.hex() for reply in replies] == ["000003fc", "0000041a", "00000424"]


def test_d_02_a_key_is_32_raw_bytes_or_64_digits_of_either_case() -> None:
    assert pulse.read_key(KEY) == pulse.read_key(TEXT) == pulse.read_key(TEXT.upper()) == KEY


@pytest.mark.parametrize("size", [0, 1, 31, 33, 63, 65, 67, 68, 69, 1472])
def test_v_018_no_other_length_is_a_plain_pulse(size: int) -> None:
    assert pulse.read_key(b"0" * size) is None


@pytest.mark.parametrize("text", [b" " * 64, b"0x" + TEXT[2:], TEXT[:-1] + b"g", TEXT[:-2] + b"\xc3\xa9", b"\xff" * 64])
def test_64_bytes_that_are_no_digits_are_no_pulse(text: bytes) -> None:
    assert len(text) == 64
    assert pulse.read_key(text) is None


def test_a_signed_pulse_has_the_layout_that_is_written_down() -> None:
    made = pulse.sign(KEY, ID, 0x0102030405060708, b"cookie!!")
    head = b"SRP1" + ID + bytes([1, 2, 3, 4, 5, 6, 7, 8]) + b"cookie!!"
    assert made == head + hmac.digest(KEY, head, "sha256")
    assert len(made) == 68
    assert pulse.sign(KEY, ID, 5)[28:36] == bytes(8)


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=16, max_size=16), st.integers(0, 2**64 - 1))
def test_a_signed_pulse_is_read_as_it_was_made_and_proves_its_key_only(key: bytes, client_id: bytes, ms: int) -> None:
    read = pulse.read_signed(pulse.sign(key, client_id, ms))
    assert read is not None
    assert (read.client_id, read.unix_ms, read.cookie) == (client_id, ms, pulse.NO_COOKIE)
    assert read.is_authentic(key)
    assert not read.is_authentic(bytes([key[0] ^ 1]) + key[1:])


@given(st.integers(0, 68 * 8 - 1))
def test_no_bit_of_a_signed_pulse_can_be_changed(place: int) -> None:
    made = bytearray(pulse.sign(KEY, ID, 7, b"cookie!!"))
    made[place // 8] ^= 1 << place % 8
    read = pulse.read_signed(bytes(made))
    assert read is None or not read.is_authentic(KEY)


@given(st.binary(max_size=100))
def test_reading_never_fails_and_forms_do_not_overlap(data: bytes) -> None:
    assert (pulse.read_key(data) is None) or (pulse.read_signed(data) is None)


def test_a_cookie_is_good_for_its_source_in_its_minute_and_the_next() -> None:
    secret, here, there = b"s" * 32, b"\xc0\x00\x02\x01\x0f\xa0", b"\xc0\x00\x02\x01\x0f\xa1"
    cookie = pulse.make_cookie(secret, here, 60_000)
    good = [second for second in range(59_900, 60_200) if pulse.is_cookie(cookie, secret, here, second)]
    assert good == list(range(60_000, 60_120))
    assert not pulse.is_cookie(cookie, secret, there, 60_000)
    assert not pulse.is_cookie(cookie, b"t" * 32, here, 60_000)
    assert not pulse.is_cookie(pulse.NO_COOKIE, secret, here, 60_000)


def test_v_019_no_reply_is_longer_than_what_it_answers() -> None:
    assert max(map(len, (pulse.ACCEPTED, pulse.VERIFY, pulse.UNKNOWN))) <= pulse.KEY_SIZE
    assert len(pulse.cookie_reply(bytes(8))) <= pulse.SIGNED_SIZE


@pytest.mark.parametrize("code", [Code.ACCEPTED, Code.VERIFY, Code.UNKNOWN])
def test_a_client_reads_each_reply(code: Code) -> None:
    assert pulse.read_reply(int(code).to_bytes(4, "big")) == Reply(code)


def test_a_client_reads_a_cookie() -> None:
    assert pulse.read_reply(pulse.cookie_reply(b"12345678")) == Reply(Code.COOKIE, b"12345678")


@given(st.binary(max_size=16) | st.builds(lambda head, rest: head + rest, st.just(b"\x00\x00\x04\x1b"), st.binary()))
def test_what_is_no_reply_is_a_decode_error_and_nothing_else(data: bytes) -> None:
    try:
        reply = pulse.read_reply(data)
    except DecodeError:
        return
    assert data == int(reply.code).to_bytes(4, "big") + (reply.cookie or b"")
