"""The page's pure modules, table by table, in the browser that they are for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from selenium.webdriver.chrome.webdriver import WebDriver

from punchd.broker.connect import FORMATS
from punchd.broker.tokens import Grant, Keys, Role, mint
from tests.browser.chromium import Window
from tests.browser.serving import Site

SAMPLE = {"rtt": 20, "retransmit": 1, "bitrate": 5e6, "status": "healthy"}
OVERVIEW = {
    "type": "session",
    "state": "READY",
    "streams": {"a": {"state": "READY", "peers": 2}},
    "connected": 2,
    "total": 2,
}
ENDPOINT = {"ip": "192.0.2.1", "port": 5000}
PEER = {"type": "peer", "stream": "a", "ip": "192.0.2.1", "port": 5000, "localPort": 6000, "passphrase": "x" * 43}
JOIN = {"type": "join", "port": 6000, "role": "sender"}


@pytest.fixture(scope="module")
def page(driver: WebDriver, broker: Site) -> Iterator[Window]:
    window = Window.open(driver, broker.url)
    yield window
    window.close()


def test_a_token_says_whose_it_is_and_what_is_none_says_nothing(page: Window) -> None:
    keys = Keys(("s" * 32,))
    for grant in (Grant("show", Role.ADMIN, None, 99), Grant("a.b", Role.PEER, "x_-1", 99)):
        said = page.module("token.js", "m.read(a[0])", mint(keys, grant))
        assert said == {"session": grant.session, "role": grant.role.value, "stream": grant.stream, "exp": 99}
    for text in ("", None, "p_", "p_!.x", "p_bm9uc2Vuc2U.x", "p_e30.x", "p_W10.x", "p_bnVsbA.x", "x_e30.x"):
        assert page.module("token.js", "m.read(a[0])", text) is None


@pytest.mark.parametrize(
    ("fragment", "query", "kept", "token"),
    [
        ("#t=p_a.b", "", None, "p_a.b"),
        ("", "?t=p_a.b", None, "p_a.b"),
        ("#t=p_a.b", "?t=p_c.d", "p_e.f", "p_a.b"),
        ("", "", "p_e.f", "p_e.f"),
        ("", "", None, None),
    ],
)
def test_the_token_leaves_the_address_for_the_tabs_storage(
    page: Window, fragment: str, query: str, kept: str | None, token: str | None
) -> None:
    script = """(() => {
      const kept = new Map(a[2] ? [["punch:show", a[2]]] : []);
      const storage = {getItem: (key) => kept.get(key) ?? null, setItem: (key, value) => kept.set(key, value)};
      const shown = [];
      const history = {replaceState: (_state, _title, path) => shown.push(path)};
      const got = m.take("show", {hash: a[0], search: a[1], pathname: "/s/show"}, history, storage);
      return [got, kept.get("punch:show") ?? null, shown];
    })()"""
    shown = ["/s/show"] if fragment or query else []
    assert page.module("token.js", script, fragment, query, kept) == [token, token, shown]


def test_the_pause_before_the_next_try_doubles_to_half_a_minute_and_has_jitter(page: Window) -> None:
    pauses = page.module("backoff.js", "[...Array(8).keys()].map((n) => [m.delay(n, 0), m.delay(n, 1)])")
    most = [1, 2, 4, 8, 16, 30, 30, 30]
    assert pauses == [[pause / 2, pause] for pause in most]
    assert page.module("backoff.js", "[1000, 1011, 1006, 1005, 4404].map(m.comesBack)") == [False, *[True] * 4]


@pytest.mark.parametrize(
    ("typed", "errors"),
    [
        ({}, []),
        ({"streams": " a,b  c,, d "}, []),
        ({"latency": " 20 ", "minutes": "1440"}, []),
        ({"name": ""}, ["name"]),
        ({"name": ".x"}, ["name"]),
        ({"name": "x" * 65}, ["name"]),
        ({"streams": " , "}, ["streams"]),
        ({"streams": "a, a"}, ["streams"]),
        ({"streams": "a, ä"}, ["streams"]),
        ({"streams": ",".join(f"s{number}" for number in range(17))}, ["streams"]),
        *(({"latency": text}, ["latency"]) for text in ("", "19", "8001", "2e2", "-200", "20.5")),
        *(({"minutes": text}, ["ttl"]) for text in ("", "0", "1441", "x")),
        ({"name": "", "latency": "0"}, ["latency", "name"]),
    ],
)
def test_what_is_typed_is_checked_field_by_field(page: Window, typed: dict[str, str], errors: list[str]) -> None:
    whole = {"name": "show", "streams": "default", "latency": "200", "minutes": "30", **typed}
    found = page.module("fields.js", "m.creation(a[0])", whole)
    assert sorted(found["errors"]) == errors
    if typed.get("streams", "").startswith(" a"):
        assert found["body"] == {"name": "show", "streams": ["a", "b", "c", "d"], "latency": 200, "ttl": 1800}


def test_what_the_server_objects_to_is_put_to_its_field(page: Window) -> None:
    for error, message, field in (
        ("INVALID_REQUEST", "latency: expected a number", "latency"),
        ("INVALID_REQUEST", "ttl: expected", "ttl"),
        ("SESSION_EXISTS", "an open session has this name", "name"),
        ("INVALID_REQUEST", "expected a JSON object", None),
        ("SERVER_ERROR", None, None),
    ):
        assert page.module("fields.js", "m.field(a[0])", {"error": error, "message": message}) == field


def test_a_series_of_reports_is_bounded_in_time_and_number_and_old_news_is_none(page: Window) -> None:
    script = "a[0].reduce((kept, at) => m.push(kept, {at, rtt: 1}), []).map((one) => one.at)"
    assert page.module("series.js", script, [0, 1000, 600_000, 600_500]) == [1000, 600_000, 600_500]
    assert len(page.module("series.js", script, list(range(700)))) == 600
    for now, found in ((1000, True), (31_000, True), (31_001, False)):
        assert page.module("series.js", "m.newest([{at: 1000}], a[0]) !== null", now) is found
    assert page.module("series.js", "m.newest([], 0)") is None


def test_a_curve_goes_from_left_to_right_on_a_round_scale(page: Window) -> None:
    samples = [{"at": at, "rtt": rtt} for at, rtt in ((0, 0), (30_000, 10), (60_000, 20))]
    drawn = page.module("series.js", "m.points(a[0], 'rtt', 200, 40)", samples)
    assert drawn == {"points": "0.0,40.0 100.0,20.0 200.0,0.0", "top": 20}
    late = page.module("series.js", "m.points(a[0], 'rtt', 200, 40)", samples[2:])
    assert late == {"points": "200.0,0.0", "top": 20}
    assert page.module("series.js", "m.points([], 'rtt', 200, 40)") == {"points": "", "top": 0}
    values = [0, 0.003, 1, 1.1, 2, 4.9, 5.1, 99, 8_000_000]
    assert page.module("series.js", "a[0].map(m.niceTop)", values) == [1, 0.005, 1, 2, 2, 5, 10, 100, 10_000_000]


def reduced(page: Window, *messages: dict[str, Any]) -> Any:
    return page.module("state.js", "a[0].reduce((s, one, n) => m.reduce(s, one, n), m.unknown())", list(messages))


def test_what_is_known_of_a_session_follows_its_messages(page: Window) -> None:
    match = {"type": "peer_match", "stream": "a", "peer_a": ENDPOINT, "peer_b": {"ip": "2001:db8::1", "port": 6}}
    tally = {"type": "tally", "stream": "a", "state": "program"}
    report = {"type": "health_report", "streams": {"a": SAMPLE}}
    found = reduced(page, match, OVERVIEW, tally, report, report, {"type": "of a later version"})
    assert (found["state"], found["connected"], found["total"], found["ended"]) == ("READY", 2, 2, None)
    stream = found["streams"]["a"]
    assert (stream["state"], stream["peers"], stream["tally"]) == ("READY", 2, "program")
    assert stream["match"] == {"a": "192.0.2.1:5000", "b": "[2001:db8::1]:6"}
    assert stream["health"] == [{"at": 3, **SAMPLE}, {"at": 4, **SAMPLE}]
    alone = {**OVERVIEW, "streams": {"a": {"state": "WAITING", "peers": 1}}}
    assert reduced(page, match, OVERVIEW, alone)["streams"]["a"]["match"] is None
    over = reduced(page, OVERVIEW, {"type": "session_closed", "reason": "ttl_expired"}, {"type": "session_closed"})
    assert (over["state"], over["ended"]) == ("CLOSED", "ttl_expired")


def phase(page: Window, *events: dict[str, Any]) -> Any:
    return page.module("peering.js", "a[0].reduce((s, one) => m.step(s, one, 'a'), m.idle())", list(events))


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([OVERVIEW, PEER], "idle"),
        ([JOIN], "joining"),
        ([JOIN, OVERVIEW], "waiting"),
        ([JOIN, OVERVIEW, PEER], "matched"),
        ([JOIN, PEER], "matched"),
        ([JOIN, {"type": "ready"}], "joining"),
        ([JOIN, PEER, {"type": "ready"}], "ready"),
        ([JOIN, PEER, {"type": "ready"}, {"type": "start"}], "started"),
        ([JOIN, PEER, {"type": "start"}, {"type": "status", "srt": "connected"}], "running"),
        ([JOIN, PEER, {"type": "start"}, {"type": "status", "srt": "error"}], "failed"),
        ([JOIN, PEER, {"type": "ready"}, PEER], "matched"),
        ([JOIN, PEER, {"type": "status", "srt": "connected"}, PEER], "running"),
        ([JOIN, PEER, {"type": "status", "srt": "connected"}, {**PEER, "port": 5001}], "matched"),
        ([JOIN, PEER, {"type": "leave"}], "idle"),
        ([JOIN, {"type": "error", "code": "STREAM_TAKEN", "message": "the stream has both its peers"}], "idle"),
        ([JOIN, PEER, {"type": "error", "code": "STREAM_TAKEN", "message": "replaced by a newer connection"}], "idle"),
        ([JOIN, PEER, {"type": "error", "code": "AUTH_FAILED", "message": "the token was revoked"}], "idle"),
        ([JOIN, PEER, {"type": "error", "code": "INVALID_MESSAGE", "message": "rate limit"}], "matched"),
    ],
)
def test_how_far_a_peer_has_come(page: Window, events: list[dict[str, Any]], expected: str) -> None:
    assert phase(page, *events)["phase"] == expected


def test_a_peer_whose_partner_left_waits_again_unless_its_stream_runs(page: Window) -> None:
    alone = {**OVERVIEW, "streams": {"a": {"state": "WAITING", "peers": 1}}}
    left = phase(page, JOIN, PEER, OVERVIEW, alone)
    assert (left["phase"], left["other"]) == ("waiting", None)
    runs = phase(page, JOIN, PEER, {"type": "status", "srt": "connected"}, alone)
    assert (runs["phase"], runs["isAlone"]) == ("running", True)
    assert "Both places" in phase(page, JOIN, {"type": "error", "code": "STREAM_TAKEN", "message": "the"})["problem"]
    assert (
        "Another window"
        in phase(page, JOIN, {"type": "error", "code": "STREAM_TAKEN", "message": "replaced"})["problem"]
    )


@pytest.mark.parametrize("name", ["constructor", "toString", "valueOf", "hasOwnProperty"])
def test_a_stream_may_be_called_like_what_every_object_has(page: Window, name: str) -> None:
    known = page.module(
        "state.js", "m.reduce(m.unknown(), {type: 'session', streams: {[a[0]]: {peers: 2}}}, 0).streams[a[0]]", name
    )
    assert (known["tally"], known["health"]) == ("off", [])
    known = page.module("state.js", "m.reduce(m.unknown(), {type: 'tally', stream: a[0]}, 0).streams[a[0]]", name)
    assert known["health"] == []


def test_a_connection_is_kept_in_a_window_that_nobody_sees_whose_timers_fire_once_a_minute(page: Window) -> None:
    script = """(() => {
      const real = {WebSocket, setInterval, now: Date.now};
      let now = 0, tick = null, sockets = [];
      globalThis.WebSocket = class {
        static OPEN = 1;
        readyState = 1;
        sent = 0;
        constructor() { sockets.push(this); }
        send() { this.sent++; if (a[0]) this.onmessage({data: "punch.pong"}); }
        close() { this.readyState = 3; }
      };
      globalThis.setInterval = (todo) => { tick = todo; return 1; };
      Date.now = () => now;
      try {
        const on = {open() {}, message() {}, lost() {}, refused() {}, closed() {}};
        const line = new m.Line("show", "p_a.b", on, async () => ({ok: false, status: 0}));
        line.open();
        sockets[0].onopen();
        for (let minute = 0; minute < 5 && sockets[0].readyState === 1; minute++) { now += 60_000; tick(); }
        const found = [sockets[0].readyState, sockets[0].sent];
        line.close();
        return found;
      } finally {
        Object.assign(globalThis, {WebSocket: real.WebSocket, setInterval: real.setInterval});
        Date.now = real.now;
      }
    })()"""
    assert page.module("line.js", script, True) == [1, 5]
    assert page.module("line.js", script, False) == [3, 1]


def test_figures_are_said_with_their_units(page: Window) -> None:
    durations = [-5, 0, 999, 59_000, 249_000, 600_000, 7_500_000]
    assert page.module("words.js", "a[0].map(m.duration)", durations) == [
        "0 s", "0 s", "1 s", "59 s", "4 min 09 s", "10 min", "2 h 05 min",
    ]  # fmt: skip
    assert page.module("words.js", "[0, 999, 64e3, 8e6, 2.5e7].map(m.bitrate)") == [
        "0 bit/s", "999 bit/s", "64 kbit/s", "8.00 Mbit/s", "25.0 Mbit/s",
    ]  # fmt: skip
    assert page.module("words.js", "[m.rtt(1.23), m.rtt(45.6), m.percent(0.5), m.percent(12)]") == [
        "1.2 ms", "46 ms", "0.5 %", "12 %",
    ]  # fmt: skip


def test_every_format_reason_and_failure_has_words(page: Window) -> None:
    assert set(page.module("words.js", "Object.keys(m.FORMATS)")) == set(FORMATS)
    assert {"admin_closed", "ttl_expired", "error"} < set(page.module("words.js", "Object.keys(m.ENDED)"))
    for failure, words in (
        ({"status": 0}, "cannot be reached"),
        ({"status": 429, "retryAfter": 90}, "1 min 30 s"),
        ({"status": 401, "error": "AUTH_FAILED"}, "does not take this link"),
        ({"status": 404, "error": "SESSION_NOT_FOUND"}, "no such session"),
        ({"status": 409, "error": "SESSION_EXISTS"}, "Choose another name"),
        ({"status": 500, "error": "SERVER_ERROR", "message": "oops"}, "The server says: oops."),
        ({"status": 502}, "status 502"),
    ):
        assert words in page.module("words.js", "m.failure(a[0])", failure)


def test_the_defaults_of_the_form_are_those_of_the_api(page: Window) -> None:
    values = page.run("return ['streams', 'latency', 'ttl'].map((name) => document.getElementById(name).value)")
    assert values == ["default", "200", "30"]
