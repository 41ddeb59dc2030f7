"""Live media over SRT between hosts behind NATs, by `punch session join` and the broker: all of it arrives, unaltered.

The short test is one pair of NATs; the long ones are the others, with half a minute each, and the other tools.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.netns.punch_parts import Program
from tests.netns.session_parts import (
    BROKER4,
    BROKER6,
    INPUT_PORT,
    OUTPUT_PORT,
    Sink,
    Source,
    World,
    continuity_errors,
    probed,
    source_words,
    until_all,
    world,
)

pytestmark = [pytest.mark.netns, pytest.mark.timeout(240)]

SHORT_S, LONG_S = 10, 31
LEAD_S = 2.0  # of a probe, which both tools have lost before they were connected


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("session")) as found:
        yield found


@pytest.fixture(autouse=True)
def _ended(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "lab" in request.fixturenames:
        request.getfixturevalue("lab").end_all()


@contextmanager
def media(lab: World, seconds: float) -> Iterator[tuple[Source, Sink]]:
    """From INPUT_PORT of a to OUTPUT_PORT of b."""
    sink = Sink(lab.host("b"))
    source = Source(lab.host("a"), seconds)
    try:
        yield source, sink
    finally:
        source.close()
        sink.close()


def seen_until(watcher: Program, name: str, count: int = 1) -> list[dict[str, Any]]:
    """What a watching admin sees to the event of this name, or to so many of them."""
    seen: list[dict[str, Any]] = []
    while sum(event["event"] == name for event in seen) < count:
        seen.append(json.loads(watcher.line()))
    return seen


def check(stream: bytes, seconds: float, directory: Path) -> None:
    """MPEG-TS without a gap, all frames of which can be decoded."""
    assert continuity_errors(stream) == []
    frames, duration_s = probed(stream, directory)
    assert frames == 10 * seconds
    assert duration_s >= seconds


def on_the_wire(files: list[Path], stream: bytes) -> bool:
    """Whether any whole packet of the stream can be read in a trace."""
    seen = b"".join(file.read_bytes() for file in files)
    assert len(seen) > len(stream)
    return any(stream[at : at + 188] in seen for at in range(0, len(stream) - 187, 188))


def test_live_media_arrive_encrypted_and_go_on_when_the_broker_is_killed(tmp_path: Path) -> None:
    with world(tmp_path) as lab, lab.laboratory.trace(tmp_path, ["core"]) as trace:
        admin, peers = lab.session()
        watcher = lab.punch("server", "watch", admin, "--json")
        ends = [lab.sender("a", peers), lab.receiver("b", peers)]
        until_all(ends, "connected")
        with media(lab, SHORT_S) as (source, sink):
            seen = seen_until(watcher, "health_report")
            until_all(ends, "health")
            lab.kill_broker()
            sent = source.wait()
            received = sink.until(len(sent))
        assert received == sent
        check(received, SHORT_S, tmp_path)
        assert [event["state"] for event in seen if event["event"] == "session"][-1] == "CONNECTED"
        assert seen[-1]["streams"]["default"]["bitrate"] > 0
        assert [end.interrupt() for end in ends] == [130, 130]
        trace.stop()
        assert not on_the_wire(list(trace.files.values()), sent)


@pytest.mark.long
@pytest.mark.parametrize(
    ("a", "b", "address"),
    [
        ("apdf", "apdf", BROKER4),
        ("firewall", "firewall", BROKER4),
        ("full-cone", "full-cone", BROKER4),
        ("carrier", "carrier", BROKER4),
        ("firewall", "carrier", BROKER4),
        ("full-cone", "apdf", BROKER4),
        ("apdf", "eim-no-preserve", BROKER4),
        ("apdf", "apdf", BROKER6),  # behind firewalls, as IPv6 is
    ],
)
def test_half_a_minute_of_media_arrives_unaltered_whatever_the_nats(
    a: str, b: str, address: str, tmp_path: Path
) -> None:
    with world(tmp_path, {"a": a, "b": b}, address) as lab:
        admin, peers = lab.session()
        watcher = lab.punch("server", "watch", admin, "--json")
        ends = [lab.sender("a", peers), lab.receiver("b", peers)]
        until_all(ends, "connected")
        with media(lab, LONG_S) as (source, sink):
            sent = source.wait()
            received = sink.until(len(sent))
            seen = seen_until(watcher, "health_report", 5)
        assert received == sent
        check(received, LONG_S, tmp_path)
        assert [event["state"] for event in seen if event["event"] == "session"][-1] == "CONNECTED"


def test_a_side_with_another_passphrase_does_not_connect_and_says_why(lab: World) -> None:
    admin, peers = lab.session()
    wrong = "srt://{host}:{port}?mode=rendezvous&port={localport}&passphrase=not-{passphrase}&pbkeylen=32"
    tool = f"srt-live-transmit -statspf:json -statsout:{{stats}} {wrong} udp://127.0.0.1:{OUTPUT_PORT}"
    ends = [lab.sender("a", peers), lab.join("b", peers, "--role", "receiver", "--exec", tool)]
    for end in ends:
        end.until("start")
        assert "another passphrase" in end.until("warning")["text"]
    time.sleep(3)
    status = lab.punch("server", "status", admin, "--json")
    assert json.loads(status.line())["state"] == "READY"
    for end in ends:
        end.interrupt()
        assert not end.named("connected")


@pytest.mark.long
def test_gstreamer_carries_media_as_well(lab: World, tmp_path: Path) -> None:
    admin, peers = lab.session()
    ends = [
        lab.join("a", peers, "--tool", "gstreamer", "--input", f"udpsrc address=127.0.0.1 port={INPUT_PORT}"),
        lab.join(
            "b", peers, "--tool", "gstreamer", "--output", f"udpsink host=127.0.0.1 port={OUTPUT_PORT} sync=false"
        ),
    ]
    until_all(ends, "connected")
    with media(lab, LONG_S) as (source, sink):
        time.sleep(5)
        status = lab.punch("server", "status", admin, "--json")
        assert json.loads(status.line())["state"] == "CONNECTED"
        sent = source.wait()
        received = sink.until(len(sent))
    assert received == sent
    check(received, LONG_S, tmp_path)


@pytest.mark.long
def test_ffmpeg_carries_media_through_a_relay(lab: World, tmp_path: Path) -> None:
    admin, peers = lab.session()
    copy = tmp_path / "copy.ts"
    source = " ".join(source_words(LONG_S + LEAD_S)[5:])
    receiver = lab.join("b", peers, "--tool", "ffmpeg", "--output", str(copy))
    sender = lab.join("a", peers, "--tool", "ffmpeg", "--input", source)
    until_all([sender, receiver], "connected")
    assert sender.wait() == 0  # the end of the input is the end
    status = lab.punch("server", "status", admin, "--json")
    assert json.loads(status.line())["state"] == "CONNECTED"
    assert receiver.interrupt() == 130
    stream = copy.read_bytes()
    assert continuity_errors(stream) == []
    frames, duration_s = probed(stream, tmp_path)
    assert frames >= 10 * LONG_S
    assert duration_s >= LONG_S
