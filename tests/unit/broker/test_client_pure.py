"""What the client writes, reads and takes from people, without a network."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from punchd.broker import client_answers, client_version, messages, server_messages, strict_json
from punchd.broker.client_address import SessionLink, check_token, is_for_peers
from punchd.broker.client_decode import decode
from punchd.broker.client_encode import encode
from punchd.broker.client_errors import NotBrokerError, RefusedError, UnreachableError, VersionError
from punchd.broker.client_events import Error, HealthReport, Peer, PeerMatch, Session, SessionClosed, Start, Tally
from punchd.broker.health import HealthEntry, HealthStatus
from punchd.broker.messages import Direction, Health, Light, Ready, Register, Srt, Status
from punchd.broker.server_messages import ErrorCode, ErrorMessage, Overview, PeerInfo, Reason, State, TallyLight
from punchd.endpoint import Endpoint
from punchd.errors import ConfigError, DecodeError
from tests.unit.broker.fake_broker import PEER

ENDPOINT = Endpoint.from_sockaddr(("192.0.2.7", 6000))
NAMES = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
STREAMS = st.none() | NAMES
AMOUNTS = st.floats(0, 1e12)
METAS = st.dictionaries(st.sampled_from("abcä\n"), st.integers(0, 9), min_size=1).map(strict_json.encode)


@given(
    st.one_of(
        st.builds(
            Register, port=st.integers(1024, 65_535), stream=STREAMS, role=st.none() | st.sampled_from(Direction),
            meta=st.none() | METAS,
            public_port=st.none() | st.integers(1, 65_535), public_ip=st.none() | st.just("192.0.2.1"),
        ),
        st.builds(Ready, STREAMS),
        st.builds(Status, st.sampled_from(Srt), STREAMS),
        st.builds(messages.Tally, st.sampled_from(Light), STREAMS),
        st.builds(Health, AMOUNTS, AMOUNTS, AMOUNTS, st.none() | AMOUNTS, st.none() | AMOUNTS, STREAMS),
    )
)  # fmt: skip
def test_what_the_client_says_the_broker_reads_as_it_was_meant(message: messages.ClientMessage) -> None:
    assert messages.decode(encode(message)) == message


@pytest.mark.parametrize(
    ("said", "read"),
    [
        (PeerInfo("wide", ENDPOINT, 5000, 200, '{"a":1}'), Peer("wide", ENDPOINT, 5000, "x" * 43, 200, {"a": 1})),
        (server_messages.PeerMatch("wide", ENDPOINT, ENDPOINT, 5000, 200),
         PeerMatch("wide", ENDPOINT, ENDPOINT, 5000, "x" * 43, 200)),
        (server_messages.Start("wide"), Start("wide")),
        (TallyLight("wide", Light.PREVIEW), Tally("wide", Light.PREVIEW)),
        (ErrorMessage(ErrorCode.STREAM_TAKEN, "both"), Error("STREAM_TAKEN", "both")),
        (server_messages.SessionClosed(Reason.TTL_EXPIRED), SessionClosed("ttl_expired")),
    ],
)  # fmt: skip
def test_what_the_broker_says_the_client_reads(said: Any, read: Any) -> None:
    assert decode(server_messages.encode(said, "x" * 43)) == read


def test_states_and_health_are_read_stream_by_stream() -> None:
    session = decode(server_messages.encode(Overview(State.READY, {"wide": (State.READY, 2), "b": (State.WAITING, 1)})))
    assert isinstance(session, Session)
    assert (session.connected, session.total, session.streams["b"].peers) == (3, 4, 1)
    entry = HealthEntry(rtt=10, retransmit=0.5, bitrate=5e6, status=HealthStatus.WARNING)
    report = decode(server_messages.encode(server_messages.HealthReport({"wide": entry})))
    assert isinstance(report, HealthReport)
    assert report.streams["wide"].status is HealthStatus.WARNING


@pytest.mark.parametrize(
    ("ip", "read"),
    [("::ffff:192.0.2.1", "192.0.2.1"), ("2001:DB8::1", "2001:db8::1"), ("fe80::1%eth0", None), ("host", None)],
)
def test_addresses_are_literals_without_a_zone(ip: str, read: str | None) -> None:
    text = json.dumps({**PEER, "ip": ip})
    if read is None:
        with pytest.raises(DecodeError, match="peer: ip: expected"):
            decode(text)
    else:
        peer = decode(text)
        assert isinstance(peer, Peer)
        assert str(peer.endpoint.ip) == read


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("https://b.example/s/show#t=p_a.b", ("https://b.example", "show", "p_a.b")),
        ("https://b.example:8443/s/show?t=p_a.b", ("https://b.example:8443", "show", "p_a.b")),
        ("https://b.example/punch/s/show/", ("https://b.example/punch", "show", None)),
        (" https://[::1]/s/a.b?x=1&t=p_%61.b#top\n", ("https://[::1]", "a.b", "p_a.b")),
        ("http://127.0.0.1:8787/s/s#x", ("http://127.0.0.1:8787", "s", None)),
    ],
)
def test_a_sessions_url_is_taken_apart(url: str, parts: tuple[str, str, str | None]) -> None:
    link = SessionLink.parse(url)
    assert (link.broker, link.name, link.token) == parts
    assert SessionLink.parse(str(link)) == link
    assert link.token is None or link.token not in repr(link)


@given(st.text(max_size=60) | st.text("htps:/.s#?t=p_&%0a", max_size=60).map(lambda rest: f"https://x/s/a{rest}"))
def test_whatever_stands_for_a_url_is_one_or_a_line_of_error(url: str) -> None:
    try:
        link = SessionLink.parse(url)
    except ConfigError:
        return
    assert link.token is None or check_token(link.token, "x") == link.token


@given(st.text(max_size=40))
def test_a_peers_token_is_told_from_all_else(text: str) -> None:
    payload = base64.urlsafe_b64encode(json.dumps({"role": "peer", "x": text}).encode()).decode().rstrip("=")
    assert is_for_peers(f"p_{payload}.c2ln")
    assert not is_for_peers(f"p_{payload[::-1]}.x")
    assert not is_for_peers(text)


@pytest.mark.parametrize(
    ("status", "fields", "body", "kind"),
    [
        (404, {}, b'{"error":"SESSION_NOT_FOUND","message":"no"}', RefusedError),
        (503, {}, b'{"error":"SESSION_FULL","message":"no"}', RefusedError),
        (404, {"punch-version": "2.0.0"}, b'{"error":"X","message":"no"}', VersionError),
        (404, {}, b'{"error":"no code","message":"no"}', NotBrokerError),
        (404, {}, b"<html>", NotBrokerError),
        (502, {}, b"<html>", UnreachableError),
    ],
)
def test_an_answer_that_is_no_success_is_told_by_who_gave_it(
    status: int, fields: dict[str, str], body: bytes, kind: type[Exception]
) -> None:
    error = client_answers.refusal("broker x", status, fields, body, retry_after_s=None)
    assert type(error) is kind
    assert str(error).startswith("broker x: ")


@given(st.binary(max_size=60) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(
        st.sampled_from(["session", "token", "url", "streams", "peerTokens", "state", "exp", "tally"]), inner),
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_whatever_a_body_holds_it_is_a_value_or_one_error(body: bytes) -> None:
    readers = (client_answers.created, client_answers.status, client_answers.minted, client_answers.connection_string)
    for read in readers:
        with pytest.raises(DecodeError):
            read(body)


@given(st.text(max_size=30))
def test_b_046_whatever_a_version_is_it_is_ours_or_refused(text: str) -> None:
    try:
        client_version.check("broker x", text)
    except NotBrokerError:
        return
    assert text.strip().lstrip("0").startswith("1.")


def test_what_a_broker_says_cannot_drive_a_terminal() -> None:
    escape = "\x1b[2Jx\n"
    error = decode(json.dumps({"type": "error", "code": escape, "message": escape * 400}))
    assert isinstance(error, Error)
    assert (error.code + error.message).isprintable()
    assert len(error.message) <= 500
    view = {
        "session": "show", "state": "READY", "streams": {}, "connected": 0, "total": 0, "latency": 200,
        "created": escape, "expiresAt": 1, "warnings": [escape],
    }  # fmt: skip
    status = client_answers.status(json.dumps(view).encode())
    assert (status.created + status.warnings[0]).isprintable()
    for wrong in ({"session": escape}, {"tally": {escape: "off"}}, {"streams": {escape: {"state": "x", "peers": 1}}}):
        with pytest.raises(DecodeError):
            client_answers.status(json.dumps(view | wrong).encode())
