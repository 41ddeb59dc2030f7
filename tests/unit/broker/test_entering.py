"""Between the moment when a token is found good and the one when its connection enters, it may cease to be."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

import pytest

from punchd.broker import tokens
from punchd.broker.moves import Connected
from punchd.broker.server_messages import CloseCode, ErrorCode
from punchd.broker.tokens import Role
from tests.unit.broker.peer import settle
from tests.unit.broker.running import Running, running

pytestmark = pytest.mark.usefixtures("each_store")


@dataclass(slots=True)
class Ear:
    """An `Outlet`."""

    heard: list[Any] = field(default_factory=list)

    def deliver(self, text: str, code: ErrorCode | None = None) -> None:
        del code
        self.heard.append(json.loads(text))

    def report(self, text: str) -> None:
        self.deliver(text)

    def close(self, code: CloseCode) -> None:
        self.heard.append(code.value)

    def probe(self) -> None:
        raise AssertionError

    def registered(self) -> None:
        raise AssertionError


async def enter(server: Running, token: str) -> list[Any]:
    """What a connection hears whose token was good a moment ago."""
    store, ear = server.broker.sessions, Ear()
    digest = tokens.digest(token).hex()
    who = Connected(f"{store.prefix}late", Role.PEER, "default", ip_address("192.0.2.1"), digest)
    await store.enter("show", who, ear)
    await settle()
    return ear.heard


async def test_c_32_a_token_that_was_revoked_during_the_upgrade_does_not_enter() -> None:
    async with running() as server:
        made = await server.create()
        token = made["peerTokens"]["default"]
        admin = await server.join("show", made["token"])
        await admin.heard()
        answer = await server.ask("DELETE", "/api/session/show/token", {"token": token}, token=made["token"])
        assert answer.status == 204
        [error, code] = await enter(server, token)
        assert (error["type"], error["code"], code) == ("error", "AUTH_FAILED", 1000)
        admin.say("tally", state="program")
        assert await admin.kinds() == ["tally"]


async def test_c_32_a_token_of_a_former_session_of_the_name_does_not_enter_the_new_one() -> None:
    async with running() as server:
        former = await server.create()
        await server.ask("DELETE", "/api/session/show", token=former["token"])
        made = await server.create()
        [error, code] = await enter(server, former["peerTokens"]["default"])
        assert (error["type"], error["code"], code) == ("error", "AUTH_FAILED", 1000)
        peer = await server.join("show", made["peerTokens"]["default"])
        peer.say("register", port=5000)
        assert (await peer.heard())[0]["connected"] == 1
