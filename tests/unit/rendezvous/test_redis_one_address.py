"""Three `punchd-rendezvous` processes on one Redis and behind one address, and clients that go on whatever is killed.

The address is shared by SO_REUSEPORT (socket(7)): the kernel spreads connections and datagrams over the three, and
over those that are left when one is gone.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio

from punchd.rendezvous import client_session
from punchd.rendezvous.client import IdentityLostError, Rendezvous, Timing
from punchd.rendezvous.keeper import Phase
from tests.unit.rendezvous.processes import Server, config_for, server
from tests.unit.rendezvous.redis_server import RedisServer, needs_redis, redis_server

pytestmark = needs_redis

SERVERS = 3
CLIENTS = 5  # each with two connections and a UDP socket: no server is left without any
INTERVAL_S = 25.0  # of a client's pulses, and how long recovering may take
OFTEN = Timing(interval_s=0.5, repeat_s=0.1)


def shared(kind: socket.SocketKind, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", port))
    if kind == socket.SOCK_STREAM:
        sock.listen()
    return sock


@contextmanager
def servers(redis: RedisServer, directory: Path) -> Iterator[list[Server]]:
    """Three of them on the same two ports."""
    config = config_for(redis, directory)
    with ExitStack() as stack:
        started: list[Server] = []
        ports = (0, 0)
        for _ in range(SERVERS):
            http, udp = shared(socket.SOCK_STREAM, ports[0]), shared(socket.SOCK_DGRAM, ports[1])
            started.append(stack.enter_context(server(config, http, udp)))
            ports = (started[0].at.http, started[0].at.udp)
        yield started


@asynccontextmanager
async def clients(at: Server) -> AsyncIterator[list[Rendezvous]]:
    url, udp = f"http://127.0.0.1:{at.at.http}", ("127.0.0.1", at.at.udp)
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Rendezvous.open(url, udp=udp, timing=OFTEN)) for _ in range(CLIENTS)]


async def all_is_well(services: list[Rendezvous], word: str) -> None:
    """Each client's next pulse is accepted, others find it, and it hears the next one's signal: within an interval."""
    since = trio.current_time()

    async def one(service: Rendezvous, other: Rendezvous) -> None:
        keeper = service._session._keeper
        while keeper.phase is not Phase.RESTING or keeper._sent_at < since:  # noqa: ASYNC110 (nobody tells)
            await trio.sleep(0.02)
        mapped = await service.mapped()
        assert mapped.port == service._session._pulses._socket.getsockname()[1]  # type: ignore[union-attr]
        seen = await other.look_up(service.client_id)
        assert seen is not None
        assert [address.endpoint for address in seen] == [mapped]
        await other.send(service.client_id, word)
        signal = await service.receive()
        assert (signal.sender, signal.text) == (other.client_id, word)

    with trio.fail_after(INTERVAL_S):
        async with trio.open_nursery() as nursery:
            for service, other in zip(services, [*services[1:], services[0]], strict=True):
                nursery.start_soon(one, service, other)


async def test_one_server_after_the_other_is_killed_and_its_clients_go_on_at_the_rest(
    redis: RedisServer, tmp_path: Path
) -> None:
    redis.ask("FLUSHALL")
    with servers(redis, tmp_path) as running:
        async with clients(running[0]) as services:
            ids = [service.client_id for service in services]
            await all_is_well(services, "before")
            for number, victim in enumerate(running[1:]):
                victim.kill()
                await all_is_well(services, f"{number + 1} are dead")
            assert [service.client_id for service in services] == ids


async def is_noticed(at: Server) -> None:
    """The servers say that their store is away, and clients have asked since."""
    with trio.fail_after(INTERVAL_S):
        while (await at.at.ask_bytes("GET", "/health"))[0] != 503:  # noqa: ASYNC110 (nobody tells)
            await trio.sleep(0.02)
    await trio.sleep(4 * OFTEN.interval_s)


@pytest.mark.parametrize("outage", ["restarted with its data", "hung"])
async def test_when_redis_was_away_clients_go_on_and_who_waits_for_signals_never_hears_of_it(
    outage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_session, "POLL_S", 1)  # so that clients ask for signals while it is away
    with redis_server(is_durable=True) as redis, servers(redis, tmp_path) as running:
        async with clients(running[0]) as services:
            ids = [service.client_id for service in services]
            await all_is_well(services, "before")
            heard: list[str] = []

            async def wait(service: Rendezvous) -> None:
                heard.append((await service.receive()).text)

            async with trio.open_nursery() as nursery:
                for service in services:
                    nursery.start_soon(wait, service)
                if outage == "hung":
                    redis.pause()
                else:
                    redis.kill()
                await is_noticed(running[0])
                assert not heard
                if outage == "hung":
                    redis.go_on()
                else:
                    redis.start()
                with trio.fail_after(INTERVAL_S):
                    for service in services:
                        await services[0].send(service.client_id, "still there?")
            assert heard == ["still there?"] * CLIENTS
            await all_is_well(services, "after")
            assert [service.client_id for service in services] == ids


async def test_when_redis_lost_its_data_every_client_hears_so_and_is_back_as_soon_as_it_renews(tmp_path: Path) -> None:
    with redis_server() as redis, servers(redis, tmp_path) as running:
        async with clients(running[0]) as services:
            ids = [service.client_id for service in services]
            await all_is_well(services, "before")

            async def lose(service: Rendezvous) -> None:
                with pytest.raises(IdentityLostError, match="has forgotten this client"):
                    await service.receive()

            async with trio.open_nursery() as nursery:
                for service in services:
                    nursery.start_soon(lose, service)
                redis.kill()
                await is_noticed(running[0])
                assert len(nursery.child_tasks) == CLIENTS  # a store that is away has not forgotten anybody
                redis.start()
                nursery.cancel_scope.deadline = trio.current_time() + INTERVAL_S
            assert not nursery.cancel_scope.cancelled_caught
            assert [service.client_id for service in services] == ids  # until they say so
            for service in services:
                await service.renew()
            assert not {service.client_id for service in services} & set(ids)
            await all_is_well(services, "after")
