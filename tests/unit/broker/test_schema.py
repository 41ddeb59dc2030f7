"""Our messages and the normative schema agree, in each direction; what differs is what C-44 says."""

from __future__ import annotations

import hashlib
import json
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from punchd.broker.answers import HttpCode
from punchd.broker.health import HealthEntry, HealthStatus
from punchd.broker.messages import InvalidMessage, Light, decode
from punchd.broker.names import is_name
from punchd.broker.server_messages import (
    ErrorCode,
    ErrorMessage,
    HealthReport,
    Overview,
    PeerInfo,
    PeerMatch,
    Reason,
    SessionClosed,
    Start,
    State,
    TallyLight,
    encode,
    finish,
    members,
    needs_passphrase,
)
from punchd.endpoint import Endpoint
from tests.unit.broker.schema import CLIENT, SCHEMA, SCHEMA_BYTES, SERVER

# Of the seed's JSON, from its first brace to its last.
SEED_SHA256 = "51de42f75269fc864fe1baf28abc00d6ffa7d5ce264fd2d470ab52dcc9299cc1"


def test_b_123_the_shipped_schema_is_the_seeds_byte_for_byte() -> None:
    assert hashlib.sha256(SCHEMA_BYTES).hexdigest() == SEED_SHA256
    assert SCHEMA["$id"] == "https://punch.thast.se/spec/punch-messages.schema.json"


# --- from clients --------------------------------------------------------------------------------------------------

STREAMS = st.sampled_from(["cam", "a" * 64, "a" * 65, "", ".a", "cam\n", "9._-"]) | st.text(max_size=3)
NUMBERS = st.sampled_from([0, -1, 1023, 1024, 65535, 65536, 5000.0, 5000.5, True, -0.0, 2**53, 2**53 + 1, 1e300])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)
KINDS = ("register", "ready", "status", "health", "tally", "peer", "session", "start", "Register", "punch.pong")
WORDS = ("sender", "receiver", "connecting", "connected", "disconnected", "error", "off", "preview", "program", "x")
ANYTHING = JSON | NUMBERS | st.floats(allow_nan=False, allow_infinity=False)
WANTED = {
    "stream": STREAMS,
    "port": NUMBERS | st.integers(1000, 66000),
    "role": st.sampled_from(WORDS),
    "meta": st.dictionaries(st.text(max_size=3), JSON, max_size=3),
    "srt": st.sampled_from(WORDS),
    "state": st.sampled_from(WORDS),
    **{name: NUMBERS | st.floats(0, 1e12) for name in ("rtt", "retransmit", "bitrate", "dropped", "buffer")},
}
OWN = {
    "register": ("port", "stream", "role", "meta"),
    "ready": ("stream",),
    "status": ("srt", "stream"),
    "health": ("rtt", "retransmit", "bitrate", "dropped", "buffer", "stream"),
    "tally": ("state", "stream"),
}


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """Messages that are about right: mostly members that the type has, and now and then anything."""
    kind = draw(st.sampled_from(KINDS))
    names = draw(st.sets(st.sampled_from(OWN.get(kind, tuple(WANTED)))))
    found: dict[str, Any] = {"type": kind, **{name: draw(WANTED[name]) for name in sorted(names)}}
    if draw(st.integers(0, 3)) == 0:
        found[draw(st.sampled_from(["type", *WANTED, "x", ""]))] = draw(ANYTHING)
    if draw(st.integers(0, 9)) == 0:
        found.pop("type")
    return found


def is_refused_by_c_44(value: Any, name: str = "") -> bool:
    """What the schema takes and we do not. The bounds of depth and size have tests of their own."""
    match value:
        case bool():
            return False
        case int():
            return abs(value) > 2**53
        case str():
            return name == "stream" and not is_name(value)  # `$` lets a line feed pass
        case list():
            return any(map(is_refused_by_c_44, value))
        case dict():
            return any(is_refused_by_c_44(inner, key) for key, inner in value.items())
        case _:
            return False


