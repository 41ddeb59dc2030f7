"""Whole conversations over WebSockets: the order of what is said, to whom, and how they end."""

from __future__ import annotations

import json
import logging
import socket
from typing import Any

import pytest
import trio
from websockets.trio.client import connect

from punchd.broker import tokens
from punchd.broker.session import Session
from tests.unit.broker.contract import TAP
from tests.unit.broker.peer import Peer, settle
from tests.unit.broker.running import running, settings
from tests.unit.broker.schema import check_server_message
from tests.unit.web.raw_websocket import BINARY, CONT, TEXT, frame

pytestmark = pytest.mark.usefixtures("each_store")


async def test_b_055_b_056_b_057_b_058_b_066_c_42_the_normal_case_in_exact_order() -> None:
    async with running() as server:
        made = await server.create()
        token = made["peerTokens"]["default"]
        admin = await server.join("show", made["token"])
        assert await admin.kinds() == ["session"]
        one = await server.join("show", token, "127.0.0.11")
        assert await one.heard() == []
        one.say("register", port=5000, role="sender", meta={"camera": 1})
        assert await one.kinds() == ["session"]
        two = await server.join("show", token, "127.0.0.12")
        two.say("register", port=6000)
        [mine, _] = await two.heard()
        [others, told] = await one.heard()
        [alone, match, ready] = await admin.heard()
        assert (mine["ip"], mine["port"], mine["localPort"], mine["meta"]) == ("127.0.0.11", 5000, 6000, {"camera": 1})
        assert (others["ip"], others["port"], others["localPort"]) == ("127.0.0.12", 6000, 5000)
        assert "meta" not in others
        assert mine["passphrase"] == others["passphrase"] == match["passphrase"]
        assert mine["latency"] == others["latency"] == 200
        assert (alone["connected"], ready["connected"], ready["state"]) == (1, 2, "READY")
        assert match["peer_b"] == {"ip": "127.0.0.12", "port": 6000}
        assert told == ready
        one.say("ready")
        assert await two.heard() == []
        two.say("ready")
        assert await one.kinds() == await two.kinds() == ["start"]
        one.say("status", srt="connected")
        assert [frame["state"] for peer in (one, two, admin) for frame in await peer.heard()] == ["CONNECTED"] * 3
        one.say("health", rtt=30, retransmit=0.5, bitrate=8e6)
        assert await two.kinds() == await one.kinds() == await admin.kinds() == ["health_report"]
        admin.say("tally", state="program")
        assert await two.kinds() == await one.kinds() == await admin.kinds() == ["tally"]
        await server.ask("DELETE", "/api/session/show", token=made["token"])
        for peer in (one, two, admin):
            assert await peer.kinds() == ["session", "session_closed"]
            assert await peer.ended() == 1000
        assert await server.metric("punch_matches_total") == 1
        assert await server.metric('punch_sessions_ended_total{reason="admin_closed"}') == 1


async def test_b_007_b_107_strangers_addresses_are_never_told() -> None:
    async with running() as server:
        made = await server.create(streams=["wide", "close"])
        one, two = await server.pair(made, "wide")
        three, four = await server.pair(made, "close")
        fifth = await server.join("show", made["peerTokens"]["wide"], "127.0.0.99")
        fifth.say("register", port=7000)
        assert await fifth.kinds() == ["error"]
        seen = {peer: "".join(peer.texts) for peer in (one, two, three, four, fifth)}
        view = (await server.ask("GET", "/api/session/show", token=made["peerTokens"]["wide"])).body.decode()
    assert "127.0.0.12" in seen[one]
    assert "127.0.0.11" in seen[two]
    for peer, own in ((one, "127.0.0.12"), (two, "127.0.0.11"), (three, "127.0.0.22"), (four, "127.0.0.21")):
        assert "127.0.0." not in seen[peer].replace(own, "")
    assert "127.0.0." not in seen[fifth] + view


