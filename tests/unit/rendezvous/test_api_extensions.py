"""Signals and aliases over HTTP, the page, and what they refuse."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace

import pytest
import trio
import trio.testing

from punchd.rendezvous import identity
from punchd.rendezvous.identity import Identity
from punchd.rendezvous.settings import Settings
from punchd.web.messages import LongPoll
from tests.unit.rendezvous.parts import GENEROUS, UNIX_S, Member, World, refused, told_by


async def pair(world: World) -> tuple[Member, Member]:
    return await world.register(), await world.register()


def live(settings: Settings | None = None) -> World:
    """A world whose clock is trio's."""
    return World(settings, clock=trio.current_time)


async def fetch(world: World, member: Member, wait_s: int = 0) -> list[tuple[str, str]]:
    told = told_by(await world.get("GET", f"/signals?wait={wait_s}", member))
    return [(one["from"], one["data"]) for one in told["signals"]]


async def poll(world: World, member: Member, wait_s: int) -> LongPoll:
    answer = await world.ask("GET", f"/signals?wait={wait_s}", member)
    assert isinstance(answer, LongPoll)
    return answer


# --- signals ---------------------------------------------------------------------------------------------------------


async def test_d_22_a_signal_gets_to_its_client_once_with_sender_and_age() -> None:
    world = World()
    sender, target = await pair(world)
    response = await world.get("POST", f"/peer/{target.id}/signal", sender, body="grüß".encode())
    assert response.status == 202
    assert told_by(response) == {"timestamp": int(UNIX_S), "ok": True}
    world.clock.now += 3.9
    told = told_by(await world.get("GET", "/signals", target))
    assert told == {"signals": [{"from": sender.id, "data": "grüß", "age": 3}], "ok": True}
    assert await fetch(world, target) == []


async def test_a_long_poll_wakes_at_once_and_else_gives_nothing_in_time(autojump_clock: trio.testing.MockClock) -> None:
    world = live()
    sender, target = await pair(world)

    async def send_later() -> None:
        await trio.sleep(7)
        await world.get("POST", f"/peer/{target.id}/signal", sender, body=b"now")

    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_later)
        assert await fetch(world, target, 25) == [(sender.id, "now")]
    assert trio.current_time() - start == pytest.approx(7)
    assert await fetch(world, target, 25) == []
    assert trio.current_time() - start == pytest.approx(32)
    assert not world.store._waits


async def test_a_wait_is_never_longer_than_the_limit(autojump_clock: trio.testing.MockClock) -> None:
    world = live(Settings(limits=replace(GENEROUS, wait_seconds=60)))
    member = await world.register()
    start = trio.current_time()
    assert await fetch(world, member, 999_999) == []
    assert trio.current_time() - start == pytest.approx(60)


async def test_the_newer_of_two_polls_gets_the_signals(autojump_clock: trio.testing.MockClock) -> None:
    world = live()
    sender, target = await pair(world)
    older: list[tuple[int, str]] = []

    async def wait_first() -> None:
        older.append(refused(await world.get("GET", "/signals?wait=25", target)))

    async def send() -> None:
        await trio.sleep(2)
        assert older == [(409, "REPLACED")]
        await world.get("POST", f"/peer/{target.id}/signal", sender, body=b"x")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_first)
        await trio.sleep(1)
        assert older == []
        nursery.start_soon(send)
        assert await fetch(world, target, 25) == [(sender.id, "x")]


@pytest.mark.parametrize("way", ["logout", "expiry"])
async def test_a_poll_of_a_client_that_goes_ends_at_once(way: str, autojump_clock: trio.testing.MockClock) -> None:
    world = live(Settings(limits=replace(GENEROUS, wait_seconds=600)))
    member = await world.register()
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.store.run)
        poll = await world.ask("GET", "/signals?wait=600", member)
        assert isinstance(poll, LongPoll)
        if way == "logout":

            async def leave() -> None:
                await trio.sleep(5)
                await world.get("POST", "/logout", member)

            nursery.start_soon(leave)
        assert refused(await poll.wait()) == (401, "AUTH_FAILED")
        assert trio.current_time() - start == pytest.approx(5 if way == "logout" else 211, abs=1.5)
        nursery.cancel_scope.cancel()


async def test_a_poll_that_is_cancelled_takes_nothing(autojump_clock: trio.testing.MockClock) -> None:
    world = live()
    sender, target = await pair(world)
    waiting = await poll(world, target, 25)
    with trio.move_on_after(5):
        await waiting.wait()
    await world.get("POST", f"/peer/{target.id}/signal", sender, body=b"x")
    assert await fetch(world, target) == [(sender.id, "x")]
    assert not world.store._waits


