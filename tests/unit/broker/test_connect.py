"""Connection strings: one template a tool, and who gets one."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from punchd.broker.connect import FORMATS, End, string
from punchd.broker.messages import Direction
from punchd.endpoint import Endpoint
from tests.unit.broker.contract import TAP
from tests.unit.broker.running import running

SENDER, RECEIVER = Direction.SENDER, Direction.RECEIVER
URI = "srt://192.0.2.7:6000?mode=rendezvous&port=5000&passphrase=0123456789_-x&pbkeylen=32&latency=200"

GST = URI.replace("&port=", "&localaddress=0.0.0.0&localport=")


def end(direction: Direction = SENDER, ip: str = "192.0.2.7", port: int = 6000) -> End:
    return End(Endpoint(ip_address(ip), port), 5000, direction, 200, "0123456789_-x")


@pytest.mark.parametrize(
    ("form", "what", "expected"),
    [
        ("url", end(), URI),
        ("url", end(RECEIVER), URI),
        ("url", end(ip="2001:db8::7"), URI.replace("192.0.2.7", "[2001:db8::7]")),
        ("srt-live-transmit", end(), f'srt-live-transmit "udp://127.0.0.1:5100" "{URI}"'),
        ("srt-live-transmit", end(RECEIVER), f'srt-live-transmit "{URI}" "udp://127.0.0.1:5100"'),
        (
            "ffmpeg",
            end(),
            f'srt-live-transmit "udp://127.0.0.1:5100" "{URI}" & '
            'ffmpeg -re -i INPUT -f mpegts "udp://127.0.0.1:5100?pkt_size=1316"',
        ),
        (
            "ffmpeg",
            end(RECEIVER),
            f'srt-live-transmit "{URI}" "udp://127.0.0.1:5100" & ffmpeg -i "udp://127.0.0.1:5100" OUTPUT',
        ),
        (
            "gstreamer",
            end(),
            f'gst-launch-1.0 filesrc location=INPUT ! tsparse set-timestamps=true alignment=7 ! srtsink uri="{GST}"',
        ),
        (
            "gstreamer",
            end(RECEIVER),
            f'gst-launch-1.0 srtsrc uri="{GST}" ! filesink location=OUTPUT',
        ),
        (
            "gstreamer",
            end(RECEIVER, ip="2001:db8::7"),
            f'gst-launch-1.0 srtsrc uri="{GST.replace("0.0.0.0", "::").replace("192.0.2.7", "[2001:db8::7]")}" '  # noqa: S104 (no socket)
            "! filesink location=OUTPUT",
        ),
        (
            "vmix",
            end(),
            "Type: SRT Rendezvous\nHostname: 192.0.2.7\nPort: 6000\nLocal Port: 5000\nLatency: 200\n"
            "Passphrase: 0123456789_-x\nKey Length: 256",
        ),
        (
            "obs",
            end(port=5000),
            "srt://192.0.2.7:5000?mode=rendezvous&localip=0.0.0.0&localport=5000&passphrase=0123456789_-x"
            "&pbkeylen=32&latency=200000",
        ),
    ],
)
def test_each_tool_has_its_template(form: str, what: End, expected: str) -> None:
    assert string(form, what) == expected


@pytest.mark.parametrize("what", [end(), end(ip="2001:db8::7", port=5000), end(RECEIVER, port=5000)])
def test_obs_goes_through_a_relay_where_its_own_rendezvous_would_bind_the_wrong_port(what: End) -> None:
    assert string("obs", what).startswith("srt-live-transmit ")


async def test_an_admin_gets_either_side_and_a_peer_its_own() -> None:
    async with running() as server:
        made = await server.create()
        admin, peer = made["token"], made["peerTokens"]["default"]
        early = await server.ask("GET", "/api/session/show/connect", token=admin)
        assert (early.status, early.error) == (409, "NOT_READY")
        await server.pair(made)
        found = {}
        for query, token, source in (
            ("", admin, "127.0.0.1"),
            ("?side=b&role=sender", admin, "127.0.0.1"),
            ("?port=5011", peer, "127.0.0.11"),
            ("?port=5012&format=vmix", peer, "127.0.0.12"),
        ):
            answer = await server.ask("GET", f"/api/session/show/connect{query}", token=token, source=source)
            assert answer.status == 200, answer
            found[query] = answer.json
        first, second = found[""]["value"], found["?side=b&role=sender"]["value"]
        assert first.startswith("srt://127.0.0.12:5012?mode=rendezvous&port=5011&")
        assert second.startswith("srt://127.0.0.11:5011?mode=rendezvous&port=5012&")
        assert found["?port=5011"]["value"] == first
        assert [found[query]["role"] for query in ("", "?side=b&role=sender")] == ["sender", "sender"]
        assert "Hostname: 127.0.0.11" in found["?port=5012&format=vmix"]["value"]
        TAP.unlogged |= {first, second}


@pytest.mark.parametrize(
    ("query", "who", "status", "code"),
    [
        ("?format=vlc", "admin", 400, "INVALID_REQUEST"),
        ("?role=both", "admin", 400, "INVALID_REQUEST"),
        ("?stream=wide&side=c", "admin", 400, "INVALID_REQUEST"),
        ("", "admin", 400, "INVALID_REQUEST"),
        ("?stream=none", "admin", 404, "STREAM_NOT_FOUND"),
        ("?stream=close", "admin", 409, "NOT_READY"),
        ("?stream=close", "peer", 403, "AUTH_FAILED"),
        ("", "peer", 400, "INVALID_REQUEST"),
        ("?port=99999", "peer", 400, "INVALID_REQUEST"),
        ("?port=5011", "peer", 403, "AUTH_FAILED"),
    ],
)
async def test_b_101_a_string_that_is_not_the_askers_or_makes_no_sense_is_refused(
    query: str, who: str, status: int, code: str
) -> None:
    async with running() as server:
        made = await server.create(streams=["wide", "close"])
        await server.pair(made, "wide")
        token = made["token"] if who == "admin" else made["peerTokens"]["wide"]
        answer = await server.ask("GET", f"/api/session/show/connect{query}", token=token)
        assert (answer.status, answer.error) == (status, code)


def test_every_format_of_the_specification_is_there() -> None:
    assert set(FORMATS) == {"url", "ffmpeg", "obs", "vmix", "gstreamer", "srt-live-transmit"}
