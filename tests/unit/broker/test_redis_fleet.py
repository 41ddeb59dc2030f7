"""`punchd-broker` as it is started, more than once on one Redis: servers die, Redis dies, sessions go on."""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from pathlib import Path

import pytest
import trio

from punchd.broker import tokens
from punchd.broker.redis_rates import RedisRates
from punchd.broker.settings import Limits
from punchd.broker.windows import Deed
from tests.unit.broker.fleet import Client, Server, fleet, until
from tests.unit.broker.redis_parts import created, join, pair, servers
from tests.unit.broker.running import SECRET
from tests.unit.rendezvous.redis_server import RedisServer, needs_redis, redis_server

pytestmark = needs_redis

REAP_S = 25.0  # 10 s of silence, a beat of each of the two, and much for a busy machine


@pytest.fixture(autouse=True)
def _empty(redis: RedisServer) -> None:
    redis.ask("FLUSHALL")


def test_when_a_server_is_killed_its_peer_is_matched_again_elsewhere_and_one_that_stays_away_is_let_go(
    redis: RedisServer, tmp_path: Path
) -> None:
    with fleet(redis, tmp_path, 3) as [one, two, three]:
        with ThreadPoolExecutor(12) as pool:
            asked = [
                pool.submit(server.ask, "POST", "/api/session", {"name": "show", "streams": ["a", "b"]})
                for server in (one, two, three) * 4
            ]
            found = [future.result() for future in asked]
        made = next(body for status, body in found if status == 201)
        # five of a source and minute, at whichever server; and one of them gets the name
        assert sorted(status for status, _ in found) == [201] + [409] * 4 + [429] * 7
        token, lone_token = made["peerTokens"]["a"], made["peerTokens"]["b"]
        admin = three.join("show", made["token"])
        first, second = one.join("show", token, "127.0.0.11"), two.join("show", token, "127.0.0.12")
        first.say("register", port=5000)
        first.hears("session", connected=1)
        second.say("register", port=6000)
        match = admin.hears("peer_match")
        passphrase = first.hears("peer", ip="127.0.0.12", port=6000)["passphrase"]
        assert second.hears("peer", ip="127.0.0.11")["passphrase"] == match["passphrase"] == passphrase
        first.say("ready")
        second.say("ready")
        first.hears("start")
        second.hears("start")
        second.say("status", srt="connected")
        first.hears("session", state="CONNECTED")
        first.say("health", rtt=20, retransmit=0, bitrate=1e6)
        assert second.hears("health_report")["streams"]["a"]["rtt"] == 20
        admin.say("tally", stream="a", state="program")
        first.hears("tally", state="program")
        second.hears("tally")
        lone = one.join("show", lone_token, "127.0.0.13")
        lone.say("register", port=7000)
        admin.hears("session", connected=3)

        one.kill()
        killed_at = time.monotonic()
        again = three.join("show", token, "127.0.0.11")
        again.say("register", port=5000)
        assert again.hears("peer", ip="127.0.0.12")["passphrase"] == passphrase
        second.hears("peer", ip="127.0.0.11")
        admin.hears("peer_match", stream="a")
        second.hears("session", connected=2)
        took_s = time.monotonic() - killed_at
        print(f"\nthe peer that stayed away was let go after {took_s:.1f} s")
        assert took_s < REAP_S
        assert two.ask("DELETE", "/api/session/show", token=made["token"])[0] == 200
        for client in (admin, second, again):
            assert client.is_closed() == 1000
            assert client.heard[-1] == {"type": "session_closed", "reason": "admin_closed"}
        assert three.ask("GET", "/api/session/show", token=made["token"])[0] == 404


def _matched(one: Server, two: Server) -> tuple[str, Client, Client]:
    made = one.create("show")
    token = made["peerTokens"]["default"]
    first, second = one.join("show", token, "127.0.0.11"), two.join("show", token, "127.0.0.12")
    first.say("register", port=5000)
    second.say("register", port=6000)
    first.hears("peer")
    second.hears("peer")
    return made["token"], first, second