async def test_what_did_not_get_out_waits_again_in_its_place() -> None:
    world = World()
    sender, target = await pair(world)
    for body in (b"1", b"2"):
        await world.get("POST", f"/peer/{target.id}/signal", sender, body=body)
    lost = await poll(world, target, 0)
    await lost.wait()
    await world.get("POST", f"/peer/{target.id}/signal", sender, body=b"3")
    assert lost.unsent is not None
    await lost.unsent()
    assert [data for _, data in await fetch(world, target)] == ["1", "2", "3"]


async def test_head_takes_no_signals() -> None:
    world = World()
    sender, target = await pair(world)
    await world.get("POST", f"/peer/{target.id}/signal", sender, body=b"x")
    assert (await world.get("HEAD", "/signals", target)).status == 200
    assert len(await fetch(world, target)) == 1


@pytest.mark.parametrize(
    ("body", "refusal"),
    [
        (b"", (400, "BAD_REQUEST")),
        (b"\xff", (400, "BAD_REQUEST")),
        (b"\xed\xa0\x80", (400, "BAD_REQUEST")),
        (b"x" * 1025, (413, "TOO_LARGE")),
    ],
)
async def test_a_signal_is_1_to_1024_bytes_of_utf_8(body: bytes, refusal: tuple[int, str]) -> None:
    world = World()
    sender, target = await pair(world)
    assert refused(await world.get("POST", f"/peer/{target.id}/signal", sender, body=body)) == refusal
    assert (await world.get("POST", f"/peer/{target.id}/signal", sender, body=b"x" * 1024)).status == 202


async def test_a_full_queue_and_a_full_server_are_told_apart() -> None:
    world = World(Settings(limits=replace(GENEROUS, signal_memory=65_536, signal_queue=32)))
    members = [await world.register() for _ in range(4)]
    path = f"/peer/{members[1].id}/signal"
    for _ in range(32):
        assert (await world.get("POST", path, members[0], body=b"x" * 1000)).status == 202
    assert refused(await world.get("POST", path, members[0], body=b"x")) == (429, "QUEUE_FULL")
    statuses = [
        (await world.get("POST", f"/peer/{members[2].id}/signal", members[0], body=b"x" * 1000)).status
        for _ in range(20)
    ]
    assert statuses.index(503) == 65_536 // 1400 - 32


@pytest.mark.parametrize("wait", ["-1", "x", "1.5", "", "1e3", "9999999"])
async def test_a_wait_that_is_no_number_is_refused(wait: str) -> None:
    world = World()
    member = await world.register()
    assert refused(await world.get("GET", f"/signals?wait={wait}", member)) == (400, "BAD_REQUEST")


# --- aliases ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own() -> Identity:
    return identity.generate()


def claim(
    own: Identity, member: Member, timestamp: int = int(UNIX_S), changes: Mapping[str, object] | None = None
) -> bytes:
    binding = own.bind(bytes.fromhex(member.id), timestamp)
    value = {"public_key": own.public_key.hex(), "timestamp": timestamp, "signature": binding.signature.hex()}
    return json.dumps({**value, **(changes or {})}).encode()


async def test_an_alias_leads_to_its_client_and_anyone_can_check_the_binding(own: Identity) -> None:
    world = World()
    member, other = await pair(world)
    put = told_by(await world.get("PUT", f"/alias/{own.address}", member, body=claim(own, member)))
    got = told_by(await world.get("GET", f"/alias/{own.address.upper()}", other))
    assert put == got
    assert set(got) == {"alias", "client_id", "public_key", "signed_at", "signature", "timestamp", "ok"}
    assert (got["alias"], got["client_id"]) == (own.address, member.id)
    binding = identity.Binding(
        bytes.fromhex(got["client_id"]),
        bytes.fromhex(got["public_key"]),
        got["signed_at"],
        bytes.fromhex(got["signature"]),
    )
    assert binding.is_authentic()
    assert binding.fingerprint == identity.read_address(got["alias"])


async def test_an_alias_survives_its_client_and_the_server_because_the_owner_binds_again(own: Identity) -> None:
    world = World()
    for _ in range(2):
        first, asker = await pair(world)
        await world.get("PUT", f"/alias/{own.address}", first, body=claim(own, first, int(world.clock.unix())))
        await world.get("POST", "/logout", first)
        assert refused(await world.get("GET", f"/alias/{own.address}", asker)) == (404, "NOT_FOUND")
        second = await world.register()
        await world.get("PUT", f"/alias/{own.address}", second, body=claim(own, second, int(world.clock.unix())))
        assert told_by(await world.get("GET", f"/alias/{own.address}", asker))["client_id"] == second.id
        world = World()  # the server, restarted


async def test_an_alias_of_a_client_that_expired_is_gone(own: Identity) -> None:
    world = World()
    member = await world.register()
    await world.get("PUT", f"/alias/{own.address}", member, body=claim(own, member))
    world.clock.now += 210
    assert refused(await world.get("GET", f"/alias/{own.address}", await world.register())) == (404, "NOT_FOUND")
    world.clients.sweep(world.clock.now + 2, 1000)


