"""The seed's routes: bodies member by member, errors in their order, limits."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_address

import pytest

from punchd import __version__
from punchd.endpoint import Endpoint
from punchd.rendezvous.settings import Limits, Settings
from tests.unit.rendezvous.parts import GENEROUS, UNIX_S, Member, World, origin, refused, told_by

HEX16 = "0123456789abcdef" * 2
SECURED = [
    ("POST", "/verify"),
    ("POST", "/logout"),
    ("GET", f"/peer/{HEX16}/udp"),
    ("GET", f"/peer/{HEX16}/udp/address"),
    ("GET", f"/peer/{HEX16}/udp/status"),
    ("POST", f"/peer/{HEX16}/signal"),
    ("GET", "/signals"),
    ("GET", "/alias/x"),
    ("PUT", "/alias/x"),
]


async def test_v_008_d_03_d_05_register_gives_two_secrets_that_never_come_twice() -> None:
    world = World()
    seen: set[str] = set()
    for _ in range(1000):
        response = await world.get("POST", "/register")
        assert response.status == 200
        told = told_by(response)
        assert set(told) == {"client_id", "private_id", "timestamp", "ok"}
        assert len(bytes.fromhex(told["client_id"])) == 16
        assert len(bytes.fromhex(told["private_id"])) == 32
        assert told["ok"] is True
        assert type(told["timestamp"]) is int
        seen |= {told["client_id"], told["private_id"]}
    assert len(seen) == 2000


async def test_v_009_verify_makes_a_pending_client_online_while_there_is_time() -> None:
    world = World()
    member = await world.register()
    await world.pulse(member)
    world.clock.now += 209.9
    assert told_by(await world.get("GET", f"/peer/{member.id}/udp/status", member))["status"] == "PENDING"
    told = told_by(await world.get("POST", "/verify", member))
    assert told == {"client_id": member.id, "timestamp": int(UNIX_S + 209.9), "ok": True}
    assert told_by(await world.get("GET", f"/peer/{member.id}/udp/status", member))["status"] == "ONLINE"
    world.clock.now += 210
    assert refused(await world.get("POST", "/verify", member)) == (401, "AUTH_FAILED")


async def test_v_010_logout_takes_effect_at_once_everywhere() -> None:
    world = World()
    member, other = await world.register(), await world.register()
    await world.pulse(member)
    await world.get("POST", f"/peer/{member.id}/signal", other, body=b"x")
    assert told_by(await world.get("POST", "/logout", member)) == {"client_id": member.id, "ok": True}
    assert await world.pulse(member) == 1060
    assert refused(await world.get("POST", "/logout", member)) == (401, "AUTH_FAILED")
    assert refused(await world.get("GET", f"/peer/{member.id}/udp", other)) == (404, "NOT_FOUND")
    assert refused(await world.get("GET", f"/peer/{member.id}/udp/status", other)) == (404, "NOT_FOUND")
    assert len(world.signals) == 0


async def test_v_002_v_011_v_016_a_client_learns_its_own_address_as_the_last_pulse_had_it() -> None:
    world = World()
    member = await world.register()
    await world.pulse(member, origin("192.0.2.7", 1111))
    await world.pulse(member, origin("198.51.100.7", 2222))
    world.clock.now += 12.7
    told = told_by(await world.get("GET", f"/peer/{member.id}/udp", member))
    assert told == {
        "client_id": member.id,
        "host": "198.51.100.7",
        "port": 2222,
        "timestamp": int(UNIX_S + 12.7),
        "addresses": [{"family": 4, "host": "198.51.100.7", "port": 2222, "age": 12}],
        "ok": True,
    }


async def test_d_16_the_longer_path_is_an_alias_and_get_register_is_not() -> None:
    world = World()
    member = await world.register()
    await world.pulse(member)
    [first, second] = [
        told_by(await world.get("GET", f"/peer/{member.id}/udp{more}", member)) for more in ("", "/address")
    ]
    assert first == second
    assert refused(await world.get("GET", "/register")) == (405, "METHOD_NOT_ALLOWED")


async def test_d_18_ipv4_comes_first_and_a_family_can_be_asked_for() -> None:
    world = World()
    member = await world.register()
    path = f"/peer/{member.id}/udp"
    await world.pulse(member, origin("2001:db8::7", 6666))
    assert told_by(await world.get("GET", path, member))["host"] == "2001:db8::7"
    assert refused(await world.get("GET", f"{path}?family=4", member)) == (404, "NO_ADDRESS")
    world.clock.now += 3
    await world.pulse(member, origin("192.0.2.7", 4444))
    told = told_by(await world.get("GET", path, member))
    assert (told["host"], told["port"]) == ("192.0.2.7", 4444)
    assert [(one["family"], one["port"], one["age"]) for one in told["addresses"]] == [(4, 4444, 0), (6, 6666, 3)]
    assert told_by(await world.get("GET", f"{path}?family=6", member))["port"] == 6666
    assert refused(await world.get("GET", f"{path}?family=5", member)) == (400, "BAD_REQUEST")


@pytest.mark.parametrize(
    ("seconds", "status", "last_online"),
    [(0, "ONLINE", 0), (12, "ONLINE", 12), (12.999, "ONLINE", 12), (100, "PENDING", 100)],
)
async def test_v_012_d_04_d_06_status_says_how_long_ago_the_last_pulse_was(
    seconds: float, status: str, last_online: int
) -> None:
    world = World()
    member = await world.register()
    await world.pulse(member)
    world.clock.now += seconds
    told = told_by(await world.get("GET", f"/peer/{member.id}/udp/status", member))
    assert told == {
        "client_id": member.id,
        "status": status,
        "last_online": last_online,
        "timestamp": int(UNIX_S + seconds),
        "ok": True,
    }


async def test_d_04_before_the_first_pulse_there_is_no_last_one_and_no_address() -> None:
    world = World()
    member = await world.register()
    told = told_by(await world.get("GET", f"/peer/{member.id}/udp/status", member))
    assert (told["status"], told["last_online"]) == ("PENDING", None)
    assert refused(await world.get("GET", f"/peer/{member.id}/udp", member)) == (404, "NO_ADDRESS")


KEY = "00" * 32
BAD_CREDENTIALS: list[dict[str, str]] = [
    {},
    {"authorization": ""},
    {"authorization": "Bearer"},
    {"authorization": f"Basic {KEY}"},
    {"authorization": KEY},
    {"authorization": f"Bearer {KEY}"},
    {"authorization": f"Bearer {KEY[1:]}"},
    {"authorization": f"Bearer {KEY}00"},
    {"authorization": f"Bearer {KEY[:-1]}g"},
    {"authorization": f"Bearer {KEY} {KEY}"},
    {"authorization": f"Bearer\t{KEY}"},
]


@pytest.mark.parametrize("headers", BAD_CREDENTIALS, ids=str)
@pytest.mark.parametrize(("method", "path"), SECURED)
async def test_v_014_d_12_without_a_good_key_401_comes_before_404(
    method: str, path: str, headers: dict[str, str]
) -> None:
    response = await World().get(method, path, headers=headers)
    assert refused(response) == (401, "AUTH_FAILED")
    assert ("WWW-Authenticate", "Bearer") in response.headers


async def test_d_25_hex_is_lower_case_and_taken_in_any_case_in_path_and_bearer() -> None:
    world = World()
    member = await world.register()
    assert (member.id, member.key) == (member.id.lower(), member.key.lower())
    upper = Member(member.id.upper(), member.key.upper())
    told = told_by(
        await world.get("GET", f"/peer/{upper.id}/udp/status", headers={"authorization": f"bEaRER {upper.key}"})
    )
    assert told["client_id"] == member.id


@pytest.mark.parametrize(
    "name", ["", "0", "0" * 31, "0" * 33, "0" * 32, "g" * 32, "\u0660" * 32, "0" * 31 + "\n", "../x"]
)
@pytest.mark.parametrize("rest", ["udp", "udp/address", "udp/status", "signal"])
async def test_v_015_d_13_who_is_not_there_never_was(name: str, rest: str) -> None:
    world = World()
    member = await world.register()
    method = "POST" if rest == "signal" else "GET"
    assert refused(await world.get(method, f"/peer/{name}/{rest}", member, body=b"x")) == (404, "NOT_FOUND")


async def test_v_015_expired_is_as_never_existed() -> None:
    world = World()
    gone = await world.register()
    world.clock.now += 210
    member = await world.register()
    never = await world.get("GET", f"/peer/{'0' * 32}/udp", member)
    assert await world.get("GET", f"/peer/{gone.id}/udp", member) == never


@pytest.mark.parametrize("path", ["/nothing", "/register/", "/peer", f"/peer/{HEX16}", "//", "/alias", "/Register"])
async def test_an_unknown_route_is_404_without_a_key(path: str) -> None:
    assert refused(await World().get("POST", path)) == (404, "NOT_FOUND")


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/register", "POST, OPTIONS"),
        ("/verify", "POST, OPTIONS"),
        ("/logout", "POST, OPTIONS"),
        (f"/peer/{HEX16}/udp", "GET, HEAD, OPTIONS"),
        (f"/peer/{HEX16}/udp/status", "GET, HEAD, OPTIONS"),
        (f"/peer/{HEX16}/signal", "POST, OPTIONS"),
        ("/signals", "GET, HEAD, OPTIONS"),
        ("/alias/x", "GET, PUT, HEAD, OPTIONS"),
        ("/health", "GET, HEAD, OPTIONS"),
        ("/", "GET, HEAD, OPTIONS"),
    ],
)
async def test_v_017_d_26_a_wrong_method_is_405_and_options_tells_the_right_ones(path: str, allowed: str) -> None:
    world = World()
    for method in {"GET", "POST", "PUT", "DELETE", "PATCH", "QUERY"} - set(allowed.split(", ")):
        response = await world.get(method, path)
        assert refused(response) == (405, "METHOD_NOT_ALLOWED")
        assert ("Allow", allowed) in response.headers
    response = await world.get("OPTIONS", path)
    assert (response.status, response.headers, response.body) == (204, (("Allow", allowed),), b"")


async def test_d_17_d_26_a_query_parameter_for_the_target_and_a_body_are_ignored() -> None:
    world = World()
    member, other = await world.register(body=b"{" * 1024), await world.register()
    told = told_by(await world.get("GET", f"/peer/{member.id}/udp/status?client_id={other.id}", member, body=b"x"))
    assert told["client_id"] == member.id
    assert (await world.get("HEAD", f"/peer/{member.id}/udp/status", member)).status == 200


async def test_health_says_the_version_and_all_is_json_never_to_be_kept() -> None:
    world = World()
    response = await world.get("GET", "/health")
    assert json.loads(response.body) == {"ok": True, "version": __version__}
    for answer in (response, await world.get("POST", "/register"), await world.get("GET", "/x")):
        assert ("Content-Type", "application/json") in answer.headers
        assert ("Cache-Control", "no-store") in answer.headers


async def test_d_23_d_24_a_server_that_restarted_knows_nobody_and_who_registers_again_is_somebody_else() -> None:
    member = await World().register()
    restarted = World(entropy_seed=2)
    assert await restarted.pulse(member) == 1060
    assert refused(await restarted.get("POST", "/verify", member)) == (401, "AUTH_FAILED")
    again = await restarted.register()
    assert {again.id, again.key}.isdisjoint({member.id, member.key})
    assert refused(await restarted.get("GET", f"/peer/{member.id}/udp", again)) == (404, "NOT_FOUND")


async def test_a_full_table_is_503() -> None:
    world = World(Settings(limits=replace(GENEROUS, clients=1)))
    member = await world.register()
    await world.pulse(member)
    assert refused(await world.get("POST", "/register")) == (503, "FULL")


# --- limits ----------------------------------------------------------------------------------------------------------


def limited(**numbers: int) -> World:
    return World(Settings(limits=replace(GENEROUS, **numbers)))


def peer(text: str) -> Endpoint:
    return Endpoint(ip_address(text), 1)


async def test_registrations_are_limited_by_source_and_ipv6_ones_by_network() -> None:
    world = limited(registrations_per_minute=30, registration_burst=10)
    for text, again in (("192.0.2.1", "192.0.2.1"), ("2001:db8::1", "2001:db8:0:0:ffff::1")):
        for _ in range(10):
            assert (await world.get("POST", "/register", peer=peer(text))).status == 200
        response = await world.get("POST", "/register", peer=peer(again))
        assert refused(response) == (429, "RATE_LIMITED")
        assert ("Retry-After", "2") in response.headers
    assert (await world.get("POST", "/register", peer=peer("2001:db8:0:1::1"))).status == 200
    world.clock.now += 2
    assert (await world.get("POST", "/register", peer=peer("192.0.2.1"))).status == 200
    assert world.limited == ["register", "register"]


@pytest.mark.parametrize(
    ("rate", "burst", "method", "path"),
    [
        ("verifications_per_minute", "verification_burst", "POST", "/verify"),
        ("lookups_per_second", "lookup_burst", "GET", f"/peer/{HEX16}/udp"),
        ("lookups_per_second", "lookup_burst", "GET", f"/peer/{HEX16}/udp/status"),
        ("lookups_per_second", "lookup_burst", "GET", "/alias/x"),
        ("signals_per_second", "signal_burst", "POST", f"/peer/{HEX16}/signal"),
        ("bindings_per_minute", "binding_burst", "PUT", "/alias/x"),
    ],
)
async def test_d_21_each_client_is_limited_by_itself(rate: str, burst: str, method: str, path: str) -> None:
    world = limited(**{rate: 1, burst: 3})
    member, other = await world.register(), await world.register()
    for _ in range(3):
        assert (await world.get(method, path, member)).status != 429
    assert refused(await world.get(method, path, member)) == (429, "RATE_LIMITED")
    assert (await world.get(method, path, other)).status != 429


async def test_all_requests_of_a_source_are_limited_before_anything_else() -> None:
    world = limited(requests_per_second=5, request_burst=5)
    statuses = [(await world.get("GET", "/nothing")).status for _ in range(7)]
    assert statuses == [404] * 5 + [429] * 2
    assert (await world.get("GET", "/nothing", peer=peer("192.0.2.2"))).status == 404


async def test_who_asks_too_often_is_not_read_for_a_while_unless_it_is_a_proxy_that_asks_for_many() -> None:
    limits = replace(GENEROUS, requests_per_second=5, request_burst=1)
    world = World(Settings(limits=limits, trusted_proxies=("192.0.2.9",)))
    for _ in range(2):
        direct = await world.get("GET", "/nothing")
        proxied = await world.get("GET", "/nothing", peer=peer("192.0.2.9"), headers={"x-forwarded-for": "192.0.2.7"})
    assert (direct.status, proxied.status) == (429, 429)
    assert direct.pause_s >= 1
    assert proxied.pause_s == 0
    assert (await world.get("POST", "/logout", peer=peer("192.0.2.8"))).pause_s == 0


@pytest.mark.parametrize(
    ("forwarded", "counted"),
    [
        ("198.51.100.9", "198.51.100.9"),
        ("203.0.113.1, 198.51.100.9", "198.51.100.9"),
        ("[2001:db8::9]", "2001:db8::9"),
        ("2001:db8::9", "2001:db8::9"),
        ("", "192.0.2.1"),
        ("unknown", "192.0.2.1"),
        ("1.2.3", "192.0.2.1"),
    ],
)
async def test_behind_a_trusted_proxy_the_last_forwarded_address_counts(forwarded: str, counted: str) -> None:
    settings = Settings(limits=Limits(), trusted_proxies=("192.0.2.1",))
    world = World(replace(settings, require_same_ip=True))
    member = await world.register(headers={"x-forwarded-for": forwarded})
    assert await world.pulse(member, origin(counted, 1)) == 1020
    distrustful = World(Settings(require_same_ip=True))
    member = await distrustful.register(headers={"x-forwarded-for": forwarded})
    assert await distrustful.pulse(member, origin("192.0.2.1", 1)) == 1020
