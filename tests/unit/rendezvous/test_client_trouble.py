"""The client while datagrams are lost or forged, NATs forget, and servers come and go."""

from __future__ import annotations

import random
import socket
from contextlib import closing

import pytest
import trio

from punchd.rendezvous import client_requests
from punchd.rendezvous.client import IdentityLostError, Rendezvous, Timing, UnreachableError
from punchd.rendezvous.client_pulses import PulsePort
from punchd.rendezvous.keeper import Event
from punchd.rendezvous.pulse import ACCEPTED, SIGNED_SIZE, UNKNOWN, VERIFY, cookie_reply
from punchd.rendezvous.settings import Settings
from punchd.rendezvous.settings import Timing as ServerTiming
from tests.unit.rendezvous.client_parts import LAZY, place, relay
from tests.unit.rendezvous.parts import GENEROUS
from tests.unit.rendezvous.running import until

REVERIFY = Settings(on_address_change="reverify", limits=GENEROUS)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("lost", ["pulses", "replies"])
async def test_lost_pulses_and_lost_replies_are_made_up_for(signed: bool, lost: str) -> None:
    async with place() as server, relay(server.udp) as path:
        setattr(path, f"lose_{lost}", 6)  # so that the client tries another socket, too
        async with server.client(path.port, signed=signed) as one:
            assert (await one.mapped()).port == path.outer_port
            assert len(path.pulses) > 6
            assert {len(one) for one in path.pulses} == {SIGNED_SIZE if signed else 32}


async def test_pulses_go_on_and_one_that_is_lost_costs_nothing() -> None:
    async with place() as server, relay(server.udp) as path, server.client(path.port) as one:
        await one.mapped()
        for _ in range(3):
            path.lose_pulses, seen = 1, len(path.pulses)
            await until(lambda: len(path.pulses) >= seen + 3)  # noqa: B023 (waited for in this turn)
        assert (await one.mapped()).port == path.outer_port


async def test_v_005_d_11_a_client_whose_nat_forgot_it_verifies_and_its_new_address_is_known() -> None:
    async with place(REVERIFY) as server, relay(server.udp) as path, server.client(path.port) as one:
        before = await one.mapped()
        path.rebind()
        with trio.fail_after(20):
            while (now := await one.mapped()) == before:  # noqa: ASYNC110 (the server's own business)
                await trio.sleep(0.02)
        assert now.port == path.outer_port != before.port


async def test_v_005_a_client_that_was_away_for_longer_than_the_interval_verifies_and_is_online_again() -> None:
    # PENDING begins after 1 s, so each pulse of this client is late.
    short = Settings(timing=ServerTiming(interval=1, grace=0, error_time=600), limits=GENEROUS)
    slow = Timing(interval_s=1.3, repeat_s=0.1)
    async with place(short) as server, relay(server.udp) as path, server.client(path.port, timing=slow) as one:
        await one.mapped()
        verified = []
        verify = server.store.verify

        async def counted(key: bytes, ip: object) -> object:
            verified.append(trio.current_time())
            return await verify(key, ip)

        server.store.verify = counted
        await until(lambda: len(verified) >= 2)
        assert one.client_id == one._session._me.client_id
        assert await one.mapped()


@pytest.mark.parametrize("signed", [True, False])
async def test_forged_replies_cannot_end_a_client_or_make_it_send_without_end(signed: bool) -> None:
    chance = random.Random(1060)
    async with place() as server, relay(server.udp) as path:
        path.forged = [UNKNOWN, VERIFY, cookie_reply(b"forged!!"), UNKNOWN, b"", b"x", chance.randbytes(64)] * 3
        path.lose_replies = 10**6
        async with server.client(path.port, signed=signed, timing=LAZY) as one:
            with trio.move_on_after(0.5):
                await one.receive()
            assert len(path.pulses) <= 5
            assert await one.status(one.client_id) is not None
        path.forged = [UNKNOWN, VERIFY, ACCEPTED[:2]]
        path.lose_replies = 0
        async with server.client(path.port, signed=signed) as one:
            assert await one.mapped()
            with trio.move_on_after(0.5):
                await one.receive()
            assert await one.status(one.client_id) is not None


async def wait_until_lost(service: Rendezvous, lost: list[str]) -> None:
    with pytest.raises(IdentityLostError, match="has forgotten this client") as error:
        await service.receive()
    lost.append(str(error.value))


async def test_a_server_that_forgot_everything_ends_the_identity_and_renew_brings_another() -> None:
    async with place() as server, server.client() as one:
        lost: list[str] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_until_lost, one, lost)
            await one.mapped()
            await server.stop()
            await trio.sleep(0.3)
            assert not lost  # a server that is away has not forgotten anybody
            await server.start()
        old = one.client_id
        await one.renew()
        assert one.client_id != old
        await one.send(one.client_id, "it is me")
        assert (await one.receive()).text == "it is me"
        assert await one.mapped()


async def test_d_24_a_pulse_alone_finds_out_that_the_identity_is_lost() -> None:
    async with place() as server, server.client() as one:
        await one.mapped()
        one._session._inbox.extend([None] * 64)  # no more long polls: only pulses talk to the server
        one._session._poll_http.drop()
        await server.stop()
        await server.start()
        await until(lambda: one._session.is_lost)
        with pytest.raises(IdentityLostError):
            await one.mapped()


async def test_a_server_that_remembers_is_found_again_and_who_asks_meanwhile_waits() -> None:
    async with place() as server, server.client() as one, server.client() as other:
        await one.mapped()
        before = one.client_id
        await server.stop()
        answers: list[object] = []
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                answers.append(await one.status(other.client_id))

            nursery.start_soon(ask)
            await trio.sleep(0.5)
            assert not answers
            await server.start(store=server.store)
        assert answers[0] is not None
        await other.send(one.client_id, "still there?")
        assert (await one.receive()).text == "still there?"
        assert one.client_id == before
        await one.mapped()


async def test_who_asks_a_server_that_stays_away_hears_so_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_requests, "PATIENCE_S", 0.6)
    async with place() as server, server.client() as one:
        await server.stop()
        with pytest.raises(UnreachableError, match="Connection refused"):
            await one.status(one.client_id)
        with trio.move_on_after(0.2) as scope:
            await one.receive()  # whereas a signal may come whenever it comes
        assert scope.cancelled_caught


async def test_a_new_address_of_this_host_gets_new_connections_and_a_pulse_at_once() -> None:
    hours = Timing(interval_s=7200, repeat_s=0.1)
    async with place() as server, relay(server.udp) as path, server.client(path.port, timing=hours) as one:
        await one.mapped()
        session = one._session
        before = session._pulses._socket.getsockname()
        await until(lambda: len(server.store._waits) == 1)
        [poll] = server.store._waits.values()
        session._tell(Event.MOVED)
        assert (await one.mapped()).port == path.outer_port
        assert session._pulses._socket.getsockname() != before
        await until(lambda: server.store._waits and poll not in server.store._waits.values())


async def test_a_way_that_was_not_there_and_now_is_counts_as_a_move(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_port: PulsePort) -> None:
        return None

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        port = PulsePort("127.0.0.1", server.getsockname()[1], lambda _reply: None)
        await port.resolve()
        with closing(port):
            with monkeypatch.context() as cut:
                cut.setattr(PulsePort, "_open", none)
                port.send(b"lost")
                assert not port.has_moved()
            assert port.has_moved()
            port.send(b"x")
            assert not port.has_moved()
            assert server.recv(10) == b"x"
