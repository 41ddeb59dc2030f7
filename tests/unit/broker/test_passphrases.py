"""Passphrases: where they come from, that none comes twice, and that nothing keeps one when its session is over."""

from __future__ import annotations

import gc
import json
import secrets
from collections.abc import Iterator

import pytest
from trio.testing import MockClock

from punchd.broker.creation import Creation
from punchd.broker.sessions import Sessions
from tests.unit.broker.contract import TAP
from tests.unit.broker.peer import Peer, settle
from tests.unit.broker.running import running, settings
from tests.unit.broker.test_sockets_times import after


def passphrases(sessions: object, *names: str) -> list[str]:
    assert isinstance(sessions, Sessions)
    return [sessions._live[name].passphrases.of("default") for name in names]


async def test_b_102_each_passphrase_is_32_bytes_of_the_systems_randomness(monkeypatch: pytest.MonkeyPatch) -> None:
    real, sizes = secrets.token_bytes, list[int | None]()

    def drawn(size: int | None = None) -> bytes:
        sizes.append(size)
        return real(size)

    async with running() as server:
        monkeypatch.setattr(secrets, "token_bytes", drawn)
        await server.create()
        assert sizes == [32]


async def test_b_103_of_a_thousand_sessions_no_two_have_the_same_passphrase() -> None:
    async with running(settings({"sessions_per_source": 10**6})) as server:
        names = [f"s{number}" for number in range(1000)]
        for name in names:
            await server.broker.sessions.create(Creation(name, ("default",)), b"\x7f\0\0\1")
        found = passphrases(server.broker.sessions, *names)
    assert len(set(found)) == 1000


def holders(text: str) -> Iterator[str]:
    """The kinds of objects that hold a text or bytes with it, wherever the collector can see them."""
    gc.collect()
    data = text.encode()
    for one in gc.get_objects():
        below = [one]
        while below:
            for inner in gc.get_referents(below.pop()):
                match inner:
                    case str() if text in inner:
                        yield type(one).__qualname__
                    case bytes() | bytearray() if data in inner:
                        yield type(one).__qualname__
                    case dict() | tuple() if not gc.is_tracked(inner):  # of texts only: the collector leaves them out
                        below.append(inner)


def forget(peer: Peer) -> str:
    """Clear what the test itself has of a connection; the passphrase, backwards, so that it is not found here."""
    found = next(json.loads(text)["passphrase"] for text in peer.texts if "passphrase" in text)
    peer.texts.clear()
    TAP.unlogged.discard(found)
    del peer.protocol  # its buffers
    return str(found)[::-1]


@pytest.mark.parametrize("end", ["deleted", "its time is over"])
async def test_b_105_nothing_in_memory_holds_a_passphrase_when_its_session_is_over(
    end: str, mock_clock: MockClock
) -> None:
    async with running() as server:
        made = await server.create(ttl=60)
        peers = [*await server.pair(made), await server.join("show", made["token"])]
        await peers[2].heard()
        for peer in peers[:2]:
            peer.say("ready")
        await server.ask("GET", "/api/session/show/connect?side=a", token=made["token"])
        for peer in peers[:2]:
            await peer.heard()
        assert "Passphrases" in set(holders(passphrases(server.broker.sessions, "show")[0]))
        if end == "deleted":
            await server.ask("DELETE", "/api/session/show", token=made["token"])
        else:
            await after(mock_clock, 60)
        for peer in peers:
            assert await peer.ended() == 1000
        [backwards] = {forget(peer) for peer in peers}
        await after(mock_clock, 1)
        await settle()
        found = list(holders(backwards[::-1]))
        TAP.unlogged.add(backwards[::-1])
        assert found == []
