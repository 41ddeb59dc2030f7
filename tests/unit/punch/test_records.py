"""Records and greetings, whole and in pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from punchd.errors import DecodeError
from punchd.punch import records
from punchd.punch.messages import Code, Reject
from punchd.punch.records import Decoder, Wish


@given(st.lists(st.binary(min_size=1, max_size=300)), st.integers(1, 50), st.booleans())
def test_records_come_out_as_they_went_in_whatever_the_portions(parts: list[bytes], step: int, ended: bool) -> None:
    stream = b"".join(map(records.encode, parts)) + (records.END + b"more" if ended else b"")
    decoder, found = Decoder(), []
    for start in range(0, len(stream), step):
        decoder.feed(stream[start : start + step])
        while record := decoder.take():
            found.append(record)
    assert found == parts
    assert decoder.is_ended == ended
    assert decoder.take() == (b"" if ended else None)


@pytest.mark.parametrize("size", [0, 65_536])
def test_a_record_has_a_size_that_can_be_said(size: int) -> None:
    with pytest.raises(ValueError, match="expected 1 to 65535 bytes"):
        records.encode(bytes(size))


@pytest.mark.parametrize("wish", [Wish("0123456789abcdef"), Wish("0123456789abcdef", "[2001:db8::1]:22")])
def test_a_wish_is_understood(wish: Wish) -> None:
    assert records.decode_wish(records.encode_wish(wish)[2:]) == wish


@pytest.mark.parametrize("verdict", [None, Reject(Code.TARGET, "x"), Reject(Code.NOT_ALLOWED, "")])
def test_a_verdict_is_understood(verdict: Reject | None) -> None:
    assert records.decode_verdict(records.encode_verdict(verdict)[2:]) == verdict


def test_what_a_listener_says_is_fit_for_a_terminal() -> None:
    found = records.decode_verdict(b'{"v":1,"code":"new","text":"a\\u001b"}')
    assert found == Reject(Code.FAILED, "a?")


@given(st.binary(max_size=100) | st.sampled_from([b"{}", b'{"v":2}', b'{"v":1}', b"[" * 5000, b'{"v":1,"call":5}']))
def test_other_greetings_are_refused(record: bytes) -> None:
    with pytest.raises(DecodeError):
        records.decode_wish(record)
    if record != b'{"v":1}' and b'"call"' not in record:
        with pytest.raises(DecodeError):
            records.decode_verdict(record)


def test_a_target_that_is_none_is_refused() -> None:
    with pytest.raises(DecodeError, match="HOST:PORT"):
        records.decode_wish(b'{"v":1,"call":"0123456789abcdef","target":"x"}')
