"""Creating, looking at and closing sessions over HTTP."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio

from punchd.broker import tokens
from punchd.broker.tokens import Grant, Role
from tests.unit.broker.peer import settle
from tests.unit.broker.running import BASE_S, URL, Answer, running

pytestmark = pytest.mark.usefixtures("each_store")


async def test_b_012_b_021_b_032_c_36_c_56_create_gives_all_that_a_producer_needs() -> None:
    async with running() as server:
        answer = await server.ask("POST", "/api/session", {"name": "show", "streams": ["wide", "close"]}, token="x")  # noqa: S106 (none)
    made = answer.json
    assert (answer.status, answer.headers["location"]) == (201, "/api/session/show")
    expected = {
        "session": "show",
        "url": f"{URL}/s/show",
        "qr": f"{URL}/s/show/qr",
        "streams": ["wide", "close"],
        "latency": 200,
        "ttl": 1800,
        "state": "WAITING",
        "ws": "wss://broker.example/api/ws/show",
    }
    assert {name: made[name] for name in expected} == expected
    assert set(made["peerTokens"]) == {"wide", "close"}
    assert made["created"] == "2026-05-03T12:06:40Z"
    assert BASE_S * 1000 <= made["expiresAt"] - 1_800_000 < BASE_S * 1000 + 1000


async def test_b_004_b_022_times_are_as_the_body_says_them() -> None:
    async with running() as server:
        made = await server.create(ttl=60, latency=800)
        grant = tokens.read(made["token"], server.secret.keys)
        seen = (await server.ask("GET", "/api/session/show", token=made["token"])).json
    assert made["ttl"] == 60
    assert seen["expiresAt"] == made["expiresAt"]
    assert grant.exp == -(-made["expiresAt"] // 1000)
    assert seen["latency"] == 800


@pytest.mark.parametrize(
    "body",
    [
        {"Name": "show"},
        {"name": "show", "streams": [f"s{number}" for number in range(17)]},
        {"name": "a\n"},
        {"name": "show", "ttl": 86401},
        b"\xff",
        b'\xef\xbb\xbf{"name":"show"}',
        b'{"name":"show","ttl":NaN}',
        b'{"name":"show","name":"show"}',
        b"[]",
        b"",
    ],
)
@pytest.mark.parametrize("each_store", ["memory"], indirect=True)
async def test_b_001_b_002_b_003_b_005_b_006_c_37_what_makes_no_sense_makes_no_session(body: Any) -> None:
    async with running() as server:
        answer = await server.ask("POST", "/api/session", body)
        assert (answer.status, answer.error) == (400, "INVALID_REQUEST")
        assert len(server.broker.sessions) == 0


async def test_c_46_c_16_unknown_members_of_a_creation_are_ignored() -> None:
    async with running() as server:
        made = await server.create(expectedPeers=7, anything={"x": [None]})
    assert made["streams"] == ["default"]


async def test_b_037_b_038_c_35_a_name_is_taken_while_its_session_lives() -> None:
    async with running() as server:
        made = await server.create()
        again = await server.ask("POST", "/api/session", {"name": "show"})
        assert (again.status, again.error, set(again.json)) == (409, "SESSION_EXISTS", {"error", "code", "message"})
        assert (await server.ask("GET", "/api/session/show", token=made["token"])).status == 200
        await server.ask("DELETE", "/api/session/show", token=made["token"])
        newer = await server.create()
        assert newer["token"] != made["token"]


async def test_b_037_of_twenty_at_once_exactly_one_gets_the_name() -> None:
    found: list[Answer] = []
    async with running() as server, trio.open_nursery() as nursery:

        async def create() -> None:
            found.append(await server.ask("POST", "/api/session", {"name": "show"}))

        for _ in range(20):
            nursery.start_soon(create)
    assert sorted(answer.status for answer in found) == [201, *[409] * 19]


async def test_c_36_what_everybody_and_what_only_an_admin_may_see_of_a_session() -> None:
    async with running() as server:
        made = await server.create(streams=["wide", "close"])
        admin = await server.join("show", made["token"])
        await server.pair(made, "wide")
        admin.say("tally", stream="close", state="program")
        await settle()
        seen = (await server.ask("GET", "/api/session/show", token=made["token"])).json
        peers = (await server.ask("GET", "/api/session/show", token=made["peerTokens"]["close"])).json
    assert seen["tally"] == {"wide": "off", "close": "program"}
    assert seen["health"] == {}
    assert "warnings" not in seen
    assert {**{name: seen[name] for name in peers}, "tally": peers["tally"]} == peers
    assert (peers["state"], peers["connected"], peers["total"]) == ("READY", 2, 4)
    assert peers["streams"] == {"wide": {"state": "READY", "peers": 2}, "close": {"state": "WAITING", "peers": 0}}
    assert set(seen) - set(peers) == {"health"}
    assert peers["tally"] == {"close": "program"}  # of its own stream, as the WebSocket would tell it
    assert "127.0.0" not in json.dumps(seen)


async def test_b_015_b_018_b_019_b_070_delete_closes_and_then_there_is_nothing_any_more() -> None:
    async with running() as server:
        made = await server.create()
        peer = await server.join("show", made["peerTokens"]["default"])
        closed = await server.ask("DELETE", "/api/session/show", token=made["token"])
        assert (closed.status, closed.json) == (200, {"session": "show", "state": "CLOSED"})
        assert [frame.get("reason", frame.get("state")) for frame in await peer.heard()] == ["CLOSED", "admin_closed"]
        assert await peer.ended() == 1000
        for method, target in (
            ("DELETE", "/api/session/show"),
            ("GET", "/api/session/show"),
            ("POST", "/api/session/show/token"),
            ("DELETE", "/api/session/show/token"),
            ("GET", "/api/session/show/connect"),
        ):
            gone = await server.ask(method, target, token=made["token"])
            assert (gone.status, gone.error) == (404, "SESSION_NOT_FOUND")
        answer, _ = await server.upgrade(f"/api/ws/show?t={made['peerTokens']['default']}")
        assert (answer.status, answer.error) == (404, "SESSION_NOT_FOUND")


ENDPOINTS = [
    ("GET", "/api/session/show"),
    ("DELETE", "/api/session/show"),
    ("POST", "/api/session/show/token"),
    ("DELETE", "/api/session/show/token"),
    ("GET", "/api/session/show/connect"),
    ("GET", "/api/ws/show"),
]


@pytest.mark.parametrize(("method", "target"), ENDPOINTS)
async def test_b_030_b_031_each_endpoint_of_a_session_takes_a_token(method: str, target: str) -> None:
    async with running() as server:
        made = await server.create()
        good, other = made["token"], (await server.create("other"))["token"]
        flipped = good[:-1] + ("A" if good[-1] != "A" else "B")
        for token in (None, "", "x", other, flipped, good + "=", good[2:], f"{good}.x", "Basic eDp5"):
            answer = await server.ask(method, target, token=token)
            assert (answer.status, answer.error) == (401, "AUTH_FAILED")
        for field in (f"Basic {good}", f"Bearer {good}, Bearer {good}", good):
            answer = await server.ask(method, target, authorization=field)
            assert answer.status == 401
        assert (await server.ask("GET", "/api/session/show", token=good)).status == 200


@pytest.mark.parametrize(("method", "target"), ENDPOINTS[1:4])
async def test_b_101_c_31_a_peers_token_does_nothing_that_is_an_admins(method: str, target: str) -> None:
    async with running() as server:
        made = await server.create()
        answer = await server.ask(method, target, {"token": made["token"]}, token=made["peerTokens"]["default"])
        assert (answer.status, answer.error) == (403, "AUTH_FAILED")
        assert (await server.ask("GET", "/api/session/show", token=made["token"])).status == 200


async def test_c_30_c_32_a_token_of_a_former_life_of_the_name_is_worthless() -> None:
    async with running() as server:
        old = await server.create()
        await server.ask("DELETE", "/api/session/show", token=old["token"])
        await server.create()
        assert (await server.ask("DELETE", "/api/session/show", token=old["token"])).status == 401
        forged = tokens.mint(server.secret.keys, Grant("show", Role.ADMIN, None, 2_000_000_000))
        assert (await server.ask("DELETE", "/api/session/show", token=forged)).status == 401


async def test_c_54_no_name_is_reserved() -> None:
    async with running() as server:
        for name in ("token", "connect", "session", "ws", "health"):
            made = await server.create(name)
            assert (await server.ask("GET", f"/api/session/{name}", token=made["token"])).status == 200


async def test_b_005_a_name_in_a_path_is_decoded_once() -> None:
    async with running() as server:
        made = await server.create("a.b")
        assert (await server.ask("GET", "/api/session/a%2Eb", token=made["token"])).status == 200
        assert (await server.ask("GET", "/api/session/a%252Eb", token=made["token"])).status == 401
        assert (await server.ask("GET", "/api/session/%C3%A4", token=made["token"])).status == 401
        assert (await server.ask("GET", "/api/session/a%2Fb", token=made["token"])).error == "NOT_FOUND"


# --- tokens ----------------------------------------------------------------------------------------------------------


async def test_c_34_more_tokens_for_peers_can_be_made_and_each_is_its_own() -> None:
    async with running() as server:
        made = await server.create(streams=["wide", "close"], ttl=1000)
        answers = [
            await server.ask("POST", "/api/session/show/token", body, token=made["token"])
            for body in ({"stream": "wide", "ttl": 600, "label": "truck"}, {"stream": "wide"}, {"stream": "wide"})
        ]
        found = [answer.json for answer in answers]
        assert [answer.status for answer in answers] == [201] * 3
        assert len({one["token"] for one in found} | set(made["peerTokens"].values())) == 5
        assert found[0]["url"] == f"{URL}/s/show?t={found[0]['token']}"
        assert found[0]["exp"] <= BASE_S + 602
        assert found[1]["exp"] in range(found[2]["exp"] + 1, -(-made["expiresAt"] // 1000) + 1)
        peer = await server.join("show", found[0]["token"])
        peer.say("register", port=5000)
        assert await peer.kinds() == ["session"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"stream": "none"}, 404, "STREAM_NOT_FOUND"),
        ({}, 400, "INVALID_REQUEST"),
        ({"stream": 1}, 400, "INVALID_REQUEST"),
        ({"stream": "wide", "ttl": 0}, 400, "INVALID_REQUEST"),
        ({"stream": "wide", "ttl": True}, 400, "INVALID_REQUEST"),
        ({"stream": "wide", "label": 1}, 400, "INVALID_REQUEST"),
        ([], 400, "INVALID_REQUEST"),
        (b"{", 400, "INVALID_REQUEST"),
    ],
)
@pytest.mark.parametrize("each_store", ["memory"], indirect=True)
async def test_c_34_a_token_is_not_made_for_what_makes_no_sense(body: Any, status: int, code: str) -> None:
    async with running() as server:
        made = await server.create(streams=["wide", "close"])
        answer = await server.ask("POST", "/api/session/show/token", body, token=made["token"])
        assert (answer.status, answer.error) == (status, code)


async def test_c_57_a_session_has_64_tokens_at_most() -> None:
    async with running() as server:
        made = await server.create()
        for _ in range(62):
            assert (await server.ask("POST", "/api/session/show/token", {}, token=made["token"])).status == 201
        answer = await server.ask("POST", "/api/session/show/token", {}, token=made["token"])
        assert (answer.status, answer.error) == (409, "LIMIT_REACHED")


async def test_c_32_a_revoked_token_is_worthless_and_its_connections_are_dropped() -> None:
    async with running() as server:
        made = await server.create()
        minted = (await server.ask("POST", "/api/session/show/token", {}, token=made["token"])).json["token"]
        kept = await server.join("show", made["peerTokens"]["default"])
        dropped = await server.join("show", minted)
        answer = await server.ask("DELETE", "/api/session/show/token", {"token": minted}, token=made["token"])
        assert answer.status == 204
        assert [frame["code"] for frame in await dropped.heard()] == ["AUTH_FAILED"]
        assert await dropped.ended() == 1000
        assert (await server.ask("GET", "/api/session/show", token=minted)).status == 401
        assert await kept.heard() == []
        for body, status in (({"token": minted}, 404), ({"token": "x"}, 404), ({"token": 1}, 400), ({}, 400)):
            again = await server.ask("DELETE", "/api/session/show/token", body, token=made["token"])
            assert again.status == status
