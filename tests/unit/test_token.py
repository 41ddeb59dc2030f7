"""Tokens: a value has one token and a token one value, and nothing but DecodeError comes out of foreign text."""

from __future__ import annotations

import base64
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from punchd.endpoint import PortSet, runs
from punchd.errors import DecodeError
from punchd.wire.token import (
    FIRST_PLUGIN_NUMBER,
    LAYOUT,
    MAX_CHARACTERS,
    MIN_CHARACTERS,
    TECHNIQUE_NUMBERS,
    Card,
    Farewell,
    Kind,
    NewerLayoutError,
    Token,
    decode,
    encode,
    openable,
)
from tests.unit import strategies

NONCE = bytes.fromhex("7f3a9c02d1e84b55")
KEY = bytes(range(16))
CARD = Card(IPv4Address("198.51.100.4"), PortSet((50000,)), (40000, 40001, 50000), True, 4, 25, KEY, False)
OFFER = Token(Kind.OFFER, NONCE, 1, 3, CARD)
SKIP = Token(Kind.SKIP, NONCE, 1, 1, farewell=Farewell.NO_PRIVILEGE)
ALPHABET = strategies.ALNUM + "-_"


def raw(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def wrap(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def test_a_token_stands_in_bytes_as_the_layout_says() -> None:
    head = "02 01 7f3a9c02d1e84b55 01 03 02 04"  # layout, offer, nonce, round, udp, predicted, TTL
    card = "00 0019 c6336404 01 c350 02 9c40 02 c350 01"  # counter, 25 ms, address, one port, two runs
    assert encode(OFFER) == wrap(bytes.fromhex(head + card) + KEY)
    assert encode(SKIP) == wrap(bytes.fromhex("02 03 7f3a9c02d1e84b55 01 01 00 07"))


@given(strategies.tokens())
def test_what_is_encoded_decodes_to_the_same(token: Token) -> None:
    text = encode(token)
    assert MIN_CHARACTERS <= len(text) <= MAX_CHARACTERS
    assert set(text) <= set(ALPHABET)
    assert decode(text) == token


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("kind", [Kind.ANSWER, Kind.NOTE])
def test_a_sender_that_does_not_know_its_address_yet_says_so_with_zeros(version: int, kind: Kind) -> None:
    nowhere = IPv4Address(0) if version == 4 else IPv6Address(0)
    token = Token(kind, NONCE, 1, 3, replace(CARD, address=nowhere), counter=1 if kind is Kind.NOTE else 0)
    card = decode(encode(token)).card
    assert card is not None
    assert card.address == nowhere


def check_foreign(text: str) -> None:
    """Whatever it is: another token in its one form, or DecodeError; newer layouts and only those have their own."""
    try:
        found: Token | DecodeError = decode(text)
    except DecodeError as error:
        found = error
    if isinstance(found, Token):
        assert encode(found) == text
        return
    shape = MIN_CHARACTERS <= len(text) <= MAX_CHARACTERS and set(text) <= set(ALPHABET) and len(text) % 4 != 1
    is_newer = shape and wrap(raw(text)) == text and raw(text)[0] > LAYOUT
    assert isinstance(found, NewerLayoutError) == is_newer


@settings(max_examples=300)
@given(strategies.tokens())
def test_every_flipped_bit_gives_another_token_or_a_decode_error(token: Token) -> None:
    data = raw(encode(token))
    for position in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        check_foreign(wrap(bytes(flipped)))


@given(strategies.tokens(), st.binary(min_size=1, max_size=20))
def test_no_truncation_and_no_extension_of_a_token_is_a_token(token: Token, more: bytes) -> None:
    data = raw(encode(token))
    for size in range(len(data)):
        with pytest.raises(DecodeError):
            decode(wrap(data[:size]))
    with pytest.raises(DecodeError):
        decode(wrap(data + more))
    for size in range(len(wrap(data))):
        with pytest.raises(DecodeError):
            decode(wrap(data)[:size])


@settings(max_examples=1000)
@given(strategies.tokens(), st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), min_size=1, max_size=3))
def test_changed_bytes_give_another_token_or_a_decode_error(token: Token, changes: list[tuple[int, int]]) -> None:
    data = bytearray(raw(encode(token)))
    for place, value in changes:
        data[place % len(data)] = value
    check_foreign(wrap(bytes(data)))


@settings(max_examples=1000)
@given(
    st.one_of(
        st.text(max_size=210),
        st.text(ALPHABET, max_size=210),
        st.binary(max_size=150).map(lambda tail: wrap(b"\x02" + tail)),
        st.binary(max_size=150).map(wrap),
    )
)
@example("")
@example("A" * 19 + "\n")
@example("\u0661" * 20)
def test_any_text_gives_a_token_or_a_decode_error(text: str) -> None:
    check_foreign(text)


def test_the_unused_bits_of_the_last_character_must_be_zero() -> None:
    text = encode(SKIP)  # 14 bytes: two of the last character's six bits are used by nothing
    twins = [text[:-1] + char for char in ALPHABET if raw(text[:-1] + char) == raw(text)]
    assert len(twins) == 4
    for twin in twins:
        if twin != text:
            with pytest.raises(DecodeError, match="not canonical"):
                decode(twin)


@pytest.mark.parametrize("layout", range(256))
def test_only_layouts_above_two_are_newer(layout: int) -> None:
    for data in (raw(encode(OFFER)), raw(encode(SKIP))):
        text = wrap(bytes((layout,)) + data[1:])
        if layout == 2:
            assert encode(decode(text)) == text
            continue
        with pytest.raises(DecodeError) as caught:
            decode(text)
        assert isinstance(caught.value, NewerLayoutError) == (layout > 2)


