"""What clients say: every message, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from punchd.broker.messages import (
    Direction,
    Health,
    InvalidMessage,
    KeepAlive,
    Light,
    Ready,
    Register,
    Srt,
    Status,
    Tally,
    decode,
)

HEALTH = {"type": "health", "rtt": 1, "retransmit": 0, "bitrate": 0}
GOOD: list[tuple[dict[str, Any], object]] = [
    ({"type": "register", "port": 1024}, Register(1024)),
    ({"type": "register", "port": 5000.0}, Register(5000)),
    (
        {"type": "register", "port": 65535, "stream": "cam", "role": "sender", "meta": {}},
        Register(65535, "cam", Direction.SENDER, "{}"),
    ),
    ({"type": "register", "port": 5000, "meta": {"b": 1, "a": "ä"}}, Register(5000, meta='{"b":1,"a":"ä"}')),
    ({"type": "ready"}, Ready()),
    ({"type": "ready", "stream": "x"}, Ready("x")),
    ({"type": "status", "srt": "error", "stream": "x"}, Status(Srt.ERROR, "x")),
    ({**HEALTH, "rtt": 0.5, "dropped": 3, "buffer": 1e9, "stream": "x"}, Health(0.5, 0, 0, 3, 1e9, "x")),
    ({"type": "tally", "state": "off"}, Tally(Light.OFF)),
    ({"type": "punch.ping"}, KeepAlive(is_bare=False)),
]


@pytest.mark.parametrize(("members", "message"), GOOD, ids=str)
def test_b_121_c_44_every_message_is_read(members: dict[str, Any], message: object) -> None:
    assert decode(json.dumps(members)) == message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not JSON"),
        ("[]", "expected a JSON object"),
        ("{}", "type: expected one of register, ready, status, health, tally"),
        ('{"Type":"register","port":5000}', "type"),
        ('{"type":["ready"]}', "type"),
        ('{"type":"ready","stream":null}', "stream"),
        ('{"type":"ready","stream":"cam\\n"}', "stream"),
        ('{"type":"ready","x":1}', "ready: has no member 'x'; expected stream"),
        ('{"type":"register"}', "port: expected an integer from 1024 to 65535"),
        ('{"type":"register","port":1023}', "port"),
        ('{"type":"register","port":65536}', "port"),
        ('{"type":"register","port":true}', "port"),
        ('{"type":"register","port":5000.5}', "port"),
        ('{"type":"register","port":"5000"}', "port"),
        ('{"type":"register","port":5000,"role":"Sender"}', "role: expected one of sender, receiver"),
        ('{"type":"register","port":5000,"role":["sender"]}', "role"),
        ('{"type":"register","port":5000,"meta":[]}', "meta"),
        ('{"type":"status"}', "srt"),
        ('{"type":"tally","state":"live"}', "state: expected one of off, preview, program"),
        ('{"type":"health","rtt":1,"retransmit":0}', "bitrate: expected a number of 0 or more"),
        ('{"type":"health","rtt":true,"retransmit":0,"bitrate":0}', "rtt"),
        ('{"type":"health","rtt":-0.1,"retransmit":0,"bitrate":0}', "rtt"),
        ('{"type":"health","rtt":NaN,"retransmit":0,"bitrate":0}', "NaN"),
        ('{"type":"health","rtt":1,"retransmit":0,"bitrate":0,"buffer":null}', "buffer"),
    ],
)
def test_b_001_b_121_c_44_c_46_what_is_no_message_is_refused_with_what_was_expected(text: str, words: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        decode(text)
    assert words in str(caught.value)


@pytest.mark.parametrize("kind", ["peer", "peer_match", "session", "start", "health_report", "error", "session_closed"])
def test_c_45_a_message_of_the_server_is_none_of_a_client(kind: str) -> None:
    with pytest.raises(InvalidMessage):
        decode(json.dumps({"type": kind, "stream": "cam"}))


def test_c_06_the_keep_alive_is_exactly_ten_bytes_of_text_or_a_message_of_its_own() -> None:
    assert decode("punch.ping") == KeepAlive(is_bare=True)
    for frame in (
        "punch.ping ",
        "punch.pong",
        "Punch.ping",
        '"punch.ping"',
        '{"type":"punch.ping","x":1}',
        b"punch.ping",
    ):
        with pytest.raises(InvalidMessage):
            decode(frame)


def test_a_binary_frame_is_no_message() -> None:
    with pytest.raises(InvalidMessage, match="text frame"):
        decode(b'{"type":"ready"}')


def register(meta: object) -> Register:
    message = decode(json.dumps({"type": "register", "port": 5000, "meta": meta}))
    assert isinstance(message, Register)
    return message


def test_c_12_meta_has_4096_bytes_as_compact_json_at_most() -> None:
    fits = {"x": "ä" * 2044}  # 8 bytes around 4088
    assert len((register(fits).meta or "").encode()) == 4096
    with pytest.raises(InvalidMessage, match="4096 bytes"):
        register({"x": fits["x"] + "y"})


def test_c_12_meta_is_nested_8_levels_at_most() -> None:
    def nested(levels: int) -> Any:
        return {"x": nested(levels - 1)} if levels > 1 else {}

    register(nested(8))
    with pytest.raises(InvalidMessage, match="8 levels"):
        register(nested(9))


@pytest.mark.parametrize(
    ("claim", "port", "ip"),
    [
        ({"publicPort": 1, "publicIp": "203.0.113.1"}, 1, "203.0.113.1"),
        ({"publicPort": 65535.0}, 65535, None),
        ({"publicPort": 0}, None, None),
        ({"publicPort": 65536, "publicIp": 7}, None, None),
        ({"publicPort": True}, None, None),
        ({"publicPort": "9"}, None, None),
        ("nonsense", None, None),
        (None, None, None),
        ([], None, None),
    ],
    ids=str,
)
def test_c_07_what_is_for_the_broker_is_taken_out_of_meta_and_nonsense_is_as_good_as_nothing(
    claim: object, port: int | None, ip: str | None
) -> None:
    message = register({"punch": claim, "x": 1})
    assert (message.public_port, message.public_ip, message.meta) == (port, ip, '{"x":1}')


def test_c_12_meta_that_was_only_for_the_broker_is_as_if_none_was_given() -> None:
    assert register({"punch": {"publicPort": 9}}).meta is None
    assert register({}).meta == "{}"