@settings(max_examples=500, deadline=None)
@given(documents())
def test_b_121_b_122_c_44_a_client_message_is_taken_if_and_only_if_the_schema_does(document: dict[str, Any]) -> None:
    try:
        decode(json.dumps(document))
        taken = True
    except InvalidMessage:
        taken = False
    assert taken == (CLIENT.is_valid(document) and not is_refused_by_c_44(document))


# --- from the server -----------------------------------------------------------------------------------------------

names = st.sampled_from(["cam", "a" * 64])
endpoints = st.builds(
    Endpoint, st.sampled_from([IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1")]), st.sampled_from([1, 65535])
)
ports = st.sampled_from([1024, 65535])
latencies = st.sampled_from([20, 8000])
figures = st.floats(0, allow_infinity=False) | st.integers(0, 2**53)
server_messages = st.one_of(
    st.builds(PeerInfo, names, endpoints, ports, latencies, st.none() | st.just('{"x":[1.5,null]}')),
    st.builds(PeerMatch, names, endpoints, endpoints, ports, latencies),
    st.builds(
        Overview,
        st.sampled_from(State),
        st.dictionaries(names, st.tuples(st.sampled_from(State), st.integers(0, 2)), min_size=1),
    ),
    st.builds(Start, names),
    st.builds(TallyLight, names, st.sampled_from(Light)),
    st.builds(
        HealthReport,
        st.dictionaries(
            names, st.builds(HealthEntry, figures, figures, figures, st.sampled_from(HealthStatus)), max_size=2
        ),
    ),
    st.builds(ErrorMessage, st.sampled_from(ErrorCode), st.text(max_size=9)),
    st.builds(SessionClosed, st.sampled_from(Reason)),
)


@settings(deadline=None)
@given(server_messages)
def test_b_120_every_message_of_the_server_is_valid_for_its_direction(message: Any) -> None:
    text = encode(message, "p" * 43)
    SERVER.validate(json.loads(text))
    assert text.encode().decode() == text
    plain = json.loads(json.dumps(members(message)))
    assert "p" * 43 not in str(plain)
    assert finish(plain, "p" * 43) == text


def test_b_120_every_kind_of_server_message_was_tried() -> None:
    ours = {"peer", "peer_match", "session", "start", "tally", "health_report", "error", "session_closed"}
    theirs = [SCHEMA["$defs"][one["$ref"].rpartition("/")[2]] for one in SCHEMA["$defs"]["ServerMessage"]["oneOf"]]
    assert {one["properties"]["type"]["const"] for one in theirs} == ours


def test_b_011_c_02_c_21_the_words_are_the_schemas() -> None:
    assert [state.value for state in State] == [
        word for word in SCHEMA["$defs"]["SessionState"]["enum"] if word != "RELAYING"
    ]
    assert [code.value for code in ErrorCode] == SCHEMA["$defs"]["ErrorCode"]["enum"]
    assert {code.value for code in ErrorCode} & {code.value for code in HttpCode} == {
        "AUTH_FAILED",
        "SERVER_ERROR",
        "SESSION_FULL",
    }
    assert [status.value for status in HealthStatus] == SCHEMA["$defs"]["HealthStatus"]["enum"]


def test_c_26a_the_schemas_root_refuses_a_tally_so_directions_are_checked_apart() -> None:
    tally = {"type": "tally", "stream": "a", "state": "program"}
    assert CLIENT.is_valid(tally)
    assert SERVER.is_valid(tally)
    assert not CLIENT.evolve(schema=SCHEMA).is_valid(tally)


def test_b_102_b_104_no_message_is_sent_without_its_passphrase_and_none_has_it_before() -> None:
    here = Endpoint(IPv4Address("192.0.2.1"), 5000)
    for message in (PeerInfo("cam", here, 5000, 200), PeerMatch("cam", here, here, 5000, 200)):
        assert needs_passphrase(message) == "cam"
        assert "192.0.2.1" not in repr(message)
        with pytest.raises(ValueError, match="passphrase"):
            encode(message)
    assert needs_passphrase(Start("cam")) is None