def test_a_newer_layout_may_look_like_anything_but_must_be_a_token() -> None:
    with pytest.raises(NewerLayoutError, match="layout 3, this daemon speaks layout 2"):
        decode(wrap(b"\x03" + bytes(149)))
    for text in (wrap(b"\x03" + bytes(12)), wrap(b"\x03" + bytes(150)), wrap(b"\x03" + bytes(14)) + "=", "A" * 21):
        with pytest.raises(DecodeError) as caught:
            decode(text)
        assert type(caught.value) is DecodeError


def with_card(**changes: object) -> Token:
    return replace(OFFER, card=replace(CARD, **changes))  # type: ignore[arg-type]


UNSPEAKABLE = [
    pytest.param(replace(OFFER, nonce=bytes(7)), id="short nonce"),
    pytest.param(replace(OFFER, nonce=bytes(9)), id="long nonce"),
    pytest.param(replace(OFFER, round=0), id="round 0"),
    pytest.param(replace(OFFER, round=256), id="round 256"),
    pytest.param(replace(OFFER, technique=0), id="technique 0"),
    pytest.param(replace(OFFER, technique=256), id="technique 256"),
    pytest.param(Token(Kind.OFFER, NONCE, 1, 5, replace(CARD, body=b"")), id="a technique that nobody knows"),
    pytest.param(replace(OFFER, technique=1), id="tcp-syni with a key"),
    pytest.param(replace(OFFER, counter=1), id="an offer with a counter"),
    pytest.param(replace(OFFER, kind=Kind.NOTE), id="a note without a counter"),
    pytest.param(replace(OFFER, kind=Kind.NOTE, counter=256), id="counter 256"),
    pytest.param(replace(OFFER, kind=Kind.NOTE, counter=-1), id="counter -1"),
    pytest.param(replace(OFFER, kind=Kind.SKIP), id="a skip with a card"),
    pytest.param(replace(OFFER, card=None), id="an offer without a card"),
    pytest.param(replace(OFFER, farewell=Farewell.TIMEOUT), id="an offer with a farewell"),
    pytest.param(replace(SKIP, kind=Kind.OFFER), id="an offer with only a farewell"),
    pytest.param(replace(SKIP, farewell=None), id="a skip without a reason"),
    pytest.param(replace(SKIP, counter=1), id="a skip with a counter"),
    pytest.param(with_card(ttl=0), id="ttl 0"),
    pytest.param(with_card(ttl=65), id="ttl 65"),
    pytest.param(with_card(rtt_ms=-1), id="rtt -1"),
    pytest.param(with_card(rtt_ms=65536), id="rtt 65536"),
    pytest.param(with_card(body=bytes(15)), id="short key"),
    pytest.param(with_card(body=bytes(17)), id="long key"),
    pytest.param(with_card(opened=(0,)), id="opened port 0"),
    pytest.param(with_card(opened=(65536,)), id="opened port 65536"),
    pytest.param(with_card(opened=(70000, 5)), id="opened port 70000"),
    pytest.param(with_card(opened=(-1,)), id="opened port -1"),
    pytest.param(with_card(opened=(5, 5)), id="an opened port twice"),
    pytest.param(with_card(opened=(1, 3, 5, 7, 9)), id="five runs"),
    pytest.param(with_card(opened=tuple(range(1, 18))), id="17 opened ports"),
    pytest.param(replace(with_card(body=bytes(256)), technique=200), id="a plugin's body of 256 bytes"),
    pytest.param(replace(with_card(body=bytes(150)), technique=200), id="more than 200 characters"),
]


@pytest.mark.parametrize("token", UNSPEAKABLE)
def test_what_could_not_be_decoded_is_not_encoded(token: Token) -> None:
    with pytest.raises(ValueError, match=r"."):
        encode(token)


@pytest.mark.parametrize("number", [FIRST_PLUGIN_NUMBER, 200, 255])
@pytest.mark.parametrize("size", [0, 1, 70])
def test_techniques_of_others_carry_what_they_like(number: int, size: int) -> None:
    token = replace(with_card(body=b"\xff" * size), technique=number)
    assert decode(encode(token)) == token


def test_built_in_numbers_are_below_those_of_others_and_distinct() -> None:
    assert max(TECHNIQUE_NUMBERS.values()) < FIRST_PLUGIN_NUMBER
    assert len(set(TECHNIQUE_NUMBERS.values())) == len(TECHNIQUE_NUMBERS)


@given(st.lists(st.integers(-5, 65540) | st.integers(40000, 40030), max_size=40))
def test_openable_ports_are_the_first_that_a_card_can_hold(ports: list[int]) -> None:
    kept = openable(ports)
    valid = list(dict.fromkeys(port for port in ports if 1 <= port <= 65535))
    assert list(kept) == valid[: len(kept)]
    assert decode(encode(with_card(opened=kept))).card == replace(CARD, opened=kept)
    if len(kept) < len(valid):
        assert len(kept) == 16 or len(runs(valid[: len(kept) + 1])) > 4


@pytest.mark.parametrize("text", ["x" * 40, "\u00e9" * 40, "=" * 40, "A" * 20 + " ", "A" * 201])
def test_the_text_of_an_error_does_not_show_the_token(text: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(text)
    assert text not in str(caught.value)
