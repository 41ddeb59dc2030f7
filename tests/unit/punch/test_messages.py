"""Signals: every value has a text that is read as that value, and no text does harm."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from punchd.control.requests import Protocol
from punchd.endpoint import PortSet
from punchd.errors import DecodeError
from punchd.punch import messages
from punchd.punch.messages import Bye, Call, Code, Message, OtherVersionError, Ready, Reject, Token

ID = "0123456789abcdef"
TARGETS = ["localhost:22", "192.0.2.1:65535", "[2001:db8::1]:80", "a-b.example:1"]
printable = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=200)
addresses = st.one_of(
    st.integers(0xC0000200, 0xC00002FF).map(IPv4Address),
    st.integers(0x20010DB8 << 96, (0x20010DB8 << 96) + 999).map(IPv6Address),
)
ports = st.lists(st.integers(1, 65535), min_size=1, max_size=16, unique=True).map(PortSet.of)
certified = st.builds(Call, st.just(Protocol.TCP), addresses, ports, st.binary(min_size=1, max_size=300), st.just(None))
plain = st.builds(Call, st.sampled_from(Protocol), addresses, ports, st.just(b""), st.none() | st.sampled_from(TARGETS))
every_message: st.SearchStrategy[Message] = st.one_of(
    certified,
    plain,
    st.builds(Token, st.text("abcXYZ019-_", min_size=19, max_size=200)),
    st.just(Ready()),
    st.builds(Reject, st.sampled_from(Code), printable),
    st.builds(Bye, st.booleans()),
)


@given(every_message)
def test_what_is_said_is_what_is_heard_and_fits_into_a_signal(message: Message) -> None:
    text = messages.encode(ID, message)
    assert len(text.encode()) <= 1024
    assert messages.decode(text) == (ID, message)


@given(every_message, st.dictionaries(st.sampled_from(["more", "since", "later"]), st.integers() | st.text()))
def test_members_that_are_not_known_are_ignored(message: Message, more: dict[str, Any]) -> None:
    text = json.dumps(json.loads(messages.encode(ID, message)) | more)
    if len(text) <= messages.MAX_BYTES:
        assert messages.decode(text) == (ID, message)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(every_message, st.sampled_from(["v", "call", "kind", "token", "ip", "ports", "cert", "plain", "target"]), values)
def test_a_member_of_any_value_is_refused_or_read_as_something_sound(message: Message, name: str, value: Any) -> None:
    text = json.dumps(json.loads(messages.encode(ID, message)) | {name: value})
    try:
        call_id, found = messages.decode(text)
    except DecodeError:
        return
    assert messages.decode(messages.encode(call_id, found)) == (call_id, found)


@given(st.text(max_size=1500) | values.map(json.dumps) | st.just("[" * 1000))
def test_any_text_is_refused_in_one_way(text: str) -> None:
    with pytest.raises(DecodeError):
        messages.decode(text)


def spoiled(**changed: Any) -> str:
    call = Call(Protocol.TCP, IPv4Address("192.0.2.1"), PortSet((40000,)), b"x", None)
    return json.dumps(json.loads(messages.encode(ID, call)) | changed)


@pytest.mark.parametrize(
    "text",
    [
        spoiled(call="0123456789ABCDEF"),
        spoiled(call=ID + "0"),
        spoiled(kind="calls"),
        spoiled(kind=None),
        spoiled(protocol="sctp"),
        spoiled(ip="192.0.2.01"),
        spoiled(ip="example.org"),
        spoiled(ports=""),
        spoiled(ports="0"),
        spoiled(ports="1-17"),
        spoiled(ports="5,5"),
        spoiled(cert=""),
        spoiled(cert="é"),
        spoiled(cert="not base64!"),
        spoiled(cert="A" * 800),
        spoiled(target="x"),
        spoiled(target="x:0"),
        spoiled(target="x:65536"),
        spoiled(target="x y:1"),
        spoiled(kind="token", token="x" * 18),
        spoiled(kind="token", token="x|" * 20),
        spoiled(kind="bye", v=2),
        spoiled(v=True, kind="bye"),
        spoiled(more="x" * 1024),
    ],
)
def test_what_is_not_quite_a_signal_is_none(text: str) -> None:
    with pytest.raises(DecodeError):
        messages.decode(text)


@pytest.mark.parametrize("version", [2, 0, 1.0, None, "1", True])
def test_a_call_of_another_version_is_told_apart_so_that_it_can_be_rejected(version: Any) -> None:
    with pytest.raises(OtherVersionError) as raised:
        messages.decode(spoiled(v=version))
    assert raised.value.call_id == ID


def test_texts_of_others_fit_a_line_of_a_terminal_and_unknown_reasons_are_failures() -> None:
    text = json.dumps({"v": 1, "call": ID, "kind": "reject", "code": "moon", "text": "a\x1b[2J\n\u202eb" + "c" * 300})
    _, found = messages.decode(text)
    assert found == Reject(Code.FAILED, "a?[2J??b" + "c" * 192)


def test_tokens_are_not_shown() -> None:
    assert "secret" not in repr(Token("secret" * 4))