@pytest.mark.parametrize("hang_s", [2, pytest.param(9, marks=pytest.mark.long)])
def test_redis_dies_hangs_and_comes_back_with_its_data_or_without(tmp_path: Path, hang_s: int) -> None:
    with redis_server(is_durable=True) as redis, fleet(redis, tmp_path, 2) as [one, two]:
        admin, first, second = _matched(one, two)
        redis.kill()
        until(lambda: one.ask("GET", "/api/health")[0] == 503)
        status, body = one.ask("GET", "/api/session/show", token=admin)
        assert (status, body["error"]) == (503, "SERVER_ERROR")
        first.say("health", rtt=20, retransmit=0, bitrate=1e6)  # waits
        redis.start()
        assert second.hears("health_report")["streams"]["default"]["rtt"] == 20
        until(lambda: two.ask("GET", "/api/health") == (200, {"status": "ok", "version": "1.0.0"}))
        assert two.ask("GET", "/api/session/show", token=admin)[1]["connected"] == 2

        redis.pause()
        second.say("health", rtt=30, retransmit=0, bitrate=1e6)
        time.sleep(hang_s)
        redis.go_on()
        first.hears("health_report")
        until(lambda: one.ask("GET", "/api/session/show", token=admin)[0] == 200)
        assert one.ask("GET", "/api/session/show", token=admin)[1]["connected"] == 2

        redis.kill()
        for path in (redis.directory / "appendonlydir").iterdir():
            path.unlink()
        redis.start()
        for client in (first, second):
            assert client.is_closed() == 1011
            assert client.heard[-1] == {"type": "session_closed", "reason": "error"}
        until(lambda: two.ask("GET", "/api/health")[0] == 200)
        _matched(two, one)

        redis.pause()
        try:
            for server in (one, two):
                server.process.send_signal(signal.SIGTERM)
            assert [server.process.wait(15) for server in (one, two)] == [0, 0]
        finally:
            redis.go_on()


async def test_b_104_b_105_nothing_that_is_secret_ever_reaches_redis_or_its_disk() -> None:
    with redis_server(is_durable=True, options=("--rdbcompression", "no")) as redis:
        async with servers(redis, 2) as [one, two]:
            made = await created(one)
            admin = await join(two, made)
            first, second = (
                await join(one, made, "cam", "192.0.2.11"),
                await join(two, made, "cam", "2001:db8::5:6:7:8"),
            )
            for ear, port in ((first, 5000), (second, 6000)):
                await ear.say("register", port=port, meta={"canary": "in-a-meta-0123456789"})
            passphrase = next(frame for frame in await first.has_heard("peer") if "passphrase" in frame)["passphrase"]
            await admin.has_heard("peer_match")
            for ear in (first, second):
                await ear.say("ready")
                await ear.say("health", rtt=30, retransmit=0, bitrate=1)
            await second.has_heard("start", "health_report")
            rates = RedisRates(one.store.instance, one.store.changes, Limits())
            addresses = [ip_address("192.0.2.11"), ip_address("2001:db8::5:6:7:8")]
            for address in addresses:
                await rates.allow(Deed.CREATE, address.packed, trio.current_time())
            redis.ask("SAVE")
            keys = redis.ask("KEYS", "*")
            snapshot = (redis.directory / "dump.rdb").read_bytes()
            await one.store.close("show")
            await first.is_closed()
            await pair(one, two, await created(one))
        assert b"show" in keys
        assert b"show" in snapshot
        issued = [made.admin_token, *made.peer_tokens.values()]
        parts = [part for token in issued for part in token.removeprefix("p_").split(".")]
        canaries = [passphrase, "in-a-meta", *parts, SECRET, "192.0.2.11", "2001:db8::5:6:7:8", "5:6:7:8"]
        wanted = [one.encode() for one in canaries]
        wanted += [address.packed for address in addresses]
        wanted += [tokens.digest(token) for token in issued] + [tokens.digest(token).hex().encode() for token in issued]
        files = [path for path in redis.directory.rglob("*") if path.is_file()]
        assert any("aof" in path.name for path in files)
        for data in (keys, snapshot, *(path.read_bytes() for path in files)):
            assert [one for one in wanted if one in data] == []