async def test_b_051_b_052_a_bad_token_is_answered_before_the_upgrade() -> None:
    async with running() as server:
        made = await server.create()
        good = made["peerTokens"]["default"]
        other = (await server.create("other"))["token"]
        for token in ("", "x", good[:-1], good + "=", other, good.replace("p_", "P_")):
            answer, peer = await server.upgrade(f"/api/ws/show?t={token}")
            assert (answer.status, answer.error, peer) == (401, "AUTH_FAILED", None)
        ghost = tokens.mint(server.secret.keys, tokens.Grant("ghost", tokens.Role.ADMIN, None, 2_000_000_000))
        answer, _ = await server.upgrade(f"/api/ws/ghost?t={ghost}")
        assert (answer.status, answer.error) == (404, "SESSION_NOT_FOUND")


async def test_b_050_c_40_c_51_the_token_comes_in_the_query_or_the_header_and_both_must_be_equal() -> None:
    async with running() as server:
        made = await server.create()
        token, admin = made["peerTokens"]["default"], made["token"]
        for target, field, status in (
            (f"/api/ws/show?t={token}", "", 101),
            ("/api/ws/show", f"Bearer {token}", 101),
            (f"/api/ws/show?t={token}", f"Bearer {token}", 101),
            (f"/api/ws/show?t={token.replace('_', '%5F')}", "", 101),
            (f"/api/ws/show?t={token}", f"Bearer {admin}", 401),
            (f"/api/ws/show?t={token}", "Basic eDp5", 401),
            ("/api/ws/show?t=", f"Bearer {admin}", 401),
        ):
            answer, peer = await server.upgrade(target, authorization=field)
            assert answer.status == status, target
            if peer is not None:
                peer.cut()


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"upgrade": "", "connection": ""}, 426, "UPGRADE_REQUIRED"),
        ({"upgrade": "h2c"}, 426, "UPGRADE_REQUIRED"),
        ({"sec_websocket_key": ""}, 400, "INVALID_REQUEST"),
        ({"sec_websocket_key": "short"}, 400, "INVALID_REQUEST"),
        ({"sec_websocket_version": "8"}, 400, "INVALID_REQUEST"),
    ],
)
@pytest.mark.parametrize("each_store", ["memory"], indirect=True)
async def test_b_042_b_044_a_bad_handshake_is_answered_in_our_words(
    fields: dict[str, str], status: int, code: str
) -> None:
    async with running() as server:
        made = await server.create()
        answer, peer = await server.upgrade(f"/api/ws/show?t={made['token']}", **fields)
        assert (answer.status, answer.error, peer) == (status, code, None)
        assert status != 426 or answer.headers["upgrade"] == "websocket"


@pytest.mark.parametrize("each_store", ["memory"], indirect=True)
async def test_b_044_the_upgrade_has_the_version_and_no_extension() -> None:
    async with running() as server:
        made = await server.create()
        answer, _ = await server.upgrade(
            f"/api/ws/show?t={made['token']}", sec_websocket_extensions="permessage-deflate"
        )
        assert answer.headers["punch-version"] == "1.0.0"
        assert "sec-websocket-extensions" not in answer.headers


@pytest.mark.parametrize(
    "data",
    [
        frame(TEXT, b"\xff\xfe"),
        frame(TEXT, b"{}", masked=False),
        frame(TEXT, b"{}", rsv=4),
        frame(CONT, b"{}"),
        frame(3, b""),
        frame(TEXT, b" " * 16_385),
        frame(TEXT, b" " * 10_000, fin=False) + frame(CONT, b" " * 10_000),
        frame(9, b"x" * 126),
        frame(8, b"\x03"),
        frame(8, b"\x03\xed"),
    ],
)
@pytest.mark.parametrize("each_store", ["memory"], indirect=True)
async def test_b_002_b_069_c_05_broken_frames_are_closed_with_1011(data: bytes) -> None:
    async with running() as server:
        made = await server.create()
        peer = await server.join("show", made["peerTokens"]["default"])
        peer.write(data)
        assert await peer.ended() == 1011


