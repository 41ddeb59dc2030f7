"""Every row of the specification's checklist (B-001 to B-123) and of its decisions (C-01 to C-57) has a test.

A test belongs to a row if its name holds the row's number: `..._b_037_c_35_...`. What no test of the server can have
stands in ELSEWHERE, with the reason.
"""

from __future__ import annotations

import gc
import json
import logging
import re
from pathlib import Path

import pytest

from punchd.broker.server_messages import RESERVED_CLOSE_CODES, CloseCode
from punchd.broker.session import Session
from punchd.broker.sessions import Sessions
from punchd.broker.sockets import CLOSE_CODES
from tests.unit.broker.contract import TAP, Tap
from tests.unit.broker.running import running

ELSEWHERE = {
    "b_067": "hibernation is not implemented",
    "b_068": "hibernation is not implemented",
    "b_115": "about registries, not about programs",
}
GAPS = {9, *range(24, 30), *range(47, 50), *range(74, 80), *range(88, 100), 118, 119}  # numbers that were not given


def test_every_row_has_a_test_or_a_reason() -> None:
    names = [
        name
        for file in Path(__file__).parent.glob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", file.read_text(), re.MULTILINE)
    ]
    told = {row for name in names for row in re.findall(r"(?<=_)(?:b_\d{3}|c_\d{2}a?)(?=_|$)", name)}
    wanted = {f"b_{number:03}" for number in range(1, 124) if number not in GAPS}
    wanted |= {f"c_{number:02}" for number in range(1, 58)} | {"c_26a"}
    assert sorted(wanted - told - set(ELSEWHERE)) == []
    assert sorted(told - wanted) == []
    assert sorted(told & set(ELSEWHERE)) == []


# --- rows about the whole run ----------------------------------------------------------------------------------------


def test_b_069_b_073_c_04_there_are_two_close_codes_and_those_of_a_later_version_are_only_named() -> None:
    assert {code.value for code in CloseCode} == {1000, 1011}
    assert set(RESERVED_CLOSE_CODES) == {4400, 4401, 4404, 4408, 4409, 4429}
    assert set(CLOSE_CODES.values()) == {1011}


def test_b_086_b_117_the_canary_harness_sees_what_it_looks_for() -> None:
    tap = Tap()
    tap.secrets.add("a-secret-of-some-length")
    tap.token("p_payload-payload-payload.signature-signature")
    tap.addresses.add("192.0.2.77")
    tap.codes.add("NO_SUCH_CODE")
    assert tap.stray_codes() == {"NO_SUCH_CODE"}
    with pytest.raises(AssertionError):
        tap.sent(b"xx a-secret-of-some-length xx")
    for name, line, is_fine in (
        ("punchd.broker", "all is well", True),
        ("punchd.broker", "see signature-signature", False),
        ("punchd.broker", "see a-secret-of-some-length", False),
        ("punchd.broker", "GET /x?t=p_abc", False),
        ("punchd.broker", "from 192.0.2.77", False),
        ("punchd.security", "from 192.0.2.77", True),
    ):
        tap.lines.clear()
        tap.emit(logging.LogRecord(name, logging.INFO, "", 0, "%s", (line,), None))
        assert (tap.leaks() == []) is is_fine


async def test_b_086_b_112_b_117_a_whole_life_of_a_session_leaks_nothing() -> None:
    before = len(TAP.lines)
    async with running() as server:
        made = await server.create()
        admin = await server.join("show", made["token"])
        one, _ = await server.pair(made)
        one.say("ready")
        one.send("nonsense")
        await admin.heard()
        await server.ask("GET", f"/api/session/show?t={made['token']}", token=made["token"])
        await server.ask("GET", f"/{made['token']}")
        await server.raw(f"GET /?t={made['token']} HTTP/9.9\r\n\r\n".encode())
        await server.ask("GET", "/api/session/show/connect", token=made["token"])
        await server.ask("DELETE", "/api/session/show", token=made["token"])
    assert len(TAP.lines) > before
    assert TAP.leaks() == []


async def test_c_53_two_peers_behind_one_address_are_told_of_each_other_as_they_are() -> None:
    async with running() as server:
        made = await server.create()
        peers = [await server.join("show", made["peerTokens"]["default"]) for _ in range(2)]
        for port, peer in zip((5000, 6000), peers, strict=True):
            peer.say("register", port=port)
            await peer.kinds()
        [told, _] = await peers[0].heard()
        assert (told["ip"], told["port"], told["localPort"]) == ("127.0.0.1", 6000, 5000)


async def test_c_55_an_admin_is_told_the_passphrase_so_its_token_is_the_medias_key() -> None:
    async with running() as server:
        made = await server.create()
        await server.pair(made)
        admin = await server.join("show", made["token"])
        [match, _] = await admin.heard()
        assert len(match["passphrase"]) == 43


async def test_b_103_b_105_a_passphrase_is_drawn_for_each_session_and_forgotten_with_it() -> None:
    drawn: list[str] = []
    async with running() as server:
        for _ in range(2):
            made = await server.create()
            one, _ = await server.pair(made)
            drawn.append(next(json.loads(text)["passphrase"] for text in one.texts if "passphrase" in text))
            assert isinstance(server.broker.sessions, Sessions)
            kept = server.broker.sessions._live["show"].passphrases
            assert kept.of("default") == drawn[-1]
            await server.ask("DELETE", "/api/session/show", token=made["token"])
            with pytest.raises(KeyError):
                kept.of("default")
        assert drawn[0] != drawn[1]
        assert len(server.broker.sessions) == 0
        gc.collect()
        sessions = [one for one in gc.get_objects() if isinstance(one, Session)]
        assert [one for one in sessions if one.plan.name == "show" and one.facts.members] == []
        state = repr(vars(server.broker.sessions))
        assert [one for one in drawn if one in state] == []
