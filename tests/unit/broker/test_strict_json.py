"""JSON that everybody reads alike, and nothing else."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from punchd.broker.names import is_name
from punchd.broker.strict_json import decode, depth, encode
from punchd.errors import DecodeError

SCALARS = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    SCALARS | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


BAD = {
    "nothing": b"",
    "not UTF-8": b'"\xff"',
    "UTF-16": '{"a":1}'.encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf{}",
    "NaN": b"[NaN]",
    "Infinity": b"[Infinity]",
    "-Infinity": b"[-Infinity]",
    "1e400": b"[1e400]",
    "-1e400": b"[-1e400]",
    "trailing comma": b"[1,]",
    "comment": b"[1] // one",
    "single quotes": b"{'a':1}",
    "leading zero": b"[01]",
    "plus": b"[+1]",
    "hexadecimal": b"[0x1]",
    "bare point": b"[1.]",
    "digits of another script": "[\u0661]".encode(),
    "two values": b"{}{}",
    "duplicate member": b'{"a":1,"a":1}',
    "duplicate by escape": b'{"a":1,"\\u0061":1}',
    "duplicate inside": b'[{"b":[{"a":1,"a":2}]}]',
    "2^53 + 1": b"[9007199254740993]",
    "-(2^53 + 1)": b"[-9007199254740993]",
    "5,000 digits": b"1" * 5000,
    "17 levels": nested(17).encode(),
    "100,000 levels": nested(100_000).encode(),
    "half a pair": b'"\\ud800"',
    "half a pair in a name": b'{"\\udc00":1}',
    "half a pair inside": b'[["\\ud800x"]]',
    "raw control character": b'"a\nb"',
    "non-breaking space": "\xa0[]".encode(),
}


@pytest.mark.parametrize("name", BAD)
def test_b_002_b_003_c_44_what_is_not_plain_json_is_refused(name: str) -> None:
    with pytest.raises(DecodeError):
        decode(BAD[name])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("9007199254740992", 2**53),
        ("-9007199254740992", -(2**53)),
        ("1.7976931348623157e308", 1.7976931348623157e308),
        (r'"😀"', "😀"),
        (" \t\r\n{} ", {}),
        (nested(16), json.loads(nested(16))),
        ('"' + "[" * 40 + '"', "[" * 40),
    ],
)
def test_c_44_what_lies_at_the_bounds_is_taken(text: str, value: object) -> None:
    assert decode(text) == value
    assert decode(text.encode()) == value


@given(VALUES)
def test_what_is_encoded_is_decoded_again(value: Any) -> None:
    text = encode(value)
    if depth(value) > 16:
        with pytest.raises(DecodeError):
            decode(text)
    else:
        assert decode(text.encode()) == value


@given(st.binary(max_size=40) | st.text(max_size=40).map(str.encode))
def test_whatever_comes_is_a_value_or_a_decode_error(data: bytes) -> None:
    with suppress(DecodeError):
        encode(decode(data)).encode()


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("", False), ("a", True), ("a" * 64, True), ("a" * 65, False), (".a", False), ("_a", False), ("-a", False),
        ("9.-_", True), ("ä", False), ("a%2F", False), ("a\n", False), ("a b", False), ("é", False), ("\uff11", False),
    ],
)  # fmt: skip
def test_b_005_names_are_ascii_and_the_whole_string_counts(text: str, good: bool) -> None:
    assert is_name(text) is good


@pytest.mark.parametrize("digits", [17, 5000, 100_000])
def test_c_44_a_number_of_any_length_is_refused_for_what_it_is(digits: int) -> None:
    with pytest.raises(DecodeError, match=r"beyond 2\^53"):
        decode("9" * digits)