@pytest.mark.parametrize(
    "data",
    [
        frame(BINARY, b"{}"),
        frame(TEXT, b"punch.ping "),
        frame(TEXT, b""),
        frame(TEXT, b"{}"),
        frame(TEXT, b'{"type":"session"}'),
        frame(TEXT, b'{"type":"register","port":5000,"x":1}'),
        frame(TEXT, b'{"Type":"register","port":5000}'),
        frame(TEXT, b"[" * 16_000),
        frame(TEXT, b'{"type":"ready"}'),
        frame(TEXT, b" " * 16_384),
    ],
)
@pytest.mark.parametrize("each_store", ["memory"], indirect=True)
async def test_b_001_b_121_c_45_what_is_no_message_is_answered_and_borne(data: bytes) -> None:
    async with running() as server:
        made = await server.create()
        peer = await server.join("show", made["peerTokens"]["default"])
        peer.write(data)
        [error] = await peer.heard()
        assert error["code"] == "INVALID_MESSAGE"
        peer.say("register", port=5000)
        assert await peer.kinds() == ["session"]


async def test_c_26a_a_tally_is_taken_though_the_schemas_root_refuses_it() -> None:
    async with running() as server:
        made = await server.create()
        admin = await server.join("show", made["token"])
        await admin.heard()
        admin.send('{"type":"tally","stream":"default","state":"program"}')
        assert await admin.kinds() == ["tally"]


async def test_b_061_a_ping_is_answered_with_the_same_payload() -> None:
    async with running() as server:
        made = await server.create()
        peer = await server.join("show", made["peerTokens"]["default"])
        sock = peer.sock
        sock.sendall(frame(9, b"are you there"))
        await settle()
        assert sock.recv(100) == b"\x8a\x0dare you there"


async def test_c_24_a_peer_that_comes_back_replaces_its_ghost() -> None:
    async with running() as server:
        made = await server.create()
        one, two = await server.pair(made)
        again = await server.join("show", made["peerTokens"]["default"], "127.0.0.11")
        again.say("register", port=5011)
        assert [frame["code"] for frame in await one.heard()] == ["STREAM_TAKEN"]
        assert await one.ended() == 1000
        assert await again.kinds() == ["peer", "session"]
        assert await two.kinds() == ["peer", "session"]


async def test_c_24_a_close_or_a_lost_connection_frees_the_slot() -> None:
    async with running() as server:
        made = await server.create()
        one, two = await server.pair(made)
        one.close(1000)
        assert [frame["connected"] for frame in await two.heard()] == [1]
        two.cut()
        third = await server.join("show", made["token"])
        [seen] = await third.heard()
        assert (seen["connected"], seen["state"]) == (0, "READY")


async def test_c_23_a_third_peer_is_refused_while_the_others_are_alive() -> None:
    async with running() as server:
        made = await server.create()
        one, two = await server.pair(made)
        third = await server.join("show", made["peerTokens"]["default"], "127.0.0.77")
        third.say("register", port=7000)
        assert [frame["code"] for frame in await third.heard()] == ["STREAM_TAKEN"]
        assert await one.heard() == await two.heard() == []


async def test_b_064_c_43_sixteen_streams_at_once_are_told_in_the_order_of_events() -> None:
    async with running() as server:
        made = await server.create(streams=[f"s{number}" for number in range(16)])
        admin = await server.join("show", made["token"])
        peers: list[tuple[str, Peer]] = []
        for number, stream in enumerate(made["streams"]):
            for last in (1, 2):
                peer = await server.join("show", made["peerTokens"][stream], f"127.0.1.{2 * number + last}")
                peers.append((stream, peer))
        for number, (_, peer) in enumerate(peers):
            peer.say("register", port=5000 + number)
        frames = await admin.heard()
        counted = [frame["connected"] for frame in frames if frame["type"] == "session"]
        assert counted == list(range(33))
        matched: set[str] = set()
        for told in frames:
            if told["type"] == "peer_match":
                matched.add(told["stream"])
            else:
                assert {name for name, one in told["streams"].items() if one["state"] == "READY"} == matched
        late = await server.join("show", made["token"])
        assert await late.kinds() == ["peer_match"] * 16 + ["session"]


async def test_b_059_nothing_depends_on_whether_peer_or_session_comes_first() -> None:
    """Whoever waits only for one of the two has all that it needs, whatever came before."""
    async with running() as server:
        made = await server.create()
        one, two = await server.pair(made)
        for peer in (one, two):
            peer.say("ready")
        for peer in (one, two):
            assert await peer.kinds() == ["start"]
            for skipped in ("peer", "session"):
                rest = [json.loads(text) for text in peer.texts if json.loads(text)["type"] != skipped]
                assert [frame["type"] for frame in rest][-1] == "start"


