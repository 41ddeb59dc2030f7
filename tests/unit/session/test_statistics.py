"""srt-live-transmit's statistics and words, as it wrote them (srt-tools 1.5.1, 5 % loss, 20 ms each way)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from punchd.broker.client_encode import encode
from punchd.broker.messages import Direction, Health
from punchd.session.srt_log import Heard, hear
from punchd.session.statistics import MAX_LINE_BYTES, Sample, Window, read

SENDER, RECEIVER = Direction.SENDER, Direction.RECEIVER

SENT = (
    b'{"sid":659883920,"timepoint":"2026-11-21T18:20:25.175853+0000","time":6401,"window":{"flow":8189,"congestion":8192,'
    b'"flight":2},"link":{"rtt":44.935,"bandwidth":12.072,"maxBandwidth":1000},"send":{"packets":103,"packetsUnique":98,'
    b'"packetsLost":6,"packetsDropped":0,"packetsRetransmitted":5,"packetsFilterExtra":0,"bytes":116580,"bytesUnique":'
    b'110908,"bytesDropped":0,"byteAvailBuf":12286500,"msBuf":14,"mbitRate":0.145691,"sendPeriod":9},"recv":{"packets":0,'
    b'"packetsUnique":0,"packetsLost":0,"packetsDropped":0,"packetsRetransmitted":0,"packetsBelated":0,'
    b'"packetsFilterExtra":0,"packetsFilterSupply":0,"packetsFilterLoss":0,"bytes":0,"bytesUnique":0,"bytesLost":0,'
    b'"bytesDropped":0,"byteAvailBuf":12286500,"msBuf":0,"mbitRate":0,"msTsbPdDelay":120}}'
)
SENT_NEXT = (
    b'{"sid":659883920,"timepoint":"2026-11-21T18:20:30.574604+0000","time":11800,"window":{"flow":8189,"congestion":8192,'
    b'"flight":1},"link":{"rtt":40.539,"bandwidth":12.432,"maxBandwidth":1000},"send":{"packets":110,"packetsUnique":101,'
    b'"packetsLost":14,"packetsDropped":0,"packetsRetransmitted":9,"packetsFilterExtra":0,"bytes":119896,"bytesUnique":'
    b'110100,"bytesDropped":0,"byteAvailBuf":12286500,"msBuf":3,"mbitRate":0.177665,"sendPeriod":8},"recv":{"packets":0,'
    b'"packetsUnique":0,"packetsLost":0,"packetsDropped":0,"packetsRetransmitted":0,"packetsBelated":0,'
    b'"packetsFilterExtra":0,"packetsFilterSupply":0,"packetsFilterLoss":0,"bytes":0,"bytesUnique":0,"bytesLost":0,'
    b'"bytesDropped":0,"byteAvailBuf":12286500,"msBuf":0,"mbitRate":0,"msTsbPdDelay":120}}'
)
RECEIVED = (
    b'{"sid":812560088,"timepoint":"2026-11-21T18:20:30.715782+0000","time":11938,"window":{"flow":8192,"congestion":8192,'
    b'"flight":0},"link":{"rtt":40.523,"bandwidth":12.516,"maxBandwidth":1000},"send":{"packets":0,"packetsUnique":0,'
    b'"packetsLost":0,"packetsDropped":0,"packetsRetransmitted":0,"packetsFilterExtra":0,"bytes":0,"bytesUnique":0,'
    b'"bytesDropped":0,"byteAvailBuf":12288000,"msBuf":0,"mbitRate":0,"sendPeriod":10},"recv":{"packets":99,'
    b'"packetsUnique":98,"packetsLost":8,"packetsDropped":0,"packetsRetransmitted":8,"packetsBelated":1,'
    b'"packetsFilterExtra":0,"packetsFilterSupply":0,"packetsFilterLoss":0,"bytes":109448,"bytesUnique":108276,'
    b'"bytesLost":9061,"bytesDropped":0,"byteAvailBuf":12286500,"msBuf":106,"mbitRate":0.162187,"msTsbPdDelay":120}}'
)


def test_a_line_says_how_the_direction_with_the_media_does() -> None:
    assert read(SENT + b"\n", SENDER) == Sample(659883920, 6401, 44.935, 98, 5, 0, 116580, 14)
    assert read(RECEIVED, RECEIVER) == Sample(812560088, 11938, 40.523, 98, 8, 0, 109448, 106)


def health(*lines: bytes, direction: Direction = SENDER) -> Health:
    window = Window()
    for line in lines:
        sample = read(line, direction)
        assert sample is not None
        window.add(sample)
    found = window.report()
    assert found is not None
    return found


def test_the_bitrate_is_the_one_that_the_tool_has_itself() -> None:
    assert health(SENT).bitrate == pytest.approx(145_691, rel=1e-3)
    window = Window()
    for line in (SENT, SENT_NEXT):
        sample = read(line, SENDER)
        assert sample is not None
        window.add(sample)
        found = window.report()
    assert found is not None
    assert found.bitrate == pytest.approx(177_665, rel=1e-3)


def test_a_report_covers_all_samples_since_the_one_before() -> None:
    both = health(SENT, SENT_NEXT)
    assert both.bitrate == pytest.approx(8000 * (116580 + 119896) / 11800)
    assert both.retransmit == pytest.approx(100 * 14 / 199)
    assert (both.rtt, both.dropped, both.buffer) == (40.539, 0, 3)


def test_dropped_packets_are_a_total_and_a_report_without_samples_says_that_nothing_flows() -> None:
    window = Window()
    assert window.report() is None
    lossy = SENT.replace(b'"packetsDropped":0', b'"packetsDropped":3', 1)
    for line in (lossy, lossy.replace(b'"time":6401', b'"time":7401')):
        sample = read(line, SENDER)
        assert sample is not None
        window.add(sample)
    assert window.report() == Health(44.935, 100 * 10 / 196, 8000 * 2 * 116580 / 7401, 6, 14)
    assert window.report() == Health(44.935, 0.0, 0.0, 6, 14)


def test_the_time_of_a_new_connection_begins_anew() -> None:
    again = SENT.replace(b"659883920", b"1").replace(b'"time":6401', b'"time":1000')
    assert health(SENT, again).bitrate == pytest.approx(8000 * 2 * 116580 / 7401)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"======= SRT STATS: sid=1",
        b"{",
        b"{}",
        SENT.replace(b'"sid":659883920', b'"sid":true'),
        SENT.replace(b'"rtt":44.935', b'"rtt":-1'),
        SENT.replace(b'"rtt":44.935', b'"rtt":1e300'),
        SENT.replace(b'"time":6401', b'"time":0.5'),
        SENT.replace(b'"link"', b'"chain"'),
        SENT.replace(b'"bytes":116580', b'"bytes":"116580"'),
        SENT + b" " * MAX_LINE_BYTES,
    ],
)
def test_what_is_no_line_of_statistics_is_none(line: bytes) -> None:
    assert read(line, SENDER) is None


SIDES = st.fixed_dictionaries(
    {
        name: st.integers(0, 1 << 53) | st.floats(allow_nan=False) | st.none()
        for name in ("packetsUnique", "packetsRetransmitted", "packetsDropped", "bytes", "msBuf")
    }
)
LINES = st.fixed_dictionaries(
    {
        "sid": st.integers(),
        "time": st.integers(-1, 1 << 53),
        "link": st.fixed_dictionaries({"rtt": st.floats(allow_nan=False) | st.text()}),
        "send": SIDES,
    }
)


@given(st.lists(LINES, max_size=5), st.sampled_from(Direction))
def test_whatever_a_tool_writes_becomes_a_health_that_the_broker_takes_or_nothing(
    lines: list[dict[str, Any]], direction: Direction
) -> None:
    window = Window()
    for members in lines:
        members["recv"] = members["send"]
        sample = read(json.dumps(members).encode(), direction)
        if sample is not None:
            window.add(sample)
    found = window.report()
    if found is not None:
        encode(found)


@given(st.binary(max_size=200), st.sampled_from(Direction))
def test_bytes_never_raise(line: bytes, direction: Direction) -> None:
    read(line, direction)
    read(SENT[:50] + line, direction)


@pytest.mark.parametrize(
    ("line", "heard"),
    [
        (
            "18:20:18.860786/SRT:RcvQ:w1.N:SRT.cn: @812560088:Connection established to: 198.51.100.1:5000",
            Heard.CONNECTED,
        ),
        ("SRT source connected", Heard.CONNECTED),
        ("SRT target connected", Heard.CONNECTED),
        (
            "0:00:00.0479 12499 0x7f DEBUG srtlib core.cpp:4743:postConnect: : @653743819:Connection established to: "
            "203.0.113.1:6000",
            Heard.CONNECTED,
        ),
        ("SRT source disconnected", Heard.DISCONNECTED),
        (
            "WARNING: from element /GstPipeline:pipeline0/GstSRTSrc:srtsrc0: Error on SRT socket: "
            "Unknown or erroneous. Trying to reconnect",
            Heard.DISCONNECTED,
        ),
        ("18:11:14.888039/SRT:RcvQ:w1!W:SRT.cn: KMREQ/rcv: (snd) Rx process failure - BADSECRET", Heard.REFUSED),
        (
            "18:11:14.888922/SRT:RcvQ:w1*E:SRT.cn: @426970568:processConnectResponse: CONFUSED: expected "
            "UMSG_HANDSHAKE as connection not yet established, got: shutdown",
            Heard.REFUSED,
        ),
        ("Media path: 'file://con' --> 'srt://203.0.113.1:6000?mode=rendezvous'", Heard.NOISE),
        ("18:20:18.839491/SRT:RcvQ:w1.N:SRT.cn: HSREQ/rcv: cmd=1(HSREQ) len=12 vers=0x10501", Heard.NOISE),
        ("0:00:05.9 5864 0x56 WARN srtlib epoll.cpp:904:update_events: : epoll/update: IPE", Heard.NOISE),
        ("", Heard.NOISE),
        ("ERROR: error: srt_bind: Connection setup failure: unable to create/configure SRT socket", Heard.WORDS),
        ('WARNING: erroneous pipeline: no element "srtsink"', Heard.WORDS),
        ("film.ts: No such file or directory", Heard.WORDS),
    ],
)
def test_what_tools_say_is_understood(line: str, heard: Heard) -> None:
    assert hear(line) is heard