async def test_nobody_else_can_claim_an_alias(own: Identity) -> None:
    world = World()
    member, thief = await pair(world)
    thief_key = identity.generate()
    body = claim(own, member)
    assert refused(await world.get("PUT", f"/alias/{own.address}", thief, body=body)) == (403, "BAD_SIGNATURE")
    body = claim(thief_key, thief)
    assert refused(await world.get("PUT", f"/alias/{own.address}", thief, body=body)) == (400, "BAD_REQUEST")
    body = claim(own, thief, changes={"public_key": thief_key.public_key.hex()})
    assert refused(await world.get("PUT", f"/alias/{own.address}", thief, body=body)) == (400, "BAD_REQUEST")
    assert len(world.aliases) == 0


@pytest.mark.parametrize(("off_s", "status"), [(-301, 409), (-300, 200), (300, 200), (301, 409)])
async def test_a_binding_must_be_timely(own: Identity, off_s: int, status: int) -> None:
    world = World()
    member = await world.register()
    body = claim(own, member, int(UNIX_S) + off_s)
    assert (await world.get("PUT", f"/alias/{own.address}", member, body=body)).status == status


async def test_the_newer_binding_wins(own: Identity) -> None:
    world = World()
    first, second = await pair(world)
    path, now = f"/alias/{own.address}", int(UNIX_S)
    assert (await world.get("PUT", path, first, body=claim(own, first, now))).status == 200
    assert refused(await world.get("PUT", path, second, body=claim(own, second, now))) == (409, "STALE")
    assert (await world.get("PUT", path, second, body=claim(own, second, now + 1))).status == 200
    assert told_by(await world.get("GET", path, first))["client_id"] == second.id


async def test_a_client_has_few_aliases() -> None:
    world = World(Settings(limits=replace(GENEROUS, aliases_per_client=1)))
    member = await world.register()
    for key, status in ((identity.generate(), 200), (identity.generate(), 409)):
        body = claim(key, member)
        assert (await world.get("PUT", f"/alias/{key.address}", member, body=body)).status == status


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"\xff",
        b"[" * 1000,
        b"{}",
        b"null",
        b'{"timestamp": 1e999}',
        b"{" + b" " * 1100 + b"}",
        b'{"timestamp": NaN}',
    ],
)
async def test_a_claim_that_makes_no_sense_is_refused(own: Identity, body: bytes) -> None:
    world = World()
    member = await world.register()
    assert refused(await world.get("PUT", f"/alias/{own.address}", member, body=body)) == (400, "BAD_REQUEST")


@pytest.mark.parametrize("name", ["timestamp", "public_key", "signature"])
@pytest.mark.parametrize("value", [None, True, -1, 1 << 63, "", "zz", "00", [], {}, 1.5])
async def test_each_member_of_a_claim_is_checked(own: Identity, name: str, value: object) -> None:
    world = World()
    member = await world.register()
    body = claim(own, member, changes={name: value})
    assert refused(await world.get("PUT", f"/alias/{own.address}", member, body=body)) == (400, "BAD_REQUEST")


@pytest.mark.parametrize("name", ["", "x", "punch1", "punch1" + "q" * 38])
async def test_what_is_no_address_is_refused_or_unknown(own: Identity, name: str) -> None:
    world = World()
    member = await world.register()
    assert refused(await world.get("PUT", f"/alias/{name}", member, body=claim(own, member))) == (400, "BAD_REQUEST")
    assert refused(await world.get("GET", f"/alias/{name}", member)) == (404, "NOT_FOUND")


# --- the page --------------------------------------------------------------------------------------------------------


async def test_the_page_loads_nothing_and_its_policy_allows_just_its_style() -> None:
    response = await World().get("GET", "/", headers={"host": "rendezvous.example:5025"})
    page, headers = response.body.decode(), dict(response.headers)
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    [style] = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert headers["Content-Security-Policy"] == (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    assert not re.search(r"<script|<link|<img|<iframe|src=|style=|url\(|@import| on[a-z]+=", page)
    assert "http://rendezvous.example:5025/register" in page
    assert len(page) < 4000


@pytest.mark.parametrize("host", ["<script>", "a b", 'x"y', "", "x" * 300, "a/b"])
async def test_the_page_shows_no_name_that_is_none(host: str) -> None:
    page = (await World().get("GET", "/", headers={"host": host})).body.decode()
    assert "http://THIS-SERVER:5025/register" in page


async def test_the_page_says_how_many_are_online(autojump_clock: trio.testing.MockClock) -> None:
    world = live()
    for number in range(1005):
        member = await world.register()
        if number:
            await world.pulse(member)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.store.run)
        await trio.sleep(6)
        assert "<strong>1,004 clients</strong> online" in (await world.get("GET", "/")).body.decode()
        await trio.sleep(40)
        assert "<strong>0 clients</strong> online" in (await world.get("GET", "/")).body.decode()
        nursery.cancel_scope.cancel()