async def test_c_10_peers_of_two_families_are_matched_counted_and_shown_to_the_admin() -> None:
    chosen = settings(trusted_proxies=("127.0.0.1",))
    async with running(chosen) as server:
        made = await server.create()
        token = made["peerTokens"]["default"]
        peers = []
        for forwarded in ("192.0.2.1", "2001:db8::1"):
            TAP.addresses.add(forwarded)
            _, peer = await server.upgrade(f"/api/ws/show?t={token}", x_forwarded_for=f"10.9.9.9, {forwarded}")
            assert peer is not None
            peer.say("register", port=5000)
            await settle()
            peers.append(peer)
        ips = [next(one["ip"] for one in await peer.heard() if one["type"] == "peer") for peer in peers]
        assert ips == ["2001:db8::1", "192.0.2.1"]
        assert await server.metric("punch_family_mismatch_total") == 1
        assert (await server.ask("GET", "/api/session/show", token=made["token"])).json["warnings"] == [
            "family_mismatch"
        ]


@pytest.mark.parametrize(("reported", "port"), [("off", 5000), ("port", 40_000)])
async def test_c_07_a_reported_port_is_believed_if_the_operator_wants_it(reported: str, port: int) -> None:
    async with running(settings(reported_endpoint=reported)) as server:
        made = await server.create()
        one = await server.join("show", made["peerTokens"]["default"], "127.0.0.31")
        one.say("register", port=5000, meta={"punch": {"publicPort": 40_000}})
        two = await server.join("show", made["peerTokens"]["default"], "127.0.0.32")
        two.say("register", port=6000)
        [peer, _] = await two.heard()
        assert (peer["port"], peer["ip"], "meta" in peer) == (port, "127.0.0.31", False)


@pytest.mark.parametrize("each_store", ["memory"], indirect=True)
async def test_b_106_the_server_opens_no_udp_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: list[int] = []
    real = socket.socket.__init__

    def spy(self: socket.socket, *arguments: Any, **named: Any) -> None:
        real(self, *arguments, **named)
        kinds.append(self.type)

    monkeypatch.setattr(socket.socket, "__init__", spy)
    async with running() as server:
        await server.pair(await server.create())
    assert kinds
    assert socket.SOCK_DGRAM not in kinds


async def test_c_49_b_071_a_session_that_fails_tells_all_and_closes_with_1011(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("oops")

    async with running() as server:
        made = await server.create()
        other = await server.join("other", (await server.create("other"))["token"])
        one, two = await server.pair(made)
        with caplog.at_level(logging.ERROR):
            monkeypatch.setattr(Session, "_tally", fail)
            one.say("tally", state="off")
            heard = await one.heard()
        assert [frame.get("code", frame.get("reason")) for frame in heard] == ["SERVER_ERROR", "error"]
        assert [frame["reason"] for frame in await two.heard()] == ["error"]
        assert await one.ended() == await two.ended() == 1011
        assert (await server.ask("GET", "/api/session/show", token=made["token"])).status == 404
        assert await other.kinds() == ["session"]
        assert (await server.create())["state"] == "WAITING"


async def test_b_065_the_second_websocket_library_plays_a_peer() -> None:
    async with running() as server:
        made = await server.create()
        token = made["peerTokens"]["default"]
        kinds: list[list[str]] = []
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:

                async def play(port: int) -> None:
                    url = f"ws://127.0.0.1:{server.port}/api/ws/show?t={token}"
                    heard: list[str] = []
                    async with connect(url) as peer:
                        await peer.send(json.dumps({"type": "register", "port": port}))
                        while "start" not in heard:
                            heard.append(check_server_message(str(await peer.recv()))["type"])
                            if heard[-1] == "peer":
                                await peer.send('{"type":"ready"}')
                    kinds.append(heard)

                nursery.start_soon(play, 5000)
                nursery.start_soon(play, 6000)
    assert all({"peer", "session", "start"} <= set(heard) for heard in kinds)
