"""An application that goes on using the socket that it has passed in, or passes one that is slow to close."""

from __future__ import annotations

import os
import socket
import struct
import time
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from punchd.attempt.kit import RoundKit
from punchd.attempt.outlook import KnownSide
from punchd.attempt.port import LearningPort
from punchd.config import Config, Limits
from punchd.endpoint import Endpoint
from punchd.errors import DeniedError
from punchd.kernel.passed import PassedSocket
from punchd.kernel.udp import UdpSocket
from punchd.technique import Hole, Kit
from tests.unit.daemon_fixture import CARD, HANG_S, LOCAL, Scripted, server
from tests.unit.passing import INITIATE, let_go, make_linger, send, slow_to_close, udp

UID = os.geteuid()


async def test_a_close_that_lasts_ends_its_connection_and_holds_up_nobody_else(tmp_path: Path) -> None:
    config = Config(accept_sockets=True, limits=Limits(connections_per_user=2))
    async with server(tmp_path, config) as running:
        with await running.connect() as application, await running.connect() as other:
            slow = slow_to_close(4)
            await send(application, INITIATE + "\n", slow.fileno())
            slow.close()
            assert (await application.line()).startswith("error|a|bad-option|sock: expected an unused")
            await other.send("hello|1")
            assert (await other.line()).startswith("ok|-|hello|1|")
            assert await application.rest() == ["error|-|bad-option|sock: the descriptor cannot be closed"]
            with await running.connect() as third:
                assert (await third.line()).startswith("error|-|busy|"), "it counts until it is closed"
            with trio.fail_after(HANG_S):
                while True:
                    with await running.connect() as again:
                        await again.send("cancel|z")
                        if (await again.line()).startswith("error|z|unknown-id"):
                            break
                    await trio.sleep(0.1)
    let_go()


async def _hands_over(technique: Scripted, kit: Kit) -> Hole:
    """When the test says so, as if it had punched."""
    assert isinstance(kit, RoundKit)
    passed = kit._ports.passed
    assert passed is not None
    kit.tell_peer(CARD)
    await technique.go.wait()
    return Hole(passed.borrow().detach(), LOCAL, Endpoint(CARD.address, 40000))


async def test_a_verdict_that_nobody_reads_is_no_way_to_have_a_slow_close_in_the_loop(tmp_path: Path) -> None:
    """The application makes its socket linger, and is gone while the ok line waits to be sent."""
    linger_s = 12
    async with server(tmp_path, Config(accept_sockets=True)) as running:
        wins = running.techniques["wins"]
        wins.script = _hands_over
        with await running.connect() as application, await running.connect() as other:
            with socket.socket() as own:
                await send(application, INITIATE.replace("bound", "wins") + "\n", own.fileno())
                await application.until("progress|a|1|wins|trying")
                make_linger(own, linger_s)
                await application.send(*["cancel|z"] * 35)  # answers that are not read: the ok line waits behind them
                await running.settle(lambda: wins.running == 1)
                await trio.sleep(0.1)
                wins.go.set()
                await running.settle(lambda: wins.running == 0)
                await trio.sleep(0.3)  # whatever the daemon does at the end of an attempt is done
                own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, linger_s))
            application.stream.close()
            begin = trio.current_time()
            for _ in range(5):
                await other.send("cancel|y")
                await other.line()
                await trio.sleep(0.05)
            assert trio.current_time() - begin < linger_s / 2
            let_go()


def test_a_socket_that_is_made_blocking_again_makes_nobody_wait() -> None:
    with udp() as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 20, 0))
        passed = PassedSocket(own.fileno(), UID)
        adopted = UdpSocket(Endpoint.from_sockaddr(("127.0.0.1", 0)), passed)
        own.setblocking(True)
        begin = time.monotonic()
        assert adopted.peek() is None
        adopted.discard()
        adopted.send(b"x", adopted.local)
        assert time.monotonic() - begin < 10
        adopted.close()
        passed.restore()


async def test_a_socket_that_always_looks_readable_is_not_looked_at_all_the_time() -> None:
    with udp() as own:
        passed = PassedSocket(own.fileno(), UID)
        adopted = UdpSocket(Endpoint.from_sockaddr(("127.0.0.1", 0)), passed)
        with suppress(OSError):
            own.shutdown(socket.SHUT_RD)
        port = LearningPort(adopted, KnownSide(adopted.local))
        steps = _Steps()
        trio.lowlevel.add_instrument(steps)
        with trio.move_on_after(0.4):
            await port.peek()
        trio.lowlevel.remove_instrument(steps)
        assert steps.count < 200
        port.close()
        passed.restore()


class _Steps(trio.abc.Instrument):
    count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += 1


def test_a_descriptor_that_is_closed_already_is_refused() -> None:
    with pytest.raises(DeniedError):
        PassedSocket(9999, UID)
