"""Cutting a byte stream into lines: the same lines however it was cut before, and never more than one held."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from punchd.control.lines import MAX_LINE, MAX_TEXT, LineSplitter, clean_text
from punchd.errors import Code, ProtocolError

Result = tuple[list[bytes], Code | None]

BAD_BYTES = [0x00, 0x01, 0x09, 0x0B, 0x0D, 0x1B, 0x1F, 0x7F, 0x80, 0xC3, 0xFF]


def split(pieces: list[bytes]) -> Result:
    """The lines up to the first complaint, and its code: a connection is closed there."""
    splitter = LineSplitter()
    lines: list[bytes] = []
    for piece in pieces:
        for line in splitter.feed(piece):
            if isinstance(line, ProtocolError):
                return lines, line.code
            lines.append(line)
    return lines, None


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


# Runs of one character make lines near the limit likely; all other bytes come one by one.
streams = st.lists(
    st.one_of(
        st.integers(490, 510).map(lambda size: b"x" * size),
        st.binary(max_size=3),
        st.text("ab|\n ~", max_size=30).map(str.encode),
        st.just(b"\n"),
    ),
    max_size=8,
).map(b"".join)


@given(streams, st.lists(st.integers(0, 5000), max_size=6))
def test_a_stream_gives_the_same_lines_whole_cut_anywhere_or_byte_by_byte(data: bytes, places: list[int]) -> None:
    whole = split([data])
    assert split([bytes((byte,)) for byte in data]) == whole
    assert split(cut(data, places)) == whole


@given(streams)
def test_the_lines_are_those_of_the_stream_until_the_first_that_breaks_the_framing(data: bytes) -> None:
    expected: list[bytes] = []
    code = None
    *complete, rest = data.split(b"\n")
    for line in [*complete, rest]:
        bad = any(not 0x20 <= byte <= 0x7E for byte in line[:MAX_LINE])
        if bad or len(line) > MAX_LINE:
            code = Code.BAD_MESSAGE if bad else Code.TOO_LONG
            break
        expected.append(line)
    if code is None:
        expected.pop()  # the rest has no line feed yet
    assert split([data]) == (expected, code)


@pytest.mark.parametrize("size", [1, 499, 500])
def test_a_line_of_up_to_500_bytes_is_a_line(size: int) -> None:
    assert split([b"x" * size + b"\n"]) == ([b"x" * size], None)


def test_501_bytes_are_too_long_and_so_before_the_line_feed_comes() -> None:
    assert split([b"x" * 500]) == ([], None)
    assert split([b"x" * 501]) == ([], Code.TOO_LONG)
    assert split([b"ok\n" + b"x" * 501 + b"\nlost\n"]) == ([b"ok"], Code.TOO_LONG)


@pytest.mark.parametrize("byte", BAD_BYTES, ids=hex)
@pytest.mark.parametrize("position", [0, 4, 499])
def test_a_byte_that_is_not_printable_ascii_ends_the_stream_with_its_place(byte: int, position: int) -> None:
    [complaint] = LineSplitter().feed(b"x" * position + bytes((byte,)))
    assert isinstance(complaint, ProtocolError)
    assert complaint.code is Code.BAD_MESSAGE
    assert complaint.attempt_id is None
    assert f"0x{byte:02x} at position {position + 1}:" in str(complaint)


@pytest.mark.parametrize("byte", [0x20, 0x7E, ord("|")])
def test_the_printable_characters_at_the_edges_are_let_through(byte: int) -> None:
    assert split([bytes((byte, 0x0A))]) == ([bytes((byte,))], None)


def test_carriage_return_before_the_line_feed_is_refused() -> None:
    assert split([b"cancel|c1\r\n"]) == ([], Code.BAD_MESSAGE)


def test_an_empty_line_is_a_line_and_the_stream_goes_on() -> None:
    assert split([b"\n\ncancel|c1\n"]) == ([b"", b"", b"cancel|c1"], None)


@given(streams, st.integers(1, 700))
def test_at_most_one_line_is_held(data: bytes, size: int) -> None:
    splitter = LineSplitter()
    for start in range(0, len(data), size):
        splitter.feed(data[start : start + size])
        assert len(splitter._pending) <= MAX_LINE


def test_a_flood_without_a_line_feed_is_not_kept() -> None:
    splitter = LineSplitter()
    [complaint] = splitter.feed(b"x" * 10_000_000)
    assert isinstance(complaint, ProtocolError)
    assert len(splitter._pending) == 0


@given(st.text())
def test_cleaned_text_is_what_the_grammar_allows_and_bounded(text: str) -> None:
    cleaned = clean_text(text)
    assert len(cleaned) == min(len(text), MAX_TEXT)
    assert all(" " <= char <= "~" and char != "|" for char in cleaned)


def test_cleaning_changes_only_what_must_be_changed() -> None:
    assert clean_text("a|b\nc\x7fd\u00e9 ~}{") == "a?b?c?d? ~}{"
