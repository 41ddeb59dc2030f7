"""The client library passes a socket in and gets the same one back, or says that it did not."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from punchd.attempt.kit import RoundKit
from punchd.client import blocking, trio_client
from punchd.client.errors import DaemonProtocolError
from punchd.client.transport import cookie_of
from punchd.endpoint import Endpoint
from punchd.technique import Hole, Kit
from tests.unit.daemon_fixture import CARD, PEER, RunningServer, Scripted, server
from tests.unit.passing import TAKES, udp


async def _hands_over(technique: Scripted, kit: Kit) -> Hole:
    """As a technique that has punched; no packet of this process could reach the peer."""
    assert isinstance(kit, RoundKit)
    passed = kit._ports.passed
    assert passed is not None
    async with kit.udp() as port:
        kit.tell_peer(CARD)
        fd = passed.borrow().detach()
        passed.restore()
        return Hole(fd, port.local, Endpoint(CARD.address, 40000))


@pytest.fixture(name="running")
async def _running(tmp_path: Path) -> AsyncIterator[RunningServer]:
    async with server(tmp_path, TAKES) as running:
        running.techniques["bound"].script = _hands_over
        yield running


async def _nothing(token: str) -> None:
    await trio.lowlevel.checkpoint()


async def test_trio_gets_its_own_socket_back(running: RunningServer) -> None:
    async with trio_client.Daemon.connect(str(running.path)) as daemon:
        with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
            async with daemon.initiate(PEER, 40000, techniques="bound", sock=own) as attempt:
                connected = await attempt.connect(_nothing)
            with connected.socket as same:
                assert cookie_of(same.fileno()) == cookie_of(own.fileno())


@pytest.mark.parametrize("is_blocking", [True, False])
async def test_blocking_gets_its_own_socket_back_as_it_was(running: RunningServer, is_blocking: bool) -> None:
    def play() -> None:
        with blocking.Daemon.connect(str(running.path)) as daemon, udp() as own:
            own.setblocking(is_blocking)
            with daemon.initiate(PEER, 40000, techniques="bound", sock=own) as attempt:
                connected = attempt.connect(lambda token: None)
            with connected.socket as same:
                assert cookie_of(same.fileno()) == cookie_of(own.fileno())
                assert same.getblocking() is os.get_blocking(own.fileno()) is is_blocking

    await trio.to_thread.run_sync(play)


async def test_many_attempts_at_once_get_each_its_own(running: RunningServer) -> None:
    async def play(daemon: trio_client.Daemon) -> None:
        with udp() as own:
            async with daemon.initiate(PEER, 40000, techniques="bound", sock=own) as attempt:
                connected = await attempt.connect(_nothing)
            with connected.socket as same:
                assert cookie_of(same.fileno()) == cookie_of(own.fileno())

    async with trio_client.Daemon.connect(str(running.path)) as daemon, trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(play, daemon)


async def test_another_socket_than_the_one_that_was_passed_in_is_not_trusted(running: RunningServer) -> None:
    """`wins` makes a socket of its own, as a daemon would that does not know the option."""
    async with trio_client.Daemon.connect(str(running.path)) as daemon:
        with trio.socket.socket() as own:
            async with daemon.initiate(PEER, 40000, techniques="wins", sock=own) as attempt:
                with pytest.raises(DaemonProtocolError, match="another socket than the one that was passed in"):
                    await attempt.connect(_nothing)

    def play() -> None:
        with (
            blocking.Daemon.connect(str(running.path)) as daemon,
            socket.socket() as own,
            daemon.initiate(PEER, 40000, techniques="wins", sock=own) as attempt,
            pytest.raises(DaemonProtocolError, match="another socket than the one that was passed in"),
        ):
            attempt.connect(lambda token: None)

    await trio.to_thread.run_sync(play)
