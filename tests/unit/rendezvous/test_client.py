"""The client against the real server on loopback: its calls, signals, bound addresses, its beginning and its end."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
import trio

from punchd.errors import ConfigError
from punchd.rendezvous import client_session, identity
from punchd.rendezvous.client import (
    IdentityLostError,
    NotRendezvousError,
    PeerGoneError,
    RefusedError,
    Rendezvous,
    UnreachableError,
)
from punchd.rendezvous.settings import Settings
from tests.unit.rendezvous.client_parts import LAZY, Place, place
from tests.unit.rendezvous.parts import GENEROUS
from tests.unit.rendezvous.running import until


@pytest.mark.parametrize("signed", [True, False])
async def test_a_client_is_online_and_knows_where_it_and_others_are(signed: bool) -> None:
    async with place() as server, server.client(signed=signed) as one, server.client() as other:
        mapped = await one.mapped()
        assert mapped.port == one._session._pulses._socket.getsockname()[1]
        seen = await other.look_up(one.client_id)
        assert seen is not None
        assert [address.endpoint for address in seen] == [mapped]
        presence = await other.status(one.client_id)
        assert presence is not None
        assert presence.is_online
        assert presence.last_online_s in (0, 1, 2, 3)


async def test_a_client_without_a_pulse_has_no_address_and_one_that_never_was_is_none() -> None:
    async with place() as server, server.client() as one:
        silent = await server.store.register(None)
        assert await one.look_up(silent.client_id) == ()
        assert await one.look_up(bytes(16)) is None
        presence = await one.status(silent.client_id)
        assert presence is not None
        assert (presence.is_online, presence.last_online_s) == (False, None)
        assert await one.status(bytes(16)) is None


async def test_signals_come_in_order_also_those_that_wait_for_the_application(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_session, "INBOX", 3)
    async with place() as server, server.client() as one, server.client() as other:
        for number in range(20):
            await other.send(one.client_id, f"{number} é")
        session = one._session
        await until(lambda: len(session._inbox) >= 3)
        waiting = len(session._inbox)
        for number in range(20, 30):
            await other.send(one.client_id, f"{number} é")
        assert len(session._inbox) == waiting  # the rest stays with the server
        with trio.move_on_after(0):
            await one.receive()  # cancelled: nothing is lost
        got = [await one.receive() for _ in range(30)]
        assert [signal.text for signal in got] == [f"{number} é" for number in range(30)]
        assert {signal.sender for signal in got} == {other.client_id}


async def test_what_cannot_be_sent_is_refused_with_a_reason() -> None:
    async with place() as server, server.client() as one:
        with pytest.raises(PeerGoneError, match=rf"{server.url}: there is no client 0+ any more"):
            await one.send(bytes(16), "x")
        with pytest.raises(RefusedError, match="at most 1024 bytes") as refused:
            await one.send(one.client_id, "x" * 1025)
        assert refused.value.status == 413


async def test_an_address_is_bound_resolved_and_moves_to_whom_its_owner_says() -> None:
    me = identity.generate()
    print_of_key = identity.fingerprint(me.public_key)
    async with place() as server, server.client() as one, server.client() as other:
        assert await other.resolve(print_of_key) is None
        await one.bind(me)
        assert await other.resolve(print_of_key) == one.client_id
        await other.bind(me)  # in the same second: the newer claim must win all the same
        assert await one.resolve(print_of_key) == other.client_id
        await one.bind(me)
        assert await other.resolve(print_of_key) == one.client_id


async def test_a_binding_that_the_server_made_up_is_no_answer() -> None:
    me = identity.generate()
    async with place() as server, server.client() as one, server.client() as other:
        await one.bind(me)
        aliases = server.store._aliases
        true = aliases._bindings[identity.fingerprint(me.public_key)]
        stranger = identity.generate().bind(other.client_id, true.timestamp)
        for forged in (dataclasses.replace(true, client_id=other.client_id), stranger):
            aliases._bindings[true.fingerprint] = forged
            with pytest.raises(
                NotRendezvousError, match="expected what the owner of the address signed, got a forgery"
            ):
                await one.resolve(true.fingerprint)


async def test_leaving_logs_out_and_ends_those_who_wait() -> None:
    async with place() as server:
        ended: list[str] = []
        async with trio.open_nursery() as nursery:

            async def wait_for_a_signal(service: Rendezvous) -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await service.receive()
                ended.append("receive")

            async with server.client() as one:
                nursery.start_soon(wait_for_a_signal, one)
                await one.mapped()
        assert ended == ["receive"]
        assert len(server.store._clients) == 0
        with pytest.raises(trio.ClosedResourceError):
            await one.status(one.client_id)


async def test_an_error_in_the_block_comes_out_as_it_is_and_being_cancelled_logs_out_too() -> None:
    async with place() as server:
        with pytest.raises(ZeroDivisionError):
            async with server.client():
                _ = 1 / 0
        with trio.move_on_after(0.2) as scope:
            async with server.client():
                await trio.sleep_forever()
        assert scope.cancelled_caught
        assert len(server.store._clients) == 0


async def test_leaving_takes_about_a_second_at_most_when_the_server_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_session, "LOG_OUT_S", 0.1)
    async with place() as server, server.client() as one:
        await one.mapped()
        monkeypatch.setattr(one._session.requests, "log_out", _never)
        with trio.fail_after(10):
            await one._session.end()


async def _never(_key: bytes) -> None:
    await trio.sleep_forever()


async def test_a_server_that_is_full_says_so_when_one_registers() -> None:
    limits = dataclasses.replace(GENEROUS, clients=1)
    async with place(Settings(limits=limits)) as server, server.client() as one:
        await one.mapped()
        with pytest.raises(RefusedError, match=r"POST /register: refused: there is no room .* \(503 FULL\)"):
            async with server.client():
                pass


async def test_a_client_registers_with_a_server_that_has_too_many_requests_once_there_are_less() -> None:
    limits = dataclasses.replace(GENEROUS, registrations_per_minute=60, registration_burst=1)
    async with place(Settings(limits=limits)) as server, server.client(), server.client() as other:
        assert await other.mapped()


@pytest.mark.parametrize(
    "url",
    [
        "", "rendezvous.example", "ftp://a", "http://", "http://a:0", "http://a:70000", "http://a:b", "http://u@a",
        "http://a/?q", "http://a/#f", "http://[::1", "http://a b", "https://ä.example", "http://a/\r\nx: y", "http://a//b",
    ],
)  # fmt: skip
async def test_what_is_no_url_of_a_server_is_refused_in_one_line(url: str) -> None:
    with pytest.raises(ConfigError, match="expected https://HOST:PORT") as refused:
        async with Rendezvous.open(url):
            pass
    assert "\n" not in str(refused.value)


async def test_a_server_without_pulses_serves_everything_but_the_own_address() -> None:
    async with place() as server, server.client(udp=9, timing=LAZY) as one:
        await one.send(one.client_id, "to myself")
        assert (await one.receive()).text == "to myself"
        with trio.move_on_after(0.1) as scope:
            await one.mapped()
        assert scope.cancelled_caught


async def test_renewing_what_is_not_lost_changes_nothing() -> None:
    async with place() as server, server.client() as one:
        before = one.client_id
        await one.renew()
        assert one.client_id == before


async def test_opening_fails_at_once_when_nobody_listens() -> None:
    async with place(None) as server:
        with pytest.raises(UnreachableError, match=rf"^rendezvous server {server.url}: Connection refused$"):
            async with server.client():
                pass


def test_importing_the_client_loads_neither_cryptography_nor_the_server() -> None:
    program = "import punchd.rendezvous.client, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    heavy = ("cryptography", "asyncio", "websockets", "httptools", "prometheus_client", "punchd.kernel")
    assert [name for name in loaded if name.startswith((*heavy, "punchd.rendezvous.service"))] == []
    web = [name for name in loaded if name.startswith("punchd.web.")]
    assert [name for name in web if not name.startswith("punchd.web.client_")] == []


async def lose(server: Place, service: Rendezvous) -> None:
    """The server forgets a client."""
    await server.store.logout(service._session._me.key)  # type: ignore[union-attr]


async def test_v_006_d_24_a_forgotten_client_hears_it_everywhere_and_renews_when_it_wants() -> None:
    me = identity.generate()
    async with place() as server, server.client() as one, server.client() as other:
        await one.bind(me)
        lost = one.client_id
        await lose(server, one)
        with pytest.raises(IdentityLostError, match="it has forgotten this client"):
            await one.receive()
        for call in (one.mapped, one.receive):
            with pytest.raises(IdentityLostError):
                await call()
        for ask in (one.look_up, one.status):
            with pytest.raises(IdentityLostError):
                await ask(other.client_id)
        with pytest.raises(IdentityLostError):
            await one.send(other.client_id, "x")
        assert one.client_id == lost
        async with trio.open_nursery() as nursery:  # twice at the same time: one new identity
            nursery.start_soon(one.renew)
            nursery.start_soon(one.renew)
        assert one.client_id != lost
        assert len(server.store._clients) == 2
        assert await other.resolve(identity.fingerprint(me.public_key)) == one.client_id
        await other.send(one.client_id, "again")
        assert (await one.receive()).text == "again"
        assert await one.mapped()
